"""Answers through compiled decoder layers are the same answers, for few compilations."""

from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import yaml
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InvalidCxxCompiler

from fcit import config as configuration
from fcit import registry
from fcit.models import backbone as backbones
from fcit.models.compiling import ALIGNED, CompiledLayers, with_own_cache
from fcit.models.decoding.answering import Answering
from fcit.models.decoding.greedy import Greedy
from fcit.models.decoding.slots import KeyValues
from fcit.models.memory import is_out_of_memory
from fcit.runs.create import create
from tests.helpers.compiling import Compiler
from tests.helpers.runs import BACKBONE, SMALL, bits
from tests.perf import answering_levers, gpu


@pytest.fixture
def asked(tmp_path):
    """Answers to as many questions as are asked for, compiled by a backend or not at all."""
    kit = gpu.build("toy", "cpu", tmp_path)
    decoding = answering_levers.Decoding(kit, "toy")
    decoding.load(gpu.SUBSPACES, as_backbone=False)
    backbone = decoding.backbone

    def tokens(count: int, backend=None, new: int = 6) -> list[list[int]]:
        examples, features = gpu.records(backbone, decoding.size, count, answered=False, uneven=True)
        if backend is not None and backbone.layers.backend is not backend:
            backbone.layers = CompiledLayers(backbone.family.layers, backend)
        with decoding.mixed(count, gpu.SUBSPACES, one_task=False, negligible=0.0), backbone.answering.by("static"):
            if backend is None:
                return backbone.tokens(examples, features, new)
            with backbone.answering.compiled():
                assert backbone.layers.multiple == (1 if backbone.layers.failed else ALIGNED)
                return backbone.tokens(examples, features, new)

    tokens.backbone = backbone
    return tokens


@pytest.mark.thorough
def test_prompts_and_steps_are_compiled_for_any_number_of_rows_and_all_layers(asked):
    """Once each; what is written stays in place."""
    compiler = Compiler()
    for count in (7, 3, 6, 5):
        wanted = asked(count)
        assert asked(count, compiler) == wanted
        assert len(compiler.graphs) == 2
    assert len(asked.backbone.layers.layers) > 1
    assert asked.backbone.layers.kinds == {"prompts", "steps"}
    operators = {str(node.target) for graph in compiler.graphs for node in graph.graph.nodes}
    assert {"fcit.keep_prompt.default", "fcit.keep_token.default"} <= operators
    assert "index_copy_" not in operators


class Captured:
    """A step as CUDA graphs run it: by itself the first time, then recorded, when nothing can be compiled."""

    compiler: Compiler
    late: ClassVar[list[int]] = []

    def __init__(self, step) -> None:
        self.step, self.calls = step, 0

    def __call__(self) -> None:
        before = len(self.compiler.graphs)
        self.step()
        self.calls += 1
        if self.calls > 1:
            self.late.append(len(self.compiler.graphs) - before)


@pytest.mark.thorough
def test_rows_and_slots_as_on_a_gpu_take_no_more_compilations_and_none_while_a_step_is_captured(asked):
    """Rows come in buckets and slots in stretches there, and addresses stay."""
    Captured.compiler = compiler = Compiler()
    Captured.late = []
    answering = asked.backbone.answering
    answering.greedy = Greedy(asked.backbone.family.language, answering.rows, Captured, lambda rows, length: 1e12)
    for new in (6, 3):
        for count in (16, 7, 12, 3):
            wanted = asked(count, new=new)
            assert asked(count, compiler, new=new) == wanted
    assert len(compiler.graphs) == 2
    assert Captured.late
    assert not any(Captured.late)


def unable(graph, inputs):
    raise InvalidCxxCompiler


def test_where_nothing_can_be_compiled_answers_go_on(asked, caplog):
    wanted = asked(3)
    asked(3)  # buffers are there, so that prompts are compiled
    assert asked(3, unable) == wanted
    assert asked(3, unable) == wanted
    said = [r.message.partition(" (")[0] for r in caplog.records if r.name == "fcit.models.compiling"]
    assert said == ["evaluation.compile: the decoder layers cannot be compiled here and run as they are"]
    assert not any("forward" in vars(layer) for layer in asked.backbone.layers.layers)


