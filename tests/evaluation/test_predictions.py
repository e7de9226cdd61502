import json

import pytest
import yaml

from fcit.cli import main
from fcit.data.records import TestRecord
from fcit.errors import DataError
from fcit.evaluation import predictions
from fcit.evaluation.predictions import Prediction, answer_id, from_line, read, to_line

OURS = Prediction(
    "7", ("a/b.png",), "What?\nOne word.", "caf\u00e9\u2028", "tea", 0.5, [0.25, 0.75], "x1", "tiny-disco"
)


def test_a_line_has_the_official_keys_and_the_rest_under_metadata():
    row = json.loads(to_line(OURS))
    assert list(row) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert row["metadata"] == {"image": "a/b.png", "answer": "tea", "mark": 0.5, "mix": [0.25, 0.75]}
    assert "\n" not in to_line(OURS)
    assert from_line(to_line(OURS)) == OURS
    bare = Prediction("7", (), "", "", "")
    assert json.loads(to_line(bare))["metadata"] == {"answer": ""}
    assert from_line(to_line(bare)) == bare


def test_lines_of_others_and_of_older_run_folders_are_read():
    theirs = '{"question_id": 12, "prompt": "Q", "text": "A", "answer_id": "k", "model_id": "m", "metadata": {}}'
    assert from_line(theirs) == Prediction("12", (), "Q", "A", "", answer_id="k", model_id="m")
    assert from_line('{"question_id": "q", "text": "A", "ground_truth": 3}') == Prediction("q", (), "", "A", "")
    old = '{"question_id": "0", "image": "a.png", "prompt": "Q", "text": "A", "answer": "B", "mark": 0.0, "mix": [1]}'
    assert from_line(old) == Prediction("0", ("a.png",), "Q", "A", "B", 0.0, [1])
    empty = '{"question_id": "0", "text": "A", "metadata": {"image": "", "answer": "B"}}'
    assert from_line(empty) == Prediction("0", (), "", "A", "B")


@pytest.mark.parametrize(
    ("images", "written"),
    [((), {}), (("a.png",), {"image": "a.png"}), (("a.png", "b.png"), {"image": ["a.png", "b.png"]})],
)
def test_a_line_names_all_images(images, written):
    prediction = Prediction("7", images, "Q", "A", "B")
    assert json.loads(to_line(prediction))["metadata"] == {**written, "answer": "B"}
    assert from_line(to_line(prediction)) == prediction
    assert prediction.image == (images[0] if images else "")


def test_the_id_of_an_answer_tells_whose_it_is_and_nothing_else():
    assert answer_id("disco", 0, "stage-1", "a", 1) == answer_id("disco", 0, "stage-1", "a", 1)
    owners = [("disco", 0, "stage-1", "a", n) for n in range(50)] + [("disco", 1, "stage-1", "a", 0)]
    assert len({answer_id(*owner) for owner in owners}) == 51
    assert len(answer_id("x")) == 22


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "Expecting value"),
        ("{", "Expecting"),
        ("[1]", "must be an object"),
        ('{"text": "a"}', "'question_id' missing"),
        ("{}", "'question_id' and 'text' missing"),
        ('{"question_id": true, "text": "a"}', "'question_id' must be text"),
        ('{"question_id": 1, "text": 3}', "'text' must be text"),
        ('{"question_id": 1, "text": null}', "'text' must be text"),
        ('{"question_id": 1, "text": "a", "text": "b"}', "a key occurs twice"),
        ('{"question_id": 1, "text": "\\ud800"}', "surrogate"),
        ('{"question_id": 1, "text": "a", "metadata": 3}', "'metadata' must be an object"),
        ('{"question_id": 1, "text": "a", "metadata": {"mark": "x"}}', "'mark' must be a number"),
        ('{"question_id": 1, "text": "a", "metadata": {"image": 3}}', "'image' must be text"),
        ('{"question_id": 1, "text": "a", "metadata": {"image": ["a", 3]}}', "'image' must be text"),
        ('{"question_id": 1, "text": "a", "metadata": {"image": [' + '"a", ' * 64 + '"a"]}}', "more than 64"),
        ('{"question_id": 1, "text": "a", "mix": [1, "x"]}', "'mix' must be a list of numbers"),
        ('{"question_id": NaN, "text": "a"}', "NaN"),
        ('{"question_id": 1, "text": "a", "metadata": ' + "[" * 90 + "]" * 90 + "}", "nested"),
        ('{"question_id": 1, "text": "' + "a" * 200_001 + '"}', "more than 200,000"),
        ('{"question_id": 1, "text": "a", "metadata": {"mark": 1e999}}', "'mark' must be a number"),
    ],
)
def test_a_broken_line_is_told_with_its_number(tmp_path, line, said):
    file = tmp_path / "merge.jsonl"
    file.write_text(to_line(OURS) + "\n" + line + "\n" + to_line(OURS) + "\n")
    with pytest.raises(DataError) as error:
        read(file)
    assert str(error.value).startswith(f"{file}, line 2: ")
    assert said in str(error.value)
    assert len(str(error.value)) < 500


