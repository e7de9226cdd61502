"""Variants of greedy answers: transformers' generate, and a decoder with a static cache whose step is a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import StaticCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from fcit import seeding
from fcit.models.adapters import MIX
from tests.perf import gpu
from tests.perf.variants import Column, Row, Variant, release, synchronise

COLUMNS = (
    Column("batch", "batch"),
    Column("subspaces", "subspaces"),
    Column("prefill, s", "prefill_seconds", form=".3f"),
    Column("ms a token", "step_ms", form=".1f"),
    Column("16 tokens, s", "seconds_16_new", form=".2f"),
    Column("peak GB", "peak_bytes", 1e-9, ".1f"),
    Column("first token equal %", "first_equal", 100, ".0f"),
    Column("tokens equal %", "tokens_equal", 100, ".0f"),
)
#: Questions at a time and tokens of an answer, by size.
BATCHES, NEW = {"7b": (64, 16, 1), "toy": (4, 2, 1)}, {"7b": 24, "toy": 6}
_ALIGNED = 16  # lengths of the static cache are multiples of this

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


class Decoding:
    """A model that answers with a mixture of subspaces, and the answers of `generate` by subspaces and batch."""

    def __init__(self, kit: Any, size: str) -> None:
        self.backbone, self.adapters = kit[:2]
        self.size, self.new = gpu.SIZES[size], NEW[size]
        self.base = self.backbone.model.get_base_model()
        self.language = self.base.model.language_model
        self.subspaces = 0
        self.answers: dict[tuple[int, int], torch.Tensor] = {}
        for model in (self.backbone.model, self.base):
            model.generation_config.eos_token_id = None  # random weights: every answer has its full length

    def load(self, subspaces: int) -> None:
        """Put this many subspaces into the mixture, unless they are there."""
        if subspaces == self.subspaces:
            return
        rng = seeding.generator(0, "perf-levers")
        lora = {n: tuple(p.shape) for n, p in self.adapters.trainable.items() if ".lora_" in n}
        first = {n: rng.normal(0, 0.01, shape).astype(np.float32) for n, shape in lora.items()}
        rolled = [{n: np.roll(t, k, axis=-1) for n, t in first.items()} for k in range(subspaces)]
        self.adapters.load_mixture(rolled, self.adapters.base_projector())
        self.subspaces = subspaces

    def weights(self, count: int) -> np.ndarray:
        """Each question's weights of the subspaces ``(count, subspaces)``."""
        return seeding.generator(0, "perf-mix").dirichlet([0.3] * self.subspaces, count).astype(np.float32)

    def prompts(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings ``(count, L, d)`` and attention mask ``(count, L)`` of questions with an image each."""
        inputs = self.backbone._inputs(*gpu.records(self.backbone, self.size, count, answered=False))
        return inputs["inputs_embeds"], inputs["attention_mask"]

    @contextmanager
    def mixture(self, count: int, low: bool) -> Iterator[None]:
        """The mixture answers; with ``low`` its factors are bfloat16 and peft casts no activation to float32."""
        marks = (f".lora_A.{MIX}.", f".lora_B.{MIX}.")
        factors = [p for n, p in self.backbone.model.named_parameters() if any(mark in n for mark in marks)]
        kept = [p.data for p in factors]
        if low:
            for p in factors:
                p.data = p.data.to(self.backbone.dtype)
        try:
            with torch.no_grad(), self.adapters.mixed(self.weights(count)):
                yield
        finally:
            for p, data in zip(factors, kept, strict=True):
                p.data = data

    def agree(self, row: Row, tokens: torch.Tensor) -> None:
        """How many tokens are those of `generate`: all of them, and the first of each answer."""
        wanted = self.answers.get((self.subspaces, len(tokens)))
        if wanted is not None:
            same = tokens.cpu() == wanted
            row |= {"tokens_equal": float(same.float().mean()), "first_equal": float(same[:, 0].float().mean())}


def sdpa(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """Torch's own attention: of ``q`` ``(B, heads, 1, w)`` over keys and values ``(B, heads, L, w)``."""
    return nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)


