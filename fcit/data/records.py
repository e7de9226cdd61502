"""What a client learns from and what a model is asked: records, whatever format of file they came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fcit import strict
from fcit.errors import DataError

MAX_IMAGE_BYTES = 100 * 2**20
MAX_PIXELS = 50_000_000  # decoded, 150 MB
#: Formats with a decoder of Pillow's own: its EPS, for one, starts another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


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


def image_path(root: Path, relative: str) -> Path:
    """Resolve an image path inside ``root``.

    Raises:
        DataError: the path or a link on it leaves the root, or no ordinary file is there.
    """
    base = root.resolve()
    name = strict.shown(relative)
    if "\0" in relative or not strict.is_text(relative):
        raise DataError(f"image {name} is not a path")
    try:
        path = (base / relative).resolve()
        if not path.is_relative_to(base):
            raise DataError(f"image {name} leaves the image root {root}; only files inside it are opened")
        if path.is_file():
            return path
        there = path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, links in a circle
        raise DataError(f"image {name} is not a path that can be followed under {root} ({error})") from None
    if there and not path.is_dir():
        raise DataError(f"image {name} is not an ordinary file under {root}; pipes and devices are not opened")
    raise DataError(f"image {name} is missing under {root}")


def open_image(root: Path, relative: str) -> Image.Image:
    """Open an image inside ``root`` as RGB.

    Its size is read from its header and bounded before anything is decoded.

    Raises:
        DataError: outside the root, missing, truncated, too large or not an image.
    """
    path = image_path(root, relative)
    try:
        size = path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise DataError(f"{path}: {size:,} bytes, more than the {MAX_IMAGE_BYTES:,} that are read of an image")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            return image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001  (Pillow's decoders raise whatever a broken file leads them into)
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: not a readable image ({', '.join(FORMATS)}), perhaps truncated: {reason}") from None
