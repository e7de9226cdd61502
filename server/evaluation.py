"""After a stage: clients answer the questions of the data sets, the server scores the answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from flwr.app import Message

from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark
from fcit.data.checks.before_run import findings
from fcit.errors import CodecError, RunError, Unanswered
from fcit.evaluation.predictions import MAX_TEXT
from fcit.evaluation.reachable import warnings
from fcit.federation import codec
from fcit.federation.messages import Answers, EvaluateOrder
from fcit.methods.base import ServerState
from fcit.runs.folder import RunDir
from server import checkpoint, personal
from server.asking import Asking
from server.checkpoint import Progress
from server.courier import NOBODY, Courier
from server.gather import lost_memory
from server.orders import Orders
from server.personal import PersonalEvaluation
from server.preflight import Preflight
from server.scoring import Parts, score
from server.validation import short
from server.verification import Stretch, Verification


class Evaluation:
    """Has the data sets due answered on the clients' machines and scores the answers.

    Args:
        count: called before each checkpoint: brings the run's time up to now.
    """

    def __init__(
        self,
        config: RunConfig,
        benchmark: Benchmark,
        run: RunDir,
        orders: Orders,
        courier: Courier,
        say: Callable[..., None],
        count: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.benchmark, self.run = config, benchmark, run
        self.orders, self.courier, self.say, self.count = orders, courier, say, count
        self.personal = PersonalEvaluation(config, benchmark, orders, courier, say)

    def begin(self) -> None:
        """Before anything is trained: the event ``data``, then a trial of every scorer and of the clients.

        Raises:
            RunError: something does not work, and for which data set.
            StopRequested: asked to stop.
        """
        self.say("data", **findings(self.benchmark, warnings(self.benchmark)))
        Preflight(self.config, self.benchmark, self.run, self.orders, self.courier, self.say).check()

    def by_site(self, progress: Progress) -> dict[str, object]:
        """Scores of clients' own models, if there are some; the data sets belong to no site."""
        return personal.results(progress)

    def due(self, progress: Progress) -> list[str]:
        """The datasets scored after the stage at hand, in the benchmark's order."""
        return self.orders.due(progress.stage)

    def columns(self, progress: Progress) -> list[str]:
        """The datasets of the whole run."""
        return self.benchmark.evaluation(len(self.benchmark.stages) - 1)

    def begins(self, progress: Progress) -> bool:
        """Whether the untouched model is still to be asked, see :meth:`before`."""
        return not progress.untrained_rows and bool(self.orders.untrained(-1))

    def before(self, state: ServerState, progress: Progress) -> None:
        """Have the untouched model answer what later scores of data sets that are not trained are compared with.

        Raises:
            Unanswered: questions stay without an answer.
            StopRequested: asked to stop.
        """
        self._score(state, progress, [], self.orders.untrained(-1), untouched=True)

    def stage(self, state: ServerState, progress: Progress) -> None:
        """Answer and score what is due after the stage, with a checkpoint after each dataset.

        Raises:
            Unanswered: questions stay without an answer.
            StopRequested: asked to stop.
        """
        self._score(state, progress, self.due(progress), self.orders.untrained(progress.stage))
        self.personal.stage(state, progress)

    def _score(
        self, state: ServerState, progress: Progress, due: list[str], untrained: list[str], untouched: bool = False
    ) -> None:
        left = [name for name in [*due, *untrained] if name not in progress.evaluated]
        after = 0 if untouched else progress.stage + 1
        for answers in self._answers(state, progress, left, untouched):
            name = answers.dataset
            scored = score(self.benchmark, answers, self.run.predictions / f"stage-{after}" / f"{name}.jsonl")
            progress.evaluated.append(name)
            progress.samples += len(answers.texts)
            progress.answer_seconds = round(progress.answer_seconds + answers.seconds, 4)
            if name in due:
                progress.row[name], progress.extra[name] = scored.score, scored.also
                progress.followed[name] = scored.followed
            else:
                progress.untrained[name] = scored.score
                progress.untrained_extra.setdefault(str(after), {})[name] = scored.also
                progress.samples_untrained += len(answers.texts)
            self.say(
                "scored",
                stage=after - 1,
                dataset=name,
                score=scored.score,
                form_share=scored.followed.share,
                content=scored.followed.content,
                mix=scored.mix,
                **({"unrouted": scored.unrouted} if scored.unrouted else {}),
                seconds=round(answers.seconds, 3),
                **({} if name in due else {"trained": False}),
            )
            self.save(state, progress)

    def save(self, state: ServerState, progress: Progress) -> None:
        """Write a checkpoint amid the evaluation."""
        self.count()
        checkpoint.save(self.run, state, progress)

    def _answers(
        self,
        state: ServerState,
        progress: Progress,
        due: list[str],
        untouched: bool = False,
        client: int | None = None,
    ) -> Iterator[Answers]:
        """Answers to whole data sets; stretches of each are given to all clients, or to ``client`` alone."""
        if not due:
            return
        nodes = self.courier.nodes if client is None else [n for n in [self.courier.node(client)] if n != NOBODY]
        if not nodes:
            whom = "no client" if client is None else f"client {client}, which is to answer by itself,"
            raise Unanswered(f"evaluation: {whom} is connected; `fcit resume {self.run.path}` tries again")
        phase = "before" if untouched else str(progress.stage) if client is None else f"{progress.stage}.{client}"
        own = [] if client is None else [client]
        orders = list(
            self.orders.untouched(due, nodes) if untouched else self.orders.evaluate(state, progress, due, nodes, *own)
        )
        parts = {name: Parts(name, sum(order.dataset == name for _, order in orders)) for name in due}
        open_ = {(order.dataset, order.first): (node, order) for node, order in orders}
        reasons: dict[Stretch, str] = {}
        failed: set[int] = set()
        share = self.config.evaluation.verify if client is None else 0.0  # no other one has its factors
        verification = Verification(share, self.courier, self.say)
        verification.post(orders, f"{phase}.verify")
        try:
            while True:
                for reply in self._asked(open_.values(), f"{phase}.evaluate.{len(failed)}"):
                    answer = self._accepted(reply, open_, reasons)
                    if answer is None:
                        continue
                    verification.note(reply.metadata.src_node_id, answer)
                    if (whole := parts[answer.dataset].add(answer)) is not None:
                        yield whole
                if not open_:
                    break
                failed |= {node for node, _ in open_.values()}
                open_ = self._elsewhere(open_, reasons, failed if client is None else {*self.courier.nodes})
            verification.finish(self.config.federation.timeout)
        finally:
            verification.close()

    def _asked(self, orders: Collection[tuple[int, EvaluateOrder]], group: str) -> Iterator[Message]:
        """The replies to these orders."""
        if self.courier.deployed:
            return Asking(self.courier, "evaluate", orders, group).replies()
        return self.courier.send("evaluate", orders, group)

    def _accepted(
        self, reply: Message, open_: dict[Stretch, tuple[int, EvaluateOrder]], reasons: dict[Stretch, str]
    ) -> Answers | None:
        """The answers in a reply, whose stretch is then closed; anything else is noted as the node's failure."""
        node = reply.metadata.src_node_id
        given = {stretch: order for stretch, (its_node, order) in open_.items() if its_node == node}
        if reply.has_error():
            problem = str(reply.error.reason)
        else:
            try:
                answer = codec.decode(reply.content, Answers, reply=True)
            except CodecError as error:
                problem = str(error)
            else:
                stretch = answer.dataset, answer.first
                problem = self._reject_reason(given.get(stretch), answer)
                if not problem:
                    del open_[stretch]
                    return answer
        if not (self.courier.deployed or lost_memory(reply)):
            raise RunError(f"evaluation: {problem}\n`fcit resume {self.run.path}` tries it again")
        # An error does not say which of the node's stretches it is about.
        reasons |= dict.fromkeys(given, problem)
        self.say("evaluate-failed", client=self.courier.client(node), reason=short(problem))
        return None

    def _reject_reason(self, order: EvaluateOrder | None, answer: Answers) -> str:
        """Why answers are rejected; empty if they are not."""
        if order is None:
            return f"answers {answer.dataset[:80]!r} from record {answer.first}, which it was not asked"
        count = min(order.last, len(self.benchmark.test(order.dataset))) - order.first
        if len(answer.texts) != count:
            return f"{len(answer.texts)} answers to {count} questions of {order.dataset}"
        shapes = {"mix": (count, len(order.names))} if order.names else {}
        if {name: t.shape for name, t in answer.tensors.items()} != shapes:
            return f"the mix of {order.dataset} has another shape than {shapes}"
        if any(t.dtype != np.float32 or not np.isfinite(t).all() for t in answer.tensors.values()):
            return f"the mix of {order.dataset} is not made of finite float32 numbers"
        if (longest := max(map(len, answer.texts), default=0)) > MAX_TEXT:
            return f"an answer to {order.dataset} has {longest:,} characters, more than {MAX_TEXT:,}"
        if not 0 <= answer.seconds < float("inf"):
            return f"claims {answer.seconds} seconds"
        return ""

    def _elsewhere(
        self, open_: dict[Stretch, tuple[int, EvaluateOrder]], reasons: dict[Stretch, str], failed: set[int]
    ) -> dict[Stretch, tuple[int, EvaluateOrder]]:
        """The open stretches, given to other nodes than those that have failed.

        Raises:
            Unanswered: there is no other node.
        """
        able = [node for node in self.courier.nodes if node not in failed] if self.courier.deployed else []
        if not able:
            raise Unanswered(self._unanswered(open_, reasons))
        return {s: (able[i % len(able)], order) for i, (s, (_, order)) in enumerate(open_.items())}

    def _unanswered(self, open_: dict[Stretch, Any], reasons: dict[Stretch, str]) -> str:
        names = ", ".join(dict.fromkeys(dataset for dataset, _ in open_))
        silence = f"no answer within {self.config.federation.timeout:.0f} s (federation.timeout)"
        all_reasons = "; ".join(dict.fromkeys(reasons.get(stretch, silence) for stretch in open_))
        return f"evaluation of {names}: {all_reasons}; `fcit resume {self.run.path}` tries again"
