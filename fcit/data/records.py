"""What a client learns from and what a model is asked: records, whatever format of file they came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """A question and its answer; ``images`` of the record's images stand, in order, in front of the question."""

    question: str
    answer: str
    images: int = 0


@dataclass(frozen=True)
class Record:
    """One training example, a conversation: every answer in it is learnt.

    Attributes:
        images: paths relative to the image root, in the order in which the turns hold them; may be none.
        turns: at least one.
        system: what takes the place of the conversation's usual system sentence, if anything does.
    """

    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    system: str = ""

    @classmethod
    def single(cls, image: str, question: str, answer: str) -> Record:
        """One image, one question and its answer."""
        return cls((image,), (Turn(question, answer, 1),))

    @property
    def instructions(self) -> tuple[str, ...]:
        """Its questions."""
        return tuple(turn.question for turn in self.turns)

    def first(self) -> Record:
        """Its first question and answer alone, with all images in front (``data.turns: first``)."""
        turn = self.turns[0]
        return Record(self.images, (Turn(turn.question, turn.answer, len(self.images)),), self.system)


@dataclass(frozen=True)
class TestRecord:
    """One question of a test set.

    Attributes:
        answer: what the scorer compares with.
        references: captions, of which ``answer`` is the first.
        box: the box the question is about, as the file writes it (``answer_bbox``); rules for boxes compare with it.
        size: width and height of the image that the box is relative to, where the file says so.
    """

    question_id: str
    images: tuple[str, ...]
    instruction: str
    answer: str
    references: tuple[str, ...] = ()
    box: str = ""
    size: tuple[float, float] | None = None

    @property
    def image(self) -> str:
        """The first image; empty if there is none."""
        return self.images[0] if self.images else ""

    @property
    def instructions(self) -> tuple[str, ...]:
        """Its question, as a record's questions."""
        return (self.instruction,)
