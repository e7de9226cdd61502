"""What a configuration needs, before anything is loaded: memory of a GPU, of workers and server, disk, time.

`fcit doctor` shows it, and a client decides by it how records pass through the model (:func:`planned`). Bytes are
computed from the model's sizes (:mod:`fcit.models.shapes`); tests/perf/test_estimate.py compares them with what torch
really keeps. What cannot be known without the data is an assumption and named as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from fcit import registry
from fcit.config import RunConfig
from fcit.data.spec import read_spec
from fcit.federation import ranks
from fcit.federation.thin import Thin
from fcit.models.decoding.sizes import Widths
from fcit.models.layout import Layout
from fcit.models.shapes import Shape

#: Assumed where there are no data: tokens of system sentence and instruction, and of an answer.
TEXT, ANSWER = 110, 32
#: Assumed: what CUDA, its libraries and the allocator's gaps take beside tensors, and a Python process with torch.
CONTEXT, GAPS, PROCESS = 0.8e9, 0.05, 1.5e9
#: Assumed: tasks of a benchmark in code.
TASKS = 8
#: A weight in NF4 with its doubly quantised scale (QLoRA, arXiv 2305.14314): 4.127 bits.
FOUR_BITS = 4.127 / 8
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOAT = 4
#: Records at a time below which it is worth computing activations again to take more.
ENOUGH = 4


@dataclass(frozen=True)
class Lengths:
    """Tokens of a record: of its text, of its answer, and of its images (None: those of one image)."""

    text: int = TEXT
    answer: int = ANSWER
    images: int | None = None

    def pictured(self, shape: Shape) -> int:
        """Tokens of its images."""
        return shape.image_tokens if self.images is None else self.images

    def prompt(self, shape: Shape) -> int:
        """Tokens of the record as a question."""
        return self.pictured(shape) + self.text

    def record(self, shape: Shape) -> int:
        """Tokens of a whole training record."""
        return self.prompt(shape) + self.answer


@dataclass
class Memory:
    """Bytes on the device of one worker, by what for; training, answering and looking at images take turns."""

    always: dict[str, float] = field(default_factory=dict)
    training: dict[str, float] = field(default_factory=dict)
    answering: dict[str, float] = field(default_factory=dict)
    looking: dict[str, float] = field(default_factory=dict)

    @property
    def peak(self) -> float:
        """The most at any one time."""
        turns = (self.training, self.answering, self.looking)
        return sum(self.always.values()) + max(sum(turn.values()) for turn in turns)


def layer_activations(config: RunConfig, shape: Shape) -> float:
    """Bytes that one layer of the language model keeps for its backward pass, per token.

    Its weights are frozen, so a linear layer keeps nothing of its input; what is kept is (s bytes a number, n what all
    norms take, q the width of queries, k that of the keys, I the feed-forward's, p the bytes in which adapters are
    multiplied):

        norms                     4 n                (the input in float32; nothing new where s = 4 and it is shared)
        attention q, k, v, out    s (2 q + 2 k)      (flash; sdpa of rows with padding, and eager, repeat keys and
                                                     values to 4 q; eager also 4 to 6 per pair of tokens and head)
        SiLU and the product      3 s I
        adapter on width d        p (d + rank), and d for the dropout mask (p d on a CPU); without dropout and where
                                  p = s the input is shared

    Compiled layers keep less (a sixth in the one measurement that there is), which is not counted on.
    """
    s, p = _WIDTHS[config.backbone.dtype], _product(config)
    mask = 0 if not config.adapter.dropout else p if config.backbone.device == "cpu" else 1
    keys = shape.key_width if config.backbone.attention == "flash_attention_2" else shape.query_width
    kept = float(_FLOAT) * shape.normed + s * (2 * shape.query_width + 2 * keys) + 3 * s * shape.inner
    widths = [a for a, _ in shape.adapted]
    kept += p * config.adapter.rank * len(widths) / shape.layers
    if mask or s != p:
        kept += (p + mask) * sum(widths) / shape.layers
    else:  # gate and up take the same tensor
        kept += p * sum(set(widths))
    return kept


def _product(config: RunConfig) -> int:
    """Bytes of a number in products with adapters."""
    return _WIDTHS[config.backbone.dtype] if config.training.adapter_products == "backbone" else _FLOAT


def activations(config: RunConfig, shape: Shape, lengths: Lengths, records: int) -> dict[str, float]:
    """Bytes that a forward pass of ``records`` keeps for the backward pass, and what the passes need beside.

    With checkpointing the layers keep their input only (s h per token) and one layer at a time is computed again.
    Logits are made at answer positions only: in s bytes, gathered, in float32, its softmax and its gradient.
    """
    s, p, tokens = _WIDTHS[config.backbone.dtype], _product(config), records * lengths.record(shape)
    layer = layer_activations(config, shape) * tokens
    if config.backbone.attention == "eager":
        layer += (_FLOAT + (s if s != _FLOAT else 0)) * shape.heads * tokens * lengths.record(shape)
    layers = shape.layers * (s * shape.width * tokens if config.training.checkpointing else layer)
    pictured = records * lengths.pictured(shape) * shape.image_words / shape.image_tokens
    kept = {
        "activations of the layers": layers,
        "projector and last norm": pictured * p * (shape.feature_width + 2 * shape.projector_inner)
        + _FLOAT * shape.width * tokens,
        "logits at answers": records * (lengths.answer + 1) * shape.vocabulary * (3 * s + 3 * _FLOAT),
        "one layer at work": layer * (2 if config.training.checkpointing else 1),
    }
    if p != _FLOAT:
        kept["adapters in the backbone's format"] = p * trained_numbers(config, shape)
    return kept


def subspace(config: RunConfig, shape: Shape) -> int:
    """Parameters of one subspace: LoRA factors and, where the method has them, gates or routers of every layer."""
    layout: Layout = registry.resolve("method", config.method["name"])(config).layout
    gates = (g for a, b in shape.adapted for g in layout.gates(a, b, shape.identity_width).values())
    return shape.adapter(config.adapter.rank) + sum(map(math.prod, gates))


def _all_numbers(config: RunConfig, shape: Shape, subspaces: int) -> int:
    """Parameters of all subspaces, and of the projector they share, or of their own."""
    projectors = subspaces if config.adapter.projector == "per_subspace" else 1
    return subspaces * subspace(config, shape) + projectors * shape.projector


def trained_numbers(config: RunConfig, shape: Shape) -> int:
    """Parameters of the training slot: one subspace, and the projector unless it is frozen."""
    return subspace(config, shape) + (shape.projector if config.adapter.projector != "frozen" else 0)


def memory(config: RunConfig, shape: Shape, subspaces: int, micro: int, lengths: Lengths) -> Memory:
    """Device memory of one worker that trains ``micro`` records at a time and answers with ``subspaces``.

    Optimiser: gradient, two moments and a temporary of AdamW (``foreach``), float32, for the slot and the projector.
    Answers: :meth:`fcit.models.decoding.sizes.Widths.answering`.
    """
    s, backbone = _WIDTHS[config.backbone.dtype], config.backbone
    one, projector = subspace(config, shape), shape.projector
    trained = trained_numbers(config, shape)
    own = projector * subspaces if config.adapter.projector == "per_subspace" else 0
    kept = float(s * shape.language)
    if backbone.quantization == "4bit":
        kept += (FOUR_BITS - s) * shape.linear
    needed = Memory()
    needed.always = {
        "language model": kept,
        "vision tower, projector": s * (shape.vision.parameters + projector),
        "identity encoder": _FLOAT * (shape.identity_text + (shape.identity_vision if sees(config) else 0)),
        "adapters": _FLOAT * ((1 + subspaces) * one + 2 * (trained - one) + own),
    }
    needed.training = {"optimiser": 4 * _FLOAT * trained, **activations(config, shape, lengths, micro)}
    prompt = lengths.prompt(shape)
    needed.answering = _widths(config, shape).answering(config.evaluation.at_once, prompt, config.evaluation.longest())
    held = what_is_held(config, shape)
    needed.always |= held.device
    needed.training |= held.training | _copies(config, "training_copies", trained)
    needed.training |= _pieces(config, shape, config.federation.rounds - 1)
    v = shape.vision
    needed.looking = {"hidden states of the vision tower": v.together * v.tokens * v.width * s * (v.layers + 1 + 8)}
    if backbone.device != "cpu":
        total = sum(needed.always.values())
        needed.always["CUDA and gaps (assumed)"] = CONTEXT + GAPS * total
    return needed


def _widths(config: RunConfig, shape: Shape) -> Widths:
    return Widths(shape.layers, shape.width, shape.inner, shape.key_width, _WIDTHS[config.backbone.dtype])


def with_batches(config: RunConfig, shape: Shape, subspaces: int, room: float, lengths: Lengths) -> RunConfig:
    """With the number of questions that ``evaluation.batch_size: auto`` takes on a GPU of ``room`` bytes."""
    if config.evaluation.batch_size != "auto" or config.backbone.device == "cpu":
        return config
    left = room - sum(memory(config, shape, subspaces, 1, lengths).always.values())
    prompt = lengths.prompt(shape)
    fitting = _widths(config, shape).at_once(max(left, 0.0), prompt, config.evaluation.longest())
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"batch_size": fitting})})


def what_is_held(config: RunConfig, shape: Shape) -> Any:
    """What the method keeps beside the trained tensors at the end of a run (:class:`fcit.methods.views.Held`)."""
    return registry.resolve("method", config.method["name"])(config).held(shape, stages(config))


def stages(config: RunConfig) -> int:
    """Stages of a run, as far as they are known without its data."""
    return config.federation.stages if config.stream == "site" else tasks(config.benchmark)


@lru_cache(maxsize=16)
def tasks(benchmark: str) -> int:
    """Tasks of a benchmark; of one in code, which may need its data to say so, an assumption."""
    return TASKS if registry.is_own(benchmark) else len(read_spec(benchmark).tasks)


def sees(config: RunConfig) -> bool:
    """Whether identity features are made of images, too."""
    return bool(registry.resolve("method", config.method["name"])(config).identity in ("image", "both"))


#: Whether what is needed fits.
Fits = Callable[[Memory], bool]


def largest_micro(config: RunConfig, shape: Shape, subspaces: int, fits: Fits, lengths: Lengths) -> int | None:
    """Records at a time that fit: what is set, or for ``auto`` what halving would come to."""
    training = config.training
    size = training.micro_batch if isinstance(training.micro_batch, int) else training.batch_size
    size = min(size, training.batch_size)
    while not fits(memory(config, shape, subspaces, size, lengths)):
        if training.micro_batch != "auto" or size == 1:
            return None
        size //= 2
    return size


def planned(config: RunConfig, shape: Shape, subspaces: int, fits: Fits, lengths: Lengths) -> RunConfig:
    """With ``training.checkpointing: auto`` decided.

    Computing activations again costs a third more, so it is avoided wherever enough records fit without: all at a
    time, or for ``micro_batch: auto`` :data:`ENOUGH`, since smaller products use a GPU badly. On a CPU never.
    """
    if config.training.checkpointing != "auto":
        return config
    keeping = checkpointing(config, False)
    if config.backbone.device == "cpu":
        return keeping
    size = largest_micro(keeping, shape, subspaces, fits, lengths)
    enough = min(ENOUGH, config.training.batch_size) if config.training.micro_batch == "auto" else 1
    return keeping if size is not None and size >= enough else checkpointing(config, True)


def checkpointing(config: RunConfig, value: bool) -> RunConfig:
    """With ``training.checkpointing`` set to this."""
    return config.model_copy(update={"training": config.training.model_copy(update={"checkpointing": value})})


def workers_per_gpu(config: RunConfig) -> int:
    """Workers that share a GPU (``ray.num_gpus: 0.5``: two)."""
    if config.federation.engine != "ray":
        return 1
    share = config.ray.num_gpus
    return min(config.ray.workers, max(1, int(1 / share))) if share else config.ray.workers


def worker_memory(config: RunConfig, shape: Shape, subspaces: int, micro: int, lengths: Lengths) -> dict[str, float]:
    """Main memory of one worker: messages, tokenised records, and on a CPU everything else."""
    one = _FLOAT * (subspace(config, shape) + shape.projector)
    broadcast = _FLOAT * _all_numbers(config, shape, subspaces)
    parts = {
        "Python and torch (assumed)": PROCESS,
        "messages and their tensors": max(3 * one, 2 * broadcast),
        "tokenised records, identity features (at most)": 4e6 * 36 + 64e6 * _FLOAT,
        **_kept(config, shape, subspaces),
    }
    if config.backbone.device == "cpu":
        parts["model, adapters, activations"] = memory(config, shape, subspaces, micro, lengths).peak
    return parts


def server_memory(config: RunConfig, shape: Shape, subspaces: int) -> dict[str, float]:
    """Main memory of the server: its state, float64 sums of every subspace trained in a round, one update at a time."""
    one, projector = subspace(config, shape), shape.projector
    open_sums = min(subspaces, config.federation.clients_per_round)
    return {
        "Python (assumed)": PROCESS / 2,
        "subspaces and projector": _FLOAT * _all_numbers(config, shape, subspaces),
        "sums in float64": 8 * (open_sums * one + projector),
        "one update and its message": 3 * _FLOAT * (one + projector),
        **what_is_held(config, shape).server,
        **_multiplied(config, shape),
        **_pieces(config, shape, config.federation.rounds, open_sums),
        **_copies(config, "server_copies", _all_numbers(config, shape, subspaces)),
    }


def spilled(config: RunConfig, shape: Shape) -> float:
    """Disk that a round's updates take until they are summed."""
    return config.federation.clients_per_round * _FLOAT * (subspace(config, shape) + shape.projector)


