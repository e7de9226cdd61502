"""Tokens are computed once and kept; what is taken from where they are kept is what the tokenizer says."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from clients.worker.shards import BenchmarkShards
from fcit import config as configuration
from fcit.config import Backbone
from fcit.data.benchmark import open_benchmark
from fcit.data.records import Record, TestRecord, Turn
from fcit.errors import DataError
from fcit.models import judging, tokens
from fcit.models.encoding import Encoder
from fcit.models.judging import TokenJudge, judge_of
from tests.helpers.own_data import make_own

LENGTH = 90  # of the record with three turns, the first two
RECORDS: list[Record | TestRecord] = [
    Record.single("a.png", "How many?", "3"),
    Record((), (Turn("Who?", "me"), Turn("Why?", "so")), "Be brief."),
    Record(("a", "b"), (Turn("One?", "1", 1), Turn("Two?", "2", 1))),
    Record(("a", "b"), (Turn("One?", "1"), Turn("Two?", "2", 2))),
    Record(("a", "b"), (Turn("Which?", "this", 1), Turn("Then?", "that"), Turn("And?", "other", 1))),
    TestRecord("0", ("a", "b"), "Both?", "x"),
    TestRecord("1", (), "None?", "y"),
]


@pytest.fixture
def judge(tmp_path, monkeypatch) -> TokenJudge:
    """A judge with an empty cache that keeps what it says of two records and more."""
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(judging, "KEPT_FROM", 2)
    return judge_of(Backbone(threads=1, max_length=LENGTH))


@pytest.fixture
def asked(monkeypatch) -> list[Record | TestRecord]:
    """What goes through the tokenizer."""
    found: list[Record | TestRecord] = []
    batch = Encoder._batch

    def counted(encoder, records):
        found.extend(records)
        return batch(encoder, records)

    monkeypatch.setattr(Encoder, "_batch", counted)
    return found


def files(judge: TokenJudge) -> list[Path]:
    return sorted(judge._folder.glob("*.safetensors"))


def another_process() -> None:
    judging._memory.cache_clear()


def test_what_is_kept_equals_what_the_tokenizer_says(judge, asked):
    direct = [judge.encoder.encode(record) for record in RECORDS]
    assert direct[4].dropped == 1
    assert direct[4].images == ("a",)
    assert direct[2].images == ("a", "b")
    asked.clear()
    assert judge.examples(RECORDS) == direct
    assert asked == RECORDS
    assert len(files(judge)) == 1
    another_process()
    silent = TokenJudge(judge.mark, lambda: pytest.fail("tokenised again"))
    found = silent.examples(RECORDS[::-1])
    assert found == direct[::-1]
    assert found[2:4] == direct[::-1][2:4]
    assert found[-1] == direct[0]
    assert isinstance(found[0].tokens[0], int)
    assert isinstance(found[0].dropped, int)
    assert all(type(entry.shelf) is tokens.Kept for entry in found._entries)


def test_images_are_the_records_own_and_their_places_count(judge):
    one, other = Record.single("a.png", "How many?", "3"), Record.single("b.png", "How many?", "3")
    later = Record(("a.png",), (Turn("How many?", "3", 0),))
    assert tokens.key_of(one) == tokens.key_of(other) != tokens.key_of(later)
    assert [example.images for example in judge.examples([one, other])] == [("a.png",), ("b.png",)]
    told = Record((), (Turn("Who?", "me"),))
    keys = {tokens.key_of(r) for r in (told, Record((), told.turns, "Be brief."), TestRecord("0", (), "Who?", "me"))}
    assert len(keys) == 3


def test_shards_and_questions_take_what_prepare_tokenised(judge, tmp_path, asked):
    shards = BenchmarkShards(configuration.load(make_own(tmp_path)))
    shards.judged_by(judge)
    shards.benchmark.prepare()
    assert len(asked) == 12 + 1  # four questions in the same words
    shards.benchmark.divide()
    another_process()
    asked.clear()
    again = BenchmarkShards(shards.benchmark.config)
    again.judged_by(judge)
    records = [record for client in range(3) for record in again.records(client, [0])]
    assert len(records) == 11  # shares are rounded down
    assert [len(judge.examples(records)), len(judge.examples(again.test("colors")))] == [11, 4]
    assert asked == []
    assert judge.examples(records) == [judge.encoder.encode(record) for record in records]


def test_a_changed_file_has_only_its_changes_tokenised(judge, tmp_path, asked):
    file = make_own(tmp_path)
    train = tmp_path / "data" / "instructions" / "train.json"

    def look() -> None:
        another_process()
        benchmark = open_benchmark(configuration.load(file))
        benchmark.judge = judge
        benchmark.look()

    look()
    asked.clear()
    train.write_text(train.read_text().replace("number 7?", "the number 7?"))
    look()
    assert [record.turns[0].question for record in asked] == ["Which color is the number 7?"]


def test_another_mark_has_tokens_of_its_own(judge, asked):
    longer = judge_of(Backbone(threads=1, max_length=LENGTH + 100))
    judge.examples(RECORDS), longer.examples(RECORDS)
    assert asked == [*RECORDS, *RECORDS]
    assert judge.mark != longer.mark
    assert judge.examples(RECORDS)[4].dropped == 1
    assert longer.examples(RECORDS)[4].dropped == 0


def changed(name: str, change):
    """Damage of a file that is as its name says, but does not fit together."""

    def damage(file: Path) -> None:
        columns = load_file(file)
        content = save({**columns, name: np.ascontiguousarray(change(columns[name]))})
        file.unlink()
        tokens.written(file.with_stem(tokens.hashlib.sha256(content).hexdigest()), content)

    return damage


def flipped(at: int):
    """Damage of one byte, counted from the end."""

    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[at] ^= 1
        file.write_bytes(content)

    return damage


DAMAGES = [
    lambda file: file.write_bytes(b""),
    lambda file: file.write_bytes(file.read_bytes()[:-1]),
    lambda file: file.write_bytes(b"\xff" * 64),
    *(flipped(at) for at in (-1, -200, 20)),
    changed("ends", lambda column: column[::-1]),
    changed("ends", lambda column: column[:-1]),
    changed("tokens", lambda column: column[:-1]),
    changed("tokens", lambda column: column.astype(np.int64)),
    changed("tokens", lambda column: column[None]),
    changed("answers", lambda column: column + 1000),
    changed("answer_ends", lambda column: column + 1),
    changed("rows", lambda column: column + 1),
    changed("rows", lambda column: column[:0]),
    changed("keys", lambda column: column[0]),
    changed("images", lambda column: column - 9),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_passed_over(judge, asked, damage):
    direct = list(judge.examples(RECORDS))
    (file,) = files(judge)
    damage(file)
    another_process()
    asked.clear()
    assert judge.examples(RECORDS) == direct
    assert asked == RECORDS
    asked.clear()
    assert judge.examples(RECORDS) == direct
    assert asked == []  # written anew, which the process that wrote it knows
    another_process()
    assert judge.examples(RECORDS) == direct
    assert asked == []


def test_a_file_that_is_removed_on_the_way(judge, asked):
    judge.examples(RECORDS)
    another_process()
    silent = TokenJudge(judge.mark, lambda: pytest.fail("tokenised again"))
    found = silent.examples(RECORDS[:2])
    files(judge)[0].unlink()
    assert found == [judge.encoder.encode(record) for record in RECORDS[:2]]  # still mapped


def test_a_cache_that_cannot_be_written_costs_only_time(judge, asked, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    direct = list(judge.examples(RECORDS))
    assert direct == list(judge.examples(RECORDS))
    assert asked == RECORDS  # once in a process
    assert judge.train(["f"], range(5), RECORDS[:5]).count == 5
    assert asked == RECORDS
    another_process()
    assert judge.examples(RECORDS) == direct
    assert asked == [*RECORDS, *RECORDS]


def test_a_full_disk_keeps_no_part_of_a_file(judge, monkeypatch):
    write = Path.write_bytes

    def fills(path: Path, content: bytes) -> int:
        write(path, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fills)
    assert len(judge.examples(RECORDS)) == len(RECORDS)
    assert list(judge._folder.iterdir()) == []


def test_memory_is_bounded(judge, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "FULL", 60)
    monkeypatch.setattr(tokens, "AT_ONCE", 1)
    direct = [judge.encoder.encode(record) for record in RECORDS]
    asked.clear()
    assert judge.examples(RECORDS) == direct
    assert len(files(judge)) == len(RECORDS)
    assert judge.examples(RECORDS) == direct
    assert asked == RECORDS
    another_process()
    for file in files(judge):
        file.unlink()
    judge._folder.rmdir()
    judge._folder.write_text("no folder")
    assert judge.examples(RECORDS) == direct  # forgotten on the way, and yet all there


def test_a_record_without_tokens_is_told(judge, asked):
    long = Record.single("a.png", "How many? " * 40, "3")
    with pytest.raises(DataError, match="leave no room for an answer"):
        judge.examples([*RECORDS, long])
    assert list(judge.train(["f"], [3, 8], [RECORDS[0], long]).problems) == [8]
