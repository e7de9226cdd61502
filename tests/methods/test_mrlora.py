"""MR-LoRA: what clients keep, what the router is trained on and starts from, and which expert a question gets."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fcit.config import Adapter, RunConfig
from fcit.config import Backbone as Config
from fcit.contracts.families import FamilyCase
from fcit.contracts.toy import Toy
from fcit.data.collate import Encoded, images_of
from fcit.data.records import Record, TestRecord, Turn
from fcit.errors import ConfigError, DataError
from fcit.methods.base import Factory, QuestionBatch, ServerState, Stats
from fcit.methods.mrlora import ROLE, ROUTER, TASK, MRLoRA
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from tests.helpers.toy import f32, session

LABELS = [("B", "flowers"), ("A", "receipts")]  # the letters of the benchmark, not of the order
A, B, P = "x.lora_A.weight", "x.lora_B.weight", "base_model.model.projector.weight"
MAKE = Factory(0, {A: (1, 2), B: (2, 1)}, {P: f32(7)})
SHARD = [Record.single(f"{number}.png", f"Question {number}?", "yes") for number in range(9)]


def made(**options) -> MRLoRA:
    return MRLoRA(RunConfig(method={"name": "mrlora", **options}, federation={"rounds": 2}))


class Speller:
    """An encoder whose texts are their own tokens; prompts of more characters than ``most`` do not fit."""

    def __init__(self, most: int = 10_000):
        self.most, self.asked = most, []

    def encode(self, record: Record) -> Encoded:
        (turn,) = record.turns
        if len(turn.question) > self.most:
            raise DataError("too long")
        self.asked.append(record)
        letters = tuple(ord(letter) - ord("A") for letter in turn.answer)
        return Encoded((99, *letters, 98), ((1, 2 + len(letters)),), record.images)


def client(method: MRLoRA, stage: int, round_: int, memory: dict, encoder: Speller | None = None, **values):
    toy = Toy({}, encoder=encoder or Speller())
    view = session(toy, stage=stage, round=round_, memory=memory, examples=["a shard"], records=SHARD, **values)
    return method.select(view)


# ---------------------------------------------------------------------- the clients


def test_a_client_keeps_a_few_records_of_every_stage_and_trains_on_its_shard():
    method, memory = made(records=2), {}
    assert client(method, 0, 0, memory) == ["a shard"]
    first = json.loads(json.dumps(memory))
    assert [len(first["kept"][stage]) for stage in first["kept"]] == [2]
    assert {tuple(images) for _, images in first["kept"]["0"]} < {(f"{number}.png",) for number in range(9)}
    assert client(method, 0, 1, memory) == ["a shard"]  # the same records again: nothing more is kept
    assert memory == first
    client(method, 1, 0, memory)
    assert list(memory["kept"]) == ["0", "1"]


def test_the_router_learns_the_letter_of_the_stage_that_a_record_is_of():
    method, memory, encoder = made(records=1), {}, Speller()
    client(method, 0, 0, memory)
    brief = {"experts": [["1", "A", "receipts"], ["0", "B", "flowers"]]}
    examples = client(method, 1, 2, memory, encoder, brief=brief)  # the client was not there in rounds 0 and 1
    assert [example.targets[0] for example in examples] == [0, 1]
    (question, images), ((_, others),) = memory["kept"]["0"][0], memory["kept"]["1"]
    assert encoder.asked[1].turns[0].question == f"{ROLE}\nA: receipts\nB: flowers\nQuestion: {question}\n{TASK}"
    assert [record.images for record in encoder.asked] == [tuple(others), tuple(images)]
    assert len(examples) <= method.extra_rounds(1).most


def test_of_a_question_that_is_too_long_the_router_reads_the_beginning():
    brief = {"experts": [["0", "A", "flowers"]]}
    memory = {"kept": {"0": [["0123456789", ["a.png"]]], "1": []}}
    whole = len(f"{ROLE}\nA: flowers\nQuestion: \n{TASK}")
    encoder = Speller(whole + 5)
    client(made(), 1, 2, memory, encoder, brief=brief)
    assert "Question: 01234\n" in encoder.asked[0].turns[0].question
    with pytest.raises(DataError, match="too long"):
        client(made(), 1, 2, memory, Speller(whole - 1), brief=brief)


def test_with_prototypes_nothing_is_kept():
    memory: dict = {}
    assert client(made(router="tokens"), 0, 0, memory) == ["a shard"]
    assert memory == {}
    assert not made(router="tokens").remembers
    assert (made(router="tokens").group, made().group) == ("", "replay")


# ---------------------------------------------------------------------- the server


def trained(method: MRLoRA, *stages: tuple[np.ndarray, np.ndarray]) -> ServerState:
    """After stages that trained these B and A, each with its extra rounds."""
    state = ServerState(shared={P: f32(7)}, labels=LABELS)
    for number, (b, a) in enumerate(stages):
        for round_ in range(method.rounds(number)):
            state.stage, state.round = number, round_
            method.assign(state, [(0, "s")], {}, MAKE)
            if round_ == 0:
                state.subspaces[str(number)] = {**state.subspaces[str(number)], A: a, B: b}
    return state


def test_extra_rounds_follow_from_the_second_stage_on():
    method = made(router_rounds=3, router_epochs=40, router_lr=5e-6)
    assert [method.rounds(stage) for stage in range(3)] == [2, 5, 5]
    assert method.extra(1, 1) is None
    assert method.training(1, 1).lr == 3e-3
    assert (method.training(1, 2).lr, method.training(1, 2).epochs) == (5e-6, 40)
    assert made().training(1, 2).lr == 3e-3
    assert made(router="tokens").rounds(1) == 2


def test_experts_have_their_own_projector_and_the_router_is_new_in_every_stage():
    method = made(router_rounds=1)
    state = trained(method, (f32([1], [0]), f32([1, 0])), (f32([0], [1]), f32([0, 1])))
    assert list(state.subspaces) == ["0", "1", ROUTER]
    assert state.shared == {}
    assert all(tensors[P].tolist() == [7] for tensors in state.subspaces.values())
    assert state.assigned == {(0, "s"): ROUTER}
    before = state.subspaces[ROUTER]
    state.stage, state.round = 2, 0
    state.optimizers[f"subspace-{ROUTER}"], state.turns[ROUTER] = {"m": 1}, 1
    method.assign(state, [(0, "s")], {}, MAKE)
    assert state.subspaces[ROUTER] is before
    state.round = 2
    method.assign(state, [(0, "s")], {}, MAKE)
    assert list(state.subspaces) == ["0", "1", "2", ROUTER]
    assert not state.subspaces[ROUTER][B].any()
    assert state.optimizers == {}
    assert state.turns == {}


def test_the_router_can_start_from_the_experts():
    """0.5 (B_0 A_0 + B_1 A_1) has rank one here: B_0 = B_1 = (1, 0), A_0 = (2, 0), A_1 = (0, 4)."""
    state = trained(made(start="merge", coefficient=0.5), (f32([1], [0]), f32([2, 0])), (f32([1], [0]), f32([0, 4])))
    router = state.subspaces[ROUTER]
    assert router[B] @ router[A] == pytest.approx(f32([1, 2], [0, 0]), abs=1e-6)
    assert not trained(made(), (f32([1], [0]), f32([2, 0])), (f32([1], [0]), f32([0, 4]))).subspaces[ROUTER][B].any()


def test_clients_are_told_the_experts_by_letter_in_extra_rounds():
    method = made()
    state = trained(method, (f32([1], [0]), f32([1, 0])), (f32([0], [1]), f32([0, 1])))
    experts = [["1", "A", "receipts"], ["0", "B", "flowers"]]
    assert method.brief(state) == {"experts": experts}
    assert method.knowledge(state) == ({"names": ["0", "1", ROUTER], "experts": experts}, {})
    assert method.active(state) == 2 * 5
    state.round = 0
    assert method.brief(state) == {}


def test_more_stages_than_letters_are_refused():
    with pytest.raises(ConfigError, match=r"there are 2 stages for 26 letters; choose method\.router: tokens"):
        made().refuse(ServerState(labels=[("Z", "z"), ("", "one more")]))
    made(router="tokens").refuse(ServerState(labels=[("Z", "z"), ("", "one more")]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"router": "tokens", "records": 5, "letters": "any"}, "trains none, and records, letters is about one"),
        ({"coefficient": 0.5}, "coefficient has no effect with start: 'backbone'"),
        ({"router": "letters"}, "Input should be 'generate' or 'tokens'"),
    ],
)
def test_nonsense_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        made(**options)


# ---------------------------------------------------------------------- questions


def asked(method: MRLoRA, state: ServerState, *likely: list[float]) -> list[list[float]]:
    """The mix of questions whose router gives the tokens A, B, C, ... these logits at each place of its answer."""
    table = torch.tensor(likely)

    def answer_logits(examples, features):
        assert seen == [[[0, 0, 1]] * len(examples)]
        return table[: len(examples)].repeat_interleave(examples[0].learnt, 0), None

    seen: list = []

    class Mixed:
        def __init__(self, mix):
            seen.append(mix.tolist())

        __enter__ = __exit__ = lambda self, *_: None

    names = list(state.subspaces)
    questions = QuestionBatch(
        backbone=SimpleNamespace(encoder_below=lambda root: Speller(), answer_logits=answer_logits),
        adapters=SimpleNamespace(mixed=Mixed),
        subspaces=list(state.subspaces.values()),
        examples=[],
        features=None,
        identity=np.zeros((len(likely), 2), np.float32),
        limit=1,
        knowledge=method.knowledge(state),
        records=[TestRecord(str(number), (), "What?", "") for number in range(len(likely))],
    )
    return method.choose(questions, method.route(names, questions.knowledge, questions.identity)).tolist()


def two_stages(method: MRLoRA) -> ServerState:
    return trained(method, (f32([1], [0]), f32([1, 0])), (f32([0], [1]), f32([0, 1])))


def test_the_best_letter_of_a_known_stage_names_the_expert():
    """Stage 0 has the letter B, stage 1 the letter A; C is no stage's."""
    method = made()
    mix = asked(method, two_stages(method), [0.0, 1, 0], [1, 0, 0], [0, 1, 5])
    assert mix == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_with_any_letter_a_question_may_get_no_expert():
    method = made(letters="any")
    assert asked(method, two_stages(method), [0.0, 1, 0], [0, 1, 5]) == [[1, 0, 0], [0, 0, 0]]


