"""Our greedy decoder against transformers' generate: the same texts, whoever leaves the batch and when."""

import numpy as np
import pytest
import torch

from fcit.config import Adapter
from fcit.config import Backbone as Settings
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.decoding.greedy import Greedy, bucket, layer_kinds, unsuitable
from fcit.models.layout import Layout
from fcit.models.mixing import needed, thinned
from tests.helpers.llava import small_llava
from tests.helpers.qwen import small_qwen
from tests.helpers.runs import BACKBONE

WORDS = "what is red two cubes on a hill how many left yes no image phrase the options say".split()
NEW = 9


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("decoded")
    model, identity = small_llava(folder)
    return {
        "llava": {"model": model, "identity": identity},
        "qwen": {"model": small_qwen(folder), "identity": identity, "image_size": 84},
        "tiny": BACKBONE,
    }


@pytest.fixture(scope="module")
def backbones(folders) -> dict[str, Backbone]:
    """A model of each family; every twelfth token ends an answer, so that rows end one after the other."""
    loaded = {name: Backbone(Settings(feature_cache="off", **keys)) for name, keys in folders.items()}
    for backbone in loaded.values():
        size = backbone.model.get_output_embeddings().weight.shape[0]
        backbone.model.generation_config.eos_token_id = list(range(4, size, 12))
    return loaded


@pytest.fixture(params=["llava", "qwen", "tiny"])
def backbone(request, backbones) -> Backbone:
    return backbones[request.param]


def asked(backbone: Backbone, count: int, images: bool = True):
    """Questions of different length, most with an image, and made-up features of the images."""
    rng = np.random.default_rng(7)
    pictures = ["" if images and n % 4 != 3 else None for n in range(count)]
    questions = [" ".join(rng.choice(WORDS, size=1 + n % 7)).capitalize() + "?" for n in range(count)]
    examples = [backbone.encode(q, None, p) for q, p in zip(questions, pictures, strict=True)]
    shape = (sum(p is not None for p in pictures), *backbone.family.shape)
    features = torch.from_numpy(rng.normal(0, 1, shape).astype(np.float32))
    return examples, features


def by(backbone: Backbone, decoder: str, *question) -> list[str]:
    with backbone.answering.by(decoder):
        return backbone.generate(*question)


class Recorded:
    """In place of CUDA graphs: steps that, as a graph does, work on the addresses at which they were made."""

    def __init__(self) -> None:
        self.made, self.run = 0, 0
        self.greedy: Greedy

    def addresses(self) -> tuple:
        kept, greedy = self.greedy._kept, self.greedy
        tensors = [kept.slot, greedy._ids, greedy._place, greedy._visible]
        tensors += [part for layer in kept._layers for part in layer.parts]
        return *(t.data_ptr() for t in tensors), greedy._rows.addresses

    def __call__(self, step):
        self.made += 1
        made_at = self.addresses()

        def again() -> None:
            assert self.addresses() == made_at
            self.run += 1
            step()

        return again


@pytest.fixture
def capture(backbone, monkeypatch) -> Recorded:
    recorded = Recorded()
    recorded.greedy = Greedy(backbone.family.language, backbone.answering.rows, recorded)
    monkeypatch.setitem(backbone.answering.__dict__, "greedy", recorded.greedy)
    return recorded


@pytest.mark.parametrize("count", [1, 11])
def test_texts_are_those_of_transformers(backbone, count):
    question = asked(backbone, count)
    wanted = by(backbone, "transformers", *question, NEW)
    assert by(backbone, "static", *question, NEW) == wanted
    assert count == 1 or len(set(wanted)) > 3


def test_so_are_those_of_captured_steps(backbone, capture):
    for count in (11, 3, 11, 16):
        question = asked(backbone, count)
        assert by(backbone, "static", *question, NEW) == by(backbone, "transformers", *question, NEW)
    assert 0 < capture.made < capture.run


@pytest.mark.parametrize("new", [1, 2])
def test_short_limits(backbone, new):
    question = asked(backbone, 5)
    assert by(backbone, "static", *question, new) == by(backbone, "transformers", *question, new)


@pytest.mark.parametrize("decoder", ["static", "transformers"])
def test_a_watch_follows_every_answer_and_ends_single_ones(backbone, decoder):
    question = asked(backbone, 6)
    with backbone.answering.by(decoder):
        whole = backbone.tokens(*question, NEW)
    seen: dict[int, list[int]] = {}

    def watch(row: int, tokens: list[int]) -> bool:
        assert tokens[:-1] == seen.get(row, [])
        seen[row] = list(tokens)
        return row % 2 == 1 and len(tokens) == 2

    with backbone.answering.by(decoder), backbone.answering.watched(watch):
        texts = backbone.generate(*question, NEW)
    ends = backbone.answering.ends
    for row, tokens in enumerate(whole):
        size = next((n + 1 for n, token in enumerate(tokens) if token in ends), len(tokens))
        size = min(size, 2) if row % 2 else size
        assert seen[row] == tokens[:size]
        assert texts[row] == backbone.tokenizer.decode(tokens[:size], skip_special_tokens=True).strip()
    assert backbone.answering.watch is None


