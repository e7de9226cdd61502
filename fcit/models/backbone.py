"""The frozen multimodal model of one process, with its processor and identity encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from fcit import config as configuration
from fcit.config.kinds import Way
from fcit.data.collate import IGNORE, Encoded, padded
from fcit.data.images.sizes import ImageSizes
from fcit.data.records import Record, TestRecord, Turn
from fcit.errors import DataError
from fcit.models import hashes
from fcit.models.compiling import CompiledLayers
from fcit.models.decoding.answering import Answering
from fcit.models.encoding import Encoder
from fcit.models.families.base import AnySize, Family
from fcit.models.features import Pictures
from fcit.models.identity import IdentityEncoder
from fcit.models.loading import check_hardware, inspect, load_model
from fcit.models.loading import versions as versions
from fcit.models.patches import Features, Patches
from fcit.models.placeholders import placeholders_of
from fcit.models.places import TINY as TINY
from fcit.models.places import locate
from fcit.models.quieting import quiet
from fcit.models.reading import Reading, asked
from fcit.models.vision import Vision, vision_of

#: Soft prompts of a batch: ``(B, P, d)``, or ``(P, d)`` for each row.
Prefix = torch.Tensor | Sequence[torch.Tensor]


def _insert(
    prefix: Prefix, embeds: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, last: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Soft prompts between the first token of each row and the rest; rows with fewer get more padding.

    Args:
        last: padding comes last, else first.
    """
    given = prefix if isinstance(prefix, torch.Tensor) else pad_sequence(list(prefix), batch_first=True)
    rows, length, extra = *embeds.shape[:2], given.shape[1]
    each = torch.tensor([[len(prompts)] for prompts in prefix], device=embeds.device)
    tokens = mask.sum(dim=1, keepdim=True)
    old = torch.zeros_like(tokens) if last else length - tokens  # where each row's first token stands,
    first = old if last else old + extra - each  # and where it comes to stand
    place = torch.arange(length + extra, device=embeds.device).expand(rows, -1)
    inside = (place > first) & (place <= first + each)
    # Sources: 0 .. length-1 are the row's own tokens, length .. length+extra-1 the prompts.
    own = (torch.where(place <= first, place, place - each) - first + old).clamp(0, length - 1)
    source = torch.where(inside, length + place - first - 1, own)
    wide = source[..., None].expand(-1, -1, embeds.shape[-1])
    joined = torch.cat([embeds, given.to(embeds.dtype)], dim=1).gather(1, wide)
    new_labels = torch.cat([labels, labels.new_full((rows, extra), IGNORE)], dim=1).gather(1, source)
    there = (place >= first) & (place < first + each + tokens)
    return joined, there.to(mask.dtype), new_labels.masked_fill(~there, IGNORE)


def _kept(examples: Sequence[Encoded]) -> int | np.ndarray:
    """Positions whose logits are needed if padding comes first: a number of last ones or, with several turns, a list.

    The list ``(P,)`` counts from the end, -1 being the last; each position precedes a token that some row learns.
    """
    starts = [len(e.tokens) - start for e in examples for start, _ in e.answers]
    if all(len(e.answers) == 1 and e.answers[0][1] == len(e.tokens) for e in examples):
        return max(starts) + 1
    learnt = {p - len(e.tokens) for e in examples for start, end in e.answers for p in range(start, end)}
    return np.array(sorted(learnt), dtype=np.int64) - 1


def _kept_of_rows(labels: torch.Tensor, examples: Sequence[Encoded]) -> torch.Tensor:
    """The same positions of each row ``(B, P)``, from its beginning; rows that learn less have others besides."""
    most = max(sum(end - start for start, end in e.answers) for e in examples)
    followed = (labels[:, 1:] != IGNORE).byte()
    return followed.argsort(dim=1, descending=True, stable=True)[:, :most]


