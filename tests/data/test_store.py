"""Records on disk behave like a list of them."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from fcit.config import RunConfig
from fcit.data import formats, records, store
from fcit.data.benchmark import open_benchmark
from fcit.data.dataset import Usable, read_usable
from fcit.data.records import JoinedRecords, MappedRecords
from fcit.data.store import MappedTrainFile, RecordStore
from fcit.errors import DataError
from tests.helpers.official import official_tree
from tests.helpers.waiting import LONG

COUNT = 2500  # more than two blocks


def row(n: int) -> dict:
    turns = [{"from": "human", "value": f"<image>\nQuestion {n}?\nü ☃"}, {"from": "gpt", "value": n}]
    return {"image": f"a/{n}.png", "conversations": turns}


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "train.json"
    path.write_text(json.dumps([row(n) for n in range(COUNT)], indent=1))
    return path


@pytest.fixture
def tables(tmp_path) -> RecordStore:
    return RecordStore(tmp_path / "records")


def arrows(tables: RecordStore) -> list[Path]:
    return sorted(tables.folder.glob("*.arrow"))


def test_a_mapped_file_is_the_list_it_was_made_of(file, tables):
    wanted = formats.read_train(file)
    found = read_usable(file, None, 0.0, tables).records
    assert isinstance(found, MappedRecords)
    assert len(found) == COUNT
    assert found == wanted
    assert wanted == found
    assert list(found) == wanted
    assert found[0] == wanted[0]
    assert found[-1] == wanted[-1]
    assert found[1500] == wanted[1500]
    assert isinstance(found[10:20], MappedRecords)
    assert found[10:20] == wanted[10:20]
    assert found[::-700] == wanted[::-700]
    assert found[2400:9999] == wanted[2400:]
    assert found[5:5] == []
    assert found.index(wanted[1030]) == 1030
    assert wanted[7] in found
    assert found != wanted[:-1]
    assert found != [*wanted[:-1], wanted[0]]
    assert (found == 5) is False
    with pytest.raises(IndexError):
        found[COUNT]
    with pytest.raises(TypeError):
        hash(found)


def test_conversations_and_questions_of_every_kind_are_mapped(tmp_path, tables, monkeypatch):
    """Turns, systems, several images or none, boxes and sizes; and a record that is none stays in its place."""
    monkeypatch.setattr(store, "MAPPED_FROM", 1)
    said = [{"role": "user", "content": "<image><image>Q"}, {"role": "assistant", "content": "A"}]
    rows = [
        {
            "messages": [{"role": "system", "content": "Brief."}, *said, {**said[0], "content": "More?"}, said[1]],
            "images": ["a", "b"],
        },
        {"messages": [{**said[0], "content": "Q"}, said[1]]},
        {},
        {"messages": said, "images": ["a", "b"]},
    ]
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    mapped, listed = tables.train(path), formats.read_train_file(path)
    assert isinstance(mapped, MappedTrainFile)
    assert list(mapped.records) == listed.records
    assert [len(r.turns) if r else None for r in listed.records] == [2, 1, None, 1]
    assert listed.records[0].system
    assert mapped.problems == listed.problems
    assert mapped.format == listed.format == "messages"
    assert mapped.sentences(1) == listed.sentences(1)
    first = records.picked(mapped.records, [0, 3], records.Record.first)
    assert list(first) == [listed.records[0].first(), listed.records[3]]
    asked = [
        {"question_id": 1, "text": "Q", "answer": "A"},
        {
            "question_id": 2,
            "image": ["a", "b"],
            "text": "Q",
            "answer": "A",
            "answer_bbox": [0, 0, 1, 1],
            "size": [4, 3],
        },
        {"question_id": 3, "text": "Q", "answer": ["A", "B"], "answer_type": "Doc-oriented VQA"},
    ]
    path.write_text("\n".join(map(json.dumps, asked)))
    assert list(tables.test(path)) == formats.read_test(path)


def test_sequences_are_joined_without_copying_them(file, tables):
    mapped, one = read_usable(file, None, 0.0, tables).records, [records.Record.single("b", "c", "d")]
    both = records.joined([one, mapped, [], mapped[:3]])
    wanted = [*one, *mapped, *mapped[:3]]
    assert isinstance(both, JoinedRecords)
    assert both == wanted
    assert list(both) == wanted
    assert [both[i] for i in (0, 1, COUNT, COUNT + 1, -1)] == [wanted[i] for i in (0, 1, COUNT, COUNT + 1, -1)]
    assert both[COUNT - 1 : COUNT + 3] == wanted[COUNT - 1 : COUNT + 3]
    assert one + mapped == wanted[:-3]
    assert mapped + one == [*mapped, *one]
    assert records.joined([one, one]) == one + one
    assert isinstance(records.joined([one, one]), list)
    assert JoinedRecords([]) == []
    assert len(JoinedRecords([])) == 0
    with pytest.raises(IndexError):
        both[len(wanted)]


def test_small_files_stay_lists(tmp_path, tables):
    path = tmp_path / "small.json"
    path.write_text(json.dumps([row(n) for n in range(3)]))
    assert isinstance(tables.train(path), formats.TrainFile)
    assert not tables.folder.exists()


def test_bad_records_are_told_with_their_lines(file, tables):
    rows = json.loads(file.read_text())
    rows[5], rows[1200]["image"] = None, 7.5
    rows[2000]["conversations"][1]["value"] = " "
    file.write_text(json.dumps(rows, indent=1))
    plain, mapped = formats.read_train_file(file), tables.train(file)
    assert isinstance(mapped, MappedTrainFile)
    assert len(plain.problems) == 2
    assert mapped.problems == plain.problems
    assert mapped.sentences(9) == plain.sentences(9)
    assert list(mapped.records) == plain.records
    for opened in (plain, mapped, tables.train(file)):
        usable = Usable(opened, None)
        assert usable.skipped == 2
        assert usable.records == [r for r in plain.records if r is not None]
        assert usable.excess(0.0)[:2] == plain.sentences(9)
        assert usable.excess(0.01) == []


def test_broken_files_leave_no_copy(file, tables):
    file.write_text(file.read_text() + "x")
    with pytest.raises(DataError, match="broken JSON"):
        tables.train(file)
    assert not arrows(tables)
    assert not list(tables.folder.glob("*.part"))


def test_questions_and_references(tmp_path, tables):
    questions = [{"question_id": n, "image": "a.png", "text": f"{n}?" + "x" * 200, "answer": "b"} for n in range(700)]
    path, coco = tmp_path / "test.json", tmp_path / "coco.json"
    path.write_text(json.dumps(questions))
    captions = [{"image_id": n + 1, "caption": f"c{n}{k}"} for n in range(700) for k in range(n % 3 + 1)]
    coco.write_text(json.dumps({"annotations": captions}))
    assert tables.test(path) == formats.read_test(path)
    assert tables.test(path, coco) == formats.read_test(path, coco)
    assert tables.test(path, coco)[5].references == ("c50", "c51", "c52")
    coco.write_text(json.dumps({"annotations": [{**c, "caption": "new"} for c in captions]}))
    assert tables.test(path, coco)[5].answer == "new"


def test_a_file_is_read_once_and_again_when_it_changes(file, tables, monkeypatch):
    read: list[Path] = []
    real = formats.read_train_file
    monkeypatch.setattr(formats, "read_train_file", lambda path, form: read.append(path) or real(path, form))
    for _ in range(3):
        first = tables.train(file).records
    assert read == [file]
    before = arrows(tables)
    file.write_text(json.dumps([row(n + 1) for n in range(COUNT)]))
    os.utime(file, ns=(1, 1))
    second = tables.train(file).records
    assert len(read) == 2
    assert second[0].images == ("a/1.png",)
    assert first[0].images == ("a/0.png",)
    assert len(arrows(tables)) == 1
    assert arrows(tables) != before  # the old copy is gone, who has it mapped keeps it
    assert sum(1 for _ in first) == COUNT


def test_a_damaged_copy_says_what_to_remove(file, tables):
    tables.train(file)
    (copy,) = arrows(tables)
    copy.write_bytes(b"ARROW")
    with pytest.raises(DataError, match=f"{copy}.*remove it"):
        tables.train(file)


def test_a_cache_that_cannot_be_written_is_named(file, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match="FCIT_CACHE"):
        RecordStore(tmp_path / "taken").train(file)


def _read(file: str, folder: str, answers) -> None:
    found = RecordStore(Path(folder)).train(Path(file)).records
    answers.put((len(found), found[COUNT - 1].images[0], os.getpid()))


def test_two_processes_make_one_copy(file, tables):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    readers = [context.Process(target=_read, args=(str(file), str(tables.folder), answers)) for _ in range(2)]
    for reader in readers:
        reader.start()
    got = [answers.get(timeout=LONG) for _ in readers]
    for reader in readers:
        reader.join(LONG)
        assert reader.exitcode == 0
    assert [g[:2] for g in got] == [(COUNT, f"a/{COUNT - 1}.png")] * 2
    assert got[0][2] != got[1][2]
    assert len(arrows(tables)) == 1
    assert not list(tables.folder.glob("*.part"))


def test_a_benchmark_reads_the_same_either_way(tmp_path, monkeypatch):
    root = official_tree(tmp_path / "root", records=40, tests=8, clients=5, betas=("1.0",))
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))

    def read() -> tuple:
        bench = open_benchmark(
            RunConfig(benchmark="fcit-task", data_root=str(root), federation={"clients": 5, "clients_per_round": 5})
        )
        bench.prepare()
        return bench.shard(1, 2), bench.pooled(5), bench.test("flickr30k"), bench.test("arxivqa")

    lists = read()
    assert all(isinstance(part, list) for part in lists)
    monkeypatch.setattr(store, "MAPPED_FROM", 0)
    shutil.rmtree(tmp_path / "cache")
    from fcit.data import dataset

    dataset._read_once.cache_clear()
    mapped = read()
    assert [type(part) for part in mapped] == [MappedRecords, JoinedRecords, MappedRecords, MappedRecords]
    assert all(a == b and list(b) == a for a, b in zip(lists, mapped, strict=True))
    dataset._read_once.cache_clear()


@pytest.mark.parametrize(
    ("size", "expected"),
    [([612, 375], (612.0, 375.0)), (None, None), ("large", None), ([612], None), ([0, 1], None), ([True, 1], None)],
)
def test_the_size_of_an_image_is_kept_for_the_box_rule(tmp_path, tables, monkeypatch, size, expected):
    path = tmp_path / "test.json"
    box = {"question_id": 1, "image": "a.png", "text": "?", "answer_bbox": "[0.1, 0.2, 0.3, 0.4]", "size": size}
    path.write_text(json.dumps([box]))
    (found,) = formats.read_test(path)
    monkeypatch.setattr(store, "MAPPED_FROM", 0)
    assert found.size == expected
    assert list(tables.test(path)) == [found]
