"""How a training step is computed changes its gradients by rounding only, and ends with the training."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.exc import InvalidCxxCompiler

from clients.worker.micro_batches import MicroBatches
from fcit import config as configuration
from fcit import registry, seeding
from fcit.config import Adapter, Training
from fcit.config import Backbone as Config
from fcit.methods.base import Session
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.compiling import ALIGNED, CompiledLayers
from fcit.models.layout import is_projector
from fcit.models.steps import compiles, computed
from tests.helpers.compiling import Compiler
from tests.helpers.runs import BACKBONE

METHODS = ["finetune", "moelora", "olora", "lwf", "l2p", "smolora", "proglora"]


class Case:
    """A method's loss of four records on the built-in model."""

    def __init__(self, name: str, dtype: str, dropout: float = 0.0) -> None:
        self.method = registry.resolve("method", name)(configuration.parse({"method": name}))
        self.backbone = Backbone(Config(**BACKBONE, feature_cache="off", dtype=dtype))
        self.adapters = Adapters(self.backbone, Adapter(dropout=dropout), self.method.layout)
        rng = np.random.default_rng(0)
        shapes = {n: tuple(p.shape) for n, p in self.adapters.trainable.items() if not is_projector(n)}
        old, new = ({n: rng.normal(0, 0.05, s).astype(np.float32) for n, s in shapes.items()} for _ in range(2))
        self.adapters.load(new)
        words = [("What is this? " * n, "red cup " * n) for n in (1, 2, 3, 4)]
        examples = [self.backbone.encode(question, answer, "") for question, answer in words]
        shape = (len(examples), *self.backbone.family.shape)
        self.features = torch.from_numpy(rng.normal(size=shape).astype(np.float32)).to(self.backbone.dtype)
        constants = {"lwf": {"teacher-0": old}, "olora": {"frozen-0": old}, "proglora": {"frozen-0": old}}.get(name, {})
        width = self.backbone.identity.width()
        self.session = Session(
            backbone=self.backbone,
            adapters=self.adapters,
            client=0,
            shard="s",
            stage=1,
            round=0,
            subspace="1",
            constants=constants,
            examples=examples,
            identity=rng.normal(size=(len(examples), width)).astype(np.float32),
            received={"suffixes": rng.normal(size=(2, width)).astype(np.float32)} if name == "smolora" else {},
            batch=list(range(len(examples))),
        )

    def loss(self) -> torch.Tensor:
        return self.method.loss(self.session, self.session.examples, self.features)

    def compiled(self, backend) -> CompiledLayers:
        self.backbone.layers = CompiledLayers(self.backbone.family.layers, backend)
        return self.backbone.layers

    def gradients(self, **training) -> tuple[float, dict[str, torch.Tensor]]:
        with (
            seeding.torch_seeded(0, "test"),
            computed(self.backbone, Training(**training)),
            self.adapters.training(),
            ExitStack() as stack,
        ):
            self.method.prepare(self.session)
            stack.enter_context(self.backbone.layers.running())
            loss = self.loss()
            loss.backward()
            named = {n: p.grad.clone() for n, p in self.adapters.trainable.items() if p.grad is not None}
            return float(loss.detach()), named


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Relative, over all tensors together."""
    assert one.keys() == other.keys()
    gap = sum(float((one[n] - other[n]).square().sum()) for n in one)
    return (gap / sum(float(g.square().sum()) for g in one.values())) ** 0.5


@pytest.mark.parametrize("name", METHODS)
def test_products_in_sixteen_bits_give_nearly_the_same_gradients(name):
    case = Case(name, "bfloat16")
    loss, single = case.gradients(adapter_products="float32")
    other, half = case.gradients(adapter_products="backbone")
    assert other == pytest.approx(loss, rel=0.01)
    assert 0 < distance(single, half) < 0.05
    assert {g.dtype for g in half.values()} == {torch.float32}


def test_factors_are_multiplied_in_the_format_that_is_configured():
    case = Case("finetune", "bfloat16")
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    layer = next(m for n, m in case.backbone.model.named_modules() if n.endswith("lora_A.slot"))
    layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    case.gradients(adapter_products="backbone")
    case.gradients(adapter_products="float32")
    half, single = torch.bfloat16, torch.float32
    assert seen == [(half, half), (single, single)]


def test_checkpointing_computes_again_in_the_same_format():
    case = Case("finetune", "bfloat16", dropout=0.5)
    loss, plain = case.gradients()
    again, checked = case.gradients(checkpointing=True)
    assert again == loss
    assert distance(plain, checked) < 1e-6


def test_a_training_leaves_the_model_as_it_was():
    case = Case("finetune", "bfloat16")
    case.gradients()
    layers = [m for m in case.backbone.model.modules() if isinstance(m, BaseTunerLayer)]
    assert all(layer.cast_input_dtype_enabled for layer in layers)
    assert case.backbone.products is None


def test_what_is_asked_amid_training_keeps_no_weights_that_were_cast():
    """A captured step would read them where they are no more."""
    case, seen = Case("finetune", "bfloat16"), []
    case.backbone.family.language.register_forward_pre_hook(
        lambda *_: seen.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
    )
    with computed(case.backbone, Training()), case.adapters.training():
        case.loss()
        case.backbone.generate([case.backbone.encode("What is this?", None, "")], case.features[:1], 2)
    assert set(seen[1:]) == {(True, False)}
    assert seen[0] == (True, True)


def test_in_float32_there_is_nothing_to_cast():
    case = Case("finetune", "float32")
    loss, single = case.gradients(adapter_products="float32")
    seen: list[bool] = []
    case.backbone.model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    other, same = case.gradients()
    assert seen == [False]
    assert other == loss
    assert all(torch.equal(same[n], g) for n, g in single.items())


# ---------------------------------------------------------------------- compiled layers


COMPILED = [("finetune", 1), ("moelora", 1), ("olora", 1), ("lwf", 2), ("l2p", 1), ("smolora", 1), ("proglora", 1)]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "graphs"), COMPILED)
def test_one_compilation_serves_all_layers(name, graphs):
    """Two for distillation: the teacher's layers have another adapter and no gradients."""
    case, compiler = Case(name, "float32"), Compiler()
    loss, plain = case.gradients(compile="off")
    layers = case.compiled(compiler)
    lengths: list[int] = []
    case.backbone.model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    for _ in range(2):
        other, compiled = case.gradients(compile="on")
        assert other == pytest.approx(loss, rel=1e-5)
        assert distance(plain, compiled) < 1e-5
    assert len(case.backbone.layers.layers) > 1
    assert len(compiler.graphs) == graphs
    assert {n % ALIGNED for n in lengths} == {0}
    assert layers.seconds > 0


