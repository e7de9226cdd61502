"""The table of faults in a report."""

import csv

import pytest

from fcit.report import faults
from fcit.runs.folder import RunDir
from fcit.runs.reader import Run


@pytest.fixture
def run(tmp_path) -> Run:
    (tmp_path / "config.yaml").write_text("name: x\n")
    return Run(tmp_path)


def tell(run: Run, *events: dict) -> None:
    for event in events:
        RunDir(run.path).event(**event)


def test_no_faults_no_table(run):
    tell(run, {"kind": "start"}, {"kind": "round", "stage": 0, "round": 0, "clients": [1, 2], "robust_skipped": []})
    assert faults.faults(run) == []
    assert faults.table(run) == [faults.HEAD]


def test_like_faults_are_counted_together(run):
    for stage, round_ in ((0, 1), (0, 2), (3, 0)):
        tell(
            run,
            {
                "kind": "rejected",
                "client": 4,
                "stage": stage,
                "round": round_,
                "reason": f"moves {7.5 + stage} per step^0.5, over 10 times",
            },
        )
    tell(run, {"kind": "rejected", "client": 5, "stage": 3, "round": 0, "reason": "moves 1e+06 per step^0.5"})
    assert faults.table(run)[1:] == [
        ["rejected", "4", "1.2 to 4.1", "moves 7.5 per step^0.5, over 10 times", "3"],
        ["rejected", "5", "4.1", "moves 1e+06 per step^0.5", "1"],
    ]


def test_every_kind_has_a_reason(run):
    for kind in faults.KINDS:
        tell(run, {"kind": kind})
    rows = faults.table(run)[1:]
    assert [row[0] for row in rows] == list(faults.KINDS)
    assert all(row[3] for row in rows)


def test_what_a_round_tells_beside_others(run):
    for round_ in (0, 1):
        tell(
            run,
            {
                "kind": "round",
                "stage": 1,
                "round": round_,
                "clients": [8, 9],
                "skipped": [0, 3],
                "robust_skipped": ["2", "shared"],
            },
        )
    assert faults.table(run)[1:] == [
        ["robust-skipped", "subspace 2", "2.1 to 2.2", faults.KINDS["robust-skipped"], "2"],
        ["robust-skipped", "shared", "2.1 to 2.2", faults.KINDS["robust-skipped"], "2"],
        ["skipped", "9", "2.1 to 2.2", "3 records could not be used", "2"],
    ]


def test_answers_that_two_clients_gave_are_a_fault_only_where_some_could_not_be_compared(run):
    tell(run, {"kind": "verified", "asked": 3, "compared": 3, "differing": 1})
    tell(run, {"kind": "verified", "asked": 3, "compared": 2, "differing": 0})
    (row,) = faults.table(run)[1:]
    assert row[3] == "2 of 3 answers that two clients were asked for could be compared"


def test_a_repeated_round(run):
    tell(run, {"kind": "retry", "stage": 0, "round": 0, "accepted": 1, "needed": 3})
    assert faults.table(run)[1] == ["retry", "-", "1.1", "1 usable updates, 3 needed", "1"]


def test_the_trail_and_the_length_of_a_reason(run):
    tell(run, {"kind": "rejected", "client": None, "reason": "x" * 500 + "\nFile mine.py, line 3"})
    fault = faults.faults(run)[0]
    assert len(fault.reason) == faults.SHOWN
    assert fault.client == "-"
    assert "line 3" in fault.trail
    assert len(fault.reason + fault.trail.partition("File")[0]) == 500


def test_the_table_fits_a_csv(run, tmp_path):
    from fcit.report.tables import csv_text

    tell(run, {"kind": "missing", "client": 1, "stage": 0, "round": 0})
    assert list(csv.reader(csv_text(faults.table(run)).splitlines()))[1] == [
        "missing",
        "1",
        "1.1",
        "no answer in time",
        "1",
    ]
