"""LLaVA-1.5 in the hub's layout does what the published code does, shown against plain torch."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoTokenizer, CLIPImageProcessorPil, LlavaConfig
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.data.prompts import vicuna_v1
from fcit.data.records import Record, TestRecord, Turn
from fcit.errors import ConfigError, DataError
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.families.llava import Llava
from fcit.models.layout import is_projector
from tests.helpers.llava import PATCH, PIXELS, small_llava
from tests.models import by_hand

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
ASKED = [
    ("What is the object in the image?\nAnswer the question using a single word or phrase.", "a cat"),
    ("How many red cubes are left?", "3"),
    ("Généré: 猫?", "Yes,  two  dogs"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[str, str]:
    return small_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for n, (width, height) in enumerate([(57, 30), (24, 61), (33, 33)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"{n}.png")
    return root


def settings(folders, **options) -> Config:
    model, identity = folders
    common = {"conversation": "vicuna_v1", "pad_to_square": True, "feature_cache": "off"}
    return Config(model=model, identity=identity, **{**common, **options})


@pytest.fixture(scope="module")
def backbone(folders) -> Backbone:
    return Backbone(settings(folders))


@pytest.fixture(scope="module")
def batch(backbone, images):
    examples = [backbone.encode(q, a, f"{n}.png") for n, (q, a) in enumerate(ASKED)]
    return examples, backbone.vision_features(images, [e.images[0] for e in examples])


@pytest.fixture(scope="module")
def words(folders) -> Tokenizer:
    """The bare BPE of the saved tokenizer, without anything that adds spaces or special tokens."""
    saved = AutoTokenizer.from_pretrained(folders[0]).backend_tokenizer.model
    assert isinstance(saved, models.BPE)
    return Tokenizer(saved)


def pieces(words: Tokenizer, text: str) -> list[int]:
    """As sentencepiece: a "▁" in front, and one for every space."""
    return words.encode("▁" + text.replace(" ", "▁"), add_special_tokens=False).ids


def by_hand_ids(words: Tokenizer, question: str, answer: str, image: int) -> tuple[list[int], list[int]]:
    before = pieces(words, f"{SYSTEM} USER: ")
    after = pieces(words, f"\n{question} ASSISTANT: {answer}")
    asked = len(pieces(words, f"\n{question} ASSISTANT:"))
    patches = (PIXELS // PATCH) ** 2
    return [1, *before, *[image] * patches, *after[:asked]], [*after[asked:], 2]


# --------------------------------------------------------------------------- text


def test_the_prompt_is_vicunas(backbone):
    before, after = vicuna_v1(TestRecord("", ("a.png",), "Which?", ""))
    assert (before.text, before.image, after.text) == (f"{SYSTEM} USER: ", True, "\nWhich? ASSISTANT:")
    example = backbone.encode("Which?", "3", "")
    names = backbone.tokenizer.convert_ids_to_tokens(example.prompt)
    assert names[0] == "<s>"
    assert names.count("<s>") == 1
    place = names.index("<image>")
    assert names[place - 1 : place + 6] == ["▁", *["<image>"] * 4, "▁", "<0x0A>"]
    assert names[-1].endswith("ANT:")
    assert backbone.tokenizer.convert_ids_to_tokens(example.targets) == ["▁3", "</s>"]


@pytest.mark.parametrize(("question", "answer"), ASKED)
def test_tokens_are_those_of_the_published_code(backbone, words, question, answer):
    example = backbone.encode(question, answer, "")
    image = backbone.tokenizer.convert_tokens_to_ids("<image>")
    assert (list(example.prompt), list(example.targets)) == by_hand_ids(words, question, answer, image)
    asked = backbone.encode(question, None, "")
    assert asked.prompt == example.prompt
    assert asked.targets == ()


def test_a_whole_turn_fits_or_goes(folders, backbone):
    whole = backbone.encode("How many?", "a cat on a hill two dogs", "")
    fits = Backbone(settings(folders, max_length=len(whole.tokens)))
    assert fits.encode("How many?", "a cat on a hill two dogs", "") == whole
    short = Backbone(settings(folders, max_length=len(whole.tokens) - 1))
    for words, answer in (("How many?", "a cat on a hill two dogs"), ("How many? " * 9, "3")):
        with pytest.raises(DataError, match=r"no room for an answer .*within backbone\.max_length.*'How many.*remove"):
            short.encode(words, answer, "7.png")
    with pytest.raises(DataError, match=r"question of \d+ tokens.*does not fit into backbone\.max_length.*'How many"):
        short.encode("How many? " * 9, None, "")
    two = Record(("a.png",), (Turn("How many?", "3", 1), Turn("And dogs?", "a cat on a hill two dogs")))
    kept = short.encoder.encode(two)
    assert kept.dropped == 1
    assert kept.tokens == short.encode("How many?", "3", "a.png").tokens


# --------------------------------------------------------------------------- images


def test_an_image_is_padded_with_the_mean_colour(backbone, images, folders):
    """Own lines for CLIP's processor, which cannot pad; transformers' LLaVA processor pads to the same pixels."""
    names = ["0.png", "1.png", "2.png"]
    opened = [Image.open(images / name).convert("RGB") for name in names]
    found = backbone.image_processor(backbone.family.prepared(opened), return_tensors="pt")["pixel_values"]
    wanted = torch.stack([by_hand.pixels(image, PIXELS) for image in opened])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    side = {"height": PIXELS, "width": PIXELS}
    library = LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": PIXELS}, crop_size=side)
    torch.testing.assert_close(found, library(opened, return_tensors="pt")["pixel_values"], rtol=0, atol=0)
    plain = Backbone(settings(folders, pad_to_square=False))
    bare = plain.vision_features(images, names)
    assert not torch.allclose(bare[0], backbone.vision_features(images, names)[0], atol=1e-2)


def test_padding_makes_other_kept_features(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path))
    marks = {Backbone(settings(folders, pad_to_square=pad, feature_cache="disk")).vision.mark for pad in (True, False)}
    assert len(marks) == 2


# --------------------------------------------------------------------------- the whole forward


def reference_loss(folders, words, images, asked, image_id: int) -> torch.Tensor:
    """Mean cross-entropy over all answer tokens, example by example and layer by layer."""
    state = load_file(f"{folders[0]}/model.safetensors")
    vision, language = by_hand.part(state, "vision_tower."), by_hand.part(state, "language_model.model.")
    rows, targets = [], []
    for n, (question, answer) in asked:
        ids, tail = by_hand_ids(words, question, answer, image_id)
        pixels = by_hand.pixels(Image.open(images / f"{n}.png"), PIXELS)
        patches = by_hand.clip_vision(vision, pixels, PATCH, layers=2, count=2)  # the last but one of three layers
        hidden = functional.gelu(by_hand.linear(state, "multi_modal_projector.linear_1", patches))
        projected = by_hand.linear(state, "multi_modal_projector.linear_2", hidden)
        place, sequence = ids.index(image_id), [0 if i == image_id else i for i in [*ids, *tail]]
        embeds = language["embed_tokens.weight"][sequence]
        embeds[place : place + len(projected)] = projected
        states = by_hand.llama(language, embeds, layers=2, count=4)
        rows.append(by_hand.linear(state, "language_model.lm_head", states)[len(ids) - 1 : -1])
        targets += tail
    return functional.cross_entropy(torch.cat(rows), torch.tensor(targets))


def test_the_loss_is_that_of_a_forward_written_by_hand(folders, backbone, words, images, batch):
    image = backbone.tokenizer.convert_tokens_to_ids("<image>")
    with torch.no_grad():
        wanted = reference_loss(folders, words, images, list(enumerate(ASKED)), image)
        assert float(backbone.loss(*batch)) == pytest.approx(float(wanted), abs=2e-5)
        single = reference_loss(folders, words, images, [(1, ASKED[1])], image)
        assert float(backbone.loss(batch[0][1:2], batch[1][1:2])) == pytest.approx(float(single), abs=2e-5)
    assert abs(float(wanted - single)) > 1e-2


def test_identity_is_the_pooled_text_state(folders, backbone):
    state = by_hand.part(load_file(f"{folders[1]}/model.safetensors"), "text_model.")
    tokenizer = AutoTokenizer.from_pretrained(folders[1])
    found = backbone.identity.text([question for question, _ in ASKED])
    for row, (question, _) in zip(found, ASKED, strict=True):
        ids = tokenizer(question).input_ids[:77]
        wanted = by_hand.clip_text(state, ids, tokenizer.eos_token_id, layers=2, count=2)
        assert row == pytest.approx(wanted.numpy(), abs=2e-5)


def spoken(model, backbone, images, example, limit: int = 12) -> list[int]:
    """Token by token, without any cache, from pixels: the official greedy decoding, up to </s>."""
    opened = backbone.family.prepared([Image.open(images / example.images[0]).convert("RGB")])
    pixels = backbone.image_processor(opened, return_tensors="pt")["pixel_values"]
    ids = list(example.prompt)
    while len(ids) < len(example.prompt) + limit and ids[-1] != 2:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, -1].argmax()))
    return ids[len(example.prompt) :]


def test_greedy_answers_are_those_of_the_whole_model(folders, images, batch):
    """A batch in which one answer ends early and the others go on."""
    backbone = Backbone(settings(folders))
    model = AutoModelForImageTextToText.from_pretrained(folders[0])
    examples = [backbone.encode(q, None, f"{n}.png") for n, (q, _) in enumerate(ASKED)]
    third = spoken(model, backbone, images, examples[0])[2]
    for head in (model.lm_head.weight.data, backbone.model.lm_head.weight.data):
        head[[2, third]] = head[[third, 2]]  # what was the third word is now the end
    wanted = [spoken(model, backbone, images, example) for example in examples]
    assert len(wanted[0]) <= 3
    assert wanted[0][-1] == 2
    assert max(map(len, wanted)) > 3
    texts = [backbone.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in wanted]
    assert backbone.generate(examples, batch[1], 12) == texts
    assert len(set(texts)) > 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_go_end_to_end(folders, images, dtype, tmp_path, monkeypatch):
    """Kept features take half the space and are bit for bit what was computed; the projector trains in float32."""
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path))
    names = ["0.png", "1.png"]
    fresh = Backbone(settings(folders, dtype=dtype)).vision_features(images, names)
    backbone = Backbone(settings(folders, dtype=dtype, feature_cache="disk"))
    first, kept = (backbone.vision_features(images, names) for _ in range(2))
    assert fresh.dtype == getattr(torch, dtype)
    assert torch.equal(fresh, first)
    assert torch.equal(fresh, kept)
    rows = list(tmp_path.glob("features/*/features.bin"))
    assert [file.stat().st_size for file in rows] == [2 * 4 * 32 * 2]  # images x patches x width x bytes
    adapters = Adapters(backbone, Adapter())
    examples = [backbone.encode(q, a, "") for q, a in ASKED[:2]]
    with adapters.training() as parameters:
        backbone.loss(examples, kept).backward()
        assert all(p.dtype == torch.float32 for p in parameters)
        assert all(adapters.trainable[n].grad.abs().sum() > 0 for n in adapters.trainable if is_projector(n))
    adapters.load_mixture([], adapters.base_projector())
    assert len(backbone.generate(examples, kept, 4)) == 2


# --------------------------------------------------------------------------- adapters


def reached(config: LlavaConfig) -> list[str]:
    """Modules that the default expression adapts, on a model without weights."""
    from peft import LoraConfig, get_peft_model

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=Adapter().targets)
        adapted = get_peft_model(model, lora)
    return [n.removesuffix(".lora_A") for n, _ in adapted.named_modules() if n.endswith(".lora_A")]


def test_lora_sits_on_the_feed_forward_layers_of_the_real_size_only():
    """7B: 32 layers x 3, 11,599,872 numbers at rank 8."""
    config = LlavaConfig()  # transformers' defaults are those of LLaVA-1.5-7B
    assert (config.text_config.num_hidden_layers, config.text_config.hidden_size) == (32, 4096)
    assert (config.vision_config.hidden_size, config.vision_config.image_size) == (1024, 336)
    names = reached(config)
    assert len(names) == 32 * 3
    assert {n.rpartition(".")[2] for n in names} == {"gate_proj", "up_proj", "down_proj"}
    assert all(".language_model." in n and ".mlp." in n for n in names)
    assert not any("vision_tower" in n or "multi_modal_projector" in n for n in names)
    assert 32 * 3 * 8 * (4096 + 11008) == 11_599_872


def test_an_image_is_576_words_at_the_real_size():
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(LlavaConfig())
    side = {"height": 336, "width": 336}
    family = Llava(model, CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=side), Config())
    assert family.shape == (576, 1024)
    assert sum(p.numel() for p in model.model.multi_modal_projector.parameters()) == 20_979_712


def test_the_projector_learns_from_kept_features(folders, images, tmp_path, monkeypatch):
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path))
    backbone = Backbone(settings(folders, feature_cache="disk"))
    adapters = Adapters(backbone, Adapter())
    examples = [backbone.encode(q, a, f"{n}.png") for n, (q, a) in enumerate(ASKED)]
    pictures = backbone.images(images, [e.images[0] for e in examples])
    pictures.batch([0])
    monkeypatch.setattr(backbone.family, "features", None)  # from here on only what is kept
    features = pictures.batch([2, 0, 1])
    assert not features.requires_grad
    with adapters.training():
        backbone.loss([examples[i] for i in (2, 0, 1)], features).backward()
        grads = {n: float(adapters.trainable[n].grad.abs().sum()) for n in adapters.trainable if is_projector(n)}
    assert len(grads) == 4
    assert all(value > 0 for value in grads.values())


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "llava", "mm_vision_tower": "x/y"}', "convert_llava_weights_to_hf.py.*--old_state_dict"),
        ('{"model_type": "llava_llama", "mm_vision_tower": "x"}', "llava-hf/llava-1.5-7b-hf"),
        ('{"model_type": "mllama"}', "is a mllama; supported are .*llava, .*qwen2_5_vl"),
        ('{"model_type": "internvl_chat"}', "is a internvl_chat; supported are .*internvl, "),
        ("{}", "cannot load"),
    ],
)
def test_other_models_are_refused_with_what_to_do(tmp_path, config, said):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=f"backbone.model.*{said}"):
        Backbone(Config(model=str(tmp_path), identity=str(tmp_path)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantization": "4bit"}, "backbone.quantization: '4bit' needs a CUDA GPU"),
        ({"attention": "flash_attention_2"}, "backbone.attention: 'flash_attention_2' needs a CUDA GPU"),
    ],
)
def test_what_needs_a_gpu_is_refused_before_anything_is_loaded(options, said):
    with pytest.raises(ConfigError, match=said):
        Backbone(Config(model="/nowhere", identity="/nowhere", **options))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_chosen(folders, batch, backbone, attention):
    chosen = Backbone(settings(folders, attention=attention))
    assert chosen.model.config._attn_implementation == attention
    with torch.no_grad():
        assert float(chosen.loss(*batch)) == pytest.approx(float(backbone.loss(*batch)), abs=1e-5)