@pytest.mark.thorough
def test_checkpointing_draws_the_same_dropout_and_compiles_once():
    case, compiler = Case("finetune", "float32", dropout=0.5), Compiler(passes=True)
    case.compiled(compiler)
    loss, plain = case.gradients(compile="on")
    assert len(compiler.graphs) == 1
    for _ in range(2):
        other, compiled = case.gradients(compile="on", checkpointing=True)
        assert other == pytest.approx(loss, rel=1e-5)
        assert distance(plain, compiled) < 1e-5
    assert len(compiler.graphs) == 2


@pytest.mark.parametrize("name", METHODS)
def test_padding_that_comes_last_changes_nothing(name, monkeypatch):
    """As training through compiled layers has it, which here run as they are."""
    case = Case(name, "float32")
    loss, plain = case.gradients()
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    layers, masks = case.compiled("none"), []
    case.backbone.family.language.register_forward_pre_hook(
        lambda _, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    other, last = case.gradients(compile="on")
    assert layers.used
    assert all(mask.all() for mask in masks)
    assert other == pytest.approx(loss, rel=1e-5)
    assert distance(plain, last) < 1e-5


def test_rates_of_dropout_are_constants_of_what_is_compiled():
    """As inputs, which torch makes of a number that has changed, they gave wrong gradients in layers computed twice."""
    case, compiler = Case("finetune", "float32", dropout=0.5), Compiler()
    torch._dynamo.reset()
    case.compiled(compiler)
    for rate in (0.5, 0.1, 0.3):
        for module in case.backbone.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = rate
        case.gradients(compile="on")
    inputs = [sum(node.op == "placeholder" for node in graph.graph.nodes) for graph in compiler.graphs]
    assert len(inputs) == 3
    assert len(set(inputs)) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["finetune", "l2p", "smolora", "proglora"])
def test_one_more_compilation_serves_every_length(name):
    case, compiler = Case(name, "float32"), Compiler()
    torch._dynamo.reset()  # which dimensions have changed in this process
    layers = case.compiled(compiler)
    everything, lengths = (case.session.examples, case.features, case.session.identity), set()
    case.session.batch = [0, 1]
    case.backbone.model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.add(kwargs["inputs_embeds"].shape[1]) if layers.runs else None,
        with_kwargs=True,
    )
    for rows in ([0, 0], [0, 1], [0, 2], [1, 3], [0, 0]):
        case.session.examples, case.features = [everything[0][n] for n in rows], everything[1][rows]
        case.session.identity = everything[2][rows]
        loss, plain = case.gradients(compile="off")
        other, compiled = case.gradients(compile="on")
        assert other == pytest.approx(loss, rel=1e-5)
        assert distance(plain, compiled) < 1e-5
    assert len(lengths) > 2
    assert len(compiler.graphs) == 2