def test_without_images_and_without_an_end(backbone, monkeypatch):
    monkeypatch.setattr(backbone.model.generation_config, "eos_token_id", None)
    question = asked(backbone, 4, images=False)
    assert by(backbone, "static", *question, NEW) == by(backbone, "transformers", *question, NEW)


def test_soft_prompts(backbone):
    question = asked(backbone, 6)
    prefix = torch.from_numpy(backbone.word_embeddings[:18].reshape(6, 3, -1).copy())
    wanted = by(backbone, "transformers", *question, NEW, prefix)
    assert by(backbone, "static", *question, NEW, prefix) == wanted
    assert wanted != by(backbone, "static", *question, NEW)


@pytest.mark.parametrize("window", [3, 8])
def test_sliding_windows(folders, window):
    """One layer that sees its window only beside one that sees everything, and the prompt is longer than it."""
    sliding = Backbone(Settings(feature_cache="off", **folders["qwen"]))
    wide = by(sliding, "static", *asked(sliding, 5), NEW)
    config = sliding.family.language.config
    config.layer_types, config.sliding_window = ["full_attention", "sliding_attention"], window
    language = sliding.family.language
    language.has_sliding_layers = True
    language.layers[1].self_attn.sliding_window = window
    del sliding.answering.__dict__["greedy"]
    sliding.model.generation_config.eos_token_id = list(range(4, 1000, 12))
    wanted = by(sliding, "transformers", *asked(sliding, 5), NEW)
    assert by(sliding, "static", *asked(sliding, 5), NEW) == wanted
    assert wanted != wide


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_eager_attention(folders, name):
    backbone = Backbone(Settings(feature_cache="off", attention="eager", **folders[name]))
    question = asked(backbone, 5)
    assert by(backbone, "static", *question, NEW) == by(backbone, "transformers", *question, NEW)


# --------------------------------------------------------------------------- adapters


def loaded(keys: dict[str, str], layout: Layout = Layout(), count: int = 3, **adapter) -> Adapters:  # noqa: B008
    """A model of which ``count`` random subspaces answer."""
    backbone = Backbone(Settings(feature_cache="off", **keys))
    size = backbone.model.get_output_embeddings().weight.shape[0]
    backbone.model.generation_config.eos_token_id = list(range(4, size, 12))
    adapters = Adapters(backbone, Adapter(**adapter), layout)
    adapters.load_mixture([random(adapters, seed) for seed in range(count)], adapters.base_projector())
    return adapters


def random(adapters: Adapters, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0, 0.3, p.shape).astype(np.float32) for n, p in adapters.trainable.items()}


@pytest.mark.parametrize("name", ["llava", "qwen"])
@pytest.mark.parametrize("projector", ["shared", "per_subspace"])
def test_weights_follow_their_question(folders, name, projector):
    """Every question has a mix of its own, and leaves at another step."""
    adapters = loaded(folders[name], projector=projector)
    question, mix = asked(adapters.backbone, 11), np.eye(3, dtype=np.float32)[np.arange(11) % 3]
    with adapters.mixed(mix):
        wanted = by(adapters.backbone, "transformers", *question, NEW)
        assert by(adapters.backbone, "static", *question, NEW) == wanted
    with adapters.mixed(np.roll(mix, 1, axis=0)):
        assert by(adapters.backbone, "static", *question, NEW) != wanted
    assert adapters.backbone.answering.rows == {}


def test_captured_steps_read_the_weights_of_the_batch(folders):
    """Steps made for one batch serve the next one, whose weights and subspaces are others."""
    adapters = loaded(folders["llava"])
    backbone, question = adapters.backbone, asked(adapters.backbone, 11)
    recorded = Recorded()
    recorded.greedy = backbone.answering.__dict__["greedy"] = Greedy(
        backbone.family.language, backbone.answering.rows, recorded
    )
    for seed in range(3):
        adapters.load_mixture([random(adapters, seed + n) for n in range(3)], adapters.base_projector())
        with adapters.mixed(np.random.default_rng(seed).dirichlet([0.3] * 3, 11).astype(np.float32)):
            wanted = by(backbone, "transformers", *question, NEW)
            assert by(backbone, "static", *question, NEW) == wanted
    made = recorded.made
    adapters.load_mixture([random(adapters, 1)], adapters.base_projector())
    with adapters.mixed(np.ones((11, 1), dtype=np.float32)):
        by(backbone, "static", *question, NEW)
    assert recorded.made > made  # the factors lie elsewhere