class Backbone:
    """Loads everything once; adapters are attached by :class:`fcit.models.adapters.Adapters`.

    Args:
        pictures: ``data.pictures``: how files become pixels, for the model and for its identity encoder.
    """

    def __init__(self, config: configuration.Backbone, pictures: Way = "official") -> None:
        model_path, identity_path = locate(config.model, config.identity)
        check_hardware(config)
        self.config, self.pictures = config, pictures
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        if config.threads:
            torch.set_num_threads(config.threads)
        inspected = inspect(model_path, config)
        self.tokenizer, self._template, self.image_processor = (
            inspected.tokenizer,
            inspected.template,
            inspected.image_processor,
        )
        self.model: Any = load_model(model_path, config, inspected)
        #: Where inputs go: spread over several GPUs, layers pass on what they get.
        self.device: torch.device = self.model.get_input_embeddings().weight.device
        self.identity = IdentityEncoder(identity_path, self.device, config.feature_cache == "disk", pictures)
        self.family: Family = inspected.family_with(self.model, config)
        self.family.verify()
        #: While images are projected: the row of the batch that each image belongs to, or where images are of unlike
        #: size, each row of what the projector returns.
        self.owners: list[int] | None = None
        #: How :meth:`generate` decodes.
        self.answering = Answering(self)
        #: What hooks on the language model know of the batch.
        self.reading = Reading(self.answering.rows)
        #: While :func:`fcit.models.steps.computed` casts: the number format of products with adapters.
        self.products: torch.dtype | None = None
        #: While questions are answered: the number format in which images become words; None: the projector's own.
        self.words: torch.dtype | None = None

    @property
    def token_width(self) -> int:
        """Width of the language model's input embeddings."""
        return int(self._base.get_input_embeddings().embedding_dim)

    @property
    def word_embeddings(self) -> np.ndarray:
        """Input embeddings of the whole vocabulary ``(V, d)`` float32."""
        return self._base.get_input_embeddings().weight.detach().float().cpu().numpy()

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of what must be equal on all machines of a run, sixteen digits each; not the number format."""
        model = locate(self.config.model, self.config.identity)[0]
        return {
            "backbone": hashes.of_weights(model, self._base),
            "tokenizer": hashes.of_tokenizer(model, self.tokenizer),
            "processor": hashes.of_text(self.image_processor.to_json_string()),
            "identity": self.identity.hash,
        }

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Gradient checkpointing of the language model's layers: activations are computed twice instead of kept.

        Nothing else changes: the second computation draws the same dropout. It applies to layers in training mode.
        """
        language = self.family.language
        again: dict[str, Any] = {"context_fn": self.reading.for_checkpoints} if self.reading.decides else {}
        with quiet():
            # Not reentrant: the embeddings are frozen, so a layer's input may need no gradient.
            language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **again})
        try:
            yield
        finally:
            with quiet():
                language.gradient_checkpointing_disable()

    @cached_property
    def layers(self) -> CompiledLayers:
        """The decoder layers, which training may compile."""
        return CompiledLayers(self.family.layers)

    @property
    def devices(self) -> list[torch.device]:
        """The devices that hold decoder layers, in the order of the layers."""
        return list(dict.fromkeys(p.device for layer in self.layers.layers for p in layer.parameters()))

    @property
    def _base(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    # ------------------------------------------------------------------ text

    @cached_property
    def encoder(self) -> Encoder:
        """The tokeniser of records and questions."""
        config = self._base.config
        video = getattr(config, "video_token_id", None)
        placeholders = placeholders_of(self.family)
        return Encoder(self.tokenizer, self._template, config.image_token_id, placeholders, self.config, video)

    def encoder_below(self, root: Path | None) -> Encoder:
        """The tokeniser of records with images below ``root``; None: of typical ones."""
        return self.encoder if root is None else self.encoder.below(ImageSizes(root, self.pictures))

    def encode(self, instruction: str, answer: str | None, image: str | None) -> Encoded:
        """Tokenise one question about one image (None: no image) of typical size, with its answer or as a prompt.

        Raises:
            DataError: it does not fit into ``backbone.max_length``.
        """
        images = () if image is None else (image,)
        if answer is None:
            return self.encoder.encode(TestRecord("", images, instruction, ""))
        return self.encoder.encode(Record(images, (Turn(instruction, answer, len(images)),)))

    # ------------------------------------------------------------------ vision

    @cached_property
    def vision(self) -> Vision:
        """The tower with what is kept of it."""
        return vision_of(self.family, self.config, self.pictures, self.dtype, self.device)

    def vision_features(self, root: Path, images: Sequence[str]) -> Features:
        """As :meth:`fcit.models.vision.Vision.features`."""
        return self.vision.features(root, images)

    def images(self, root: Path, names: Sequence[str]) -> Pictures[Any]:
        """As :meth:`fcit.models.vision.Vision.pictures`."""
        return self.vision.pictures(root, names)

    # ------------------------------------------------------------------ language

    def _inputs(
        self, examples: Sequence[Encoded], features: Features, prefix: Prefix | None = None, last: bool = False
    ) -> dict[str, Any]:
        """What the model gets; ``last``: padding comes last."""
        extra = 0 if prefix is None else max(len(prompts) for prompts in prefix)
        made = padded(examples, self.tokenizer.pad_token_id, self.layers.multiple, extra, last)
        ids, mask, labels = (torch.from_numpy(x).to(self.device) for x in made)
        embeds = self._base.get_input_embeddings()(ids)
        pictured = ids == self._base.config.image_token_id
        if int(pictured.sum()) != self._words(features):
            raise DataError("an instruction contains the image tag as text; remove it")
        if len(features):
            owners = [row for row, example in enumerate(examples) for _ in example.images]
            projected = self._projected(features, owners)
            embeds = embeds.masked_scatter(pictured[..., None], projected.to(embeds))
        elif torch.is_grad_enabled():
            # Without images the projector learns nothing, but has a gradient (of zeros), as in LLaVA's own code.
            embeds = embeds + 0.0 * self._projected(self.vision.blank([""]), None).mean().to(embeds)
        if prefix is not None:
            words = [prompts.new_zeros(len(prompts), 1) for prompts in prefix]
            pictured = _insert(words, pictured[..., None].to(embeds.dtype), mask, labels, last)[0][..., 0] > 0
            embeds, mask, labels = _insert(prefix, embeds, mask, labels, last)
            pictured &= mask > 0
        return {"inputs_embeds": embeds, "attention_mask": mask, "labels": labels, "pictured": pictured}

    def _words(self, features: Features) -> int:
        """Placeholders of these images."""
        if isinstance(features, Patches):
            return sum(self._any_size.count(grid) for grid in features.grids)
        return len(features) * self.family.tokens

    def _projected(self, features: Features, owners: list[int] | None) -> torch.Tensor:
        """The words of images, whose rows of the batch are ``owners``."""
        if owners is not None and isinstance(features, Patches):
            spans = map(self._any_size.projected, features.grids)
            owners = [row for row, span in zip(owners, spans, strict=True) for _ in range(span)]
        self.owners = owners
        try:
            if isinstance(features, Patches):
                return self._any_size.join(features.rows, features.grids)
            return self.family.project(features)
        finally:
            self.owners = None

    def _beside(self, features: Features, pictured: torch.Tensor, mask: torch.Tensor) -> AbstractContextManager[object]:
        return self.family.beside(features.rows if isinstance(features, Patches) else features, pictured, mask)

    @property
    def _any_size(self) -> AnySize:
        assert isinstance(self.family, AnySize)
        return self.family

    def places(self, mask: torch.Tensor, pictured: torch.Tensor, features: Features) -> torch.Tensor:
        """Position ids of rows ``(B, L)`` with these images; padding comes first or last."""
        if isinstance(features, Patches):
            return self._any_size.positions(mask, pictured, features.grids)
        return self.family.positions(mask, pictured)

    def answer_logits(
        self, examples: Sequence[Encoded], features: Features, prefix: Prefix | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits at answer positions and their targets: ``(M, vocabulary)`` and ``(M,)``.

        ``prefix`` ``(B, P, d)``, or ``(P, d)`` for each example, are soft prompts put right after its first token.
        """
        with self._cast(self.products):
            return self._answer_logits(examples, features, prefix)

    def _cast(self, dtype: torch.dtype | None, keep: bool = True) -> AbstractContextManager[object]:
        """Autocast to a number format, if there is one; ``keep``: weights that were cast serve until its end."""
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype, cache_enabled=keep)

    def _answer_logits(
        self, examples: Sequence[Encoded], features: Features, prefix: Prefix | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        last = self.layers.runs
        inputs = self._inputs(examples, features, prefix, last)
        labels, pictured, mask = inputs.pop("labels"), inputs.pop("pictured"), inputs["attention_mask"]
        inputs["position_ids"] = self.places(mask, pictured, features)
        if last:  # no token sees padding, and without a mask attention takes the fastest kernels
            inputs["attention_mask"] = torch.ones_like(mask)
        question = asked(mask, labels != IGNORE)
        keep = _kept_of_rows(labels, examples) if last else _kept(examples)
        with self._beside(features, pictured, mask), self.reading.records(inputs["inputs_embeds"], question):
            logits, target = self._forward(inputs, labels, keep)
        target = target.to(logits.device)
        chosen = target != IGNORE
        return logits[chosen].float(), target[chosen]

    def _forward(self, inputs: dict[str, Any], labels: torch.Tensor, keep: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits at the places ``keep`` and the tokens that follow them."""
        # A cache of keys and values is a copy of them that no later step reads.
        if isinstance(keep, int):
            target = labels[:, -keep + 1 :]
            return self.model(**inputs, logits_to_keep=keep, use_cache=False).logits[:, :-1], target
        if isinstance(keep, torch.Tensor):
            with self._headed(keep):
                logits = self.model(**inputs, use_cache=False).logits
            return logits, labels.gather(1, keep + 1)
        # places before a learnt token, counted from the end
        places = torch.from_numpy(keep).to(labels.device) + labels.shape[1]
        return self.model(**inputs, logits_to_keep=places, use_cache=False).logits, labels[:, places + 1]

    @contextmanager
    def _headed(self, places: torch.Tensor) -> Iterator[None]:
        """In the body, the output layer sees these places of each row ``(B, P)`` alone."""

        def choose(module: Any, states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (states[0].take_along_dim(places[..., None].to(states[0].device), dim=1), *states[1:])

        hook = self._base.get_output_embeddings().register_forward_pre_hook(choose)
        try:
            yield
        finally:
            hook.remove()

    def loss(self, examples: Sequence[Encoded], features: Features, prefix: Prefix | None = None) -> torch.Tensor:
        """Mean cross-entropy over the answer tokens of the batch."""
        logits, target = self.answer_logits(examples, features, prefix)
        return functional.cross_entropy(logits, target)

    def generate(
        self,
        examples: Sequence[Encoded],
        features: Features,
        max_new_tokens: int,
        prefix: Prefix | None = None,
    ) -> list[str]:
        """Greedy answers of a batch, stripped.

        The most probable token at each step, up to an end token of the model or ``max_new_tokens``.
        """
        tokens = self.tokens(examples, features, max_new_tokens, prefix)
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    @torch.no_grad()
    def tokens(
        self,
        examples: Sequence[Encoded],
        features: Features,
        max_new_tokens: int,
        prefix: Prefix | None = None,
    ) -> list[list[int]]:
        """The same as token ids; what follows an end token is no part of an answer."""
        # Where a method asks while it trains. A captured step would read weights that were kept where they are no more.
        with self._cast(self.products, keep=False):
            last = self.layers.runs and self.answering.takes_padding_last
            with self._cast(self.products or self.words, keep=False):
                inputs = self._inputs(examples, features, prefix, last)
            prompt = inputs["inputs_embeds"], inputs["attention_mask"], inputs["pictured"]
            grids = features.grids if isinstance(features, Patches) else None
            question = asked(inputs["attention_mask"], inputs["labels"] != IGNORE)
            beside = self._beside(features, inputs["pictured"], inputs["attention_mask"])
            with beside, self.reading.prompts(prompt[0], question, self.family.language):
                return self.answering.tokens(*prompt, max_new_tokens, grids, last)

    def project(self, function: Callable[[Any], Any]) -> None:
        """Replace the model by ``function(model)`` (how adapters are attached)."""
        self.model = function(self.model)
