"""Orders that sites of a deployment are at work on, one each, and the next answer to any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from flwr.app import Message, RecordDict

from fcit.federation.messages import TrainOrder
from server.courier import Courier
from server.participants import Slot


@dataclass(frozen=True)
class Errand:
    """An order that a site was sent, or the question about its shard that comes before it.

    Attributes:
        name: of the order.
        order: None: the site is asked to describe its shard.
        message: in which it was sent, at this time.
    """

    name: str
    slot: Slot
    order: TrainOrder | None
    message: Message
    sent: float


class Answer(NamedTuple):
    """What came of an errand: a reply, which may be an error, or None: it was waited for in vain."""

    errand: Errand
    reply: Message | None


class Errands:
    """What sites are at work on; one that is dropped or overdue keeps its site busy until it is answered.

    Flower cannot call an order back, and a site does one after the other: what it is sent meanwhile would wait. A site
    that was restarted has lost its order, for which the courier gives an error; one that stays silent is free again
    when its order has expired.

    Args:
        seconds: for which an answer is waited for (``federation.timeout``).
        discard: called with what was answered after all although it was dropped or overdue.
        read: seconds of a clock that never goes back.
    """

    def __init__(
        self, courier: Courier, seconds: float, discard: Callable[[Errand], None], read: Callable[[], float]
    ) -> None:
        self._courier, self._seconds, self._discard, self._read = courier, seconds, discard, read
        self._open: dict[str, Errand] = {}  # by the id of the message
        self._stale: dict[str, Errand] = {}  # dropped or overdue

    @property
    def open(self) -> int:
        """Errands whose answers are of use."""
        return len(self._open)

    @property
    def busy(self) -> set[int]:
        """Clients that may be at work, with those whose errand is dropped or overdue."""
        return {errand.slot.client for errands in (self._open, self._stale) for errand in errands.values()}

    def send(self, name: str, slot: Slot, kind: str, node: int, content: Any) -> None:
        """Send a site an order, or a question about its shard, without waiting for the answer."""
        [message] = self._courier.post(kind, [(node, content)], name, timeout=self._seconds)
        message.content = RecordDict()  # it is at the SuperLink; here its bytes would wait for the answer
        order = content if isinstance(content, TrainOrder) else None
        self._open[message.metadata.message_id] = Errand(name, slot, order, message, self._read())

    def next(self, seconds: float) -> Answer | None:
        """The next answer, or an errand that is overdue; None if within so many seconds there is neither.

        Raises:
            StopRequested: asked to stop while waiting.
        """
        self._expire()
        messages = [errand.message for errand in (*self._open.values(), *self._stale.values())]
        left = min([seconds, *(self._left(errand) for errand in self._open.values())])
        reply = next(self._courier.replies(messages, max(left, 0.0)), None)
        if reply is None:
            return self._overdue()
        order = reply.metadata.reply_to_message_id
        errand = self._open.pop(order, None)
        if errand is not None:
            self._courier.forget([errand.message])
            return Answer(errand, reply)
        errand = self._stale.pop(order)
        self._courier.forget([errand.message])
        if reply.has_content():
            self._discard(errand)
        return None

    def drop(self) -> None:
        """Wait for no answer any more; sites are busy until they have answered."""
        for order in list(self._open):
            self._shelve(order)

    def _shelve(self, order: str) -> Errand:
        """An errand's answer will be of no use, and so its tensors."""
        errand = self._open.pop(order)
        self._stale[order] = replace(errand, order=None)
        return errand

    def _left(self, errand: Errand) -> float:
        """Seconds until an errand is overdue."""
        return errand.sent + self._seconds - self._read()

    def _overdue(self) -> Answer | None:
        for order, errand in self._open.items():
            if self._left(errand) <= 0:
                return Answer(self._shelve(order), None)
        return None

    def _expire(self) -> None:
        """Forget what its site will not be handed any more."""
        for order, errand in list(self._stale.items()):
            if self._read() - errand.sent > errand.message.metadata.ttl:
                self._courier.forget([self._stale.pop(order).message])