def products(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """The same as two batched products."""
    scores = (q @ keys.transpose(2, 3)).float() * scale
    return scores.masked_fill(~mask, float("-inf")).softmax(-1).to(values.dtype) @ values


def sums(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """The same as sums, for a compiler to fuse."""
    scores = (q.float() * keys.float()).sum(-1, keepdim=True).transpose(2, 3) * scale
    share = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return (share.transpose(2, 3) * values.float()).sum(2, keepdim=True).to(values.dtype)


def _before(layer: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A layer up to its attention: queries, keys and values ``(B, heads, 1, w)`` of one token a row."""
    attention, hidden = layer.self_attn, layer.input_layernorm(x)
    shape = (len(x), 1, -1, attention.head_dim)
    q, k, v = (p(hidden).view(shape).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    return *apply_rotary_pos_emb(q, k, cos, sin), v


def _after(layer: Any, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """A layer from its attention on."""
    x = x + layer.self_attn.o_proj(attended.transpose(1, 2).reshape(len(x), 1, -1))
    return x + layer.mlp(layer.post_attention_layernorm(x))


class StaticDecoder:
    """A greedy decoder of Llama: prefill once into a cache of fixed size, then one step a token on fixed addresses."""

    def __init__(self, decoding: Decoding, attend: Attention, compile_parts: bool) -> None:
        self.decoding, self.new = decoding, decoding.new
        self.before, self.after, self.attend = _before, _after, attend
        if compile_parts:
            torch._dynamo.reset()
            self.before, self.after = torch.compile(_before, dynamic=False), torch.compile(_after, dynamic=False)
            self.attend = torch.compile(attend, dynamic=False) if attend is sums else attend

    def prefill(self, embeds: torch.Tensor, mask: torch.Tensor) -> None:
        """Prompts ``(B, L, d)`` through the model: fills the cache and answers with the first token."""
        self.length, device = mask.shape[1], embeds.device
        room = -(-(self.length + self.new) // _ALIGNED) * _ALIGNED
        self.cache = StaticCache(config=self.decoding.base.config, max_cache_len=room)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        output = self.decoding.language(
            inputs_embeds=embeds, attention_mask=mask, position_ids=places, cache=self.cache, use_cache=True
        )
        first = self._chosen(output.last_hidden_state[:, -1:])
        self.start = (first, places[:, -1:] + 1, mask.bool())
        self.ids, self.place = torch.empty_like(first), torch.empty_like(first)
        self.mask = torch.zeros(len(embeds), 1, 1, room, dtype=torch.bool, device=device)
        self.slot, self.number = (torch.zeros(1, dtype=torch.long, device=device) for _ in range(2))
        self.out = torch.zeros(len(embeds), self.new, dtype=torch.long, device=device)
        self.rewind()

    def rewind(self) -> None:
        """Back to the end of the prompt."""
        first, place, mask = self.start
        self.ids.copy_(first)
        self.place.copy_(place)
        self.mask.zero_()
        self.mask[:, 0, 0, : self.length] = mask
        self.slot.fill_(self.length)
        self.number.fill_(1)
        self.out[:, :1] = first

    def _chosen(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoding.base.get_output_embeddings()(hidden).float().argmax(-1)

    def step(self) -> None:
        """One token for every row."""
        language = self.decoding.language
        self.mask.index_fill_(3, self.slot, True)
        x = self.decoding.base.get_input_embeddings()(self.ids)
        cos, sin = language.rotary_emb(x, position_ids=self.place)
        for layer, kept in zip(language.layers, self.cache.layers, strict=True):
            q, k, v = self.before(layer, x, cos, sin)
            kept.keys.index_copy_(2, self.slot, k)
            kept.values.index_copy_(2, self.slot, v)
            x = self.after(layer, x, self.attend(q, kept.keys, kept.values, self.mask, layer.self_attn.scaling))
        self.ids.copy_(self._chosen(language.norm(x)))
        self.out.index_copy_(1, self.number, self.ids)
        for counter in (self.place, self.slot, self.number):
            counter.add_(1)

    def answer(self, graph: bool) -> tuple[float, float]:
        """All tokens after the first, into ``out``.

        Args:
            graph: capture the step as a CUDA graph, where the device is one that can.

        Returns:
            Seconds to prepare the step, and seconds of one step.
        """
        begin = time.perf_counter()
        step = self._captured() if graph and self.out.device.type == "cuda" else self.step
        step()  # compiles its parts
        self.rewind()
        synchronise()
        prepared = time.perf_counter() - begin
        return prepared, _seconds(lambda: [step() for _ in range(self.new - 1)]) / (self.new - 1)

    def _captured(self) -> Callable[[], None]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        synchronise()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay


def _seconds(work: Callable[[], Any]) -> float:
    synchronise()
    begin = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - begin


def _figures(row: Row, prefill: float, step: float) -> None:
    row |= {"prefill_seconds": prefill, "step_ms": step * 1e3, "seconds_16_new": prefill + 15 * step}


def _generated(name: str, means: str, batch: int, subspaces: int, limit: float = 40.0, **options: Any) -> Variant:
    def work(decoding: Decoding, row: Row) -> None:
        decoding.load(subspaces)
        row |= {"batch": batch, "subspaces": subspaces}
        with decoding.mixture(batch, low=False):
            embeds, mask = decoding.prompts(batch)

            def ask(new: int) -> torch.Tensor:
                return decoding.backbone.model.generate(
                    inputs_embeds=embeds,
                    attention_mask=mask,
                    max_new_tokens=new,
                    min_new_tokens=new,
                    do_sample=False,
                    num_beams=1,
                    pad_token_id=decoding.backbone.tokenizer.pad_token_id,
                    **options,
                )

            row["first_seconds"] = _seconds(lambda: ask(decoding.new))
            first, all_tokens = _seconds(lambda: ask(1)), _seconds(lambda: ask(decoding.new))
            _figures(row, first, (all_tokens - first) / (decoding.new - 1))
            tokens = ask(decoding.new)
        if options:
            decoding.agree(row, tokens)
        else:
            decoding.answers[subspaces, batch] = tokens.cpu()

    return Variant(name, means, work, limit, needs=30.0 if options else 5.0)


def _decoded(
    name: str,
    means: str,
    batch: int,
    subspaces: int = gpu.SUBSPACES,
    *,
    attend: Attention = sdpa,
    parts: bool = False,
    low: bool = True,
    graph: bool = True,
) -> Variant:
    def work(decoding: Decoding, row: Row) -> None:
        decoding.load(subspaces)
        row |= {"batch": batch, "subspaces": subspaces}
        with decoding.mixture(batch, low):
            prompts, decoder = decoding.prompts(batch), StaticDecoder(decoding, attend, parts)
            row["first_prefill_seconds"] = _seconds(lambda: decoder.prefill(*prompts))
            row["capture_seconds"], step = decoder.answer(graph)
            decoding.agree(row, decoder.out)
            del decoder.cache
            release()
            _figures(row, _seconds(lambda: decoder.prefill(*prompts)), step)
        if parts:
            torch._dynamo.reset()

    return Variant(name, means, work, 80.0 if parts else 40.0, needs=15.0 if parts else 5.0)


def variants(size: str) -> list[Variant[Decoding]]:
    """All variants, in the order in which they are measured."""
    most, some, one = BATCHES[size]
    graph = "greedy decoder with a static cache, its step a CUDA graph, the mixture's factors in bfloat16"
    parts = "as graph, linear parts of a layer through torch.compile"
    rows: list[Variant[Decoding]] = [
        _generated(f"as is, batch {count}", "transformers' generate as runs call it", count, gpu.SUBSPACES)
        for count in (most, some, one)
    ]
    rows += [_decoded(f"graph, batch {count}", graph, count) for count in (most, some, one)]
    rows += [
        _decoded(
            f"graph, products, batch {count}",
            "as graph, attention as two batched products instead of torch's own",
            count,
            attend=products,
        )
        for count in (most, one)
    ]
    rows.append(
        _decoded(f"graph, float32 mixture, batch {most}", "as graph, the mixture's factors in float32", most, low=False)
    )
    rows += [_decoded(f"graph, compiled, batch {count}", parts, count, parts=True) for count in (most, some, one)]
    rows.append(
        _decoded(
            f"graph, compiled, sums, batch {most}",
            f"{parts}, attention as compiled sums",
            most,
            attend=sums,
            parts=True,
        )
    )
    rows.append(_decoded(f"no graph, batch {some}", "as graph, the step not captured", some, graph=False))
    for subspaces in (1, 32):
        name = f"{subspaces} subspace{'s' if subspaces > 1 else ''}, batch {most}"
        rows.append(_decoded(f"graph, {name}", graph, most, subspaces))
        rows.append(
            _decoded(
                f"graph, float32 mixture, {name}",
                "as graph, the mixture's factors in float32",
                most,
                subspaces,
                low=False,
            )
        )
    rows.append(
        _generated(
            f"transformers' static cache, batch {some}",
            "generate(cache_implementation='static'), which compiles its step",
            some,
            gpu.SUBSPACES,
            90.0,
            cache_implementation="static",
        )
    )
    return rows