def test_gates_of_experts(folders):
    adapters = loaded(folders["llava"], Layout(experts=4), count=1)
    question = asked(adapters.backbone, 6)
    wanted = by(adapters.backbone, "transformers", *question, NEW)
    assert by(adapters.backbone, "static", *question, NEW) == wanted
    before = [gate.data_ptr() for named in adapters.backbone.answering.beside.values() for gate in named.values()]
    adapters.load_mixture([random(adapters, 5)], adapters.base_projector())
    after = [gate.data_ptr() for named in adapters.backbone.answering.beside.values() for gate in named.values()]
    assert len(before) == 6  # a captured step reads them where they are
    assert after == before
    assert by(adapters.backbone, "static", *question, NEW) != wanted


def test_the_mixture_in_sixteen_bits(folders):
    """Factors as the backbone answer nearly as those in float32, and a teacher's are float32 again."""
    adapters = loaded({**folders["llava"], "dtype": "bfloat16"})
    backbone, subspaces = adapters.backbone, [random(adapters, seed) for seed in range(3)]
    examples, features = asked(backbone, 6)
    learnt = [backbone.encode("What is it?", "a red cube", "") for _ in range(3)], features[:3]
    logits = {}
    for as_backbone in (False, True):
        adapters.load_mixture(subspaces, adapters.base_projector(), as_backbone)
        factors = {p.dtype for n, p in backbone.model.named_parameters() if ".mix." in n and ".lora_" in n}
        assert factors == {torch.bfloat16 if as_backbone else torch.float32}
        with torch.no_grad(), adapters.mixed(np.full((3, 3), 1 / 3, dtype=np.float32)):
            logits[as_backbone] = backbone.answer_logits(*learnt)[0]
        with adapters.mixed(np.full((6, 3), 1 / 3, dtype=np.float32)):
            assert len(by(backbone, "static", examples, features, 4)) == 6
    torch.testing.assert_close(logits[True], logits[False], rtol=0.1, atol=0.1 * float(logits[False].std()))
    with adapters.training():
        adapters.load_teacher(subspaces[0])
    assert adapters.read().keys() == subspaces[0].keys()
    assert {p.dtype for n, p in backbone.model.named_parameters() if ".lora_A.mix." in n} == {torch.float32}


# --------------------------------------------------------------------------- negligible subspaces


def test_with_the_mixture_images_become_words_in_sixteen_bits(folders, monkeypatch):
    """While questions are answered with it, and only then."""
    adapters = loaded({**folders["llava"], "dtype": "bfloat16"})
    backbone, seen = adapters.backbone, []
    question, project = asked(backbone, 2), backbone.family.project

    def noticed(features: torch.Tensor) -> torch.Tensor:
        words = project(features)
        seen.append(words.dtype)
        return words

    monkeypatch.setattr(backbone.family, "project", noticed)
    for as_backbone, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        adapters.load_mixture([random(adapters, 0)], adapters.base_projector(), as_backbone)
        backbone.tokens(*question, 2)
        assert seen.pop() == wanted
    adapters.load_mixture([random(adapters, 0)], adapters.base_projector(), as_backbone=True)
    with adapters.training():
        backbone.tokens(*question, 2)
    assert seen.pop() == torch.float32
    assert not seen


def test_which_subspaces_answer_a_batch():
    weights = torch.tensor([[0.9, 0.0, 0.01, 0.0, 0.09, 0.0], [0.3, 0.7, 0.0, 0.0, 0.0, 0.0]])
    assert needed(thinned(weights, 0.05)) == [0, 1, 4]
    assert needed(thinned(weights, 0.001)) == [0, 1, 2, 4]
    assert needed(thinned(weights, 0.8)) == [0, 1]  # of each question the largest
    assert needed(thinned(weights[:1], 0.99)) == [0]
    assert needed(weights[:, :3]) is None


def test_what_answers_a_question_does_not_depend_on_the_others():
    weights = torch.tensor([[0.9, 0.03, 0.07], [0.03, 0.94, 0.03]])
    alone = torch.cat([thinned(row[None], 0.05) for row in weights])
    assert thinned(weights, 0.05).tolist() == alone.tolist()
    assert alone[0].tolist() == pytest.approx([0.9, 0, 0.07])


