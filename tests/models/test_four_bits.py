"""4-bit weights where bitsandbytes is installed: its kernels for CPUs stand in for those of a GPU.

A run refuses ``backbone.quantization: 4bit`` without a GPU, which is passed over here; everything behind that is what a
GPU runs, but for the kernels and how fast they are.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.contracts.families import RECORDS, draw, logits
from fcit.models import backbone as backbones
from fcit.models.adapters import Adapters
from fcit.models.backbone import TINY, Backbone
from fcit.models.families import internvl
from fcit.models.families.small import save
from fcit.models.layout import is_projector

bitsandbytes = pytest.importorskip("bitsandbytes", reason="4-bit weights need `pip install bitsandbytes`")
#: The kernels take 64 weights of a row at a time.
WIDE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A small InternVL whose language model is in NF4, with the images and examples that it is asked about."""
    root = tmp_path_factory.mktemp("data") / "images"
    draw(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(internvl, "TEXT", {**internvl.TEXT, **WIDE})
        patch.setattr(backbones, "check_hardware", lambda settings: None)
        small = internvl.InternVL.small()
        folder = save(tmp_path_factory.mktemp("model"), small)
        settings = {
            "model": folder,
            "identity": str(TINY / "clip"),
            "feature_cache": "off",
            "threads": 1,
            **small.options,
        }
        backbone = Backbone(Config(quantization="4bit", **settings))
        exact = Backbone(Config(**settings))
    for layer in four_bit(backbone.model).values():
        # In evaluation mode bitsandbytes packs weights anew for CPUs with AVX512-BF16 and has no gradient any more;
        # its kernels for GPUs know no such mode.
        layer.train()
    examples = [backbone.encoder_below(root).encode(record) for record in RECORDS]
    features = backbone.vision_features(root, [image for record in RECORDS for image in record.images])
    return backbone, exact, examples, features


def four_bit(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}


def test_the_language_models_layers_are_in_four_bits_and_nothing_else(quantised):
    backbone, _, _, _ = quantised
    names = list(four_bit(backbone.model))
    assert len(names) == 7 * len(backbone.family.layers)
    assert all(".language_model.layers." in name for name in names)


def test_logits_are_those_of_the_rounded_weights(quantised):
    """Of a model in full precision that has the weights that the four bits stand for."""
    backbone, exact, examples, features = quantised
    before = logits(exact, examples, features)
    layers = dict(exact.model.named_modules())
    with torch.no_grad():
        for name, layer in four_bit(backbone.model).items():
            rounded = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            layers[name].weight.copy_(rounded)
    wanted = logits(exact, examples, features)
    torch.testing.assert_close(logits(backbone, examples, features), wanted, rtol=0, atol=1e-3)
    assert not torch.allclose(before, wanted, atol=1e-2)


def test_adapters_and_projector_learn_on_them(quantised):
    backbone, _, examples, features = quantised
    adapters = Adapters(backbone, Adapter(dropout=0))
    rng = np.random.default_rng(0)
    start = {n: rng.normal(0, 0.1, p.shape).astype(np.float32) for n, p in adapters.trainable.items()}
    adapters.load({**start, **adapters.base_projector()})
    with adapters.training() as parameters:
        optimizer = torch.optim.SGD(parameters, lr=0.05)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = backbone.loss(examples, features)
            loss.backward()
            losses.append(float(loss.detach()))
            assert all(float(p.grad.abs().sum()) > 0 for p in parameters)
            optimizer.step()
    assert losses[2] < losses[0]
    trained = adapters.read()
    adapters.load_mixture([trained], {n: t for n, t in trained.items() if is_projector(n)})
    with adapters.mixed(np.ones((4, 1), np.float32)):
        assert all(isinstance(text, str) for text in backbone.generate(examples, features, 4))
