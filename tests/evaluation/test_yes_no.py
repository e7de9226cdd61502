"""POPE and MME: readers and rules, on answers worked by hand."""

import json
from pathlib import Path

import pytest

from fcit.cli import main
from fcit.config import RunConfig
from fcit.data.benchmark import open_benchmark
from fcit.data.formats import read_test, read_train_file
from fcit.data.records import TestRecord
from fcit.errors import DataError
from fcit.evaluation.mme import answer_of, mme
from fcit.evaluation.pope import denies, pope


def asked(*answers: str, ids: list[str] | None = None) -> list[TestRecord]:
    return [TestRecord((ids or [str(n) for n in range(len(answers))])[n], (), "?", a) for n, a in enumerate(answers)]


# ---------------------------------------------------------------------- POPE


@pytest.mark.parametrize(
    ("text", "no"),
    [
        ("No", True),
        ("no, there is none", True),
        ("There is not.", True),
        ("No. Yes.", True),  # the first sentence counts
        ("Yes. There is no dog.", False),
        ("Yes, and not a cat", True),
        ("NO", False),
        ("Nothing", False),
        ("There isn't", False),
        ("no\n", False),  # blanks alone part words
        ("", False),
    ],
)
def test_what_counts_as_no(text, no):
    assert denies(text) is no


def test_pope_by_hand():
    # yes said to: yes, yes, no; no said to: yes, no, no, no, no
    records = asked("yes", "yes", "no", "yes", "no", "no", "no", "no")
    result = pope(["Yes", "yes.", "Yes", "No", "No", "no.", "not at all", " no "], records)
    assert result.score == pytest.approx(100 * 2 / 3)  # precision 2/3, recall 2/3
    assert dict(result.details) == pytest.approx(
        {"accuracy": 75, "precision": 200 / 3, "recall": 200 / 3, "yes": 300 / 8}
    )
    assert result.marks is None


@pytest.mark.parametrize("text", ["no", "yes"])
def test_where_the_official_script_divides_by_zero_there_is_0(text):
    result = pope([text], asked("no"))
    assert (result.score, result.details["precision"], result.details["recall"]) == (0, 0, 0)


def test_popes_files(tmp_path):
    rows = [{"question_id": n, "image": "a.jpg", "text": f"Is there a {n}?", "label": "yes"} for n in (1, 2)]
    file = tmp_path / "coco_pope_random.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_test(file, None, "pope")
    assert first == TestRecord("1", ("a.jpg",), "Is there a 1?", "yes")
    assert second.question_id == "2"
    assert "no training records" in read_train_file(file, "pope").problems[0]
    file.write_text("".join(json.dumps(row) + "\n" for row in [rows[0], {**rows[1], "label": "maybe"}]))
    with pytest.raises(DataError, match="'label' must be yes or no, got 'maybe'"):
        read_test(file, None, "pope")


# ---------------------------------------------------------------------- MME


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("no, never", "no"),
        ("A no", "no"),
        ("Now", "no"),
        ("not", "no"),
        ("The answer is yes", "other"),
        ("", "other"),
        (" yes", "yes"),
    ],
)
def test_what_counts_as_an_answer(text, answer):
    assert answer_of(text) == answer


#: Two pictures of colours, one of code; two questions about each.
IDS = ["color/1.jpg", "color/1.jpg", "color/2.jpg", "color/2.jpg", "code_reasoning/3.png", "code_reasoning/3.png"]


def test_mme_by_hand():
    records = asked("Yes", "No", "Yes", "No", "Yes", "No", ids=IDS)
    result = mme(["Yes.", "no", "yes", "Yes", "maybe", "No"], records)
    # color: 3 of 4 questions, 1 of 2 pictures; code: 1 of 2 questions, no picture
    assert dict(result.details) == {
        "perception": 75 + 50,
        "cognition": 50 + 0,
        "color acc": 75,
        "color acc+": 50,
        "code_reasoning acc": 50,
        "code_reasoning acc+": 0,
    }
    assert result.score == pytest.approx(100 * 175 / 400)


def test_an_id_without_a_subtask_is_refused():
    with pytest.raises(DataError, match=r"'colour/1.jpg': ids of MME begin with a subtask .*read the release with"):
        mme(["Yes"], asked("Yes", ids=["colour/1.jpg"]))