def test_where_not_every_length_can_be_compiled_each_is_by_itself():
    """A compiler that knows no dimension without a size."""
    case = Case("finetune", "float32", dropout=0.0)
    torch._dynamo.reset()
    graphs = []

    def sized(graph, inputs):
        if any(isinstance(n, torch.SymInt) for value in inputs for n in getattr(value, "shape", [value])):
            raise InvalidCxxCompiler
        graphs.append(graph)
        return graph.forward

    layers, micro = case.compiled(sized), MicroBatches(None, 2)
    micro.layers = layers
    everything = case.session.examples, case.features
    for rows in ([0, 1], [0, 2], [1, 3]):
        case.session.examples, case.features = [everything[0][n] for n in rows], everything[1][rows]
        loss, plain = case.gradients()
        with (
            seeding.torch_seeded(0, "test"),
            computed(case.backbone, Training(compile="on")),
            case.adapters.training() as parameters,
        ):
            sessions = (case.session, case.session)
            other = micro.backward(sessions, [0, 1], lambda _: case.loss(), parameters)
            compiled = {n: p.grad.clone() for n, p in case.adapters.trainable.items()}
        assert other == pytest.approx(loss, rel=1e-5)
        assert distance(plain, compiled) < 1e-5
    assert layers.apart
    assert not layers.failed
    assert len(graphs) > 1


def test_what_trains_compiled_answers_as_it_is():
    case = Case("finetune", "float32")
    layers = case.compiled(Compiler())
    case.gradients(compile="on")
    assert layers.kinds == {"records"}
    assert not any("forward" in vars(layer) for layer in layers.layers)
    assert layers.multiple == 1
    with layers.running():  # not installed
        assert layers.multiple == 1


def unable(graph, _):
    raise InvalidCxxCompiler


def said(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name == "fcit.models.compiling"]


def unable_backwards(graph, inputs):
    return aot_autograd(fw_compiler=lambda g, _: make_boxed_func(g.forward), bw_compiler=unable)(graph, inputs)


def test_only_a_compiler_that_fails_is_given_up():
    layers = Case("finetune", "float32").compiled(Compiler())
    lacking = type("CompilationError", (Exception,), {"__module__": "triton.compiler.errors"})
    with layers.installed():
        assert not layers.give_up(RuntimeError("a method's own"))
        assert layers.give_up(lacking("no ptxas"))
        assert (layers.apart, layers.failed) == (True, False)
        assert layers.give_up(lacking("no ptxas"))
    assert layers.failed


def test_an_order_says_whether_it_ran_compiled():
    case = Case("finetune", "float32")
    layers = case.compiled(Compiler())
    case.gradients(compile="on")
    assert layers.used
    layers.begin()
    case.gradients(compile="off")
    assert not layers.used


def test_a_method_may_answer_while_it_trains():
    case = Case("finetune", "bfloat16")
    question = [case.backbone.encode("What is this?", None, None)]
    pictures = case.backbone.vision_features(Path(), [])
    with computed(case.backbone, Training()), case.adapters.training():
        during = case.backbone.generate(question, pictures, 3)
    assert len(during) == 1


@pytest.mark.parametrize("backend", [unable, unable_backwards])
def test_where_nothing_can_be_compiled_training_goes_on(backend, caplog):
    case = Case("finetune", "float32", dropout=0.5)
    layers = case.compiled(backend)
    micro = MicroBatches(None, 4, layers)
    sessions = (case.session, case.session)

    def step(**training) -> tuple[float, dict[str, torch.Tensor]]:
        with (
            seeding.torch_seeded(0, "test"),
            computed(case.backbone, Training(**training)),
            case.adapters.training() as parameters,
        ):
            loss = micro.backward(sessions, [0, 1, 2, 3], lambda _: case.loss(), parameters)
            return loss, {n: p.grad.clone() for n, p in case.adapters.trainable.items()}

    loss, plain = step(compile="off")
    other, first = step(compile="on")
    assert layers.failed
    assert [text.partition(" (")[0] for text in said(caplog)] == [
        "training.compile: the decoder layers cannot be compiled here for any length, and are for each",
        "training.compile: the decoder layers cannot be compiled here and run as they are",
    ]
    assert other == loss  # the batch is done again as if there had been no padding
    assert all(torch.equal(plain[n], g) for n, g in first.items())
    again, eager = step(compile="on")
    assert again == loss
    assert all(torch.equal(eager[n], g) for n, g in plain.items())
    assert len(said(caplog)) == 2


@pytest.mark.parametrize(
    ("compile", "devices", "quantization", "wanted"),
    [
        ("auto", ["cpu"], "none", False),
        ("auto", ["cuda"], "none", True),
        ("auto", ["cuda:0", "cuda:1"], "none", False),
        ("auto", ["cuda"], "4bit", False),
        ("on", ["cpu"], "none", True),
        (True, ["cpu"], "none", True),
        (False, ["cuda"], "none", False),
    ],
)
def test_auto_compiles_on_one_gpu(compile, devices, quantization, wanted):
    settings = Config(quantization=quantization)
    assert compiles(Training(compile=compile), settings, list(map(torch.device, devices))) is wanted


@pytest.mark.parametrize(
    ("decides", "checkpointing", "wanted"), [(True, True, False), (True, False, True), (False, True, True)]
)
def test_auto_does_not_compile_what_is_computed_twice_and_was_decided_once(decides, checkpointing, wanted):
    training = Training(compile="auto", checkpointing=checkpointing)
    assert compiles(training, Config(), [torch.device("cuda")], decides) is wanted
