"""A federation of three clients and a model of one layer, on which the contract is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fcit import registry
from fcit.config import RunConfig
from fcit.data.collate import Encoded
from fcit.data.records import Record, TestRecord
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.fedavg import FedAvg
from fcit.io import trees
from fcit.io.trees import Tensors
from fcit.methods.base import Factory, Method, Pair, QuestionBatch, ServerState, Session, Stats, Update, objective
from fcit.models.hooks import Keys
from fcit.models.layout import GATE, Layout
from fcit.models.ranks import cut
from fcit.models.reading import Weigh

RECORDS = [Record.single(f"{i}.png", "What is this?", "a thing") for i in range(3)]
LABELS = [("A", "the first task"), ("B", "the second task")]
EXAMPLES = [Encoded((1, 2, 3), ((2, 3),), (f"{i}.png",)) for i in range(3)]
A, B, P, S = (
    "base_model.model.x.lora_A.weight",
    "base_model.model.x.lora_B.weight",
    "base_model.model.multi_modal_projector.linear_1.weight",
    "base_model.model.multi_modal_projector.scale",
)
SHAPES: dict[str, tuple[int, ...]] = {A: (2, 3), B: (3, 2)}
#: The first and the last pair belong to one task in every method.
PAIRS: list[Pair] = [(0, "task-0"), (1, "task-1"), (4, "task-0")]
_FEATURES = {PAIRS[0]: [4.0, 0.0], PAIRS[1]: [0.0, 2.0], PAIRS[2]: [8.0, 1.0]}
STATS = {pair: Stats(np.array(total), 4) for pair, total in _FEATURES.items()}


def shapes_of(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Tensors of one subspace on a model of one layer, three wide."""
    if layout.pool:
        return layout.prompts(width=3, features=2)
    gates = {f"{A.partition('.lora_')[0]}{GATE}{part}": shape for part, shape in layout.gates(3, 3, 2).items()}
    factors = {A: (layout.experts, 3), B: (3, layout.experts)} if layout.experts else SHAPES
    return {**factors, **gates, **layout.key(3)}


