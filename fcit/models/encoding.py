"""Conversations to tokens; needs a model's tokenizer and none of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from fcit import config as configuration
from fcit.data import prompts
from fcit.data.collate import Encoded, as_shown
from fcit.data.images.sizes import ImageSizes
from fcit.data.prompts import Piece
from fcit.data.records import Record, TestRecord
from fcit.errors import DataError
from fcit.models.placeholders import Placeholders, Sized

#: A text, whether it follows an end token, and whether the tokenizer adds its own first token.
Text = tuple[str, bool, bool]
AT_ONCE = 1024  # conversations tokenised in one call


class Pictured(NamedTuple):
    """A piece, the number of its images, and the placeholders that follow its text."""

    piece: Piece
    images: int
    placeholders: int


class Encoder:
    """Tokenises records and questions.

    Args:
        tokenizer: the model's.
        template: the tokenizer or processor that holds the chat template.
        image_token: id of an image's placeholder.
        placeholders: of images.
        settings: ``conversation`` and ``max_length``.
        video_token: id of a video's placeholder, where the model has one: no video is ever shown.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Any,
        image_token: int,
        placeholders: Placeholders,
        settings: configuration.Backbone,
        video_token: int | None = None,
    ) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.image_token, self.placeholders, self.video_token = image_token, placeholders, video_token
        self.conversation, self.max_length = settings.conversation, settings.max_length
        self._known: dict[Text, list[int]] = {}

    @property
    def sized(self) -> bool:
        """Whether tokens depend on the sizes of images."""
        return isinstance(self.placeholders, Sized)

    def below(self, sizes: ImageSizes) -> Encoder:
        """The same for records whose images have these sizes."""
        if not self.sized:
            return self
        encoder = copy(self)
        encoder.placeholders, encoder._known = self.placeholders.below(sizes), {}
        return encoder

    def encode(self, record: Record | TestRecord) -> Encoded:
        """Tokenise one conversation, or the prompt of one question.

        Every image has its family's placeholders. Turns that do not fit into ``backbone.max_length``
        are dropped whole, from the end, and counted: half an answer would teach to stop nowhere. (The authors' code
        cuts the tokens.)

        Raises:
            DataError: not even the first turn, or not the whole of a question, fits; one image is left of several, for
                a model that sees one alone otherwise; a text holds a video's placeholder.
        """
        [encoded] = self._batch([record])
        if isinstance(encoded, str):
            raise DataError(encoded)
        return encoded

    def encoded(self, records: Iterable[Record | TestRecord]) -> Iterator[Encoded | str]:
        """Tokenise many records in batches; a text in place of tokens states why a record cannot be used."""
        rest = iter(records)
        while waiting := list(islice(rest, AT_ONCE)):
            yield from self._batch(waiting)

    def lengths(self, answers: Iterable[str]) -> Iterator[int]:
        """Tokens of answers, end token included."""
        rest = iter(answers)
        while waiting := list(islice(rest, AT_ONCE)):
            for ids in self.tokenizer([f" {text}" for text in waiting], add_special_tokens=False).input_ids:
                yield len(ids) + 1

    def _batch(self, records: Sequence[Record | TestRecord]) -> list[Encoded | str]:
        planned: list[list[Pictured] | str] = []
        for record in records:
            try:
                planned.append(list(self._pictured(record)))
            except (ValueError, DataError) as error:
                planned.append(str(error))
        self._learn(pieces for pieces in planned if not isinstance(pieces, str))
        encoded: list[Encoded | str] = []
        for record, pieces in zip(records, planned, strict=True):
            try:
                encoded.append(pieces if isinstance(pieces, str) else self._assembled(record, pieces))
            except DataError as error:
                encoded.append(str(error))
        self._known.clear()
        return encoded

    def _pictured(self, record: Record | TestRecord) -> Iterator[Pictured]:
        """The pieces of a prompt with the placeholders of their images."""
        images = iter(as_shown(record.images))
        placeholder = self.tokenizer.convert_ids_to_tokens(self.image_token)
        tag = self.placeholders.tag(placeholder)
        for piece in self.pieces(record):
            if self.conversation == "vicuna_v1":
                count = self.placeholders.count(next(images)) if piece.image else 0
                yield Pictured(piece, int(piece.image), count)
                continue
            first, *rest = piece.text.split(tag)
            here = list(islice(images, len(rest)))
            # A tag without an image stays what it is, which the judge of records finds.
            tags = [*(self.placeholders.text(image, placeholder) for image in here), *[tag] * (len(rest) - len(here))]
            text = first + "".join(shown + after for shown, after in zip(tags, rest, strict=True))
            yield Pictured(replace(piece, text=text), len(here), 0)

    def _learn(self, planned: Iterable[list[Pictured]]) -> None:
        """Tokenise all texts of these pieces in two calls."""
        wanted = dict.fromkeys(
            text for pieces in planned for n, (piece, *_) in enumerate(pieces) for text in self._texts(piece, n)
        )
        end = self.tokenizer.eos_token
        for special in (False, True):
            texts = [text for text in wanted if text[2] == special]
            if texts:
                rows = self.tokenizer([end + t if after else t for t, after, _ in texts], add_special_tokens=special)
                for text, row in zip(texts, rows.input_ids, strict=True):
                    self._known[text] = row[1:] if text[1] and row[:1] == [self.tokenizer.eos_token_id] else row

    # ------------------------------------------------------------------ pieces

    def pieces(self, record: Record | TestRecord) -> Iterable[Piece]:
        """The pieces of a prompt.

        Raises:
            ValueError: the model's template has none for this conversation.
        """
        if self.conversation == "vicuna_v1":
            return prompts.vicuna_v1(record)
        return prompts.templated(self.template, record, self.tokenizer.eos_token)

    def _assembled(self, record: Record | TestRecord, pieces: list[Pictured]) -> Encoded:
        tokens: list[int] = []
        answers: list[tuple[int, int]] = []
        kept, images = 0, 0  # of finished turns: tokens and images
        seen = 0
        for number, (piece, shown, placeholders) in enumerate(pieces):
            prompt, tail = self._tokens(piece, number)
            tokens += [*prompt, *[self.image_token] * placeholders]
            seen += shown
            if piece.answer is not None:
                answers.append((len(tokens), len(tokens) + len(tail)))
                tokens += tail
            if len(tokens) > self.max_length:
                break
            if piece.answer is not None:
                kept, images = len(tokens), seen
        if self.video_token in tokens:
            raise DataError(
                f"a text holds {self.tokenizer.convert_ids_to_tokens(self.video_token)!r}, which stands for a video, "
                "and only images are shown to a model; give its frames as images, or remove the record"
            )
        if isinstance(record, TestRecord):
            if len(tokens) > self.max_length:
                raise DataError(
                    f"a question of {len(tokens)} tokens, image included, does not fit into backbone.max_length "
                    f"({self.max_length}); raise it or shorten the question {record.instruction[:80]!r}"
                )
            return Encoded(tuple(tokens), (), record.images)
        if not kept:
            raise DataError(
                f"{answers[0][0] if answers else len(tokens)} tokens of question and image leave no room for an answer "
                f"({answers[0][1] - answers[0][0] if answers else 'any'} tokens) within backbone.max_length "
                f"({self.max_length}): {record.turns[0].question[:80]!r}; raise it or remove the record"
            )
        if images == 1 < len(record.images):
            [alone], (among, *_) = as_shown(record.images[:1]), as_shown(record.images)
            if self.placeholders.count(alone) != self.placeholders.count(among):
                raise DataError(
                    f"of {len(record.images)} images the first alone fits into backbone.max_length "
                    f"({self.max_length}), where this model would see it otherwise; raise it or remove the record"
                )
        answers = [span for span in answers if span[1] <= kept]
        return Encoded(tuple(tokens[:kept]), tuple(answers), record.images[:images], len(record.turns) - len(answers))

    def _texts(self, piece: Piece, number: int) -> list[Text]:
        """The texts to tokenise for a piece: its own and, if an answer follows, the text that ends with the answer."""
        if self.conversation == "vicuna_v1":
            texts: list[Text] = [(piece.text, piece.after_end, False)]
            return texts if piece.answer is None else [*texts, (f"{piece.text} {piece.answer}", piece.after_end, False)]
        # A template that writes the first token itself (Llama 3's) gets no second one, as in transformers.
        begins = bool(self.tokenizer.bos_token) and piece.text.startswith(self.tokenizer.bos_token)
        texts = [(piece.text, piece.after_end, number == 0 and not begins)]
        return texts if piece.answer is None else [*texts, (f"{prompts.gap(piece.text)}{piece.answer}", False, False)]

    def _tokens(self, piece: Piece, number: int) -> tuple[list[int], list[int]]:
        """Token ids before the answer, and those of the answer."""
        ids = [self._known[text] for text in self._texts(piece, number)]
        prompt, tail = list(ids[0]), []
        if piece.answer is not None:
            # Vicuna's answer is tokenised as the end of its piece, a template's by itself.
            answer = ids[1][len(prompt) :] if self.conversation == "vicuna_v1" else ids[1]
            tail = [*answer, self.tokenizer.eos_token_id]
        if self.conversation == "vicuna_v1" and number == 0 and self.tokenizer.bos_token_id is not None:
            prompt.insert(0, self.tokenizer.bos_token_id)
        return prompt, tail
