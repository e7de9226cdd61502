"""Every record is tokenised and checked once before training: can it be learnt, can it be answered?

Verdicts are cached by the file they are about, and by its image files where a model's tokens depend on their sizes,
with the tokens (:mod:`fcit.models.tokens`) beside them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fcit import config as configuration
from fcit.data import formats
from fcit.data.collate import Encoded, images_of
from fcit.data.images.sizes import ImageSizes
from fcit.data.records import Record, TestRecord
from fcit.data.verdict import Verdict
from fcit.errors import DataError
from fcit.io import bounded, collector
from fcit.io.cache import Bounded, cache_folder, trim
from fcit.models import hashes
from fcit.models.encoding import Encoder
from fcit.models.places import locate
from fcit.models.tokens import Conversation, Entry, Tokenised, Tokens, written

T = TypeVar("T")

VERSION = 3  # raised when checks, tokens or their format on disk change
KEPT_FROM = 200  # records from which verdict and tokens are cached on disk
REMEMBERED = 200_000  # verdicts in memory; every record named in one counts as one more
MOST_BYTES = 8 * 1024**3  # of verdicts and tokens on disk, of all models and data
SHOWS_BAR = 5000  # records from which a terminal shows progress
#: Words that open a turn; a model that learns them continues with the next question.
_ROLES = re.compile(r"\b(USER|ASSISTANT):")


#: Whether tokens depend on images' sizes, by mark.
_sized: dict[str, bool] = {}


class Memory(NamedTuple):
    """What a process has computed for records under one mark."""

    tokens: Tokens
    verdicts: Bounded


@lru_cache(maxsize=4)
def _memory(folder: Path) -> Memory:
    """Shared by all judges of a process that use the same cache folder."""
    verdicts = Bounded(REMEMBERED, lambda v: 1 + len(v.problems) + len(v.warnings) + len(v.dropped))
    return Memory(Tokens(folder), verdicts)


class TokenJudge:
    """Judges with a model's tokenizer, see :class:`fcit.data.verdict.Judge`, and provides the tokens of records.

    Args:
        mark: identifies tokenizer, template and settings, under which verdicts and tokens are cached.
        make: the encoder; made when something has to be tokenised.
        sizes: of the records' images, for models whose prompts depend on them; None: all are typical ones.
    """

    def __init__(self, mark: str, make: Callable[[], Encoder], sizes: ImageSizes | None = None) -> None:
        self.mark, self._make, self._sizes = mark, make, sizes

    @cached_property
    def encoder(self) -> Encoder:
        """The tokeniser of records."""
        made = self._make()
        return made if self._sizes is None else made.below(self._sizes)

    def below(self, root: Path) -> TokenJudge:
        """The judge of records with images below another root."""
        if self._sizes is None or self._sizes.root == root:
            return self
        return TokenJudge(self.mark, self._make, ImageSizes(root, self._sizes.way))

    @cached_property
    def _sized(self) -> bool:
        """Whether tokens depend on images' sizes, by the name of their folder or else by the encoder.

        The encoder takes seconds to make, and where everything has been judged none is needed.
        """
        if self.mark not in _sized:
            folder = cache_folder() / "judged" / self.mark
            _sized[self.mark] = _beside(folder).is_dir() or (not folder.is_dir() and self.encoder.sized)
        return _sized[self.mark]

    @property
    def _folder(self) -> Path:
        folder = cache_folder() / "judged" / self.mark
        return _beside(folder) if self._sized else folder

    def stamp(self, records: Iterable[Conversation]) -> str:
        """Names the present files of images that the records' tokens depend on; empty where they depend on none."""
        if not self._sized or self._sizes is None:
            return ""
        return self._sizes.stamp(image for record in records for image in record.images)

    def _sizes_of(self, record: Conversation) -> list[tuple[int, int]]:
        """Of a record's images; (0, 0) for one that cannot be read, whose record cannot be tokenised either."""
        if not self._sized or self._sizes is None:
            return []
        sizes = []
        for image in record.images:
            try:
                sizes.append(self._sizes.of(image))
            except DataError:
                sizes.append((0, 0))
        return sizes

    def examples(self, records: Sequence[Conversation]) -> Tokenised:
        """The tokens of records that can all be used.

        Raises:
            DataError: one cannot.
        """
        entries = []
        for entry in self._entries(records):
            if isinstance(entry, str):
                raise DataError(entry)
            entries.append(entry)
        if len(entries) >= KEPT_FROM:
            _memory(self._folder).tokens.keep()
        return Tokenised(entries)

    def usable(self, records: Sequence[Record]) -> list[bool]:
        """Whether each record can be learnt, whole."""
        examples = self._encoded(records)
        return [
            not isinstance(example, str) and not example.dropped and not self._problem(record, example)
            for record, example in zip(records, examples, strict=True)
        ]

    def _entries(self, records: Iterable[Conversation]) -> Iterator[Entry | str]:
        return _memory(self._folder).tokens.entries(records, lambda new: self.encoder.encoded(new), self._sizes_of)

    def _encoded(self, records: Sequence[Conversation]) -> Iterator[Encoded | str]:
        entries = self._entries(_followed(records, len(records)))
        return (entry if isinstance(entry, str) else entry.example for entry in entries)

    def train(self, origin: Sequence[object], places: Sequence[int], records: Sequence[Record]) -> Verdict:
        """Verdict on training records."""
        about = "train", *origin, _short(places)
        return self._remembered(about, records, lambda: self._trained(places, records))

    def test(self, origin: Sequence[object], records: Sequence[TestRecord], limit: int) -> Verdict:
        """Verdict on test questions."""
        return self._remembered(("test", *origin, limit), records, lambda: self._asked(records, limit))

    def _trained(self, places: Sequence[int], records: Sequence[Record]) -> Verdict:
        verdict = Verdict(count=len(records))
        encoded = self._encoded(records)
        for place, record, example in zip(places, records, encoded, strict=True):
            problem = example if isinstance(example, str) else self._problem(record, example)
            if problem:
                verdict.problems[place] = problem
                continue
            assert not isinstance(example, str)
            _count(verdict, example)
            if example.dropped:
                verdict.dropped[place] = example.dropped
        return verdict

    def _problem(self, record: Record, example: Encoded) -> str:
        """Why a tokenised record cannot be learnt; empty if it can."""
        for turn in record.turns:
            for word in self._special:
                if word in turn.answer:
                    return f"the answer {turn.answer[:80]!r} holds {word!r}, a special token of the tokenizer"
            role = _ROLES.search(turn.answer) if self._speaks_roles else None
            if role:
                return f"the answer {turn.answer[:80]!r} holds {role[0]!r}, which opens the next turn of a conversation"
        return self._pictured(example)

    def _pictured(self, example: Encoded) -> str:
        wanted = sum(self.encoder.placeholders.count(image) for image in images_of([example]))
        placeholders = example.tokens.count(self.encoder.image_token)
        return (
            ""
            if placeholders == wanted
            else f"{placeholders} placeholders of images among its tokens, {wanted} are its images' own"
        )

    def _asked(self, records: Sequence[TestRecord], limit: int) -> Verdict:
        verdict = Verdict(count=len(records))
        first: dict[str, int] = {}
        encoded = self._encoded(records)
        answers = self.encoder.lengths(record.answer for record in records)
        for place, (record, example, length) in enumerate(zip(records, encoded, answers, strict=True)):
            problem = example if isinstance(example, str) else self._pictured(example)
            if problem:
                verdict.problems[place] = problem
                continue
            assert not isinstance(example, str)
            _count(verdict, example)
            if first.setdefault(record.question_id, place) != place:
                verdict.warnings[place] = (
                    f"question_id {record.question_id!r} is that of record {first[record.question_id]}, too: "
                    "the official scripts would score both by the last one's answer"
                )
            elif not record.references and length > limit:
                verdict.warnings[place] = (
                    f"the true answer {record.answer[:80]!r} has {length} tokens, {limit} are allowed (max_new_tokens)"
                )
        return verdict

    @cached_property
    def _special(self) -> list[str]:
        """Texts that the tokenizer turns into special tokens."""
        return sorted(set(self.encoder.tokenizer.all_special_tokens))

    @cached_property
    def _speaks_roles(self) -> bool:
        """Whether the model's conversation has turns opened by USER: and ASSISTANT:."""
        pieces = self.encoder.pieces(TestRecord("", (), "x", ""))
        return any(_ROLES.search(piece.text) for piece in pieces)

    # ------------------------------------------------------------------ memory

    def _remembered(
        self, origin: tuple[object, ...], records: Sequence[Conversation], judge: Callable[[], Verdict]
    ) -> Verdict:
        """A verdict from memory or from the cache, or a new one, which is cached if it covers many records."""
        stamp = self.stamp(records)
        file = self._folder / f"{_short((formats.VERSION, *origin, *([stamp] if stamp else [])))}.json"
        verdict: Verdict = _memory(self._folder).verdicts.get(file, lambda: _read(file) or self._kept(file, judge()))
        return verdict

    def _kept(self, file: Path, verdict: Verdict) -> Verdict:
        if verdict.count >= KEPT_FROM:
            _memory(self._folder).tokens.keep()
            written(file, json.dumps(dataclasses.asdict(verdict)).encode())
            trim(self._folder.parent, MOST_BYTES)
        return verdict