def test_a_letter_of_several_tokens_counts_as_a_whole():
    """Letters "A" and "BC": p(A) = 0.4, p(B) p(C) = 0.45 * 0.15, though B is the most probable first token."""
    method = made()
    state = two_stages(method)
    state.labels = [("BC", "flowers"), ("A", "receipts")]
    assert asked(method, state, np.log([0.4, 0.45, 0.15]).tolist()) == [[0, 1, 0]]


def test_the_only_expert_needs_no_router():
    method = made()
    state = trained(method, (f32([1], [0]), f32([1, 0])))
    assert method.route(["0"], method.knowledge(state), np.zeros((2, 2), np.float32)).tolist() == [[1], [1]]
    assert method.active(state) == 5


def test_prototypes_choose_the_expert_they_are_like():
    method, state = made(router="tokens"), ServerState(labels=LABELS)
    for stage, total in enumerate(([4.0, 0.0], [0.0, 2.0])):
        state.stage = stage
        method.assign(state, [(0, f"s{stage}")], {(0, f"s{stage}"): Stats(np.array(total), 2)}, MAKE)
    mix = method.route(list(state.subspaces), method.knowledge(state), f32([3, 1], [1, 3]))
    assert mix.tolist() == [[1, 0], [0, 1]]
    assert method.common(1) == "1"


