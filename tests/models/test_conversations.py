"""Conversations on small models: tokens and answers by hand, losses and gradients against the library's own forward."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from clients.worker.micro_batches import backward
from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.data.collate import images_of
from fcit.data.prompts import VICUNA
from fcit.data.records import OpenConversation, Record, TestRecord, Turn
from fcit.errors import DataError
from fcit.methods.base import Session
from fcit.models.adapters import Adapters
from fcit.models.backbone import TINY, Backbone
from fcit.models.encoding import Encoder
from fcit.models.families.qwen import Qwen
from fcit.models.layout import is_projector
from tests.helpers.llava import PATCH, PIXELS, small_llava
from tests.helpers.qwen import small_qwen

PATCHES = (PIXELS // PATCH) ** 2
SIDE = 84  # of Qwen: 3 x 3 words
THREE = Record(
    ("0.png",), (Turn("What is the object?", "a cat", 1), Turn("How many?", "3"), Turn("yes or no?", "no dogs"))
)
LATER = Record(("1.png",), (Turn("yes or no?", "yes"), Turn("How many?", "2", 1)))
TWO_IMAGES = Record(("1.png", "2.png"), (Turn("Which is the cat?", "two", 2), Turn("a dog?", "no")))
SINGLE = Record.single("2.png", "How many red cubes are left?", "7")
TEXT = Record((), (Turn("How many?", "a cat on a hill"),))
LONG_TEXT = Record((), (Turn("yes?", "no"), Turn("two dogs?", "yes two dogs"), Turn("a cat?", "a")))
MIXED = [THREE, TEXT, TWO_IMAGES, SINGLE, LATER, LONG_TEXT]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for n, (width, height) in enumerate([(57, 30), (24, 61), (90, 90)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"{n}.png")
    return root


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Each model, loaded once and without adapters."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def get(name: str, fresh: bool = False) -> Backbone:
        if name in made and not fresh:
            return made[name]
        if not (folder / "small-llava").exists():
            small_llava(folder), small_qwen(folder)
        clip = str(folder / "small-clip")
        given = {
            "llava": {"model": str(folder / "small-llava"), "identity": clip, "conversation": "vicuna_v1"},
            "qwen": {"model": str(folder / "small-qwen"), "identity": clip, "image_size": SIDE},
            "tiny": {},
        }[name]
        loaded = Backbone(Config(feature_cache="off", threads=1, **given))
        return loaded if fresh else made.setdefault(name, loaded)

    return get


def batch_of(backbone: Backbone, images, records):
    examples = [backbone.encoder.encode(record) for record in records]
    return examples, backbone.vision_features(images, images_of(examples))


# ---------------------------------------------------------------------- tokens


def test_vicunas_tokens_by_hand(backbones):
    """``<s>SYSTEM USER: [image]\\nq ASSISTANT: a</s>USER: q ASSISTANT: a</s>``, by sentencepiece's rules."""
    encoder = backbones("llava").encoder
    bare = Tokenizer(AutoTokenizer.from_pretrained(backbones("llava").config.model).backend_tokenizer.model)

    def ids(text: str) -> list[int]:
        return bare.encode(text.replace(" ", "▁"), add_special_tokens=False).ids

    image = [encoder.image_token] * PATCHES
    first = ids(" \nWhat is the object? ASSISTANT:")
    example = encoder.encode(THREE)
    expected = [1, *ids(f" {VICUNA} USER: "), *image, *first, *ids(" a cat"), 2]
    spans = [(len(expected) - 1 - len(ids(" a cat")), len(expected))]
    for question, answer in (("How many?", " 3"), ("yes or no?", " no dogs")):
        expected += ids(f"USER: {question} ASSISTANT:")
        spans.append((len(expected), len(expected) + len(ids(answer)) + 1))
        expected += [*ids(answer), 2]
    assert list(example.tokens) == expected
    assert list(example.answers) == spans
    assert example.learnt == len(example.targets) == sum(end - start for start, end in spans)
    # an image in a later turn, and a system turn of the record's own
    later = encoder.encode(replace(LATER, system="a cat"))
    expected = [1, *ids(" a cat USER: yes or no? ASSISTANT: yes"), 2, *ids("USER: "), *image]
    expected += [*ids(" \nHow many? ASSISTANT: 2"), 2]
    assert list(later.tokens) == expected


