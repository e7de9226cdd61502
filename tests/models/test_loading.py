"""A model loads whole or not at all: every fault is one made in a copy of a small model, and one sentence."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoTokenizer, CLIPModel, CLIPTextConfig

from fcit.cli import main
from fcit.config import Backbone as Config
from fcit.errors import ConfigError
from fcit.models import identity, loading
from fcit.models.backbone import TINY, Backbone
from fcit.models.checking import explained, is_local
from fcit.models.identity import IdentityEncoder
from fcit.models.quieting import quiet
from tests.helpers.llava import small_llava
from tests.helpers.qwen import small_qwen

WEIGHTS = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 7192800\n"


@pytest.fixture
def tiny(tmp_path) -> Path:
    """fcit-tiny to be spoilt: ``llava`` and ``clip``."""
    shutil.copytree(TINY, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    small_llava(folder)
    small_qwen(folder)
    return folder


def settings(tiny: Path, **options) -> Config:
    return Config(model=str(tiny / "llava"), identity=str(tiny / "clip"), feature_cache="off", **options)


def refused(tiny: Path) -> str:
    """The one sentence."""
    with pytest.raises(ConfigError) as error:
        Backbone(settings(tiny))
    assert "\n" not in str(error.value)
    return str(error.value)


def change(folder: Path, function) -> None:
    """Save other tensors in the place of a folder's weights."""
    save_file(function(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def write(file: Path, **keys) -> None:
    """Change keys of a JSON file; None removes one."""
    found = json.loads(file.read_text()) | keys
    file.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def without(*parts):
    return lambda state: {name: t for name, t in state.items() if not any(part in name for part in parts)}


def renamed(prefix: str):
    return lambda state: {prefix + name: t for name, t in state.items()}


def cut(part: str):
    return lambda state: {name: t[:3].clone() if part in name else t for name, t in state.items()}


def added(name: str):
    return lambda state: {**state, name: torch.zeros(2)}


# --------------------------------------------------------------------------- tensors


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


def assert_said(sentence: str, pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        raise ConfigError(sentence)


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


# --------------------------------------------------------------------------- words


def test_a_tokenizer_without_an_end_token(tiny):
    write(tiny / "llava" / "tokenizer_config.json", eos_token=None)
    assert_said(refused(tiny), r"backbone\.model: .* has no end token, .*tokenizer_config\.json \(eos_token\)")


def test_a_tokenizer_of_another_model(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "llava")
    tokenizer.add_tokens(["anotherword"])
    tokenizer.save_pretrained(tiny / "llava")
    assert_said(refused(tiny), r"backbone\.model: .* has 1025 tokens and the model knows 1024")


def test_a_picture_token_that_is_a_word(tiny):
    write(tiny / "llava" / "config.json", image_token_index=500)
    assert_said(refused(tiny), "image_token_id 500 in config.json .* is no special token")


@pytest.mark.parametrize(
    ("written", "ends"),
    [([4], [4]), (4, [4]), ([3, 4], [4, 3]), (3, [4, 3]), (None, [4])],
)
def test_all_end_tokens_end_an_answer(tiny, written, ends):
    """4 is fcit-tiny's </s>; the answer that training appends is the tokenizer's."""
    write(tiny / "llava" / "generation_config.json", eos_token_id=written)
    backbone = Backbone(settings(tiny))
    assert backbone.model.generation_config.eos_token_id == ends
    assert backbone.encode("How many?", "3", "").targets[-1] == ends[0] == backbone.tokenizer.eos_token_id


def test_an_answer_ends_at_an_end_token_of_the_generation_configuration_alone(tiny):
    """The first word of an answer becomes a special token and an end: nothing of the answer is left."""
    plain = Backbone(settings(tiny))
    asked, features = [plain.encode("Name the color.", None, "")], torch.zeros(1, *plain.family.shape)
    plain.model.generation_config.eos_token_id = list(range(1024))  # the answer is one token
    word = plain.generate(asked, features, 8)[0]
    first = plain.tokenizer(f" {word}", add_special_tokens=False).input_ids
    assert word
    assert len(first) == 1
    plain.tokenizer.add_tokens(plain.tokenizer.convert_ids_to_tokens(first), special_tokens=True)
    plain.tokenizer.save_pretrained(tiny / "llava")
    write(tiny / "llava" / "generation_config.json", eos_token_id=first)
    again = Backbone(settings(tiny))
    assert again.model.generation_config.eos_token_id == [4, *first]
    assert again.generate(asked, features, 8) == [""]


def test_what_transformers_assumes_is_no_end_token(tiny):
    """Llama's default, 2, is <unk> here; only what is written counts."""
    config = json.loads((tiny / "llava" / "config.json").read_text())
    text = {key: value for key, value in config["text_config"].items() if key != "eos_token_id"}
    write(tiny / "llava" / "config.json", text_config=text)
    (tiny / "llava" / "generation_config.json").unlink()
    assert Backbone(settings(tiny)).model.generation_config.eos_token_id == [4]


@pytest.mark.parametrize(("token", "said"), [(500, "the word '"), (5000, "no token"), ("</s>", "no token")])
def test_an_end_token_that_is_a_word_is_refused(tiny, token, said):
    write(tiny / "llava" / "generation_config.json", eos_token_id=[4, token])
    assert_said(
        refused(tiny), rf"generation_config\.json .* lets token .* end an answer, which is {said}.*; write 4 there"
    )


# --------------------------------------------------------------------------- identity


def test_texts_that_would_all_look_the_same_are_refused(tiny):
    """CLIP's own configuration with another vocabulary: the end is looked for at 49407 and found nowhere."""
    config = json.loads((tiny / "clip" / "config.json").read_text())
    text = config["text_config"] | {"eos_token_id": CLIPTextConfig().eos_token_id}
    write(tiny / "clip" / "config.json", text_config=text)
    sentence = refused(tiny)
    assert_said(
        sentence, r"backbone\.identity: .* takes token 49407 for the end .*'</s>' \(4\).*; write 4 into config\.json"
    )
    write(tiny / "clip" / "config.json", text_config=text | {"eos_token_id": 2})
    assert "takes the token with the highest number" in refused(tiny)


def test_the_old_way_to_find_the_end_is_right_where_the_end_has_the_highest_number(tiny):
    """As in openai/clip-vit-large-patch14-336: eos_token_id 2, and </s> is the last token."""
    tokenizer = AutoTokenizer.from_pretrained(tiny / "clip")

    class Last:
        eos_token_id, eos_token = 1023, "</s>"

        def __len__(self):
            return 1024

        def __call__(self, text, **options):
            found = tokenizer(text, **options)
            found["input_ids"] = [1023 if token == 4 else token for token in found["input_ids"]]
            return found

    identity.check_ends("x", Last(), CLIPTextConfig(vocab_size=1024, eos_token_id=2))
    with pytest.raises(ConfigError, match="takes token 4 "):
        identity.check_ends("x", Last(), CLIPTextConfig(vocab_size=1024, eos_token_id=4))


def test_a_tokenizer_that_adds_no_end_token(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "clip")
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(tiny / "clip")
    assert_said(refused(tiny), r"backbone\.identity: .* adds no end token '</s>' to a text")


def test_features_that_tell_nothing_apart(tiny):
    change(
        tiny / "clip",
        lambda state: {n: torch.zeros_like(t) if "text_model.embed" in n else t for n, t in state.items()},
    )
    assert_said(refused(tiny), r"backbone\.identity: .* the same features, so texts cannot be told apart")


def test_another_kind_of_encoder(tiny):
    write(tiny / "clip" / "config.json", model_type="siglip")
    assert_said(refused(tiny), r"backbone\.identity: .* no CLIP text tower \(it is a siglip\); name a whole CLIP")


def test_whole_clip_is_read_by_both_towers(tiny):
    assert identity.inspect(str(tiny / "clip"), sees=True).tensors == len(
        CLIPModel.from_pretrained(tiny / "clip").state_dict()
    )


# --------------------------------------------------------------------------- what is said and what is not


@pytest.fixture
def library(caplog):
    """What transformers logs, whose loggers do not propagate."""
    logging.getLogger("transformers").addHandler(caplog.handler)
    yield caplog
    logging.getLogger("transformers").removeHandler(caplog.handler)


def test_only_what_is_named_is_hidden(library):
    from transformers.utils import logging as theirs

    logger, level = logging.getLogger("transformers.modeling_utils"), theirs.get_verbosity()
    with quiet():
        assert theirs.get_verbosity() == level
        logger.warning("CLIPTextModel LOAD REPORT from: x")
        logger.warning("a setting is wrong")
        logging.getLogger("transformers.generation").warning("another is, too")
    logger.warning("LOAD REPORT again")
    said = list(dict.fromkeys(record.getMessage() for record in library.records))
    assert said == ["a setting is wrong", "another is, too", "LOAD REPORT again"]


def test_bars_stay_as_they_were():
    from transformers.utils import logging as theirs

    before = theirs.is_progress_bar_enabled()
    try:
        for switch, on in ((theirs.disable_progress_bar, False), (theirs.enable_progress_bar, True)):
            switch()
            with quiet():
                assert not theirs.is_progress_bar_enabled()
            assert theirs.is_progress_bar_enabled() is on
    finally:
        (theirs.enable_progress_bar if before else theirs.disable_progress_bar)()


def test_a_warning_of_the_library_reaches_the_user(tiny, library):
    """A temperature without sampling, of which transformers warns when it reads the generation configuration."""
    Backbone(settings(tiny)).identity.width("image")
    assert not library.records
    write(tiny / "llava" / "generation_config.json", do_sample=False, temperature=0.3)
    Backbone(settings(tiny))
    assert any("temperature" in record.getMessage() for record in library.records)


# --------------------------------------------------------------------------- fcit doctor --config


@pytest.fixture
def doctor(tiny, tmp_path, capsys):
    def call(**backbone) -> tuple[int, str, str]:
        file = tmp_path / "c.yaml"
        chosen = {"model": str(tiny / "llava"), "identity": str(tiny / "clip"), **backbone}
        file.write_text(
            yaml.safe_dump({"name": "c", "benchmark": "fcit-task", "data_root": str(tmp_path), "backbone": chosen})
        )
        code = main(["doctor", "--config", str(file), "--no-probe"])
        return code, *capsys.readouterr()

    return call


def test_the_doctor_says_what_it_looked_at(doctor):
    code, out, _ = doctor()
    assert code == 0
    assert "c: fits on" in out
    assert "backbone.model: 115 tensors make a whole model; an answer ends at </s>" in out
    assert "backbone.identity: 78 tensors make a whole model; a text ends at </s>" in out


def test_the_doctor_names_every_fault_and_nothing_fits(doctor, tiny):
    change(tiny / "llava", without("multi_modal_projector"))
    (tiny / "clip" / WEIGHTS).write_text(POINTER)
    code, out, error = doctor()
    assert code == 2
    assert "fits" not in out
    assert "the checkpoint has no projector" in error
    assert "Git LFS pointer" in error


def test_a_model_that_is_elsewhere_is_not_called_whole(doctor):
    code, out, _ = doctor(model="/elsewhere/llava-1.5-7b-hf", dtype="bfloat16")
    assert code in (0, 2)
    assert "whole model; an answer" not in out
    if code == 0:
        assert (
            "backbone.model: /elsewhere/llava-1.5-7b-hf is not on this machine, so whether it loads is not known" in out
        )


def test_a_damaged_bin_file_is_one_sentence(tiny):
    """A web page saved under the name of the weights, and weights that are a list."""
    folder = tiny / "llava"
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    for content in (None, b"<html>404</html>", b"\x80\x04K\x01."):
        if content is not None:
            (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ConfigError, match=r"pytorch_model\.bin .*is cut short or damaged"):
            Backbone(settings(tiny))