def _beside(folder: Path) -> Path:
    """The folder of verdicts and tokens that depend on images' sizes."""
    return folder.with_name(f"{folder.name}-sized")


def _count(verdict: Verdict, example: Encoded) -> None:
    verdict.tokens += len(example.tokens)
    verdict.longest = max(verdict.longest, len(example.tokens))
    verdict.learnt += example.learnt
    verdict.most = max(verdict.most, example.learnt)


def _short(value: Any) -> str:
    return hashes.of_text(
        json.dumps(value if not isinstance(value, range) else [value.start, value.stop], default=list)
    )


def _read(file: Path) -> Verdict | None:
    """A cached verdict; None if there is no readable one."""
    try:
        raw = bounded.parse_json(file.read_text(encoding="utf-8"))
        if set(raw) != {field.name for field in dataclasses.fields(Verdict)}:
            return None
        parts = {n: {int(k): v for k, v in raw[n].items()} for n in ("problems", "warnings", "dropped")}
        return Verdict(**{**raw, **parts})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _followed(records: Iterable[T], count: int) -> Iterator[T]:
    """The same records; for a long list a terminal shows progress."""
    from rich.progress import track

    from fcit.io.console import notes

    hidden = count < SHOWS_BAR or not sys.stderr.isatty()
    yield from track(records, "tokenising records", count, console=notes(), disable=hidden, transient=True)


