"""Hostile clients in whole federations: the run goes on, honest clients get what they would have got without them."""

import itertools
import json
import math
import re
from html import unescape

import numpy as np
import pytest

from fcit.report import faults
from fcit.report.page import render
from tests.helpers.hostile import claims, counts, federation, head, one, sampled, settings, tensors
from tests.helpers.runs import bits

HUGE = 10**12
#: What a client sends instead of its update, and what the server says of it.
UPDATES = {
    "nan": (one(lambda t: np.full_like(t, np.nan)), "values that are not finite"),
    "infinite": (one(lambda t: np.full_like(t, -np.inf)), "values that are not finite"),
    "wrong name": (tensors(lambda s: {f"{n}x" if n == min(s) else n: t for n, t in s.items()}), "names differ"),
    "missing": (tensors(lambda s: {n: t for n, t in s.items() if n != min(s)}), "names differ"),
    "extra": (tensors(lambda s: {**s, "extra/mine": np.zeros(3, np.float32)}), "names differ"),
    "wrong shape": (one(lambda t: t.T.copy()), r"expected float32\("),
    "wrong dtype": (one(lambda t: t.astype(np.float64)), "is float64"),
    "no records": (counts(0), "claims 0 records"),
    "negative": (counts(-5), "claims -5 records"),
    "1e12 records": (counts(HUGE), f"claims {HUGE} records, its shard has"),
    "inflated": (counts(5000), "claims 5000 records, its shard has"),
    "steps": (claims(steps=HUGE), f"claims {HUGE} steps"),
    "far out": (one(lambda t: t + 1e4), "AdamW cannot walk"),
    "huge loss": (claims(loss=1e300), "a loss of 1e"),
    "huge seconds": (claims(seconds=1e300), "seconds"),
    "huge kept": (claims(kept=2**62), "bytes kept"),
    "huge text": (claims(shard="x" * 10**6), "was not asked for this"),
    "huge how": (claims(how={"dtype": "x" * 10**6}), "says how it trained"),
    "nested how": (claims(how={"dtype": [[[[0]]]]}), "."),
    "another client": (claims(client=1), "."),
    "another subspace": (claims(subspace="9" * 50), "subspace is '9"),
    "old round": (claims(round=-1), "round is -1"),
    "garbage": (head('{"type": 5}'), "no readable head"),
    "deep json": (head("[" * 10**5), "."),
}
UNRULY = ["twice", "late", "hangs", "from another"]
#: What a client says of its shard.
DESCRIPTIONS = {
    "wrong size": (tensors(lambda s: {"total": np.ones(7)}), "expected one vector"),
    "nan": (tensors(lambda s: {"total": s["total"] * np.nan}), "not finite"),
    "zero": (tensors(lambda s: {"total": s["total"] * 0}), "is zero"),
    "too long": (tensors(lambda s: {"total": s["total"] * 1e6}), "over 4 times the median"),
    "1e12 records": (
        lambda a: claims(count=HUGE, tensors={"total": a.tensors["total"] * (HUGE / a.count)})(a),
        f"claims {HUGE} records",
    ),
    "no records": (claims(count=0), "claims 0 records"),
    "another client": (claims(client=1), "answered for client 1"),
    "huge text": (claims(shard="x" * 10**6), "was not asked"),
}


def shown(run) -> dict[str, list[str]]:
    """What the report says of every client's faults."""
    page = unescape(render([run]))
    assert f"Faults of {run.name}" in page
    found: dict[str, list[str]] = {}
    for fault in faults.faults(run):
        assert fault.reason in page
        assert f"<td>{fault.client}</td><td>{fault.places}</td>" in page
        found.setdefault(fault.client, []).append(fault.reason)
    return found


def test_no_update_does_any_harm(small, tmp_path):
    """24 lies and 4 disorders in eight rounds of six clients, four of them hostile each time."""
    config = settings(small, "method=finetune", "federation.rounds=4", "federation.clients_per_round=6")
    spots = [(s, r, c) for s, r, clients in sampled(config) for c in clients[:4]]
    assert len(spots) >= len(UPDATES) + len(UNRULY)
    # "late" comes in the next round: not in the last one
    wild = dict(zip(spots, UNRULY, strict=False))
    lying = dict(zip(spots[len(UNRULY) :], UPDATES, strict=False))
    lies = {("train", place): UPDATES[name][0] for place, name in lying.items()}
    # To be absent is what is asked of all of them but the one whose answer counts once.
    silent = lies | {("train", place): claims() for place, how in wild.items() if how != "twice"}
    run = federation(config, tmp_path, "hostile", lies, unruly=wild)
    without = federation(config, tmp_path, "without", silent, absent=True)
    assert bits(run.path) == bits(without.path)

    told_of = shown(run)
    for (stage, round_, client), name in lying.items():
        told = [
            e for e in run.of("rejected") if (e.get("stage"), e.get("round"), e["client"]) == (stage, round_, client)
        ]
        assert len(told) == 1 and re.search(UPDATES[name][1], told[0]["reason"]), (name, told)
        assert len(told[0]["reason"]) < 3000, name
        assert any(re.search(UPDATES[name][1], reason) for reason in told_of[str(client)]), name
    missing = {(e["stage"], e["round"], e["client"]) for e in run.of("missing")}
    assert {place for place, how in wild.items() if how in ("late", "hangs", "from another")} <= missing
    reasons = [e["reason"] for e in run.of("rejected")]
    assert sum("answers no order that is open" in r for r in reasons) == 2  # twice, and late
    assert sum("another node answered" in r for r in reasons) == 2  # a forged sender, and a forged number
    assert run.path.joinpath("events.jsonl").stat().st_size < 500_000
    assert json.loads((run.path / "results.json").read_text())["traffic"]["rejected"] == len(reasons)


