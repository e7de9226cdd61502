"""The built-in model as shipped: size, tokenizer, and that routing by text is possible."""

import itertools
import json

import numpy as np
import pytest

from fcit import config
from fcit.data.mini.questions import MAKERS
from fcit.data.mini.reworded import REWORDED
from fcit.data.mini.skills.words import VOCABULARY
from fcit.data.mini.sources import SOURCES
from fcit.models.backbone import TINY, Backbone
from fcit.models.tiny import build

TWELVE = [name for name in MAKERS if not name.startswith("alike")]


@pytest.fixture(scope="module")
def backbone():
    return Backbone(config.Backbone(feature_cache="off"))


def test_small_enough(backbone):
    total = sum(f.stat().st_size for f in TINY.rglob("*.safetensors"))
    assert total <= 15e6
    assert sum(p.numel() for p in backbone.model.parameters()) <= 3e6
    assert build.clip(backbone.tokenizer.vocab_size).num_parameters() <= 0.8e6
    assert all(p.dtype.itemsize == 4 for p in backbone.model.parameters())


def test_a_tokenizer_is_made_the_same_way_again_and_as_the_shipped_one():
    """From few texts; that all of them give the shipped one is in tests/evidence/tokenizer.py."""
    made = build.train_tokenizer(300).to_str()
    assert build.train_tokenizer(300).to_str() == made
    mine, shipped = json.loads(made), json.loads((TINY / "llava" / "tokenizer.json").read_text())
    for part in ("pre_tokenizer", "decoder", "normalizer"):
        assert mine[part] == shipped[part]
    first = len(build.SPECIAL) + 256  # special tokens and bytes, before anything that was learned
    words = [dict(sorted(one["model"]["vocab"].items(), key=lambda item: item[1])[:first]) for one in (mine, shipped)]
    assert words[0] == words[1]
    whole = {f"\u0120{word}" for word in VOCABULARY if f"\u0120{word}" in shipped["model"]["vocab"]}
    assert len(whole) > 50
    assert whole <= mine["model"]["vocab"].keys()


def test_words_of_the_datasets_are_whole_tokens(backbone):
    rng = np.random.default_rng(0)
    makers = [(name, source.maker) for name, both in SOURCES.items() for source in dict.fromkeys(both)]
    for name, maker in makers:
        for _ in range(50):
            text = maker(rng).question
            tokens = backbone.tokenizer(text, return_offsets_mapping=True)["offset_mapping"][1:]
            cut = [(a, b) for (_, a), (b, _) in itertools.pairwise(tokens) if a == b and text[a - 1 : a + 1].isalpha()]
            assert not cut, (name, text)


def test_any_text_round_trips(backbone):
    text = " Zürich 東京 [0.25, 0.50]\n12 KZ"
    ids = backbone.tokenizer(text, add_special_tokens=False).input_ids
    assert backbone.tokenizer.decode(ids) == text


def test_identity_features_differ_between_texts_and_ignore_the_batch(backbone):
    a, b = "What is the object in the image?", "Look at the icons. How many icons are shown?"
    both = backbone.identity.text([a, b])
    assert not np.allclose(both[0], both[1], atol=0.1)
    assert np.allclose(both[1], backbone.identity.text([b])[0], atol=1e-5)


def _features(backbone, name, seed, count):
    rng = np.random.default_rng(seed)
    return backbone.identity.text([SOURCES[name][0].maker(rng).question for _ in range(count)])


def test_routing_is_possible(backbone):
    """Design goals: median margin >= 0.21, own weight >= 0.9 at 0.05, top-1 >= 97 %, clients > 0.9."""
    from fcit.methods.disco import softmax_mix
    from fcit.methods.knowledge_cache import cosine

    tokens = np.stack([_features(backbone, n, 1, 300).mean(axis=0) for n in TWELVE])
    for i, name in enumerate(TWELVE):
        questions = _features(backbone, name, 2, 160)
        similarity = cosine(questions, tokens)
        others = np.delete(similarity, i, axis=1).max(axis=1)
        assert np.median(similarity[:, i] - others) >= 0.21, name
        assert np.median(softmax_mix(similarity, 0.05)[:, i]) >= 0.9, name
        assert (similarity[:, i] > others).mean() >= 0.97, name
        clients = questions.reshape(20, 8, -1).mean(axis=1)
        assert cosine(clients, tokens[i : i + 1]).min() > 0.9, name


def test_routing_is_possible_among_24(backbone):
    from fcit.methods.knowledge_cache import cosine

    names = [*TWELVE, *REWORDED]
    tokens = np.stack([_features(backbone, n, 1, 80).mean(axis=0) for n in names])
    for i, name in enumerate(names):
        questions = _features(backbone, name, 2, 40)
        similarity = cosine(questions, tokens)
        assert (similarity.argmax(axis=1) == i).mean() >= 0.97, name
        clients = questions.reshape(5, 8, -1).mean(axis=1)
        assert cosine(clients, tokens[i : i + 1]).min() > 0.88, name