@pytest.mark.parametrize("name", ["llava", "tiny", "qwen"])
def test_a_question_after_earlier_turns_is_what_training_reads_before_its_answer(backbones, name):
    encoder = backbones(name).encoder
    turns = (Turn("How many?", "3", 1), Turn("cup", "red cup"), Turn("Yes?", "No .", 2))
    for count in (1, 2, 3):
        images = ("a", "b", "c")[: sum(turn.images for turn in turns[:count])]
        trained = encoder.encode(Record(images, turns[:count], "a cat" if name == "llava" else ""))
        system = {"system": "a cat"} if name == "llava" else {}
        last = turns[count - 1].question
        put = encoder.encode(OpenConversation("", images, last, "", history=turns[: count - 1], **system))
        assert put.tokens == trained.tokens[: trained.answers[-1][0]]
        assert put.images == images


TURNS = "USER: {image}How many?{end}3{stop}USER: cup{end}red cup{stop}USER: {image}{image}Yes?{end}No .{stop}"


@pytest.mark.parametrize(
    ("name", "image", "end", "stop"),
    [
        ("tiny", "<image>" * 16 + "\n", " ASSISTANT: ", "</s>"),
        (
            "qwen",
            "<|vision_start|>" + "<|image_pad|>" * 9 + "<|vision_end|>",
            "<|im_end|>\n<|im_start|>assistant\n",
            "<|im_end|>",
        ),
    ],
)
def test_a_template_is_rendered_turn_by_turn(backbones, name, image, end, stop):
    encoder: Encoder = backbones(name).encoder
    image = image.replace("<image>" * 16, "<image>" * encoder.placeholders.count(""))
    record = Record(("a", "b", "c"), (Turn("How many?", "3", 1), Turn("cup", "red cup"), Turn("Yes?", "No .", 2)))
    example = encoder.encode(record)
    text = TURNS.format(image=image, end=end, stop=stop)
    if name == "qwen":
        text = text.replace("USER: ", "\n<|im_start|>user\n")
        text = f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>{text}"
    decoded = encoder.tokenizer.decode(example.tokens, skip_special_tokens=False)
    begin = encoder.tokenizer.bos_token or ""
    assert decoded.replace(" ", "") == (begin + text).replace(" ", "")
    said = [encoder.tokenizer.decode(example.tokens[a:b]).strip() for a, b in example.answers]
    assert [s.replace(" ", "") for s in said] == [f"{a}{stop}".replace(" ", "") for a in ("3", "red cup", "No .")]
    # the first turn of a conversation is what it is alone
    alone = encoder.encode(Record(("a",), record.turns[:1]))
    assert example.tokens[: len(alone.tokens)] == alone.tokens
    assert example.answers[0] == alone.answers[0]


@pytest.mark.parametrize("name", ["llava", "tiny"])
def test_whole_turns_are_dropped_and_counted(backbones, name):
    encoder = backbones(name).encoder
    record = Record(("a", "b"), (Turn("How many?", "3", 1), Turn("cup", "red"), Turn("Yes?", "a cat on a hill", 1)))
    whole = encoder.encode(record)
    assert whole.dropped == 0
    assert whole.images == ("a", "b")
    assert len(whole.answers) == 3
    try:
        # one token too few for the last turn, for its question, and for the second answer
        for room, turns in ((len(whole.tokens) - 1, 2), (whole.answers[2][0] - 1, 2), (whole.answers[1][1] - 1, 1)):
            encoder.max_length = room
            short = encoder.encode(record)
            assert short == encoder.encode(Record(("a",), record.turns[:turns])).__class__(
                whole.tokens[: whole.answers[turns - 1][1]], whole.answers[:turns], ("a",), 3 - turns
            )
            assert short.tokens.count(encoder.image_token) == encoder.placeholders.count("")
            assert short.tokens[-1] == encoder.tokenizer.eos_token_id
        encoder.max_length = whole.answers[0][1] - 1
        with pytest.raises(DataError, match="leave no room for an answer"):
            encoder.encode(record)
        with pytest.raises(DataError, match=r"does not fit into backbone\.max_length"):
            encoder.encode(TestRecord("0", ("a",), "How many? " * 9, ""))
        told = list(encoder.encoded([record, replace(record, images=("a",), turns=record.turns[:1]), SINGLE]))
        assert isinstance(told[0], str)
        assert isinstance(told[1], str)
    finally:
        encoder.max_length = backbones(name).config.max_length