def mark_of(settings: configuration.Backbone, tokenizer: str) -> str:
    """Identifies what tokens depend on: hash of the tokenizer, placeholders, conversation, length, library."""
    source, _ = locate(settings.model, settings.identity)
    files = hashes.of_files(source, ("config.json", "*processor*config.json", "chat_template*"))
    parts = (
        VERSION,
        tokenizer,
        files,
        settings.conversation,
        settings.max_length,
        settings.image_size,
        settings.min_pixels,
        settings.max_pixels,
        settings.pad_to_square,
        metadata.version("transformers"),
        metadata.version("tokenizers"),
        *([] if settings.family == "auto" else [settings.family]),  # so that what earlier versions kept stays valid
    )
    return hashes.of_text(json.dumps(parts))


def _loaded(settings: configuration.Backbone) -> Encoder:
    with collector.paused():
        from fcit.models.loading import load_encoder  # seconds: only where something has to be tokenised

    return load_encoder(settings)


@lru_cache(maxsize=2)
def _encoder(settings: str, mark: str) -> Encoder:
    """The encoder for a model's settings (JSON), made once per process while the tokenizer's files are unchanged."""
    return _loaded(configuration.Backbone.model_validate_json(settings))


def judge_of(settings: configuration.Backbone, sizes: ImageSizes | None = None) -> TokenJudge:
    """The judge for a configuration's model; reads its tokenizer, no weights.

    Args:
        sizes: of the records' images.

    Raises:
        ConfigError: the model is not there or has no tokenizer that can be loaded.
    """
    source, _ = locate(settings.model, settings.identity)
    tokenizer = hashes.of_files(source, hashes.TOKENIZER)
    if tokenizer:
        mark = mark_of(settings, tokenizer)
        return TokenJudge(mark, lambda: _encoder(settings.model_dump_json(), mark), sizes)
    return judge_with(settings, _loaded(settings), sizes)  # no local files: identified by what the hub sent


def judge_with(settings: configuration.Backbone, encoder: Encoder, sizes: ImageSizes | None = None) -> TokenJudge:
    """The judge that shares the encoder of a loaded model."""
    source, _ = locate(settings.model, settings.identity)
    return TokenJudge(mark_of(settings, hashes.of_tokenizer(source, encoder.tokenizer)), lambda: encoder, sizes)
