"""Routing that is decided when a question is read holds for its whole answer, in every decoder and in training."""

import numpy as np
import pytest
import torch

from fcit.config import Adapter, RunConfig
from fcit.config import Backbone as Settings
from fcit.methods.base import QuestionBatch
from fcit.methods.proglora import ProgLoRA
from fcit.methods.smolora import SMoLoRA
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.decoding.greedy import Greedy
from fcit.models.halves import CHOICE
from tests.helpers.runs import BACKBONE
from tests.models.test_decoding import NEW, Recorded, asked, by

COUNT = 7
KINDS = [
    (SMoLoRA, {"name": "smolora", "experts": 4}),
    (SMoLoRA, {"name": "smolora", "experts": 4, "router": "released"}),
    (ProgLoRA, {"name": "proglora", "hidden": 5}),
    (ProgLoRA, {"name": "proglora", "hidden": 5, "routing": "released"}),
]
NAMES = ["smolora", "smolora-released", "proglora", "proglora-released"]


class Case:
    """A method that answers made-up questions with random subspaces whose routing differs from question to question."""

    def __init__(self, kind, options: dict) -> None:
        self.method = kind(RunConfig(method=options))
        self.backbone = Backbone(Settings(**BACKBONE, feature_cache="off"))
        self.backbone.model.generation_config.eos_token_id = list(range(4, 1000, 12))
        self.adapters = Adapters(self.backbone, Adapter(projector="frozen"), self.method.layout)
        rng = np.random.default_rng(1)
        self.subspaces = [self._subspace(rng) for _ in range(3 if kind is ProgLoRA else 1)]
        self.adapters.load_mixture(self.subspaces, {})
        self.examples, self.features = asked(self.backbone, COUNT)
        self.pictures = np.cumsum([0, *(len(e.images) for e in self.examples)])
        width = self.backbone.identity.width("suffix")
        self.known = {"suffixes": rng.normal(size=(4, width)).astype(np.float32)}
        self.identity = rng.normal(size=(COUNT, width)).astype(np.float32)

    def _subspace(self, rng) -> dict[str, np.ndarray]:
        wide = {n: 2.0 if "routing" in n or "gate" in n else 0.2 for n in self.adapters.trainable}
        return {n: rng.normal(0, wide[n], p.shape).astype(np.float32) for n, p in self.adapters.trainable.items()}

    def batch(self, rows: list[int]) -> QuestionBatch:
        pictures = [p for row in rows for p in range(self.pictures[row], self.pictures[row + 1])]
        model = self.backbone, self.adapters, self.subspaces
        questions = [self.examples[row] for row in rows], self.features[pictures], self.identity[rows]
        return QuestionBatch(*model, *questions, NEW, ({}, self.known))

    def answers(self, decoder: str, rows: list[int]) -> list[str]:
        with self.backbone.answering.by(decoder):
            return self.method.answer(self.batch(rows), np.ones((len(rows), len(self.subspaces)), np.float32))


@pytest.fixture(scope="module", params=KINDS, ids=NAMES)
def case(request) -> Case:
    return Case(*request.param)


EVERY = list(range(COUNT))


def test_both_decoders_give_the_same_texts(case):
    wanted = case.answers("transformers", EVERY)
    assert case.answers("static", EVERY) == wanted
    assert len(set(wanted)) > 3
    assert not case.backbone.answering.rows
    assert case.backbone.reading.question is None


def test_captured_steps_do_so_too(case, monkeypatch):
    recorded = Recorded()
    recorded.greedy = Greedy(case.backbone.family.language, case.backbone.answering.rows, recorded)
    wanted = case.answers("static", EVERY)
    monkeypatch.setitem(case.backbone.answering.__dict__, "greedy", recorded.greedy)
    assert case.answers("static", EVERY) == wanted
    assert case.answers("static", EVERY) == wanted
    assert 0 < recorded.made < recorded.run


def test_a_question_is_answered_as_if_it_were_alone(case):
    assert case.answers("static", EVERY) == [case.answers("static", [row])[0] for row in EVERY]


@torch.no_grad()
def whole(case: Case, row: int) -> str:
    """The answer by whole forward passes without a cache, as a record with the answer so far is seen in training."""
    backbone, seen = case.backbone, case.batch([row])
    inputs = backbone._inputs(seen.examples, seen.features)
    embeds, mask = inputs["inputs_embeds"], inputs["attention_mask"]
    question, pictured, tokens = mask > 0, inputs["pictured"], []
    while len(tokens) < NEW and (not tokens or tokens[-1] not in backbone.answering.ends):
        with backbone.reading.records(embeds, question):
            places = backbone.family.positions(mask, pictured)
            logits = backbone.model(inputs_embeds=embeds, attention_mask=mask, position_ids=places).logits
        token = logits[:, -1:].float().argmax(-1)
        tokens.append(int(token))
        embeds = torch.cat([embeds, backbone._base.get_input_embeddings()(token)], dim=1)
        mask, question = (torch.cat([m, m.new_full((1, 1), v)], dim=1) for m, v in ((mask, 1), (question, False)))
        pictured = torch.cat([pictured, pictured.new_zeros(1, 1)], dim=1)
    return backbone.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_a_cache_changes_nothing(case, monkeypatch):
    """Not so where the released code decides anew at each token."""
    wanted = case.answers("static", EVERY)
    rows = iter(EVERY)

    def instead(*_) -> list[str]:
        return [whole(case, next(rows))]

    monkeypatch.setattr(case.backbone, "generate", instead)
    once = [case.answers("static", [row])[0] for row in EVERY]
    assert (once == wanted) is not any("released" in str(v) for v in case.method.config.method.values())


def test_routing_differs_from_question_to_question():
    case = Case(*KINDS[0])
    seen: list[torch.Tensor] = []
    rows = case.backbone.answering.rows
    case.backbone.family.language.register_forward_hook(lambda *_: seen.append(rows[CHOICE].clone()))
    case.answers("static", EVERY)
    assert seen[0].sum(-1).unique().tolist() == [2.0]  # one expert of either mixture in each layer
    assert len(seen[0].flatten(1).unique(dim=0)) > 3


def test_keys_stay_where_captured_steps_read_them():
    case = Case(*KINDS[3])
    first = case.answers("static", EVERY)
    before = {name: tensor.data_ptr() for name, tensor in case.adapters.keys.tensors.items()}
    case.adapters.load_mixture(case.subspaces[::-1], {})
    assert {name: tensor.data_ptr() for name, tensor in case.backbone.answering.beside["keys"].items()} == before
    assert case.answers("static", EVERY) != first
    case.adapters.load_mixture(case.subspaces[:2], {})
    assert [sorted(key) for key in case.adapters.keys.each] == [sorted(case.method.layout.key(1))] * 2


def test_one_subspace_alone_has_all_the_weight():
    case = Case(*KINDS[2])
    alone = np.tile(np.array([0, 1, 0], np.float32), (COUNT, 1))
    said = case.method.answer(case.batch(EVERY), alone)
    with case.adapters.mixed(alone):
        assert said == by(case.backbone, "static", case.examples, case.features, NEW)
