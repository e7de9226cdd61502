"""Forms of answers by literal examples: which texts have one, what a text is normalised to, what a question demands."""

import re
from pathlib import Path

import pytest

from fcit import registry
from fcit.data.records import TestRecord
from fcit.evaluation import forms
from tests.helpers.cases import check_each

#: Form, text, whether it has the form, what it is normalised to (None: it stays as it is), truth.
EXAMPLES: list[tuple[str, str, bool, str | None, str]] = [
    # one word
    ("word", "red", True, None, "blue"),
    ("word", " Red ", True, None, "blue"),
    ("word", "well-known", True, None, "blue"),
    ("word", "red.", False, "red", "blue"),
    ("word", '"red"', False, "red", "blue"),
    ("word", "dark red", False, None, "blue"),
    ("word", "Dark Red", True, None, "dark red"),  # the truth has any form
    ("word", "red/blue", True, None, "blue"),
    ("word", "red, blue", False, None, "blue"),
    ("word", "The color is red.", False, "red", "blue"),
    ("word", "The color is red or blue.", False, None, "blue"),
    ("word", "The color is red. It is not blue.", False, None, "blue"),
    ("word", "It is not red", False, None, "blue"),
    ("word", "", False, None, ""),
    # a word or phrase: two words, or as many as the truth
    ("phrase", "fire truck", True, None, "owl"),
    ("phrase", "great white shark", False, None, "owl"),
    ("phrase", "great white shark", True, None, "small tiger shark"),
    ("phrase", "fish above star", False, None, "owl"),
    ("phrase", "a goldfish", True, None, "goldfish"),  # its form is right, so it stays as it is
    ("phrase", "The object in the image is a goldfish.", False, "goldfish", "goldfish"),
    ("phrase", "Answer: (goldfish)", False, "goldfish", "goldfish"),
    ("phrase", "The answer is the fire truck.", False, "fire truck", "owl"),
    ("phrase", "cats, dogs", False, None, "owl"),
    ("phrase", "cats, dogs", True, None, "dogs, cats"),
    ("phrase", "cats\ndogs", False, None, "owl"),
    ("phrase", "U.S.", True, None, "U.S."),
    ("phrase", "\u91d1\u9c7c", True, None, "owl"),  # two characters of a script without blanks
    ("phrase", "\u4e00\u53ea\u91d1\u9c7c\u5728\u6c34\u4e2d", False, None, "owl"),
    # the label of an option
    ("letter", "B", True, None, "A"),
    ("letter", "b", True, None, "A"),
    ("letter", "2", True, None, "0"),
    ("letter", "B.", False, "B", "A"),
    ("letter", "(B)", False, "B", "A"),
    ("letter", "Answer: (B)", False, "B", "A"),
    ("letter", "The answer is b.", False, "b", "A"),
    ("letter", "B) red", False, "B", "A"),
    ("letter", "B. red", False, "B", "A"),
    ("letter", "0. fish", False, "0", "A"),
    ("letter", "Option C", False, "C", "A"),
    ("letter", "The answer is A because it is the tallest.", False, "A", "A"),
    ("letter", "I would choose C here", False, "C", "A"),
    ("letter", "B is wrong, so the answer is C.", False, "C", "A"),
    ("letter", "A or B", False, None, "A"),
    ("letter", "A, B, C, D", False, None, "A"),
    ("letter", "A) red B) blue", False, None, "A"),
    ("letter", "Answer: A. Answer: B.", False, None, "A"),
    ("letter", "A red bar", False, None, "A"),
    ("letter", "red", False, None, "A"),
    ("letter", "There are 3 icons.", False, None, "3"),
    ("letter", "a T-shirt", False, None, "T"),
    # a number
    ("number", "3", True, None, "4"),
    ("number", "-2.5", True, None, "4"),
    ("number", "1,200", True, None, "4"),
    ("number", "3.", False, "3", "4"),
    ("number", "There are 3 objects left.", False, "3", "3"),
    ("number", "There are three objects.", False, "3", "3"),
    ("number", "three", False, "3", "3"),
    ("number", "$5", False, "5", "5"),
    ("number", "3, that is three.", False, "3", "3"),
    ("number", "3.0 or 3", False, "3.0", "3"),
    ("number", "3 or 4", False, None, "4"),
    ("number", "5-2", False, None, "5"),
    ("number", "6 minus 2, so the answer is 4.", False, "4", "4"),
    ("number", "twenty-one", False, None, "20"),
    ("number", "B2", False, None, "2"),
    ("number", "3.5.2", False, None, "3.5"),
    ("number", "red", False, None, "4"),
    # yes or no
    ("yes/no", "yes", True, None, "no"),
    ("yes/no", "No", True, None, "yes"),
    ("yes/no", "Yes.", False, "yes", "no"),
    ("yes/no", "Yes, there is no line above it.", False, "yes", "no"),
    ("yes/no", "Yes it is", False, "yes", "no"),
    ("yes/no", "The answer is no.", False, "no", "no"),
    ("yes/no", "yes or no", False, None, "yes"),
    ("yes/no", "yes/no", False, None, "yes"),
    ("yes/no", "no or yes", False, None, "yes"),
    ("yes/no", "Yes, no", False, None, "yes"),
    ("yes/no", "No. The bar is higher, so yes.", False, None, "yes"),
    ("yes/no", "There is no bike", False, None, "no"),
    ("yes/no", "No one is there", False, None, "no"),
    ("yes/no", "red", False, None, "no"),
    # a box
    ("box", "[0.1, 0.2, 0.35, .4]", True, None, ""),
    ("box", "[0.1,0.2,0.35,0.4]", True, None, ""),
    ("box", "0.1, 0.2, 0.3, 0.4", False, "[0.1, 0.2, 0.3, 0.4]", ""),
    ("box", "The box is [0.1, 0.2, 0.3, 0.4].", False, "[0.1, 0.2, 0.3, 0.4]", ""),
    ("box", "(0.1, 0.2), (0.3, 0.4)", False, "[0.1, 0.2, 0.3, 0.4]", ""),
    ("box", "1 of 2: [0.1, 0.2, 0.3, 0.4]", False, "[0.1, 0.2, 0.3, 0.4]", ""),
    ("box", "[0.1, 0.2, 0.3, 0.4] or [0.5, 0.2, 0.9, 0.4]", False, None, ""),
    ("box", "[0.1, 0.2, 0.3, 0.4, 0.5]", False, None, ""),
    ("box", "on the left", False, None, ""),
    # a sentence
    ("sentence", "a fish above a star", True, None, "owl"),
    ("sentence", "A man in a St. Louis shirt.", True, None, "owl"),
    ("sentence", "fish", False, None, "owl"),
    ("sentence", "[0.1, 0.2, 0.3, 0.4]", False, None, "owl"),
    ("sentence", "Caption: a fish above a star", False, "a fish above a star", "owl"),
    ("sentence", '"a fish above a star"', False, "a fish above a star", "owl"),
    ("sentence", "A fish above a star. A dog on a road.", False, None, "owl"),
    ("sentence", "a fish above a star\na dog on a road", False, None, "owl"),
]