def release(root: Path) -> Path:
    """Two subtasks as MME's release lays them out, in either way."""
    folder = root / "MME_Benchmark_release_version"
    texts, images = folder / "artwork" / "questions_answers_YN", folder / "artwork" / "images"
    for place in (texts, images, folder / "color", folder / "eval_tool"):
        place.mkdir(parents=True)
    (texts / "1014.txt").write_text("Is it old? Please answer yes or no.\tYes\nIs it new?\tNo\n")
    (folder / "color" / "7.txt").write_text("Is it red?\tYes\nIs it blue?\tNo\n")
    for picture in (images / "1014.jpg", folder / "color" / "7.png"):
        picture.write_bytes(b"x")
    return folder


def test_mmes_release(tmp_path):
    folder = release(tmp_path)
    records = read_test(folder, None, "mme")
    assert [(r.question_id, r.image, r.answer) for r in records] == [
        ("artwork/1014.jpg", "artwork/images/1014.jpg", "Yes"),
        ("artwork/1014.jpg", "artwork/images/1014.jpg", "No"),
        ("color/7.png", "color/7.png", "Yes"),
        ("color/7.png", "color/7.png", "No"),
    ]
    assert records[0].instruction == "Is it old? Please answer yes or no."
    (folder / "color" / "7.png").unlink()
    with pytest.raises(DataError, match=r"7.txt: no picture .*color/7 \(.jpg, "):
        read_test(folder, None, "mme")
    (folder / "color" / "7.txt").write_text("Is it red? Yes\n")
    (folder / "color" / "7.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"color/7\.jpg: a line is a question, a tab and Yes or No"):
        read_test(folder, None, "mme")
    with pytest.raises(DataError, match="no such folder; MME is read from its release"):
        read_test(tmp_path / "nowhere", None, "mme")


# ---------------------------------------------------------------------- as shipped


def test_as_a_held_out_benchmark_and_on_the_command_line(tmp_path, capsys):
    release(tmp_path / "mme")
    coco = tmp_path / "pope" / "coco"
    coco.mkdir(parents=True)
    for kind in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": n, "image": "COCO_val2014_1.jpg", "text": f"Is there a {kind}?", "label": label}
            for n, label in ((1, "no"), (2, "yes"))
        ]
        (coco / f"coco_pope_{kind}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = [{"benchmark": name, "data_root": str(tmp_path / name)} for name in ("mme", "pope")]
    bench = open_benchmark(RunConfig(evaluation={"held_out": held_out}))
    assert list(bench.held_out) == ["mme", "pope-random", "pope-popular", "pope-adversarial"]
    question, _ = bench.test("pope-popular")
    assert question.instruction == "Is there a popular?\nAnswer the question using a single word or phrase."
    assert (bench.owner("mme").image_root / bench.test("mme")[0].image).is_file()
    predictions = tmp_path / "answers.jsonl"
    predictions.write_text(json.dumps({"question_id": 1, "text": "No, there is not."}) + "\n")
    options = ["--benchmark", "pope", "--dataset", "pope-random", "--root", str(tmp_path / "pope")]
    assert main(["evaluate", "--predictions", str(predictions), *options]) == 0
    out = capsys.readouterr().out
    assert "  pope                    0.00  official rule" in out
    assert "    accuracy            100.00" in out
    # Two questions have a picture's id: answers to it are to one after the other.
    rows = [{"question_id": record.question_id, "text": record.answer} for record in bench.test("mme")]
    predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--benchmark", "mme", "--dataset", "mme", "--root", str(tmp_path / "mme")]
    assert main(["evaluate", "--predictions", str(predictions), *options]) == 0
    out, err = capsys.readouterr()
    assert "  mme                   100.00  official rule" in out
    assert "    perception          400.00" in out
    assert err == ""
    predictions.write_text("".join(json.dumps(row) + "\n" for row in [*rows[1:], *rows[2:3]]))
    assert main(["evaluate", "--predictions", str(predictions), *options]) == 0
    err = capsys.readouterr().err
    assert "1 of 4 questions have no prediction" in err
    assert "1 predictions are to questions answered before" in err
    # Pictures are missing, everything else can be read.
    assert main(["data", "check", "pope", "--root", str(tmp_path / "pope")]) != 0
    out = capsys.readouterr().out
    assert "COCO_val2014_1.jpg" in out
    assert "pope-random: best constant answer" in out