def test_files_that_are_no_predictions(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="not an ordinary file"):
        read(tmp_path)
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        read(file)
    file.write_text("\n")
    with pytest.raises(DataError, match="holds no predictions"):
        predictions.paired(file, read(file), [TestRecord("0", ("",), "", "")])


# ---------------------------------------------------------------------- the command


QUESTIONS = [("10", "red"), ("11", "blue "), ("12", "green")]


@pytest.fixture
def scored(tmp_path, capsys):
    """Score lines (question, text) of a small data set in the official layout; returns (code, stdout, stderr)."""
    folder = tmp_path / "root" / "instructions" / "Things"
    folder.mkdir(parents=True)
    rows = [{"question_id": i, "image": "x.png", "text": "?", "answer": a} for i, a in QUESTIONS]
    (folder / "test.json").write_text(json.dumps(rows))
    (folder / "train.json").write_text("[]")
    coco = [{"image_id": n, "caption": a} for n, (_, a) in enumerate(QUESTIONS, start=1)]
    (folder / "coco.json").write_text(json.dumps({"annotations": coco}))
    things = {"train": "Things/train.json", "test": "Things/test.json"}
    spec = {
        "name": "things",
        "tasks": [["things"], ["captioned"]],
        "datasets": {
            "things": {**things, "scorer": "exact"},
            "captioned": {**things, "scorer": "caption7", "references": "Things/coco.json"},
        },
    }
    benchmark = tmp_path / "things.yaml"
    benchmark.write_text(yaml.safe_dump(spec))

    def call(lines, *more, dataset="things"):
        file = tmp_path / "merge.jsonl"
        file.write_text("".join(json.dumps({"question_id": i, "text": t}) + "\n" for i, t in lines))
        root = str(tmp_path / "root")
        where = ["--benchmark", str(benchmark), "--root", root, "--dataset", dataset, "--predictions", str(file)]
        code = main(["evaluate", *where, *more])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def scores(out: str) -> dict[str, tuple[float, str]]:
    return {r["rule"]: (r["score"], r["official"]) for r in json.loads(out)["scores"]}


def test_evaluate_prints_the_official_score_and_ours(scored):
    code, out, err = scored([(10, "Red"), (11, "blue"), (12, "green.")])
    assert code == 0
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "things of things: 3 predictions, 3 questions"
    assert lines[1].split() == ["exact", "33.33", "official", "rule"]
    assert lines[2].split() == ["exact-clean", "100.00", "our", "definition"]


def test_evaluate_divides_by_the_lines_and_tells_what_is_unusual(scored):
    code, out, err = scored([("12", " green"), ("10", "red"), ("10", "blue"), ("10", "red")], "--json")
    assert code == 0
    assert scores(out)["exact"] == (75.0, True)
    assert "1 of 3 questions have no prediction" in err
    assert "2 predictions are to questions answered before" in err
    assert "1 predictions begin or end with blanks" in err
    assert len(json.loads(out)["warnings"]) == 3
    assert json.loads(out)["lines"] == 4