def test_no_description_does_any_harm(small, tmp_path):
    config = settings(small, "federation.rounds=1", "federation.clients_per_round=6")
    spots = [(s, r, c) for s, r, clients in sampled(config) for c in clients[:4]]
    lying = dict(zip(spots, DESCRIPTIONS, strict=True))
    lies = {("query.describe", place): DESCRIPTIONS[name][0] for place, name in lying.items()}
    run = federation(config, tmp_path, "hostile", lies)
    without = federation(config, tmp_path, "without", lies, absent=True)
    assert bits(run.path) == bits(without.path)
    told_of = shown(run)
    for (stage, _, client), name in lying.items():
        told = [e for e in run.of("describe-failed") if (e["stage"], e["client"]) == (stage, client)]
        assert len(told) == 1 and re.search(DESCRIPTIONS[name][1], told[0]["reason"]), (name, told)
        assert len(told[0]["reason"]) < 3000, name
        assert any(re.search(DESCRIPTIONS[name][1], reason) for reason in told_of[str(client)]), name
    assert all(c not in e["clients"] for e in run.of("round") for s, _, c in lying if s == e["stage"])


def noise(answer):
    """A token of the right length in a random direction."""
    total = answer.tensors["total"]
    drawn = np.random.default_rng(answer.count).normal(size=total.shape)
    return claims(tensors={"total": drawn / np.linalg.norm(drawn) * np.linalg.norm(total)})(answer)


def test_random_tokens_open_only_so_many_subspaces(small, tmp_path):
    """One client comes in two stages and describes itself by noise: the second time it is left out."""
    more = ["federation.rounds=1", "federation.max_openings=1", "federation.clients=30", "evaluation.samples=1"]
    for seed in range(1000):
        config = settings(small, *more, f"seed={seed}")
        met = [(client, stage) for stage, _, clients in sampled(config) for client in clients]
        again = {c: [s for k, s in met if k == c] for c, _ in met if sum(k == c for k, _ in met) > 1}
        if len(again) == 1 and len(met) - len({c for c, _ in met}) == 1:
            break
    (client, (first, second)), *_ = again.items()
    lies = {("query.describe", (stage, 0, client)): noise for stage in (first, second)}
    run = federation(config, tmp_path, "random", lies)
    told = run.of("openings")
    assert [(e["client"], e["stage"]) for e in told] == [(client, second)]
    assert "max_openings" in told[0]["reason"]
    assert run.results["subspaces"] == 3  # one for each task, one for the noise of the first time
    assert "max_openings" in shown(run)[str(client)][0]
    without = federation(config, tmp_path, "without", {("query.describe", (second, 0, client)): noise}, absent=True)
    assert [e["clients"] for e in without.of("round")] == [e["clients"] for e in run.of("round")]


def test_a_server_that_is_full_leaves_clients_out(small, tmp_path):
    config = settings(
        small,
        "federation.rounds=1",
        "federation.clients_per_round=3",
        "federation.max_subspaces=1",
        "federation.retries=0",
        "evaluation.samples=1",
        "federation.min_updates=1",
    )
    from fcit.errors import RunError

    with pytest.raises(RunError, match="stage 2, round 1: 0 usable updates"):
        federation(config, tmp_path, "full", {})
    from fcit.runs.reader import Run

    told = Run(tmp_path / "full-1").of("openings")
    assert len(told) == 3
    assert all("keeps 1 (federation.max_subspaces)" in e["reason"] for e in told)


def test_a_forged_token_moves_anothers_token_by_no_more_than_its_records(small, tmp_path):
    """A client says of its shard of the second task what another said of the first: it is sent there, no further."""
    config = settings(small, "federation.rounds=1", "federation.clients=5", "federation.clients_per_round=5")
    stolen: list[np.ndarray] = []

    def keep(answer):
        stolen.append(answer.tensors["total"] / answer.count)
        return answer

    def forge(answer):
        return claims(tensors={"total": stolen[0] * answer.count})(answer)

    lies = {("query.describe", (0, 0, 1)): keep, ("query.describe", (1, 0, 0)): forge}
    run = federation(config, tmp_path, "forged", lies)
    second = next(e for e in run.of("round") if e["stage"] == 1)
    home = dict(zip(second["clients"], second["subspaces"], strict=True))
    assert home[0] == "0"
    assert {home[c] for c in (1, 2, 3, 4)} == {"1"}
    state = max((run.path / "state").iterdir()) / "state.json"
    cache = json.loads(state.read_text())["state"]["memory"]["method"]["cache"]
    declared = json.loads(state.read_text())["progress"]["declared"]
    assert sum(cache["counts"]) == sum(declared.values())
    assert math.isfinite(sum(cache["counts"]))


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "norm_clip"])
def test_a_robust_rule_in_a_whole_run_says_where_it_was_skipped(small, tmp_path, rule):
    config = settings(
        small,
        f"robust={rule}",
        "federation.rounds=1",
        "federation.clients_per_round=5",
        "setting=heterogeneous",
        "evaluation.samples=1",
    )
    run = federation(config, tmp_path, rule, {})
    for event in run.of("round"):
        sizes = {name: event["subspaces"].count(name) for name in event["subspaces"]}
        few = sorted(name for name, size in sizes.items() if size < 3)
        assert event["robust_skipped"] == few
    whos = {fault.client for fault in faults.faults(run) if fault.kind == "robust-skipped"}
    assert whos == {f"subspace {n}" for n in itertools.chain(*(e["robust_skipped"] for e in run.of("round")))}
    assert not (run.path / "spill").exists()
