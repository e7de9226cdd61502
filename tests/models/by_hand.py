"""LLaVA-1.5 and CLIP's text encoder in plain torch, from the published formulas: what ours is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

State = Mapping[str, torch.Tensor]

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def pixels(image: Image.Image, side: int) -> torch.Tensor:
    """Centred on a square of the mean colour, scaled bicubically, normalised: ``(3, side, side)``."""
    array = np.asarray(image.convert("RGB"))
    height, width = array.shape[:2]
    size = max(height, width)
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = [int(value * 255) for value in MEAN]
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = array
    small = np.asarray(Image.fromarray(canvas).resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
    return torch.from_numpy((small - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def layer_norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """``(heads, L, d)`` each."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores + torch.full_like(scores, -math.inf).triu(1)
    return scores.softmax(-1) @ v


def heads(x: torch.Tensor, count: int) -> torch.Tensor:
    return x.reshape(len(x), count, -1).transpose(0, 1)


def clip_layer(state: State, name: str, x: torch.Tensor, count: int, causal: bool) -> torch.Tensor:
    h = layer_norm(state, f"{name}.layer_norm1", x)
    q, k, v = (heads(linear(state, f"{name}.self_attn.{n}_proj", h), count) for n in "qkv")
    x = x + linear(state, f"{name}.self_attn.out_proj", attend(q, k, v, causal).transpose(0, 1).reshape(x.shape))
    h = linear(state, f"{name}.mlp.fc1", layer_norm(state, f"{name}.layer_norm2", x))
    return x + linear(state, f"{name}.mlp.fc2", h * torch.sigmoid(1.702 * h))


def clip_vision(state: State, image: torch.Tensor, patch: int, layers: int, count: int) -> torch.Tensor:
    """States of the patches after so many layers, without CLS: ``(patches, d)``."""
    cells = functional.conv2d(image[None], state["embeddings.patch_embedding.weight"], stride=patch)[0]
    x = torch.cat([state["embeddings.class_embedding"][None], cells.flatten(1).T])
    x = layer_norm(state, "pre_layrnorm", x + state["embeddings.position_embedding.weight"])
    for n in range(layers):
        x = clip_layer(state, f"encoder.layers.{n}", x, count, causal=False)
    return x[1:]


def clip_text(state: State, ids: list[int], end: int, layers: int, count: int) -> torch.Tensor:
    """State at the end token after the last layer norm, not projected: ``(d,)``."""
    x = state["embeddings.token_embedding.weight"][ids] + state["embeddings.position_embedding.weight"][: len(ids)]
    for n in range(layers):
        x = clip_layer(state, f"encoder.layers.{n}", x, count, causal=True)
    return layer_norm(state, "final_layer_norm", x)[ids.index(end)]


def rms_norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * state[f"{name}.weight"]


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of ``(heads, L, d)`` with base 10,000: pairs are (i, i + d/2)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2])[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def llama(state: State, x: torch.Tensor, layers: int, count: int) -> torch.Tensor:
    """Embeddings ``(L, d)`` to states before the head."""
    for n in range(layers):
        name = f"layers.{n}"
        h = rms_norm(state, f"{name}.input_layernorm", x)
        q, k, v = (heads(linear(state, f"{name}.self_attn.{part}_proj", h), count) for part in "qkv")
        mixed = attend(rotate(q), rotate(k), v, causal=True).transpose(0, 1).reshape(x.shape)
        x = x + linear(state, f"{name}.self_attn.o_proj", mixed)
        h = rms_norm(state, f"{name}.post_attention_layernorm", x)
        gate = functional.silu(linear(state, f"{name}.mlp.gate_proj", h))
        x = x + linear(state, f"{name}.mlp.down_proj", gate * linear(state, f"{name}.mlp.up_proj", h))
    return rms_norm(state, "norm", x)


def part(state: State, prefix: str) -> dict[str, torch.Tensor]:
    """Tensors below a prefix, by what follows it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