def test_a_batch_is_routed_as_its_questions_are_one_by_one():
    """On the built-in model, with a router of random factors."""
    method = MRLoRA(RunConfig(method={"name": "mrlora"}))
    backbone = Backbone(Config(threads=1))
    adapters = Adapters(backbone, Adapter(projector="frozen"))
    rng = np.random.default_rng(0)
    names = ["0", "1", ROUTER]
    subspaces = [
        {n: rng.normal(0, 0.1, p.shape).astype(np.float32) for n, p in adapters.trainable.items()} for _ in names
    ]
    adapters.load_mixture(subspaces, adapters.base_projector())
    texts = ["What color is it?", "How many red circles are in the picture?", "Is it a book? " * 8, "Why?"]
    records = [TestRecord(str(number), (), text, "") for number, text in enumerate(texts)]
    knowledge = {"names": names, "experts": [["1", "A", "receipts"], ["0", "B", "flowers"]]}, {}

    def routed(rows: list[int]) -> np.ndarray:
        chosen = [records[row] for row in rows]
        questions = QuestionBatch(
            backbone=backbone,
            adapters=adapters,
            subspaces=subspaces,
            examples=[backbone.encoder.encode(record) for record in chosen],
            features=backbone.vision_features(None, []),
            identity=np.zeros((len(rows), 2), np.float32),
            limit=4,
            knowledge=knowledge,
            records=chosen,
        )
        return method.choose(questions, np.zeros((len(rows), 3), np.float32))

    together = routed([0, 1, 2, 3])
    assert together.sum(axis=1).tolist() == [1, 1, 1, 1]
    assert together[:, 2].any() == np.False_
    assert np.array_equal(together, np.concatenate([routed([row]) for row in range(4)]))


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A small model that sees images at their own size, and images of several sizes."""
    return FamilyCase("llava_next", tmp_path_factory.mktemp("native"))


EXPERTS = [["1", "A", "receipts"], ["0", "B", "flowers"]]
PICTURES = ["0.png", "1.png", "2.png", "3.png"]


def test_the_router_is_trained_on_images_of_their_own_size(native):
    """As many placeholders as the images have words: else no order of a router's round could be carried out."""
    memory = {"kept": {"0": [["Why?", [picture]] for picture in PICTURES], "1": []}}
    view = session(
        native.backbone,
        stage=1,
        round=2,
        memory=memory,
        records=SHARD,
        image_root=native.root,
        brief={"experts": EXPERTS},
    )
    examples = made().select(view)
    features = native.backbone.vision_features(native.root, images_of(examples))
    assert len(native.backbone.answer_logits(examples, features)[0]) == sum(example.learnt for example in examples)


