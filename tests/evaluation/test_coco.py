"""The official caption figure, with Java where there is one."""

import stat
import sys
from collections.abc import Callable

import psutil
import pytest

from fcit.data.records import TestRecord
from fcit.errors import RunError
from fcit.evaluation import coco
from tests.helpers.java import light_java

REFERENCES = (
    ("A man rides a horse.", "The man is riding a brown horse (fast), isn't he?"),
    ("Two dogs play; in the snow!", "Dogs playing"),
    ("A red cup on a caf\u00e9 table",),
)
RECORDS = [TestRecord(str(n), ("a.png",), "?", texts[0], texts) for n, texts in enumerate(REFERENCES)]
TEXTS = [" a man is riding a horse", "", "A cup - red - on (the) table."]
FIGURES = [78.57142856, 57.217213519, 40.305205001, 30.077958379, 25.357041601, 45.105211406, 136.304479883]


@pytest.fixture
def java(tmp_path, monkeypatch) -> None:
    light_java(tmp_path, monkeypatch)


def package() -> set:
    """Everything in pycocoevalcap's folders."""
    from pathlib import Path

    from pycocoevalcap.tokenizer import ptbtokenizer

    return set(Path(ptbtokenizer.__file__).parents[1].rglob("*"))


@pytest.fixture
def children() -> Callable[[], list[str]]:
    """Names of the processes that the test at hand has started and left; other tests' may go on beside."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    return lambda: [c.name() for c in psutil.Process().children(recursive=True) if c.pid not in before]


def test_the_tokens_of_the_official_tokenizer(java, children):
    found = coco.tokenize(
        {
            0: ["A Dog's running, isn't it?", '(yes) "no"; a - bit...'],
            1: ["", "!!!", "one\ntwo\r\nthree\u2028four\x0bfive", "caf\u00e9 na\u00efve"],
            2: [],
            3: [" last ", "\ud800"],
        }
    )
    assert found == {
        # brackets are not recognised as punctuation: lower-casing made -lrb- of -LRB-
        0: ["a dog 's running is n't it", "-lrb- yes -rrb- no a bit"],
        1: ["", "!!!", "one two three four five", "caf\u00e9 na\u00efve"],
        2: [],
        3: ["last", ""],
    }
    assert not children()


def test_the_mean_of_seven(java, children):
    """Figures of pycocoevalcap 1.2 itself (PTBTokenizer, Bleu(4), Meteor with all paraphrases, Rouge, Cider)."""
    before = package()
    found = coco.seven(TEXTS, RECORDS)
    assert list(found) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]
    assert list(found.values()) == pytest.approx(FIGURES, abs=1e-6)
    assert not children()
    assert package() == before


def test_the_score_is_their_mean_and_may_exceed_a_hundred(monkeypatch):
    values = dict(zip(coco.METRICS, [100.0] * 6 + [450.0], strict=True))
    monkeypatch.setattr(coco, "seven", lambda texts, records: values)
    result = coco.caption7(TEXTS, RECORDS)
    assert (result.score, result.marks) == (150.0, None)
    with pytest.raises(ValueError, match="2 texts for 3 records"):
        coco.caption7(TEXTS[:2], RECORDS)


def test_without_java_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match=r"no `java` on PATH; .*default-jre-headless.*`scorer: caption`"):
        coco.caption7(TEXTS, RECORDS)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import sys; sys.exit('no room')", "the PTB tokenizer failed (0 lines for 8 captions)"),
        ("import sys; print('one line')", "1 lines for 8 captions"),
        # it tokenizes, but there is no METEOR
        (
            "import sys; 'PTB' in ' '.join(sys.argv) or sys.exit('Could not reserve heap'); "
            "print(open(sys.argv[-1]).read(), end='')",
            "METEOR failed (Could not reserve heap)",
        ),
    ],
)
def test_a_java_that_fails_is_told_and_leaves_no_process(monkeypatch, tmp_path, script, said, children):
    program = tmp_path / "java"
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError) as error:
        coco.caption7(TEXTS, RECORDS)
    assert said in str(error.value)
    assert "java -version" in str(error.value)
    assert not children()
