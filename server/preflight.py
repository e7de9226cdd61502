"""Before the first training step: scorers, images and generation are tried on one record of each data set.

A missing Java or image, a question that is too long or an answer length that does not fit stops the run here
instead of after the hours that its first stage takes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

from flwr.app import Message

from fcit import registry
from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark
from fcit.data.records import TestRecord
from fcit.errors import CodecError, FCITError, RunError
from fcit.evaluation.scorers import Result
from fcit.federation import codec
from fcit.federation.messages import Answers, EvaluateOrder
from fcit.runs.folder import RunDir
from server.courier import Courier
from server.orders import Orders
from server.validation import short

Questions = dict[int, str]  # node -> the data set whose first question it is sent


class Preflight:
    """Tries scorers here, and images and generation at the clients, before anything is trained.

    Args:
        say: called with each event, as kind and values.
    """

    def __init__(
        self,
        config: RunConfig,
        benchmark: Benchmark,
        run: RunDir,
        orders: Orders,
        courier: Courier,
        say: Callable[..., None],
    ) -> None:
        self.config, self.benchmark, self.run = config, benchmark, run
        self.orders, self.courier, self.say = orders, courier, say

    def check(self) -> None:
        """Try everything; one event says what was tried.

        Raises:
            RunError: something does not work; names the data set. Nothing was trained.
            StopRequested: asked to stop.
        """
        begin = time.perf_counter()
        stages = range(len(self.benchmark.stages))
        due = list(dict.fromkeys(name for stage in stages for name in self.orders.due(stage)))
        due = list(dict.fromkeys([*due, *self.orders.untrained(-1)]))
        for name in due:
            self._score(name)
        self._score_own(due)
        self._answer(due)
        self.say("preflight", datasets=due, seconds=round(time.perf_counter() - begin, 3))

    def _stop(self, dataset: str, problem: str) -> RunError:
        return RunError(
            f"before training: data set {dataset!r}: {problem}\n"
            f"nothing was trained; when that is mended, `fcit resume {self.run.path}` begins"
        )

    def _first(self, dataset: str) -> TestRecord:
        return self.benchmark.test(dataset)[0]

    # ------------------------------------------------------------------ scorers, here

    def _score(self, dataset: str) -> None:
        """Have every scorer of a data set judge the first record's own answer.

        A shipped rule that marks single answers is quick and is given all of them: a truth that it cannot read is
        noticed now.
        """
        records, spec = self.benchmark.test(dataset), self.benchmark.owner(dataset).datasets[dataset]
        for name in dict.fromkeys([spec.scorer, *spec.also]):
            result = self._tried(dataset, name, [records[0]])
            if result.marks is not None and not registry.is_own(name):
                self._tried(dataset, name, records)

    def _score_own(self, due: list[str]) -> None:
        """The same with a client's record as a question (``evaluation.personal``): one answer and nothing else."""
        if self.config.evaluation.personal is None or self.orders.method.pooled or not self.orders.method.trains:
            return
        for name in (name for name in due if name in self.benchmark.datasets):
            first = self._first(name)
            answer = first.box or (first.references[0] if first.references else first.answer)
            own = TestRecord(first.question_id, first.images, first.instruction, answer)
            self._tried(name, self.benchmark.datasets[name].scorer, [own], "evaluation.personal: ")

    def _tried(self, dataset: str, name: str, records: Sequence[TestRecord], why: str = "") -> Result:
        answers = [record.references[0] if record.references else record.answer for record in records]
        try:
            result = registry.resolve("scorer", name)(answers, records)
            if not isinstance(result, Result) or not math.isfinite(result.score):
                raise RunError(f"must return a Result with a finite score, got {result!r:.200}")
        except FCITError as error:
            raise self._stop(dataset, f"{why}scorer {name!r}: {error}") from None
        except Exception as error:  # (a scorer of the user's own may raise anything)
            raise self._stop(dataset, f"{why}scorer {name!r}: {type(error).__name__}: {error}") from error
        return result

    # ------------------------------------------------------------------ images and generation, at the clients

    def _answer(self, due: list[str]) -> None:
        """Have the first question of every data set answered by the backbone as it came, without subspaces."""
        if not self.courier.nodes:
            raise RunError(f"before training: no client is connected; `fcit resume {self.run.path}` tries again")
        failed: dict[str, tuple[int, str]] = {}
        for questions in self._spread(due):
            failed |= self._ask(questions)
        # A fault of one site does not stop the run as long as another can answer.
        doubtful = {node for node, _ in failed.values()}
        able = [node for node in self.courier.nodes if node not in doubtful] if self.courier.deployed else []
        for node in able:
            for dataset in list(failed):
                again = self._ask({node: dataset})
                failed |= again
                if again:
                    break  # the next node is tried
                del failed[dataset]
        for dataset, (_, problem) in failed.items():
            record = self._first(dataset)
            about = f" about image {record.image[:200]!r}" if record.image else ""
            sentence = f"question {record.question_id!r}{about} got no answer: {problem}"
            owner = self.benchmark.owner(dataset)
            check = f"`fcit data check {owner.config.benchmark} --root {owner.root} --all` looks at all images"
            look = "`fcit client check SITE.yaml` at the site says more" if self.courier.deployed else check
            raise self._stop(dataset, f"{sentence}\n{look}")

    def _spread(self, due: list[str]) -> Iterator[Questions]:
        """Groups in which no node occurs twice: an error does not name its question."""
        nodes = self.courier.nodes
        for at in range(0, len(due), len(nodes)):
            yield dict(zip(nodes, due[at : at + len(nodes)], strict=False))

    def _ask(self, questions: Questions) -> dict[str, tuple[int, str]]:
        """Ask the nodes; returns the data sets that got no usable answer, each with the node and the reason."""
        silent = f"no answer within {self.config.federation.timeout:.0f} s (federation.timeout)"
        open_ = {dataset: (node, silent) for node, dataset in questions.items()}
        # One record, no subspaces, no tensors: an ordinary question to the backbone as it came.
        orders = [
            (
                node,
                EvaluateOrder(
                    config=self.orders.text,
                    dataset=dataset,
                    first=0,
                    last=1,
                    task="",
                    names=[],
                    knowledge={},
                    tensors={},
                    run=self.orders.run,
                ),
            )
            for node, dataset in questions.items()
        ]
        for reply in self.courier.send("evaluate", orders, "preflight"):
            node = reply.metadata.src_node_id
            dataset = questions[node]
            problem = _problem(reply, dataset)
            if not problem:
                del open_[dataset]
                continue
            open_[dataset] = node, problem
            if self.courier.deployed:
                self.say("evaluate-failed", client=self.courier.client(node), reason=short(problem))
        return open_


def _problem(reply: Message, dataset: str) -> str:
    """Why a reply is no answer to one question of a data set; empty if it is."""
    if reply.has_error():
        return str(reply.error.reason)
    try:
        answers = codec.decode(reply.content, Answers, reply=True)
    except CodecError as error:
        return str(error)
    if (answers.dataset, answers.first, len(answers.texts)) != (dataset, 0, 1):
        got = f"{len(answers.texts)} answers to {answers.dataset[:80]!r} from record {answers.first}"
        return f"{got}; one answer to the first was asked for"
    return ""
