"""After a stage, where there is no global model: clients answer with factors of their own (``factors: fedsa``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flwr.app import Message

from fcit import seeding
from fcit.errors import Unanswered
from fcit.evaluation.following import Followed
from fcit.federation.messages import Answers, EvaluateOrder
from fcit.methods.base import ServerState
from server.checkpoint import Progress
from server.courier import NOBODY
from server.evaluation import Evaluation
from server.gather import lost_memory
from server.scoring import Scored, score
from server.validation import short
from server.verification import Stretch


class PerClientEvaluation(Evaluation):
    """Has some clients answer every data set, each with its own factors; a score is the mean over them.

    Which ones is drawn from (seed, stage) among the clients that have trained and are connected, ``evaluation.clients``
    of them. One that cannot answer is left out, which an event says; one that has lost its factors starts afresh with
    its next order. A crash amid an evaluation repeats it.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._lost = set[int]()  # clients whose last answer was that their factors are gone

    def by_site(self, progress: Progress) -> dict[str, object]:
        """Scores of the single clients by stage and, after the last stage, their means and the worst of them."""
        rows, own = progress.per_client, super().by_site(progress)
        if not rows:
            return own
        means = {client: sum(scores.values()) / len(scores) for client, scores in rows[-1].items() if scores}
        worst = min(means, key=lambda client: means[client])
        return {
            **own,
            "clients": means,
            "worst_client": {"client": worst, "score": means[worst]},
            "clients_by_stage": rows,
        }

    def _score(
        self, state: ServerState, progress: Progress, due: list[str], untrained: list[str], untouched: bool = False
    ) -> None:
        if untouched:
            super()._score(state, progress, due, untrained, untouched)
            return
        left = [name for name in [*due, *untrained] if name not in progress.evaluated]
        if not left:
            return
        by_client = self._by_client(state, progress, left, untrained)
        for name in left:
            self._note(progress, name, [scores[name] for scores in by_client.values()], name in due)
        if due:
            row = {str(client): {name: scores[name].score for name in due} for client, scores in by_client.items()}
            progress.per_client.append(row)
            self.say("per-client", stage=progress.stage, row=row)
        self.save(state, progress)

    def _clients(self, progress: Progress) -> list[int]:
        trained = [client for client in sorted(map(int, progress.memories)) if self.courier.node(client) != NOBODY]
        count = min(self.config.evaluation.clients, len(trained))
        rng = seeding.generator(self.config.seed, "per-client evaluation", progress.stage)
        return sorted(int(client) for client in rng.choice(trained, count, replace=False)) if trained else []

    def _by_client(
        self, state: ServerState, progress: Progress, names: list[str], untrained: list[str]
    ) -> dict[int, dict[str, Scored]]:
        """Scores of data sets by client.

        Raises:
            Unanswered: no client has answered all questions.
        """
        scored: dict[int, dict[str, Scored]] = {}
        for client in self._clients(progress):
            own = dict[str, Scored]()
            try:
                for answers in self._answers(state, progress, names, client=client):
                    own[answers.dataset] = score(self.benchmark, answers, self._file(progress, answers.dataset, client))
                    progress.samples += len(answers.texts)
                    progress.samples_untrained += len(answers.texts) * (answers.dataset in untrained)
                    progress.answer_seconds = round(progress.answer_seconds + answers.seconds, 4)
            except Unanswered as error:
                for name in own:  # answers that count in no score
                    self._file(progress, name, client).unlink(missing_ok=True)
                if client in self._lost:
                    self._lost.remove(client)
                    self.say("memory-lost", client=client, stage=progress.stage, **progress.forget(client))
                self.say("evaluate-failed", client=client, stage=progress.stage, reason=short(str(error)))
                continue
            scored[client] = own
        if not scored:
            raise Unanswered(f"evaluation: no client could answer with its own factors; see {self.run.events}")
        return scored

    def _file(self, progress: Progress, dataset: str, client: int) -> Path:
        return self.run.predictions / f"stage-{progress.stage + 1}" / f"{dataset}.client-{client}.jsonl"

    def _accepted(
        self, reply: Message, open_: dict[Stretch, tuple[int, EvaluateOrder]], reasons: dict[Stretch, str]
    ) -> Answers | None:
        client = self.courier.client(reply.metadata.src_node_id)
        if client is not None and lost_memory(reply):
            self._lost.add(client)
        return super()._accepted(reply, open_, reasons)

    def _note(self, progress: Progress, name: str, scores: list[Scored], due: bool) -> None:
        """Enter the mean over clients into the row at hand."""
        mean = _mean([each.score for each in scores])
        also = {rule: _mean([each.also[rule] for each in scores]) for rule in scores[0].also}
        demanded = scores[0].followed.demanded
        followed = Followed(
            {form: count * len(scores) for form, count in demanded.items()},
            sum(each.followed.kept for each in scores),
            _mean([each.followed.content for each in scores]),
        )
        progress.evaluated.append(name)
        if due:
            progress.row[name], progress.extra[name], progress.followed[name] = mean, also, followed
        else:
            progress.untrained[name] = mean
            progress.untrained_extra.setdefault(str(progress.stage + 1), {})[name] = also
        self.say(
            "scored",
            stage=progress.stage,
            dataset=name,
            score=mean,
            worst=min(each.score for each in scores),
            clients=len(scores),
            form_share=followed.share,
            content=followed.content,
            **({} if due else {"trained": False}),
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
