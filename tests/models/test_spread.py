"""A model whose layers lie on several devices: inputs, adapters, gates and mixtures follow their layers.

Nothing here was run on two GPUs. Layers are dispatched with accelerate's hooks, as ``backbone.device: auto`` does, onto
the CPU, where the numbers must be those of the whole model, and onto ``meta``, where a tensor left behind is an error.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_module

from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.errors import ConfigError
from fcit.models import loading
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.decoding.answering import Answering
from fcit.models.decoding.greedy import Greedy
from fcit.models.layout import Layout

EXPERTS = Layout(experts=2)


def spread(second: str) -> Backbone:
    """fcit-tiny, the layers behind the first and the head on a ``second`` device."""
    backbone = Backbone(Config())
    language = "model.language_model"
    first = ["model.vision_tower", "model.multi_modal_projector"]
    first += [f"{language}.{name}" for name in ("embed_tokens", "rotary_emb", "layers.0")]
    behind = [f"{language}.layers.{n}" for n in range(1, len(backbone.family.language.layers))]
    behind += [f"{language}.norm", "lm_head"]
    places = dict.fromkeys(first, "cpu") | dict.fromkeys(behind, second)
    head = backbone.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)  # the embeddings', on CPU, else
    backbone.project(lambda model: dispatch_model(model, places, main_device="cpu", force_hooks=True))
    if second == "meta":  # what is there cannot be brought back to the first device, as the outermost hook would
        remove_hook_from_module(backbone.model)
    return backbone


def exercised(backbone: Backbone, layout: Layout) -> tuple[torch.Tensor, Adapters]:
    """Logits of two records through trained slot and gates, and the adapters."""
    adapters = Adapters(backbone, Adapter(rank=4, dropout=0, projector="per_subspace"), layout)
    rng = np.random.default_rng(0)
    adapters.load(
        {name: rng.normal(0, 0.1, tuple(p.shape)).astype(np.float32) for name, p in adapters.trainable.items()}
    )
    examples = [backbone.encode(question, "three", None) for question in ("How many?", "How many are there?")]
    inputs = backbone._inputs(examples, backbone.vision_features(None, []))
    with adapters.training():
        logits = backbone.model(**{key: inputs[key] for key in ("inputs_embeds", "attention_mask")}).logits
    return logits, adapters


@pytest.mark.parametrize("layout", [Layout(), EXPERTS])
def test_the_numbers_of_a_spread_model_are_those_of_the_whole(layout):
    whole, here = exercised(Backbone(Config()), layout)
    parted, there = exercised(spread("cpu"), layout)
    assert torch.equal(whole, parted)
    questions = [here.backbone.encode("What is it?", None, None)]
    texts = []
    for adapters in (here, there):
        adapters.load_mixture([adapters.read()] * (1 if layout.experts else 2), adapters.base_projector())
        with adapters.mixed(None if layout.experts else np.array([[0.25, 0.75]])):
            texts.append(adapters.backbone.generate(questions, adapters.backbone.vision_features(None, []), 4))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("layout", [Layout(), EXPERTS])
def test_tensors_follow_their_layers(layout, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # torch's own knows no meta device
    logits, adapters = exercised(spread("meta"), layout)
    assert logits.device.type == "meta"
    devices = {n: p.device.type for n, p in adapters.trainable.items() if ".layers." in n}
    assert {n: "cpu" if ".layers.0." in n else "meta" for n in devices} == devices


def test_keys_and_values_of_a_decoder_follow_their_layers():
    """A stand-in for the head brings the states back; two of four answers end after the first step and leave."""
    backbone = spread("meta")
    language, tokens = backbone.family.language, iter([[2, 3, 4, 5], [1, 1, 4, 5], [4, 5], [4, 5]])

    def head(states: torch.Tensor) -> torch.Tensor:
        assert states.device.type == "meta"
        return torch.nn.functional.one_hot(torch.tensor(next(tokens)), 6)[:, None]

    assert backbone.answering.greedy is not None
    greedy = Greedy(language, {})
    mask, width = torch.ones(4, 7, dtype=torch.long), language.config.hidden_size
    prompts = torch.zeros(4, 7, width, dtype=backbone.dtype), mask, mask.cumsum(-1) - 1
    with torch.no_grad():
        answers = greedy(prompts, head, 4, {1})
    assert answers == [[2, 1], [3, 1], [4, 4, 4, 4], [5, 5, 5, 5]]
    places = [{part.device.type for part in layer.parts} for layer in greedy._kept._layers]
    assert places == [{"cpu"}, *[{"meta"}] * (len(places) - 1)]


@pytest.mark.parametrize(
    ("devices", "quantization", "captured"),
    [(["cpu", "cpu"], "none", True), (["cpu", "meta"], "none", False), (["cpu", "cpu"], "4bit", False)],
)
def test_steps_over_several_gpus_or_of_four_bits_are_not_captured(devices, quantization, captured):
    language = torch.nn.ModuleList([torch.nn.Linear(1, 1, device=device) for device in devices])
    family, config = SimpleNamespace(language=language), SimpleNamespace(quantization=quantization)
    backbone = SimpleNamespace(device=torch.device("cuda"), family=family, config=config)
    assert (Answering(backbone)._graphs is not None) == captured


def test_auto_fills_one_gpu_after_the_other(monkeypatch):
    sizes = [10, 20]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: SimpleNamespace(total_memory=sizes[n]))
    assert loading.placement("auto") == {"device_map": "sequential", "max_memory": {0: 6, 1: 12, "cpu": 0}}
    assert loading.placement("cuda:1") == {"device_map": {"": "cuda:1"}}
    assert loading.placement("cpu") == {}


def test_a_model_that_finds_no_room_is_refused():
    model = SimpleNamespace(hf_device_map={"model": 0, "lm_head": "disk"})
    with pytest.raises(
        ConfigError, match=r"'big' need more than 60% of the memory of this worker's GPUs.*ray\.num_gpus"
    ):
        loading._check_placement(model, Config(model="big", device="auto"))
    loading._check_placement(SimpleNamespace(hf_device_map={"": 0}), Config(device="auto"))