def test_evaluate_by_another_rule(scored):
    _, out, _ = scored([(10, ""), (11, "u"), (12, "x")], "--rule", "substring-official", "--json")
    assert scores(out) == {"substring-official": (200 / 3, True), "substring": (0.0, False)}


def test_evaluate_tells_the_form_of_the_answers(scored, tmp_path):
    file = tmp_path / "things.yaml"
    spec = yaml.safe_load(file.read_text())
    spec["datasets"]["things"]["form"] = "word"
    file.write_text(yaml.safe_dump(spec))
    lines = [(10, "red"), (11, "It is blue."), (12, "red or green")]
    assert [line.split() for line in scored(lines)[1].splitlines()[3:]] == [
        "form (word): 33.33 % of 3 answers have it; with their form mended:".split(),
        ["exact", "33.33"],  # the truth in the file ends with a blank, which no answer does
        ["exact-clean", "66.67"],
    ]
    exact, clean = json.loads(scored(lines, "--json")[1])["scores"]
    assert (exact["score"], exact["content"], exact["form_share"]) == (100 / 3, 100 / 3, 100 / 3)
    assert (clean["score"], clean["content"], clean["demanded"]) == (100 / 3, 200 / 3, {"word": 3})


def test_a_percentage_is_rounded_once(scored):
    """50 of 101 is 49.50495 and so 49.50, as the official scripts print; by way of 49.505 it would be 49.51."""
    lines = [(10, "red" if n < 50 else "blue") for n in range(101)]
    assert scored(lines)[1].splitlines()[1].split() == ["exact", "49.50", "official", "rule"]
    assert scores(scored(lines, "--json")[1])["exact"] == (5000 / 101, True)


FILES = {
    "metadata null": '{"question_id": 10, "text": "red", "metadata": null}\n{"question_id": 11, "text": "x"}',
    "metadata a list": '{"question_id": 10, "text": "red", "metadata": []}\n{"question_id": 11, "text": "x"}',
    "what nobody reads": '{"question_id": 10, "text": "red", "metadata": {"mark": "x", "image": null}, "prompt": null,'
    ' "logprob": NaN, "answer_id": 3}\n{"question_id": 11, "text": "x"}',
    "float ids": '{"question_id": 10.0, "text": "red"}\n{"question_id": 11.0, "text": "x"}\n',
    "ids as text": '{"question_id": "10", "text": "red"}\n{"question_id": "11.0", "text": "x"}\n',
    "CR": '{"question_id": 10, "text": "red"}\r{"question_id": 11, "text": "x"}\r',
    "CRLF": '{"question_id": 10, "text": "red"}\r\n{"question_id": 11, "text": "x"}\r\n\r\n',
    "BOM": '\ufeff{"question_id": 10, "text": "red"}\n{"question_id": 11, "text": "x"}',
    "U+2028 in a text": '{"question_id": 10, "text": "red"}\n{"question_id": 11, "text": "x\u2028\x85y"}',
}


@pytest.mark.parametrize("name", FILES)
def test_evaluate_reads_what_the_official_scripts_read(scored, tmp_path, name):
    """Every one of them scores 1 of 2."""
    (tmp_path / "theirs.jsonl").write_bytes(FILES[name].encode())
    code, out, err = scored([], "--predictions", str(tmp_path / "theirs.jsonl"), "--json")
    assert code == 0
    assert err.endswith("1 of 3 questions have no prediction and are left out\n")
    assert json.loads(out)["lines"] == 2
    assert scores(out)["exact"] == (50.0, True)


