"""Tokenizers and identity encoders that do not belong to the model are refused in one sentence."""

import json

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel, CLIPTextConfig

from fcit.errors import ConfigError
from fcit.models import identity
from fcit.models.backbone import Backbone
from tests.helpers.spoiled import assert_said, change, refused, settings, write


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
