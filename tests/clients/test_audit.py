"""The audit trail of a site: what it shows, what it finds, what it survives."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import yaml
from flwr.app import Error, Message

from clients.site import audit
from clients.site.audit import Trail, verify
from clients.site.audit_summary import describe
from fcit.errors import AuditError
from fcit.federation import codec
from fcit.federation.engines import private
from fcit.federation.messages import ClientUpdate, TrainOrder


def order(**changes) -> Message:
    private.claim()
    names = [
        f"base_model.model.layers.{i}.{p}_proj.{f}.weight" for i in range(2) for p in "ab" for f in ("lora_A", "lora_B")
    ]
    tensors = {n: np.zeros((2, 3), np.float32) for n in names} | {"constant/teacher-0/x": np.zeros(4, np.float32)}
    plain = {
        "config": "very: secret",
        "stage": 1,
        "round": 2,
        "client": 3,
        "shard": "s",
        "tasks": [0],
        "subspace": "0",
        "tensors": tensors,
        "run": "r",
    }
    return Message(codec.encode(TrainOrder(**{**plain, **changes})), dst_node_id=5, message_type="train")


PROJECTOR = "base_model.model.multi_modal_projector.x"


def answer(to: Message) -> Message:
    update = ClientUpdate(
        stage=1,
        round=2,
        client=3,
        shard="s",
        subspace="0",
        examples=12,
        steps=3,
        loss=0.5,
        seconds=1.0,
        tensors={PROJECTOR: np.ones(2, np.float32)},
    )
    return Message(codec.encode(update), reply_to=to)


@pytest.fixture
def trail(tmp_path) -> Trail:
    """Three orders and their answers."""
    trail = Trail(tmp_path)
    for n in range(3):
        message = order(round=n)
        private.number(message, str(n))
        entry = trail.incoming(message)
        trail.outgoing(answer(message) if n else Message(Error(code=2, reason="data 1"), reply_to=message), entry)
    return trail


def lines(trail: Trail) -> list[bytes]:
    return trail.path.read_bytes().splitlines(keepends=True)


def test_a_line_says_what_a_message_holds(trail):
    came, left = (json.loads(line) for line in lines(trail)[2:4])
    assert (came["number"], came["direction"], came["kind"], came["run"]) == (3, "in", "train", "r")
    assert (came["stage"], came["round"], came["client"]) == (1, 1, 3)
    assert came["holds"]["tensors"] == {"count": 9, "numbers": 52, "groups": ["constant/teacher-0", "lora_A", "lora_B"]}
    assert came["bytes"] > 9 * 24
    assert len(came["sha256"]) == 64
    assert "secret" not in trail.path.read_text()
    assert (left["direction"], left["answers"], left["run"]) == ("out", 3, "r")
    assert left["holds"]["examples"] == 12
    assert left["holds"]["tensors"]["groups"] == ["projector"]
    error = json.loads(lines(trail)[1])
    assert error["holds"] == {"error": "data 1"}
    assert (error["run"], error["round"]) == ("r", 0)


def test_the_hash_is_of_all_the_content():
    first = describe(order())["sha256"]
    assert describe(order())["sha256"] == first
    assert describe(order(tensors={}))["sha256"] != first
    assert describe(order(stage=0))["sha256"] != first


def test_a_whole_trail_is_found_whole(trail):
    verdict = verify(trail.path)
    assert (verdict.broken, verdict.lines, verdict.torn) == (None, 6, False)
    assert verdict.last == json.loads(lines(trail)[-1])["hash"]


def _changed(rows):
    rows[2] = rows[2].replace(b'"client":3', b'"client":4')
    return rows, 3


def _sealed_anew(rows):
    entry = json.loads(rows[2]) | {"bytes": 1}
    rows[2] = audit.canonical({**entry, "hash": audit.seal(entry)}).encode() + b"\n"
    return rows, 4  # good by itself, but the next line names another


@pytest.mark.parametrize(
    "tamper",
    [
        _changed,
        _sealed_anew,
        lambda rows: (rows[:2] + rows[3:], 3),
        lambda rows: (rows[1:], 1),
        lambda rows: ([*rows[:2], rows[1], *rows[2:]], 3),
        lambda rows: ([rows[0], rows[2], rows[1], *rows[3:]], 2),
        lambda rows: ([*rows[:3], b"{}\n", *rows[3:]], 4),
        lambda rows: ([rows[0].replace(b",", b", ", 1), *rows[1:]], 1),
    ],
    ids=["changed", "sealed anew", "removed", "first removed", "inserted", "reordered", "foreign", "rewritten"],
)
def test_tampering_is_found_at_its_first_line(trail, tamper):
    rows, where = tamper(lines(trail))
    trail.path.write_bytes(b"".join(rows))
    verdict = verify(trail.path)
    assert verdict.broken == where
    assert verdict.lines == where - 1
    assert verdict.reason


def test_lines_cut_off_at_the_end_show_in_the_last_hash_only(trail):
    before = verify(trail.path).last
    trail.path.write_bytes(b"".join(lines(trail)[:-2]))
    verdict = verify(trail.path)
    assert verdict.broken is None
    assert verdict.last != before
    assert before.encode() not in trail.path.read_bytes()


def test_half_a_line_left_by_a_kill_is_passed_over_and_then_cut_off(trail):
    whole = trail.path.read_bytes()
    trail.path.write_bytes(whole + b'{"number":7,"bytes":')
    assert verify(trail.path).torn
    assert verify(trail.path).broken is None
    assert verify(trail.path).lines == 6
    trail.incoming(order())
    assert trail.path.read_bytes().startswith(whole)
    assert verify(trail.path).lines == 7
    assert not verify(trail.path).torn


@pytest.mark.parametrize("length", [4000, 4096, 4097, 9000])
def test_the_last_line_is_found_however_long_the_lines(tmp_path, length):
    trail = Trail(tmp_path)
    for _ in range(3):
        trail._append({"filler": "x" * length})
    assert verify(trail.path).lines == 3


def test_nothing_is_written_behind_a_broken_line(trail):
    trail.path.write_bytes(trail.path.read_bytes().replace(b'"examples":12', b'"examples":13'))
    with pytest.raises(AuditError, match="the last line is broken"):
        trail.incoming(order())


def test_processes_do_not_break_each_others_chain(tmp_path):
    private.claim()
    messages = [order(round=n) for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        entries = list(pool.map(lambda message: Trail(tmp_path).incoming(message), messages))
    assert sorted(e["number"] for e in entries) == list(range(1, 41))
    assert verify(tmp_path / "audit.jsonl").lines == 40


def test_a_hostile_order_makes_a_short_line(tmp_path):
    long = {f"{n}" * 500: np.zeros(1, np.float32) for n in range(100)}
    message = order(tensors=long, shard="s" * 10_000, run="r" * 10_000, constants=["c" * 100] * 1000)
    Trail(tmp_path).incoming(message)
    assert (tmp_path / "audit.jsonl").stat().st_size < 4000


@pytest.fixture
def site_file(trail, tmp_path):
    path = tmp_path / "SITE.yaml"
    path.write_text(yaml.safe_dump({"name": "3", "home": "."}))
    return path


def test_the_command_prints_the_trail_and_its_verdict(trail, site_file, capsys):
    evil = order(shard="\x1b[31m [red]")
    trail.incoming(evil)
    assert audit.command(site_file) == 0
    out = " ".join(capsys.readouterr().out.split())  # lines break where the length of a path wants it
    for words in ("4 orders in", "3 answers out", "7 lines, the chain is whole", verify(trail.path).last):
        assert words in out
    assert "\x1b" not in out
    trail.path.write_bytes(b"".join(lines(trail)[1:]))
    assert audit.command(site_file) == 1
    assert "BROKEN at line 1" in " ".join(capsys.readouterr().out.split())


def test_the_command_says_so_when_there_was_no_message(tmp_path, capsys):
    (tmp_path / "SITE.yaml").write_text("name: '3'\n")
    assert audit.command(tmp_path / "SITE.yaml") == 0
    assert "no message yet" in " ".join(capsys.readouterr().out.split())
