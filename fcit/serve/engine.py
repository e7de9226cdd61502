"""One thread that answers what waits, a batch at a time."""

from __future__ import annotations

import logging
import shutil
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from fcit.export.assistant import Answer, Assistant
from fcit.export.questions import Question
from fcit.serve.growing import Growing
from fcit.serve.problems import Problem, broken, busy


@dataclass(eq=False)
class Job:
    """A question on its way.

    Attributes:
        folder: its images; removed when it is over.
        end: called once, in the engine's thread, with the answer or what went wrong.
        send: called with parts of the answer before that; None: there are none.
        stops: texts before which the answer ends.
        cancelled: nothing waits for the answer any more; set by whoever waited.
    """

    question: Question
    folder: Path
    end: Callable[[Answer | Problem], None]
    send: Callable[[str], None] | None = None
    stops: tuple[str, ...] = ()
    cancelled: bool = False
    over: bool = field(default=False, init=False)


class Engine:
    """Answers jobs: those that wait when a batch is over are the next batch.

    A batch is decoded together until its last answer ends; answers that end, are stopped or are cancelled leave it, and
    none joins it (the prompts of a batch are computed together, :mod:`fcit.models.decoding.greedy`).

    Args:
        images: folder that the names of the jobs' images are relative to.
        most: jobs that may wait.
    """

    def __init__(self, assistant: Assistant, images: Path, most: int) -> None:
        self.assistant, self.images, self.most = assistant, images, most
        self._waiting: deque[Job] = deque()
        self._running = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="fcit-serve", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Jobs that no batch has taken yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs of the batch that is being answered."""
        return self._running

    def submit(self, job: Job) -> None:
        """Queue a job, whose folder is the engine's from now on.

        Raises:
            Problem: too many wait, or it closes.
        """
        with self._changed:
            if self._closing:
                raise Problem(503, "the server is shutting down", code="shutting_down")
            if len(self._waiting) >= self.most:
                raise busy(len(self._waiting))
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Take nothing in any more, and return when everything taken in is answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            try:
                self._answer([(job, self._growing(job)) for job in jobs if not job.cancelled])
            finally:
                self._running = 0
                for job in jobs:
                    shutil.rmtree(job.folder, ignore_errors=True)

    def _next(self) -> list[Job]:
        """The next batch; empty when there is none to come."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            count = min(len(self._waiting), self.assistant.at_once)
            self._running = count
            return [self._waiting.popleft() for _ in range(count)]

    def _answer(self, batch: list[tuple[Job, Growing]]) -> None:
        """Answer jobs together; where that fails, each by itself, so that none suffers from another."""

        def watch(place: int, tokens: list[int]) -> bool:
            job, growing = batch[place]
            return growing.add(tokens) or job.cancelled

        def done(place: int, answer: Answer) -> None:
            job, growing = batch[place]
            text, stopped = growing.whole(answer.text)
            job.over = True
            job.end(replace(answer, text=text, ended=answer.ended or stopped))

        try:
            self.assistant.respond(self.images, [job.question for job, _ in batch], watch, done)
        except Exception as error:  # whatever a question leads to, the next one is answered
            left = [(job, growing) for job, growing in batch if not job.over]
            if len(batch) > 1:
                logging.getLogger(__name__).warning("a batch could not be answered (%r); each by itself now", error)
                for one in left:
                    self._answer([one])
                return
            logging.getLogger(__name__).exception("a question could not be answered")
            for job, _ in left:
                job.end(broken(error))

    def _growing(self, job: Job) -> Growing:
        return Growing(self.assistant.text, job.stops, job.send if self.assistant.grows else None)