def full(graph, inputs):
    raise RuntimeError("CUDA driver error: out of memory")


def test_memory_that_runs_out_while_layers_are_compiled_is_no_failure_of_the_compiler(asked):
    """A smaller batch may do, so what halves batches is told."""
    asked(3)
    with pytest.raises(BackendCompilerFailed) as raised:
        asked(3, full)
    assert is_out_of_memory(raised.value)
    assert not asked.backbone.layers.failed


def test_a_layer_gets_its_own_keys_and_values():
    kept = KeyValues(2, torch.device("cpu"))
    kept.reserve(1, 4)
    kept.prompt = kept.seen = 3
    arguments = {"cache": kept.cache, "attention_mask": None}
    assert with_own_cache(0, arguments) is None  # no buffers yet
    states = torch.ones(1, 2, 3, 5)
    for layer in range(2):
        kept.cache.update(states, states, layer)
    for number, slots in enumerate(kept.cache.layers):
        assert with_own_cache(number, arguments) == {"cache": slots, "attention_mask": None}
    without = {"attention_mask": None}
    assert with_own_cache(1, without) is without
    assert with_own_cache(0, {"cache": SimpleNamespace(layers=[object()])}) is None  # of transformers' generate


@pytest.mark.parametrize(
    ("device", "quantization", "switch", "questions", "wanted"),
    [
        ("cuda", "none", "auto", 2000, True),
        ("cuda", "none", "auto", 1999, False),
        ("cuda", "4bit", "auto", 2000, False),
        ("cpu", "none", "auto", 2000, False),
        ("cpu", "none", "on", 1, True),
        ("cuda", "none", "off", 2000, False),
    ],
)
def test_auto_compiles_where_many_questions_are_asked_on_one_gpu(device, quantization, switch, questions, wanted):
    language = SimpleNamespace(parameters=lambda: [SimpleNamespace(device=torch.device("meta"))])
    backbone = SimpleNamespace(
        device=torch.device(device),
        config=SimpleNamespace(quantization=quantization),
        family=SimpleNamespace(language=language),
    )
    assert Answering(backbone).compiles(switch, questions) is wanted


#: Compilations of a run of two stages: for another number of subspaces or rows once more.
FEW = 8
#: Methods whose hooks read something of a layer's own, or of the batch.
READING = ("disco", "smolora", "clmoe")


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("method", READING)
def test_methods_answer_the_same_through_few_compilations(method, tmp_path, monkeypatch):
    from clients.app import app
    from fcit.federation.engines.inline import InlineGrid
    from server.app import run as serve

    compiler, made = Compiler(), {}
    monkeypatch.setattr(backbones, "CompiledLayers", partial(CompiledLayers, backend=compiler))
    federation = {"rounds": 1, "clients": 40, "clients_per_round": 2, "beta": 100.0}
    assert method in registry.METHODS
    for switch in ("off", "on"):
        raw = {**SMALL, "name": switch, "method": method, "federation": federation, "output": str(tmp_path / "runs")}
        # A length of its own, so that its backbone, which a process keeps, is no other test's.
        raw["backbone"] = {**BACKBONE, "max_length": 1000 + READING.index(method)}
        raw |= {"data": {"max_records": 320}, "evaluation": {"samples": 6, "batch_size": 2, "compile": switch}}
        file = tmp_path / f"{switch}.yaml"
        file.write_text(yaml.safe_dump(raw))
        config = configuration.load(file)
        run = create(config)
        serve(run.path, InlineGrid(app, config.federation.clients, config, run.memory), None)
        made[switch] = bits(run.path)
        assert (len(compiler.graphs) > 0) is (switch == "on")
    assert made["off"] == made["on"]
    assert len(compiler.graphs) <= FEW