@pytest.mark.parametrize(
    ("theirs", "asked", "same"),
    [
        (1, "1", True),
        (1.0, "1", True),
        ("1", "1.0", True),
        (1e0, "1.00", True),
        ("1e2", "100", True),
        ("01", "1", False),
        ("x1", "1", False),
        ("1 ", "1", False),
        (True, "1", None),
        (10**19, "1e19", False),
        ("\u0661", "1", False),
    ],
)
def test_ids_that_are_numbers_are_equal_by_value(tmp_path, theirs, asked, same):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"question_id": theirs, "text": "a"}))
    try:
        records, _ = predictions.paired(file, read(file), [TestRecord(asked, (), "", "")])
        assert same
        assert records[0].question_id == asked
    except DataError as error:
        assert not same
        assert ("not in the test set" if same is False else "must be text") in str(error)


def test_a_key_twice_is_refused_also_from_others(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"question_id": 1, "text": "a", "text": "b"}')
    with pytest.raises(DataError, match="line 1: a key occurs twice"):
        read(file, predictions.from_others)
    file.write_text('{"question_id": NaN, "text": "a"}')
    with pytest.raises(DataError, match="'question_id' must be text, got nan"):
        read(file, predictions.from_others)


def test_evaluate_counts_captions_in_the_order_of_the_lines(scored, monkeypatch):
    """The official script never looks at the ids of captions."""
    from fcit.evaluation import coco, scorers

    seen = []

    def spy(texts, records):
        seen.append([(text, record.answer) for text, record in zip(texts, records, strict=True)])
        return scorers.Result(0.0)

    monkeypatch.setattr(coco, "caption7", scorers.corpus(by_line=True)(spy))
    assert scored([(10, "a"), (11, "b"), (12, "c")], dataset="captioned")[::2] == (0, "")
    assert seen[-1] == [("a", "red"), ("b", "blue "), ("c", "green")]
    _, _, err = scored([(12, "a"), (11, "b"), (10, "c")], dataset="captioned")
    assert seen[-1] == [("a", "red"), ("b", "blue "), ("c", "green")]
    assert "another order" in err
    _, _, err = scored([(10, "a"), (11, "b")], dataset="captioned")
    assert seen[-1] == [("a", "red"), ("b", "blue ")]
    assert "paired by question_id" not in err
    _, _, err = scored([(12, "a"), (11, "b")], dataset="captioned")
    assert seen[-1] == [("a", "green"), ("b", "blue ")]
    assert "paired by question_id" in err
    code, _, err = scored([(10, "a"), (11, "b"), (12, "c"), (12, "d")], dataset="captioned")
    assert code == 2
    assert "line 4" in err
    assert "captions for 3 images" in err


@pytest.mark.parametrize(
    ("lines", "more", "said"),
    [
        ([(10, "red"), (13, "red")], (), "merge.jsonl, line 2: question_id '13' is not in the test set (3 questions"),
        ([], (), "holds no predictions"),
        ([(10, "red")], ("--rule", "exakt"), "--rule: scorer: unknown name 'exakt'; did you mean 'exact'"),
        ([(10, "red")], ("--dataset", "thing"), "no data set 'thing'; did you mean 'things'"),
        ([(10, "red")], ("--split", "val"), "needs the key datasets.things.val"),
        ([(10, "red")], ("--root", "/nowhere"), "no such instruction file"),
        ([(10, "red")], ("--benchmark", "fcit-mini-tusk"), "did you mean 'fcit-mini-task'"),
    ],
)
def test_evaluate_tells_mistakes_in_one_sentence(scored, lines, more, said):
    code, out, err = scored(lines, *more)
    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


def test_chapters_are_no_numbers(tmp_path):
    """1.1 and 1.10 are one value and two questions."""
    file = tmp_path / "merge.jsonl"
    file.write_text("".join(json.dumps({"question_id": n, "text": t}) + "\n" for n, t in (("1.1", "a"), ("1.10", "b"))))
    questions = [TestRecord("1.1", (), "?", "a"), TestRecord("1.10", (), "?", "b")]
    found, said = predictions.paired(file, predictions.read(file, predictions.from_others), questions)
    assert [record.answer for record in found] == ["a", "b"]
    assert said == []