def require(condition: object, message: str) -> None:
    """Raise :class:`AssertionError` unless the condition holds, also under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def require_float32(hook: str, arrays: Mapping[str, Any]) -> None:
    """Raise :class:`AssertionError` unless all are arrays of float32."""
    wrong = [n for n, t in arrays.items() if not isinstance(t, np.ndarray) or t.dtype != np.float32]
    require(not wrong, f"{hook} must give float32 arrays; {wrong} are not")


def first_failure(
    test: Callable[[Any], None], make: Callable[[dict[str, Any]], Any], cases: Iterable[dict[str, Any]]
) -> tuple[str, str | None]:
    """The description of a check, and the problem in the first case that fails it; None if all pass."""
    promise = (test.__doc__ or test.__name__).split("\n")[0]
    for case in cases:
        try:
            test(make(case))
        except Exception as error:  # noqa: BLE001  (a user's part may raise anything; the reason is shown)
            text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            where = ", ".join(f"{key} {value}" for key, value in case.items() if key != "options")
            return promise, f"{text} ({where})"
    return promise, None


class ToyEncoder:
    """Tokenises with a vocabulary of three words; letters that follow each other are different words."""

    def encode(self, record: Record | TestRecord) -> Encoded:
        """A question of one word, and an answer of one with an end."""
        answer = "" if isinstance(record, TestRecord) else record.turns[0].answer
        return Encoded((1, sum(map(ord, answer)) % 3, 2), ((1, 3),), record.images)


@dataclass
class Toy:
    """A stand-in for backbone and adapters: the loss is the sum of squares of the trained tensors."""

    trainable: dict[str, torch.nn.Parameter]
    see: Callable[[str, torch.Tensor], None] | None = None
    sums: Mapping[str, torch.Tensor] = field(default_factory=dict)
    encoder: ToyEncoder = field(default_factory=ToyEncoder)
    keys: Keys = field(default_factory=Keys)

    def loss(self, examples: list[Any], features: Any, prefix: Any = None) -> torch.Tensor:
        """A loss that needs no model."""
        for name, factor in self.trainable.items():
            if self.see is not None and ".lora_A." in name:
                self.see(name, torch.eye(factor.shape[1])[None])
        for gate in self.sums.values():
            gate += 1
        total = torch.stack([p.square().sum() for p in self.trainable.values()]).sum()
        return total if prefix is None else total + prefix.square().sum()

    def answer_logits(self, examples: list[Any], features: Any, prefix: Any = None) -> tuple[torch.Tensor, ...]:
        """Logits of three words at one position each, and the words wanted."""
        return self.loss(examples, features, prefix) * torch.ones(len(examples), 3), torch.zeros(len(examples)).long()

    def encoder_below(self, root: Any) -> ToyEncoder:
        """The encoder of records with images in this folder."""
        return self.encoder

    def encode(self, instruction: str, answer: str | None, image: str | None) -> Encoded:
        """A record of one word and its answer."""
        return Encoded((1, 2), ((1, 2),), ())

    def vision_features(self, root: Any, images: list[str]) -> torch.Tensor:
        """Placeholder features."""
        return torch.zeros(len(images), 1, 1)

    @contextmanager
    def resting(self) -> Iterator[list[torch.nn.Parameter]]:
        """As :meth:`fcit.models.adapters.Adapters.resting`."""
        yield list(self.trainable.values())

    @contextmanager
    def mixed(self, mix: np.ndarray | None, negligible: float = 0.0) -> Iterator[None]:
        """As :meth:`fcit.models.adapters.Adapters.mixed`; it changes nothing."""
        yield

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """As :meth:`fcit.models.adapters.Adapters.teacher`."""
        with torch.no_grad():
            yield

    def show_inputs(self, see: Callable[[str, torch.Tensor], None]) -> None:
        """As :meth:`fcit.models.adapters.Adapters.show_inputs`: three tokens, one in each direction."""
        self.see = see

    def sum_gates(self, sums: Mapping[str, torch.Tensor]) -> None:
        """As :meth:`fcit.models.adapters.Adapters.sum_gates`: all experts alike."""
        self.sums = sums

    @contextmanager
    def gate_use(self, top: int) -> Iterator[dict[str, torch.Tensor]]:
        """As :meth:`fcit.models.routed.Routed.gate_use`: all experts alike."""
        yield {n: torch.ones(len(p)) for n, p in self.trainable.items() if GATE in n}

    @contextmanager
    def instructed(self, features: np.ndarray) -> Iterator[None]:
        """As :meth:`fcit.models.routed.Routed.instructed`."""
        require(features.ndim == 2 and features.dtype == np.float32, "instructed needs float32 features of questions")
        yield

    @contextmanager
    def weighed(self, logits: Weigh, anew: bool = False) -> Iterator[None]:
        """As :meth:`fcit.models.routed.Routed.weighed`: two questions of four tokens are weighed."""
        columns = logits(torch.ones(2, 4, 3), torch.ones(2, 4, dtype=torch.bool))
        require(columns.ndim == 2 and len(columns) == 2, "logits must return a row for each question")
        yield

    def load_teacher(self, tensors: dict[str, np.ndarray]) -> None:
        """As :meth:`fcit.models.adapters.Adapters.load_teacher`."""
        require(
            set(tensors) == set(self.trainable), "load_teacher needs a subspace and the projector, if it is trained"
        )

    def add_frozen(self, subspaces: list[dict[str, np.ndarray]]) -> None:
        """As :meth:`fcit.models.adapters.Adapters.add_frozen`."""
        require(all(set(self.trainable) >= set(s) for s in subspaces), "add_frozen needs subspaces")
        self.keys.load(subspaces, torch.device("cpu"))

    def principal(self, name: str, share: float) -> torch.Tensor:
        """As :meth:`fcit.models.adapters.Adapters.principal`: the first direction."""
        return torch.eye(1, self.trainable[name].shape[-1])

    def load(self, tensors: dict[str, np.ndarray]) -> None:
        """As :meth:`fcit.models.adapters.Adapters.load`."""
        with torch.no_grad():
            for name, value in tensors.items():
                self.trainable[name].copy_(torch.from_numpy(value))

    def read(self) -> dict[str, np.ndarray]:
        """The trained tensors as arrays."""
        return {n: p.detach().numpy().copy() for n, p in self.trainable.items()}


def method_of(name: str, options: dict[str, Any] | None = None) -> Method:
    """A method with these options, all other settings at their defaults."""
    config = RunConfig.model_validate({"method": {"name": name, **(options or {})}})
    return registry.resolve("method", name)(config)


@dataclass
class MethodCase:
    """A method with its options on a toy federation of three clients, under a policy for the projector.

    Attributes:
        rank: of the factors that clients train; None: the subspace's.
    """

    name: str
    projector: str = "shared"
    options: dict[str, Any] = field(default_factory=dict)
    rank: int | None = None
    method: Method = field(init=False)
    make: Factory = field(init=False)
    shapes: dict[str, tuple[int, ...]] = field(init=False)
    state: ServerState = field(init=False)
    aggregator: Aggregator = field(init=False)

    def __post_init__(self) -> None:
        self.method = method_of(self.name, self.options)
        # Arithmetic makes a number of what has no dimensions.
        projector = {P: np.full((2, 2), 0.5, np.float32), S: np.full((), 0.5, np.float32)}
        per_subspace = projector if self.projector == "per_subspace" else {}
        self.shapes = shapes_of(self.method.layout) | {n: t.shape for n, t in per_subspace.items()}
        self.make = Factory(0, self.shapes, projector if self.projector == "shared" else {}, given=per_subspace)
        self.aggregator = Aggregator(FedAvg(self.method.config))
        self.state = self.fresh()

    def fresh(self) -> ServerState:
        """A server state after the three pairs were assigned their subspaces."""
        state = ServerState(shared=dict(self.make.projector), labels=list(LABELS))
        self.method.assign(state, list(PAIRS), self.stats, self.make)
        return state

    @property
    def stats(self) -> dict[Pair, Stats]:
        """The clients' statistics, if the method needs them."""
        return dict(STATS) if self.method.needs_stats else {}

    def session(self, pair: Pair, memory: dict[str, Any], last_round: bool = False) -> Session:
        """A client's training of the toy tensors."""
        sent, constants = self.method.broadcast(self.state, pair), self.method.constants(self.state)
        require_float32("broadcast", sent)
        for name, arrays in constants.items():
            require_float32(f"constants[{name!r}]", arrays)
        require(not any("/" in n for n in constants), "names of constants must not hold '/'")
        held = {n: cut(n, t, self.rank) for n, t in self.held(pair).items()} if self.rank else self.held(pair)
        toy = Toy({n: torch.nn.Parameter(torch.from_numpy(t.copy())) for n, t in held.items()})
        session = Session(
            backbone=toy,
            adapters=toy,
            client=pair[0],
            shard=pair[1],
            stage=self.state.stage,
            round=self.state.round,
            subspace=self.state.assigned[pair],
            received=dict(sent),
            brief=trees.json_of(self.method.brief(self.state), "brief"),
            memory=memory,
            constants=constants,
            examples=EXAMPLES,
            records=RECORDS,
            identity=np.eye(3, 2, dtype=np.float32),
            image_root=None,
            seed=0,
            last_round=last_round,
            batch=[0, 2],
            lr=0.1,
        )
        session.examples = self.method.select(session)
        extra = self.method.extra(session.stage, session.round)
        most = extra.most if extra else len(EXAMPLES)
        require(1 <= len(session.examples) <= most, f"select returned {len(session.examples)} records, most is {most}")
        return session

    def save(self) -> None:
        """Save the server's memory and read it, as a checkpoint after every round does.

        A run that is not resumed goes on with what was saved, not with what is read.
        """
        for name, arrays in self.method.constants(self.state).items():
            require_float32(f"constants[{name!r}]", arrays)
        for home, tensors in {**self.state.subspaces, "shared": self.state.shared}.items():
            require_float32(f"aggregate or end_stage, of {home!r},", tensors)
        plain, tensors = trees.flatten(self.state.memory)
        self.state.memory = trees.restore(plain, tensors)

    def measure(self) -> None:
        """What the method's clients measure before a stage, taken in by the server."""
        measured = []
        for pair in PAIRS:
            session = self.session(pair, {})
            before = session.adapters.read()
            extra = self.method.measure(session)
            got = {n: getattr(t, "shape", None) for n, t in extra.items()}
            shapes = {n: tuple(s) for n, s in self.method.measured_shapes(self.state).items()}
            require(got == shapes, f"measure returned {got}, measured_shapes announces {shapes}")
            require(all(t.dtype == np.float32 for t in extra.values()), "measure must return float32 arrays")
            after = session.adapters.read()
            require(all(np.array_equal(after[n], t) for n, t in before.items()), "measure has trained")
            measured.append(Update(pair[0], session.subspace, len(EXAMPLES), {}, extra))
        self.method.absorb(self.state, iter(measured))
        self.save()

    def train(self, pair: Pair, memory: dict[str, Any], last_round: bool = False) -> tuple[Session, Update]:
        """Two steps of plain descent through every client hook; the update as the server would read it."""
        method, session = self.method, self.session(pair, memory, last_round)
        frozen = method.frozen(session.adapters.trainable, session.stage)
        shapes = {n: tuple(s) for n, s in method.extra_shapes(self.state).items()}
        method.prepare(session)
        for _ in range(2):
            loss = objective(method, session, list(session.examples[:2]), torch.zeros(2, 1, 1))
            good = isinstance(loss, torch.Tensor) and loss.ndim == 0 and loss.requires_grad
            require(good, f"loss must return a scalar tensor with gradients, got {type(loss).__name__}")
            loss.backward()
            method.on_gradients(session)
            with torch.no_grad():
                for name, parameter in session.adapters.trainable.items():
                    still = parameter.grad is None or name in frozen
                    parameter -= 0.1 * (torch.zeros(()) if still else parameter.grad)
                    parameter.grad = None
            method.on_step(session)
        extra = method.finish(session)
        got = {n: getattr(t, "shape", None) for n, t in extra.items()}
        require(got == shapes, f"finish returned {got}, extra_shapes announces {shapes}")
        require(all(t.dtype == np.float32 for t in extra.values()), "finish must return float32 arrays")
        tensors = {n: t for n, t in session.adapters.read().items() if n not in frozen}
        require(all(np.isfinite(t).all() for t in tensors.values()), "training gave values that are not finite")
        return session, Update(pair[0], session.subspace, len(session.examples), tensors, extra)

    def held(self, pair: Pair, state: ServerState | None = None) -> dict[str, np.ndarray]:
        """All tensors a client of this pair trains."""
        state = state or self.state
        return {**state.shared, **state.subspaces[state.assigned[pair]]}

    def update(self, pair: Pair, examples: int, shift: float) -> Update:
        """An update that moved every tensor by ``shift``."""
        tensors = {n: (t + shift).astype(np.float32) for n, t in self.held(pair).items()}
        extra = {n: np.ones(shape, np.float32) for n, shape in self.method.extra_shapes(self.state).items()}
        return Update(pair[0], self.state.assigned[pair], examples, tensors, extra)

    def knowledge(self) -> tuple[dict[str, Any], Tensors]:
        """What inference needs, as it comes to a client."""
        values, tensors = self.method.knowledge(self.state)
        return trees.json_of(values, "knowledge"), tensors

    def routed(self, features: np.ndarray) -> np.ndarray:
        """Mix for questions with these features ``(N, 2)``."""
        values, tensors = self.knowledge()
        if self.method.needs_task_at_inference:
            values = {**values, "task": "task-1", "trained": {p[1]: name for p, name in self.state.assigned.items()}}
        return self.method.route(list(self.state.subspaces), (values, tensors), features)

    def chosen(self, features: np.ndarray) -> np.ndarray:
        """Final mix for questions with these features, after a look at them with the toy model."""
        toy = Toy({n: torch.nn.Parameter(torch.from_numpy(t.copy())) for n, t in self.held(PAIRS[0]).items()})
        questions = QuestionBatch(
            backbone=toy,
            adapters=toy,
            subspaces=list(self.state.subspaces.values()),
            examples=EXAMPLES[: len(features)],
            features=torch.zeros(len(features), 1, 1),
            identity=features,
            limit=1,
            knowledge=self.knowledge(),
            records=[TestRecord(str(i), ("0.png",), "What is this?", "a thing") for i in range(len(features))],
        )
        return self.method.choose(questions, self.routed(features))