def remembered(config: RunConfig, shape: Shape, subspaces: int) -> float:
    """Disk of what all clients keep between their orders, at most: once each has taken part in every stage."""
    return config.federation.clients * sum(_kept(config, shape, subspaces).values())


def _kept(config: RunConfig, shape: Shape, subspaces: int) -> dict[str, float]:
    """What one client keeps."""
    kept: dict[str, float] = what_is_held(config, shape).client
    kept = kept | _pieces(config, shape, config.federation.rounds - 1) | _own_factors(config, shape, subspaces)
    return kept | _owed(config, shape) | _copies(config, "client_copies", _all_numbers(config, shape, subspaces))


def _pieces(config: RunConfig, shape: Shape, rounds: int, subspaces: int = 1) -> dict[str, float]:
    """What so many rounds of a stage add beside subspaces (``factors: flora``, ``fedex``), at most.

    Args:
        subspaces: that a stage's clients train; a client's pieces are those of one.
    """
    rule = registry.resolve("factors", config.factors)()
    each = shape.products(rule.added([ranks.largest(config)] * config.federation.clients_per_round))
    own = subspaces * shape.adapter(config.adapter.rank) if rule.adds_itself else 0
    return {f"pieces of a stage (factors: {config.factors})": _FLOAT * (rounds * each + own)} if each else {}


