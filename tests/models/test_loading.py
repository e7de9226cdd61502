"""A model loads whole or not at all: every fault is one made in a copy of a small model, and one sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from fcit.config import Backbone as Config
from fcit.errors import ConfigError
from fcit.models import loading
from fcit.models.backbone import TINY, Backbone
from fcit.models.checking import explained, is_local
from fcit.models.identity import IdentityEncoder
from fcit.models.quieting import quiet
from tests.helpers.spoiled import (
    POINTER,
    WEIGHTS,
    added,
    assert_said,
    change,
    cut,
    refused,
    renamed,
    settings,
    without,
    write,
)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            without("multi_modal_projector"),
            r"4 of its 116 tensors missing \(model\.multi_modal_projector\.linear_1\.bias, .*, .* and 1 more\); the "
            "checkpoint has no projector: name a model that was saved whole",
        ),
        (without("vision_tower"), "its 116 .*; the checkpoint has no vision tower: name"),
        (without("language_model"), "the checkpoint has no language model and no output layer"),
        (without("layers.5."), "9 of its 116 tensors .*layers.5.*; a part was not saved, or config.json is that of"),
        (renamed("module."), r"116 of its 116 .*115 in the files are no part.*names begin with 'module\.': save"),
        (renamed("other"), "nothing of the model is in it"),
        (added("model.more.weight"), r"1 in the files are no part of it \(model\.more\.weight\)"),
        (added("language_model.model.layers.0.mlp.up_proj.lora_A.weight"), "LoRA matrices inside: merge them"),
        (added("model.mm_projector.0.weight"), "original LLaVA code"),
        (cut("linear_1.bias"), r"1 of another shape .*linear_1\.bias: \[3\] instead of \[128\]\); config.json and"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(tiny, spoil, said):
    """Without a projector the same seed gave three adapter hashes in three runs."""
    change(tiny / "llava", spoil)
    assert_said(refused(tiny), r"backbone\.model: '.*/tiny/llava' does not load whole: .*" + said)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("text_model"), "36 of its 36 tensors missing"),
        (without("text_model.final_layer_norm"), r"2 of its 36 tensors missing \(final_layer_norm\.bias, final"),
        (cut("token_embedding"), r"token_embedding\.weight: \[3, 128\] instead of \[1024, 128\]"),
        (renamed("model."), "all its names begin with 'model.'"),
        (added("text_model.head.weight"), r"1 in the files are no part of it \(head\.weight\)"),
    ],
)
def test_an_identity_encoder_that_is_not_whole_is_refused(tiny, spoil, said):
    change(tiny / "clip", spoil)
    assert_said(refused(tiny), r"backbone\.identity: '.*/tiny/clip' does not load whole: .*" + said)


def test_a_vision_tower_that_is_not_whole_is_refused_when_images_are_asked_for(tiny):
    change(tiny / "clip", without("vision_model.post_layernorm"))
    encoder = IdentityEncoder(str(tiny / "clip"), torch.device("cpu"), cache=False)
    with pytest.raises(ConfigError, match=r"backbone\.identity: .*2 of its 39 tensors missing \(post_layernorm"):
        encoder.width("image")


def test_what_transformers_knows_to_be_absent_or_left_over_is_allowed(tiny):
    """A tied output layer is in no file; old files hold positions that are computed today."""
    names = (
        "vision_tower.vision_model.embeddings.position_ids",
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
    )
    plain = Backbone(settings(tiny)).model.state_dict()
    assert not any("lm_head" in name for name in load_file(tiny / "llava" / WEIGHTS))
    for name in names:
        change(tiny / "llava", added(name))
    again = Backbone(settings(tiny)).model.state_dict()
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize(("model", "options"), [("small-llava", {}), ("small-qwen", {"image_size": 84})])
@pytest.mark.parametrize("kind", ["one", "shards", "pickled"])
def test_whole_models_of_every_layout_load(small, tmp_path, model, options, kind):
    folder = tmp_path / model
    shutil.copytree(small / model, folder)
    state = load_file(folder / WEIGHTS)
    if kind != "one":
        (folder / WEIGHTS).unlink()
    if kind == "pickled":
        torch.save(state, folder / "pytorch_model.bin")
    if kind == "shards":
        with quiet():
            AutoModelForImageTextToText.from_pretrained(small / model).save_pretrained(folder, max_shard_size="200KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    found = Config(model=str(folder), identity=str(TINY / "clip"), feature_cache="off", **options)
    assert loading.inspect(str(folder), found).tensors == len(state)
    base = AutoModelForImageTextToText.from_pretrained(small / model).state_dict()
    loaded = Backbone(found).model.state_dict()
    assert all(torch.equal(base[name], loaded[name]) for name in base)
    if kind == "shards":
        shard = min(folder.glob("model-*.safetensors"))
        shard.write_bytes(shard.read_bytes()[:-8])
        with pytest.raises(ConfigError, match=rf"{shard.name} \([\d,]+ bytes\) is cut short or damaged"):
            Backbone(found)
        shard.unlink()
        with pytest.raises(
            ConfigError, match=rf"1 of the \d+ weight files that .*index.json names .* {shard.name}; copy"
        ):
            Backbone(found)
    if kind == "pickled":
        file = folder / "pytorch_model.bin"
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(ConfigError, match=r"pytorch_model.bin .* is cut short or damaged"):
            Backbone(found)


# --------------------------------------------------------------------------- files

FAULTS = [
    (WEIGHTS, POINTER, f"{WEIGHTS} is a Git LFS pointer .*; run `git lfs pull`"),
    ("tokenizer.json", POINTER, "tokenizer.json is a Git LFS pointer"),
    ("config.json", POINTER, "config.json is a Git LFS pointer"),
    (WEIGHTS, -100, rf"{WEIGHTS} \([\d,]+ bytes\) is cut short or damaged \(.*\); copy it from where"),
    (WEIGHTS, 100, rf"{WEIGHTS} \(100 bytes\) is cut short or damaged"),
    (WEIGHTS, "", rf"{WEIGHTS} \(0 bytes\) is cut short or damaged"),
    (WEIGHTS, None, "there are no weights"),
    ("tokenizer_config.json", None, "tokenizer_config.json is missing"),
    ("tokenizer.json", None, "tokenizer.json or .* is missing"),
    ("tokenizer.json", "{}", "its tokenizer cannot be read"),
    ("tokenizer.json", '{"added_tokens": []}', "its tokenizer cannot be read"),
    ("config.json", None, "config.json is missing"),
    ("config.json", '{"model_type":', "config.json is not JSON"),
    ("config.json", "[]", "config.json holds no JSON object"),
    ("config.json", "{}", "config.json cannot be read"),
    ("generation_config.json", "{", "generation_config.json is not JSON"),
    ("model.safetensors.index.json", "{", "index.json is not JSON"),
    ("adapter_config.json", "{}", r"an adapter \(PEFT\); name the model it was made for"),
]


@pytest.mark.parametrize("which", ["llava", "clip"])
@pytest.mark.parametrize(("name", "content", "said"), FAULTS)
def test_a_file_that_is_not_what_it_should_be(tiny, which, name, content, said):
    file = tiny / which / name
    if content is None:
        file.unlink()
    elif isinstance(content, int):
        file.write_bytes(file.read_bytes()[:content])
    else:
        file.write_text(content)
    key = "model" if which == "llava" else "identity"
    assert_said(refused(tiny), rf"backbone\.{key}: cannot load '.*/tiny/{which}': .*{said}")


def test_no_image_processor(tiny):
    (tiny / "llava" / "processor_config.json").unlink()
    assert_said(refused(tiny), "preprocessor_config.json or processor_config.json is missing, which says how images")


def test_a_wrong_value_in_config_json(tiny):
    config = json.loads((tiny / "llava" / "config.json").read_text())
    write(tiny / "llava" / "config.json", text_config={**config["text_config"], "hidden_size": "wide"})
    assert_said(refused(tiny), r"config\.json cannot be read \(.*hidden_size.*wide")


def test_a_folder_that_is_not_there(tiny):
    shutil.rmtree(tiny / "llava")
    assert_said(refused(tiny), "there is no such folder; name the folder that holds config.json")
    assert is_local("/data/llava")
    assert is_local("./llava")
    assert not is_local("llava-hf/llava-1.5-7b-hf")


def test_memory_that_runs_out_stays_what_it_is():
    """A worker without memory is replaced, which a ConfigError would prevent."""
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        with pytest.raises(type(error)), explained("backbone.model", "x", "its weights"):
            raise error
