"""Questions put to the sites of a deployment: a few orders to each at a time, for as long as it answers."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flwr.app import Message, RecordDict

from server.courier import Courier

#: Orders of a node that are on their way: when fewer than the first number are left, it is given as many as the second.
FEW, MOST = 3, 6


class Asking:
    """Orders to nodes, and their replies as they come.

    A site does one order after the other, and the time of an order begins when it is sent. Were all sent at once, an
    evaluation that takes longer than the time of an order would never end: what came too late would be asked again,
    behind what the site still has of the first time and does in vain.

    A node is given up that has not answered for ``federation.timeout``; or that needs more than twice as long as the
    first one that is through, and that timeout more: one that answers just often enough must not hold up the others.

    Args:
        orders: ``(node, order)``.
        read: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        courier: Courier,
        kind: str,
        orders: Iterable[tuple[int, Any]],
        group: str,
        read: Callable[[], float] = time.monotonic,
    ) -> None:
        self._courier, self._kind, self._group, self._read = courier, kind, group, read
        self._seconds = courier.federation.timeout
        self._left: dict[int, deque[Any]] = {}  # by node, what it has not been sent
        for node, order in orders:
            self._left.setdefault(node, deque()).append(order)
        self._sent: dict[int, dict[str, Message]] = {node: {} for node in self._left}  # and not answered, by id
        self._begun = read()
        self._heard = dict.fromkeys(self._left, self._begun)  # when a node answered last
        self._end = math.inf

    def replies(self) -> Iterator[Message]:
        """What comes; orders of a node that is given up stay unanswered.

        Raises:
            StopRequested: asked to stop while waiting.
        """
        try:
            while self._send():
                reply = next(self._courier.replies(self._messages, max(self._until() - self._read(), 0.0)), None)
                if reply is None:
                    self._give_up()
                    continue
                self._note(reply)
                before = self._read()
                yield reply
                self._wait_for(self._read() - before)
        finally:
            self._courier.forget(self._messages, overdue=True)

    @property
    def _messages(self) -> list[Message]:
        return [message for sent in self._sent.values() for message in sent.values()]

    def _send(self) -> bool:
        """Send further orders where they run short, to all nodes together; whether any is not answered.

        Together, because orders share most of their tensors, which are packed once then.
        """
        if any(left and len(self._sent[node]) < FEW for node, left in self._left.items()):
            batch = [
                (node, left.popleft())
                for node, left in self._left.items()
                for _ in range(min(MOST - len(self._sent[node]), len(left)))
            ]
            before = self._read()
            # The last of them has its time after all others.
            for message in self._courier.post(self._kind, batch, self._group, MOST * self._seconds / 2):
                message.content = RecordDict()  # it is at the SuperLink
                self._sent[message.metadata.dst_node_id][message.metadata.message_id] = message
            self._wait_for(self._read() - before)
        return any(self._sent.values())

    def _until(self) -> float:
        """When the next node is given up that does not answer."""
        return min([self._end, *(self._heard[node] + self._seconds for node, sent in self._sent.items() if sent)])

    def _note(self, reply: Message) -> None:
        node, now = reply.metadata.src_node_id, self._read()
        message = self._sent[node].pop(reply.metadata.reply_to_message_id)
        self._courier.forget([message])
        self._heard[node] = now
        if not self._sent[node] and not self._left[node]:
            self._end = min(self._end, now + max(self._seconds, now - self._begun))

    def _wait_for(self, seconds: float) -> None:
        """Let the time not count in which nobody could listen."""
        self._heard = {node: heard + seconds for node, heard in self._heard.items()}
        self._begun, self._end = self._begun + seconds, self._end + seconds

    def _give_up(self) -> None:
        now = self._read()
        for node, sent in self._sent.items():
            if sent and (now >= self._end or now >= self._heard[node] + self._seconds):
                self._courier.forget(list(sent.values()), overdue=True)
                sent.clear()
                self._left[node].clear()