def _multiplied(config: RunConfig, shape: Shape) -> dict[str, float]:
    """Factors of a round's updates, which the server holds until it has multiplied them (``factors: svd`` and others).

    What goes beyond a layer's full rank is brought back to it, in float64.
    """
    if not registry.resolve("factors", config.factors).multiplies:
        return {}
    pooled = registry.resolve("method", config.method["name"]).pooled
    rank = ranks.expected(config) * (1 if pooled else config.federation.clients_per_round)
    size = sum((8 * min(a, b) if rank > min(a, b) else _FLOAT * rank) * (a + b) for a, b in shape.adapted)
    return {f"factors of a round's updates (factors: {config.factors})": size}


def _own_factors(config: RunConfig, shape: Shape, subspaces: int) -> dict[str, float]:
    """Factors that stay with a client (``factors: fedsa``), of every subspace that it has trained."""
    if not registry.resolve("factors", config.factors).per_client:
        return {}
    numbers = ranks.largest(config) * sum(outer for _, outer in shape.adapted)
    return {f"its own factors (factors: {config.factors})": _FLOAT * subspaces * numbers}


def _owed(config: RunConfig, shape: Shape) -> dict[str, float]:
    """What a client has not sent yet, by error feedback: one update, or one for each task that it trains in a stage."""
    thin = Thin.of(config, registry.resolve("method", config.method["name"]).pooled)
    if thin is None or not thin.feedback:
        return {}
    updates = config.federation.rounds if config.setting == "heterogeneous" else 1
    return {"what its updates lack (error feedback)": _FLOAT * updates * trained_numbers(config, shape)}