@pytest.mark.parametrize("projector", ["shared", "per_subspace"])
def test_what_is_left_out_has_no_part_in_the_answers(folders, projector):
    """Answers as if weights that are negligible were zero; afterwards all subspaces answer again."""
    adapters = loaded(folders["llava"], count=6, projector=projector)
    backbone, question = adapters.backbone, asked(adapters.backbone, 9)
    mix = np.zeros((9, 6), dtype=np.float32)
    mix[:, 2], mix[:, 4], mix[::2, 5], mix[:, 0] = 0.5, 0.3, 0.2, 0.01
    without = np.where(mix < 0.05, 0, mix)
    with adapters.mixed(without):
        wanted = by(backbone, "transformers", *question, NEW)
    whole = {n: (p.data_ptr(), tuple(p.shape)) for n, p in backbone.model.named_parameters()}
    for decoder in ("transformers", "static"):
        with adapters.mixed(mix, 0.05):
            assert by(backbone, decoder, *question, NEW) == wanted
            factors = [p for n, p in backbone.model.named_parameters() if ".lora_A.mix." in n]
            assert {len(p) for p in factors} == {3 * adapters.adapter.rank}
    assert {n: (p.data_ptr(), tuple(p.shape)) for n, p in backbone.model.named_parameters()} == whole
    mix[:, 0] = 0.4
    with adapters.mixed(mix):
        assert by(backbone, "static", *question, NEW) != wanted


def test_selected_factors_lie_at_the_same_addresses(folders):
    """Batch after batch, so that captured steps serve the next one."""
    adapters, addresses = loaded(folders["llava"], count=6), set()
    for first in range(3):
        mix = np.zeros((2, 6), dtype=np.float32)
        mix[:, first : first + 2] = 0.5
        with adapters.mixed(mix, 0.1):
            addresses.add(adapters.backbone.answering.signature)
    assert len(addresses) == 1


def test_captured_steps_serve_batches_of_few_and_of_many_subspaces_in_turn(folders):
    adapters = loaded(folders["llava"], count=6)
    backbone, question = adapters.backbone, asked(adapters.backbone, 5)
    recorded = Recorded()
    recorded.greedy = backbone.answering.__dict__["greedy"] = Greedy(
        backbone.family.language, backbone.answering.rows, recorded
    )
    texts, made = [], []
    for count in (2, 4, 2, 4):
        mix = np.zeros((5, 6), dtype=np.float32)
        mix[:, :count] = 1 / count
        with adapters.mixed(mix, 0.1):
            texts.append(by(backbone, "static", *question, NEW))
            assert texts[-1] == by(backbone, "transformers", *question, NEW)
        made.append(recorded.made)
    assert made[0] < made[1] == made[3]
    assert texts[:2] == texts[2:]


# --------------------------------------------------------------------------- parts


def test_captured_sizes_are_few():
    assert [bucket(n) for n in range(1, 18)] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16, 16, 16, 16, 24]
    assert [bucket(n) for n in (48, 49, 64, 65)] == [48, 64, 64, 96]


def test_a_model_that_cannot_be_decoded_here_is_left_to_transformers(folders, caplog):
    backbone = Backbone(Settings(feature_cache="off", **folders["llava"]))
    question, config = asked(backbone, 3), backbone.family.language.config
    wanted = by(backbone, "transformers", *question, NEW)
    config.layer_types = ["full_attention", "linear_attention"]
    assert backbone.answering.greedy is None
    del config.layer_types
    assert by(backbone, "static", *question, NEW) == by(backbone, "auto", *question, NEW) == wanted
    assert [r.getMessage() for r in caplog.records if "decoder" in r.getMessage()] == [
        "evaluation.decoder: transformers decodes this model, because it has layers of linear_attention"
    ]


def test_so_is_one_whose_family_gives_generate_more(folders, monkeypatch, caplog):
    backbone = Backbone(Settings(feature_cache="off", **folders["llava"]))
    monkeypatch.setattr(type(backbone.family), "generation", lambda self, mask, pictured: {"grid": mask})
    assert backbone.answering.greedy is None
    assert caplog.messages[-1].endswith("because its family gives it grid")


def test_neither_is_attention_without_masks(backbone, monkeypatch):
    monkeypatch.setattr(backbone.family.language.config, "_attn_implementation_internal", "flash_attention_2")
    assert unsuitable(backbone.family.language) == "its attention is flash_attention_2, not sdpa or eager"


def test_captured_steps_depend_on_where_tensors_lie(folders):
    adapters = loaded(folders["llava"])
    before = adapters.backbone.answering.signature
    adapters.load_mixture([random(adapters, 9)] * 3, adapters.base_projector())
    assert adapters.backbone.answering.signature == before
    with adapters.training():
        assert adapters.backbone.answering.signature != before
    adapters.load_mixture([random(adapters, 9)] * 2, adapters.base_projector())
    assert adapters.backbone.answering.signature != before


def test_memory_is_given_back(backbone):
    question = asked(backbone, 4)
    texts = by(backbone, "static", *question, NEW)
    assert backbone.answering.keeps
    backbone.answering.release()
    assert not backbone.answering.keeps
    layers = backbone.answering.greedy._kept._layers
    assert len(layers) == len(layer_kinds(backbone.family.language.config))
    assert all(layer.parts == () for layer in layers)
    assert by(backbone, "static", *question, NEW) == texts
