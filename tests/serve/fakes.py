"""An assistant without a model, which answers when it is let."""

import multiprocessing
from collections.abc import Callable
from types import SimpleNamespace

from fcit.data.collate import Encoded
from fcit.export.assistant import Answer
from fcit.export.questions import Question
from tests.helpers.waiting import LONG

WORDS = ["one", "two", "three", "four"]


class Fake:
    """Answers every question with the same words, a token each; those with "bad" in them raise.

    Attributes:
        began: set when a batch begins.
        go: a batch waits for it before each token.
    """

    at_once = 4
    grows = True
    subspaces = ["0"]
    trained_on: dict[str, dict[str, int]] = {}
    method = SimpleNamespace(name="fake", needs_task_at_inference=False, layout=SimpleNamespace(routed=""))
    routing = SimpleNamespace(pictures="official")

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self.began, self.go = context.Event(), context.Event()
        self.batches: list[int] = []

    def text(self, tokens: list[int]) -> str:
        return " ".join(WORDS[token] for token in tokens)

    def question(self, record, limit: int | None, subspace: str | None, root=None) -> Question:
        return Question(record, Encoded((1, 2, 3)), limit or len(WORDS), subspace)

    def respond(self, root, questions, watch: Callable, done: Callable) -> None:
        self.batches.append(len(questions))
        self.began.set()
        self.go.wait(LONG)
        if any("bad" in question.record.instruction for question in questions):
            raise RuntimeError("made to fail")
        for place, question in enumerate(questions):
            tokens: list[int] = []
            for token in range(min(question.limit, len(WORDS))):
                tokens.append(token)
                if watch(place, tokens):
                    break
            done(place, Answer(self.text(tokens), {"0": 1.0}, 3, len(tokens), len(tokens) == len(WORDS)))