def test_the_router_is_asked_about_images_of_their_own_size(native):
    method, adapters = made(), Adapters(native.fresh(), native.adapter)
    backbone, names = adapters.backbone, ["0", "1", ROUTER]
    subspaces = [{n: p.detach().numpy().copy() for n, p in adapters.trainable.items()} for _ in names]
    adapters.load_mixture(subspaces, adapters.base_projector())
    records = [TestRecord(picture, (picture,), "Why?", "") for picture in PICTURES]
    examples = [backbone.encoder_below(native.root).encode(record) for record in records]
    questions = QuestionBatch(
        backbone=backbone,
        adapters=adapters,
        subspaces=subspaces,
        examples=examples,
        features=backbone.vision_features(native.root, PICTURES),
        identity=np.zeros((4, 2), np.float32),
        limit=4,
        knowledge=({"names": names, "experts": EXPERTS}, {}),
        records=records,
        image_root=native.root,
    )
    assert method.choose(questions, np.zeros((4, 3), np.float32)).sum(axis=1).tolist() == [1] * 4


def test_a_question_with_several_images_is_read_with_all_of_them():
    encoder = Speller()
    memory = {"kept": {"0": [["Which differs?", ["a.png", "b.png"]]], "1": []}}
    client(made(), 1, 2, memory, encoder, brief={"experts": [["0", "A", "flowers"]]})
    assert encoder.asked[0].images == ("a.png", "b.png")
    assert encoder.asked[0].turns == (Turn(encoder.asked[0].turns[0].question, "A", 2),)