def test_literal_examples():
    def check(example: tuple[str, str, bool, str | None, str]) -> None:
        name, text, has, normalised, truth = example
        form, record = registry.resolve("form", name)(), TestRecord("0", (), "?", truth)
        assert form.has(text, record) is has
        assert form.normalised(text, record) == (text if normalised is None else normalised)

    check_each(EXAMPLES, check)


def test_any_of_several_right_answers_has_the_form():
    record = TestRecord("0", (), "?", "cola", ("cola", "a bottle of cola", "Coca-Cola, Inc."))
    phrase = registry.resolve("form", "phrase")()
    assert phrase.has("a bottle of cola", record)
    assert phrase.has("coca-cola, inc.", record)
    assert phrase.has("a can of beer", record)
    assert not phrase.has("a can of cold beer", record)


def test_what_a_text_is_normalised_to_has_the_form():
    def check(example: tuple[str, str, bool, str | None, str]) -> None:
        name, _, _, normalised, truth = example
        form, record = registry.resolve("form", name)(), TestRecord("0", (), "?", truth)
        assert normalised is None or form.has(normalised, record)

    check_each(EXAMPLES, check)


def test_every_form_has_examples():
    assert {name for name, *_ in EXAMPLES} == set(registry.ANSWER_FORMS)


def test_texts_of_any_length_cost_little():
    """What would be searched for long is not searched: the time grows with the length and no faster."""
    record = TestRecord("0", (), "?", "-")
    texts = [piece * (20_000 // len(piece)) for piece in ("\n", "1,111,", "( ", "A ", "no ", ". ", "answer ", "[0, ")]

    def check(case: tuple[str, str]) -> None:
        form, text = registry.resolve("form", case[0])(), f"x{case[1]}x"
        assert form.normalised(text, record) == text

    check_each([(name, text) for name in registry.ANSWER_FORMS for text in texts], check)


def test_the_examples_of_the_page():
    page = (Path(__file__).parents[2] / "docs" / "answer-form.md").read_text(encoding="utf-8")
    rows = re.findall(r'^\| `([a-z/]+)` \| "(.+)" \| (?:"(.+)"|stays\b.*) \|$', page, re.MULTILINE)

    def check(row: tuple[str, str, str]) -> None:
        name, text, normalised = row
        record = TestRecord("0", (), "?", "-")
        assert registry.resolve("form", name)().normalised(text, record) == (normalised or text)

    assert len(rows) == 10
    check_each(rows, check)


INSTRUCTIONS = {
    "What is it?\nAnswer the question using a single word or phrase.": "phrase",
    "What is it? Answer the question with a single word (or phrase).": "phrase",
    "What is it? Answer with one word.": "word",
    "Which series?\nA) red\nB) blue\nAnswer with the option's letter from the given choices directly.": "letter",
    "Up or down? Answer with the given letter directly, e.g., A, B, C, D.": "letter",
    "Which?\nReply with the letter of the right option.": "letter",
    "Will it rise? Only answer with yes or no directly.": "yes/no",
    "Which letter do you see, yes or no?\nAnswer the question using a single word or phrase.": "phrase",
    "Please provide the bounding box coordinates of the region this sentence describes: a fish.": "box",
    "What is happening in the image?\nGenerate a brief caption for the image.": "sentence",
    "Which?\nAnswer with the letter of one option.": "letter",
    "Why?\nReply with one short sentence.": "sentence",
    "How many? Answer with a single number.": "number",
    "What is the object in the image?": None,
    "": None,
}


@pytest.mark.parametrize(("instruction", "form"), INSTRUCTIONS.items())
def test_what_an_instruction_demands(instruction, form):
    assert forms.of_instruction(instruction) == form
