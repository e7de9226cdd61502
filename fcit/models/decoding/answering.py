"""How one backbone answers: by our decoder or by transformers', and how much memory that takes."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from peft import PeftModel

from fcit.config.kinds import Compile, Decoder
from fcit.errors import ConfigError
from fcit.models.decoding.capture import CudaGraphs
from fcit.models.decoding.greedy import Greedy, unsuitable
from fcit.models.decoding.rows import Rows
from fcit.models.decoding.sizes import PLANNED, Widths, widths
from fcit.models.decoding.watching import Watch, stopping

if TYPE_CHECKING:
    from fcit.models.backbone import Backbone


#: Questions of a test set from which layers are compiled: that takes some 15 seconds of a process, which 3,000
#: questions to a 7B model save, and a test set is asked more than once.
_MANY = 2000


class Answering:
    """Decodes prompts of one backbone.

    Attributes:
        rows: tensors with a row for each question of the batch, which hooks on the language model look up at every
            forward pass; questions that leave the batch take their rows with them.
        beside: tensors that hooks read beside the model's own, by owner; their values change in place.
        decoder: as ``evaluation.decoder``.
        watch: follows the answers of a batch while they are decoded, see :meth:`watched`.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self.rows: Rows = {}
        self.beside: dict[str, Mapping[str, torch.Tensor]] = {}
        self.decoder: Decoder = "auto"
        self.watch: Watch | None = None

    @contextmanager
    def by(self, decoder: Decoder) -> Iterator[None]:
        """Inside, answers are decoded as ``evaluation.decoder`` says."""
        before, self.decoder = self.decoder, decoder
        try:
            yield
        finally:
            self.decoder = before

    def compiles(self, switch: Compile, questions: int) -> bool:
        """Whether whole batches of a test set with so many ``questions`` are answered within :meth:`compiled`.

        Args:
            switch: ``evaluation.compile``.
        """
        return switch == "on" or (switch == "auto" and questions >= _MANY and self._fast)

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Inside, prompts and steps of our decoder run through compiled layers."""
        layers = self._backbone.layers
        with layers.installed(answering=True), layers.running():
            yield

    @contextmanager
    def watched(self, watch: Watch) -> Iterator[None]:
        """Inside, ``watch`` is called with the place of a question in its batch after each token of its answer."""
        self.watch = watch
        try:
            yield
        finally:
            self.watch = None

    def tokens(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        pictured: torch.Tensor,
        max_new_tokens: int,
        grids: Sequence[tuple[int, ...]] | None = None,
        last: bool = False,
    ) -> list[list[int]]:
        """Greedy answers to padded prompts: up to an end token, which may be followed by padding.

        Args:
            embeds: ``(B, L, d)``.
            mask: ``(B, L)``.
            pictured: ``(B, L)`` bool, where placeholders of images are.
            max_new_tokens: of the longest answer.
            grids: of the images, where they are of unlike size.
            last: padding comes last (:attr:`takes_padding_last`), else first.

        Raises:
            ConfigError: neither decoder decodes this model.
        """
        sized = {} if grids is None else {"grids": grids}
        backbone, greedy = self._backbone, self._own
        if greedy is None:
            if not self.generates:
                raise ConfigError(
                    f"evaluation.decoder: transformers' generate takes no embeddings for a "
                    f"{type(backbone.family.base).__name__}; choose evaluation.decoder: auto, and backbone.attention: "
                    "sdpa or eager"
                )
            answers: torch.Tensor = backbone.model.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=backbone.tokenizer.pad_token_id,
                stopping_criteria=stopping(self.watch, self.ends),
                **backbone.family.generation(mask, pictured, **sized),
            )
            return answers.tolist()
        prompts = embeds, mask, backbone.family.positions(mask, pictured, **sized)
        signature = None if greedy.capture is None else self.signature
        head = backbone.family.base.get_output_embeddings()
        try:
            return greedy(prompts, head, max_new_tokens, self.ends, signature, self.watch, last)
        except Exception as error:
            if not backbone.layers.give_up(error):
                raise
        return greedy(prompts, head, max_new_tokens, self.ends, signature, self.watch, last)

    @property
    def _own(self) -> Greedy | None:
        """Our decoder where it answers."""
        return None if self.decoder == "transformers" else self.greedy

    @property
    def takes_padding_last(self) -> bool:
        """Whether prompts may be padded after their last token."""
        return self._own is not None and self._own.takes_padding_last

    @property
    def generates(self) -> bool:
        """Whether transformers' own generate takes embeddings, with which images enter here."""
        return "inputs_embeds" in inspect.signature(self._backbone.family.base.prepare_inputs_for_generation).parameters

    @property
    def ends(self) -> set[int]:
        """Tokens that end an answer."""
        ends = self._backbone.family.base.generation_config.eos_token_id
        return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)

    @cached_property
    def greedy(self) -> Greedy | None:
        """Our decoder; None, with a notice, if it cannot decode this model."""
        backbone = self._backbone
        language, why = backbone.family.language, unsuitable(backbone.family.language)
        one = torch.ones(1, 1, dtype=torch.long, device=backbone.device)
        beyond = sorted(backbone.family.generation(one, one == 0).keys() - {"position_ids"})
        if beyond:
            why = f"its family gives it {', '.join(beyond)}"
        if why is not None:
            logging.getLogger(__name__).warning("evaluation.decoder: transformers decodes this model, because %s", why)
            return None
        graphs = self._graphs
        return Greedy(language, self.rows) if graphs is None else Greedy(language, self.rows, graphs, self._spare)

    @property
    def _graphs(self) -> CudaGraphs | None:
        """What captures steps; None where they run as they are."""
        return CudaGraphs(self._backbone.device) if self._fast else None

    @cached_property
    def _fast(self) -> bool:
        """Whether steps can be captured, and layers are compiled for many questions."""
        backbone = self._backbone
        spread = len({parameter.device for parameter in backbone.family.language.parameters()}) > 1
        # A graph is of one GPU, and kernels of four-bit weights decide on the host what to launch.
        return backbone.device.type == "cuda" and not spread and backbone.config.quantization == "none"

    @property
    def signature(self) -> Hashable:
        """What captured steps depend on: the active adapters, compilation, where all tensors lie that a step reads."""
        language, head = self._backbone.family.language, self._backbone.family.base.get_output_embeddings()
        tensors = [*language.parameters(), *language.buffers(), *head.parameters()]
        tensors += [tensor for named in self.beside.values() for tensor in named.values()]
        places = tuple((t.data_ptr(), t.shape, t.dtype) for t in tensors)
        model, compiled = self._backbone.model, self._backbone.layers.runs
        active = tuple(model.active_adapters) if isinstance(model, PeftModel) else ()
        return active, language.training, compiled, places

    def at_once(self, prompt: int, new: int, on_cpu: int, workers: int) -> int:
        """How many questions of ``prompt`` tokens, with answers of ``new``, fit into a GPU's free memory.

        Of a GPU that several ``workers`` share no more than a worker's share counts.
        """
        device = self._backbone.device
        if device.type != "cuda":
            return on_cpu
        again = 0 if self._kept is None else self._kept.bytes
        return self._widths.at_once(max(self._free(workers) + again, 0), prompt, new)

    def _free(self, workers: int = 1) -> float:
        """Bytes of the GPU that this process can still take."""
        device = self._backbone.device
        free, total = torch.cuda.mem_get_info(device)
        taken = torch.cuda.memory_allocated(device)
        return min(free + torch.cuda.memory_reserved(device) - taken, total / workers - taken)

    def _spare(self, rows: int, prompt: int) -> float:
        """Bytes of the GPU that prompts leave free, beside keys and values that are kept already."""
        return PLANNED * self._free() - self._widths.prompts(rows, prompt)

    @property
    def _widths(self) -> Widths:
        return widths(self._backbone.family.language.config, self._backbone.dtype.itemsize)

    @property
    def keeps(self) -> bool:
        """Whether memory is kept for the next batch, which :meth:`release` gives back."""
        return self._kept is not None and self._kept.bytes > 0

    @property
    def _kept(self) -> Greedy | None:
        """The decoder if it has been made."""
        return self.__dict__.get("greedy")

    def release(self) -> None:
        """Give back the memory that answering keeps from batch to batch."""
        if self._kept is not None:
            self._kept.release()