# ---------------------------------------------------------------------- loss and gradients


def by_hand(backbone: Backbone, images, record: Record) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy of one record's answers by the library's own forward from pixels, and how many tokens."""
    example = backbone.encoder.encode(record)
    given = {"input_ids": torch.tensor([example.tokens])}
    if record.images:
        opened = [Image.open(images / name).convert("RGB") for name in record.images]
        if isinstance(backbone.family, Qwen):
            opened = [image.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in opened]
            given["mm_token_type_ids"] = (given["input_ids"] == backbone.encoder.image_token).int()
        given |= backbone.image_processor(opened, return_tensors="pt")
    logits = backbone.model(**given).logits[0].log_softmax(dim=-1)
    places = [p for start, end in example.answers for p in range(start, end)]
    return -sum(logits[p - 1, example.tokens[p]] for p in places), len(places)


@pytest.mark.parametrize("name", ["llava", "tiny", "qwen"])
def test_the_loss_of_a_mixed_batch_is_that_of_every_record_by_hand(backbones, images, name):
    backbone = backbones(name)
    with torch.no_grad():
        sums, counts = zip(*(by_hand(backbone, images, record) for record in MIXED), strict=True)
        found = backbone.loss(*batch_of(backbone, images, MIXED))
        torch.testing.assert_close(found, sum(sums) / sum(counts), rtol=0, atol=1e-5)
        for record, total, count in zip(MIXED, sums, counts, strict=True):
            alone = backbone.loss(*batch_of(backbone, images, [record]))
            torch.testing.assert_close(alone, total / count, rtol=0, atol=1e-5)
        # and where all answers stand at the end: the other way to ask for logits
        ends = [SINGLE, TEXT]
        found = backbone.loss(*batch_of(backbone, images, ends))
        (a, n), (b, m) = (by_hand(backbone, images, record) for record in ends)
        torch.testing.assert_close(found, (a + b) / (n + m), rtol=0, atol=1e-5)


def test_soft_prompts_stand_in_front_of_conversations(backbones, images):
    backbone = backbones("llava")
    prefix = torch.from_numpy(backbone.word_embeddings[300:312].reshape(6, 2, -1).copy())
    with torch.no_grad():
        together, _ = backbone.answer_logits(*batch_of(backbone, images, MIXED), prefix)
        alone = [
            backbone.answer_logits(*batch_of(backbone, images, [r]), prefix[n : n + 1])[0] for n, r in enumerate(MIXED)
        ]
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)
        bare, _ = backbone.answer_logits(*batch_of(backbone, images, MIXED))
        assert not torch.allclose(together, bare, atol=1e-3)


def adapted(backbone: Backbone, projector: str = "shared") -> Adapters:
    adapters = Adapters(backbone, Adapter(dropout=0.0, projector=projector))
    rng = np.random.default_rng(1)
    noise = {n: rng.normal(0, 0.05, p.shape).astype(np.float32) for n, p in adapters.trainable.items()}
    adapters.load({n: t for n, t in noise.items() if ".lora_" in n})
    return adapters


def test_parts_of_a_mixed_batch_give_its_gradients(backbones, images):
    backbone = backbones("llava", fresh=True)
    adapters = adapted(backbone)
    examples, features = batch_of(backbone, images, MIXED)
    ends = np.cumsum([len(e.images) for e in examples])
    session = Session(
        backbone=backbone, adapters=adapters, client=0, shard="s", stage=0, round=0, subspace="0", examples=examples
    )

    def loss_of(rows: list[int]) -> torch.Tensor:
        own = [i for row in rows for i in range(ends[row] - len(examples[row].images), ends[row])]
        return backbone.loss([examples[row] for row in rows], features[own])

    def gradients(micro: int | None) -> tuple[float, dict[str, torch.Tensor]]:
        with adapters.training():
            loss = backward((session, session), list(range(len(MIXED))), loss_of, micro)
            return loss, {n: p.grad.clone() for n, p in adapters.trainable.items()}

    loss, whole = gradients(None)
    for micro in (1, 2, 4):
        other, parts = gradients(micro)
        assert other == pytest.approx(loss, rel=1e-6)
        for name, gradient in whole.items():
            scale = gradient.abs().max()
            assert scale > 0
            torch.testing.assert_close(parts[name] / scale, gradient / scale, rtol=0, atol=5e-6, msg=name)


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_of_text_alone_the_projector_has_gradients_of_zero(backbones, images, name):
    backbone = backbones(name, fresh=True)
    adapters = adapted(backbone)
    examples, features = batch_of(backbone, images, [TEXT, LONG_TEXT])
    assert features.shape == (0, *backbone.family.shape)
    with adapters.training():
        backbone.loss(examples, features).backward()
        for tensor, parameter in adapters.trainable.items():
            assert parameter.grad is not None
            assert (parameter.grad.abs().max() == 0) == is_projector(tensor)
    asked = [backbone.encoder.encode(TestRecord("0", (), "How many?", ""))]
    assert backbone.generate(asked, features, 3) == backbone.generate(asked * 2, features, 3)[1:]


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_projectors_are_mixed_by_the_question_an_image_belongs_to(backbones, images, name):
    """Weights are of questions: with two images in one and none in another they are not one to one."""
    backbone = backbones(name, fresh=True)
    adapters = adapted(backbone, "per_subspace")
    rng = np.random.default_rng(2)
    two = [{n: rng.normal(0, 0.2, p.shape).astype(np.float32) for n, p in adapters.trainable.items()} for _ in "ab"]
    adapters.load_mixture(two, adapters.base_projector())
    weights = np.array([[0.3, 0.7], [1.0, 0.0], [0.0, 0.0], [0.9, 0.1]], np.float32)
    asked = [TWO_IMAGES, TEXT, SINGLE, LATER]
    with torch.no_grad():
        with adapters.mixed(weights):
            together, _ = backbone.answer_logits(*batch_of(backbone, images, asked))
        alone = []
        for n, record in enumerate(asked):
            with adapters.mixed(weights[n : n + 1]):
                alone.append(backbone.answer_logits(*batch_of(backbone, images, [record]))[0])
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)
        with adapters.mixed(np.array([[0.7, 0.3]], np.float32)):
            other, _ = backbone.answer_logits(*batch_of(backbone, images, [TWO_IMAGES]))
    assert not torch.allclose(other, alone[0], atol=1e-3)


def test_a_template_that_writes_the_first_token_gets_no_second_one(backbones):
    """Llama 3's, for example; transformers' own apply_chat_template does the same."""
    encoder = backbones("tiny").encoder
    template = AutoTokenizer.from_pretrained(TINY / "llava")
    template.chat_template = template.bos_token + "{{ messages[0]['content'][0]['text'] }}"
    own = Encoder(encoder.tokenizer, template, encoder.image_token, encoder.placeholders, backbones("tiny").config)
    assert own.encode(TestRecord("", (), "Name it.", "")).tokens.count(template.bos_token_id) == 1


def test_positions_of_two_images_and_of_none_are_qwens_own(backbones):
    backbone = backbones("qwen")
    records = [TWO_IMAGES, TEXT, LATER, Record(("a", "b"), (Turn("a", "b", 1), Turn("c", "d", 1)))]
    examples = [backbone.encoder.encode(record) for record in records]
    length = max(len(e.tokens) for e in examples) + 3
    ids, mask = (torch.zeros(len(examples), length, dtype=torch.long) for _ in range(2))
    for row, example in enumerate(examples):
        ids[row, -len(example.tokens) :], mask[row, -len(example.tokens) :] = torch.tensor(example.tokens), 1
    pictured = ids == backbone.encoder.image_token
    grid = torch.tensor([[1, 6, 6]] * sum(len(e.images) for e in examples))
    wanted, _ = backbone.model.model.get_rope_index(ids, pictured.int(), image_grid_thw=grid, attention_mask=mask)
    assert torch.equal(backbone.family.positions(mask, pictured) * mask, wanted * mask)