def _copies(config: RunConfig, which: str, numbers: int) -> dict[str, float]:
    """What the federated optimiser keeps beside so many numbers."""
    copies = int(getattr(registry.resolve("fedopt", config.fedopt["name"]), which))
    return {f"state of {config.fedopt['name']}": _FLOAT * copies * numbers} if copies else {}


def feature_bytes(config: RunConfig, shape: Shape, numbers: float | None = None) -> float:
    """Disk of one image's frozen features, which are so many numbers; None: those of the image that the shape is of."""
    kept = shape.image_words * shape.feature_width if numbers is None else numbers
    return float(kept * _WIDTHS[config.backbone.dtype])


def training_flops(config: RunConfig, shape: Shape, lengths: Lengths) -> float:
    """Floating-point operations to train on one record.

    Forward 2 P per token, backward another 2 P (frozen weights have no gradient), with checkpointing 2 P for the
    second forward pass; attention 4 T^2 q a layer forward, twice that backward. P: weights in linear layers.
    """
    tokens, again = lengths.record(shape), config.training.checkpointing
    attention = 4 * tokens**2 * shape.query_width * shape.layers
    return tokens * shape.linear * (6 if again else 4) + attention * (4 if again else 3)


def answering_flops(config: RunConfig, shape: Shape, lengths: Lengths) -> float:
    """Operations to answer one question with an answer of the assumed length."""
    prompt = lengths.prompt(shape)
    return 2.0 * shape.linear * (prompt + lengths.answer) + 4.0 * prompt**2 * shape.query_width * shape.layers
