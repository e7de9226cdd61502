"""Answers that one site gave alone, compared with those of another site for a share of the questions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Message

from fcit.errors import CodecError
from fcit.federation import codec
from fcit.federation.messages import Answers, EvaluateOrder
from server.courier import Courier
from server.validation import short

Stretch = tuple[str, int]  # dataset and first record
#: Two sites' shares of a subspace in a mix may differ by this much: their number formats may differ.
_CLOSE = 0.01
_LEAST = 10.0  # seconds for which outstanding answers are waited for at the end


@dataclass
class _Pair:
    """A stretch that two nodes answer; ``answers`` are those that are scored, and ``by`` the node that gave them."""

    second: int
    answers: Answers | None = None
    by: int | None = None


class Verification:
    """Has a share of the stretches of one evaluation answered by a second site of a deployment.

    Which ones and by whom is drawn from the system's randomness: a site that knows the configuration must not know
    which of its answers are compared. The first site's answers are scored in any case.

    Args:
        share: of the stretches, 0 for none; else at least one is compared.
        say: called with each event, as kind and values.
    """

    def __init__(self, share: float, courier: Courier, say: Callable[..., None]) -> None:
        self.share, self.courier, self.say = share, courier, say
        self._began = time.monotonic()
        self._messages: list[Message] = []
        self._pairs: dict[Stretch, _Pair] = {}

    def post(self, orders: Sequence[tuple[int, EvaluateOrder]], group: str) -> None:
        """Draw stretches and send each order to another node than its own."""
        nodes = self.courier.nodes
        if not self.share or not self.courier.deployed or len(nodes) < 2:
            return
        draw = random.SystemRandom()
        drawn = draw.sample(list(orders), max(1, round(self.share * len(orders))))
        again = [(draw.choice([n for n in nodes if n != node]), order) for node, order in drawn]
        self._pairs = {(order.dataset, order.first): _Pair(second) for second, order in again}
        self._messages = self.courier.post("evaluate", again, group, self.courier.federation.timeout)

    def note(self, node: int, answers: Answers) -> None:
        """Keep a node's answers that are scored, if they are to be compared."""
        pair = self._pairs.get((answers.dataset, answers.first))
        if pair is not None:
            pair.answers, pair.by = answers, node

    def finish(self, timeout: float) -> None:
        """Compare; second answers that are lacking are waited for as long again as the evaluation took.

        Args:
            timeout: seconds, at most.
        """
        patience = min(timeout, max(_LEAST, time.monotonic() - self._began))
        found = [self._compare(reply) for reply in self.courier.replies(self._messages, patience)]
        if self._pairs:
            compared = [problem for problem in found if problem is not None]
            differing = sum(map(bool, compared))
            self.say("verified", asked=len(self._pairs), compared=len(compared), differing=differing)

    def close(self) -> None:
        """Look for no second answers any more."""
        self.courier.forget(self._messages)

    def _compare(self, reply: Message) -> str | None:
        """How the answers of two sites to a stretch differ, which is told; None if there are no two answers."""
        node = reply.metadata.src_node_id
        client = self.courier.client(node)
        try:
            if reply.has_error():
                raise CodecError(str(reply.error.reason))
            theirs = codec.decode(reply.content, Answers, reply=True)
        except CodecError as error:
            self.say("evaluate-failed", client=client, reason=short(str(error)))
            return None
        pair = self._pairs.get((theirs.dataset, theirs.first))
        if pair is None or pair.second != node or pair.answers is None or pair.by in (None, node):
            return None  # not asked, or its stretch went to the same node when the first one failed
        problem = difference(pair.answers, theirs)
        if problem:
            clients = [self.courier.client(pair.by), client]
            self.say("answers-differ", clients=clients, dataset=theirs.dataset, first=theirs.first, reason=problem)
        return problem


def difference(ours: Answers, theirs: Answers) -> str:
    """How two answers to one stretch differ; empty if they do not."""
    where = f"{ours.dataset} from record {ours.first}"
    if len(ours.texts) != len(theirs.texts):
        return f"{len(ours.texts)} and {len(theirs.texts)} answers to {where}"
    other = [i for i, (a, b) in enumerate(zip(ours.texts, theirs.texts, strict=True)) if a != b]
    if other:
        at = other[0]
        return (
            f"{len(other)} of {len(ours.texts)} answers to {where} (first: record {ours.first + at}, "
            f"{ours.texts[at][:80]!r} and {theirs.texts[at][:80]!r})"
        )
    mix, other_mix = (answers.tensors.get("mix", np.zeros(0)) for answers in (ours, theirs))
    if mix.shape != other_mix.shape or not np.allclose(mix, other_mix, atol=_CLOSE):
        return f"the mix of {where}"
    return ""
