"""Five sites under accidents: ``python -m tests.evidence.sites_soak [--minutes 60]`` (part of ``make evidence``).

A deployment with five sites. Every half minute or so something happens to one of them or to the operator: SIGKILL or
SIGSTOP to SuperNode or executor, SIGKILL to the whole site, to SuperLink, SuperExec or `up`, `deploy stop` and a
resume; with root and `ip netns` a site's packets are dropped for a while; a site's clock is 20 s ahead for a while.

In the first half a round waits for all five: the result must equal `fcit run` bit for bit. In the second one two are
enough: no site may be missed in more than two whole rounds in a row that begin after its accident is over
(`tests.evidence.absences` defines it, and the figures repeat the definition); the rounds missed in a row whatever
happened are written down, too. Both halves: every update that was accepted is used. Further: memory and disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from fcit.deploy import control
from fcit.deploy.deployment import Deployment
from fcit.deploy.init import init
from fcit.deploy.steps import DeployError, Steps
from fcit.deploy.watched import read_state
from fcit.errors import RunError
from fcit.io.files import read_json
from fcit.runs.folder import RunDir
from tests.deploy.conftest import free_port
from tests.e2e.test_deployment import BENCHMARK, CONFIG, data
from tests.evidence import absences, netns
from tests.evidence.absences import Accident
from tests.evidence.soaked_site import FCIT, Operator, Site, memory_of, size_of
from tests.helpers.runs import bits

RESULT = Path(__file__).parent / "results" / "sites_soak.json"
SITES, SEED, PAUSE = 5, 7, (20.0, 50.0)  # seconds between two accidents
OUTAGE, SKEW = (5.0, 40.0), 20.0  # seconds: that packets are dropped for; that a clock is ahead
ROUND = 45.0  # seconds that a round is taken to last when the number of rounds is chosen
SAMPLE = 20.0  # seconds between two looks at memory and disk
AT_A_SITE = ("kill SuperNode", "kill executor", "stop SuperNode", "stop executor", "kill site", "clock", "drop packets")
AT_THE_OPERATOR = ("kill SuperLink", "kill SuperExec", "kill up", "deploy stop")


class Soak:
    """The deployment, its sites, and what happens to them."""

    def __init__(self, folder: Path, common: Path, net: netns.Network | None) -> None:
        host = "127.0.0.1" if net is None else netns.DOOR
        self.deployment = Deployment.plan(folder / "dir", host, free_port(host), None, free_port())
        init(self.deployment, SITES, Steps())
        self.sites = [Site(self.deployment, n, common, net) for n in range(SITES)]
        self.net, self.folder, self.random = net, folder, random.Random(SEED)
        self.accidents: list[Accident] = []
        self.rows: list[dict[str, Any]] = []
        self.accepted: set[tuple[Path, int, int, int]] = set()
        self.resumes = self.resumed_by_up = 0
        self._mend: list[tuple[float, Any]] = []
        self._next, self._sampled = 0.0, 0.0
        self._submitted: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Soak:
        self.up = Operator(self.deployment)
        control.register(self.deployment, [], Steps())
        for site in self.sites:
            site.start()
        return self

    def __exit__(self, *_: object) -> None:
        for site in self.sites:
            site.stop()
        self.up.stop()
        self._count_resumes()
        if self._submitted is not None:
            self._submitted.kill()

    def submit(self, *words: str | Path) -> None:
        """`fcit deploy submit`, not waited for."""
        with (self.folder / "submit.log").open("a") as log:
            command = [str(FCIT), "deploy", "submit", str(self.deployment.path), *map(str, words)]
            self._submitted = subprocess.Popen(command, stdout=log, stderr=log)

    def run(self, config: Path, seconds: float, whole: bool) -> Path:
        """A run under accidents until it is over, or until its time is; ``whole`` lets it end in peace then."""
        self.submit(config)
        run = self.deployment.path / "runs" / f"{yaml.safe_load(config.read_text())['name']}-1"
        begin = looked = time.monotonic()
        self._next = begin + PAUSE[0]
        while not (run / "results.json").is_file():
            now = time.monotonic()
            if now - begin > (4 if whole else 1) * seconds + 600.0 * whole:
                break
            if now - begin < seconds:
                self._accident(run)
            self._look(run)
            for due, mend in [m for m in self._mend if m[0] <= now]:
                self._mend.remove((due, mend))
                mend()
            for site in self.sites:
                site.start()  # as its service manager does
            if self._submitted is not None and self._submitted.poll() is not None and now - looked > 30.0:
                looked = now
                self._resume_if_nothing_runs(run)
            time.sleep(0.5)
        for _, mend in self._mend:
            mend()
        self._mend.clear()
        if not (run / "results.json").is_file():
            with suppress(Exception):
                control.stop(self.deployment, None, Steps())
        self._look(run)
        return run

    def _resume_if_nothing_runs(self, run: Path) -> None:
        try:
            running = control.unfinished(self.deployment)
        except DeployError:
            return  # the SuperLink is on its way back
        if not running and run.is_dir():
            self.resumes += 1
            self.submit("--resume", run)

    def _accident(self, run: Path) -> None:
        now = time.monotonic()
        if now < self._next or not (run / "events.jsonl").is_file():
            return
        self._next = now + self.random.uniform(*PAUSE)
        possible = [k for k in AT_A_SITE if k != "drop packets" or self.net is not None]
        kind = self.random.choice([*possible, *AT_THE_OPERATOR])
        site = self.sites[self.random.randrange(SITES)]
        begin = time.time()
        accident = Accident(kind, None if kind in AT_THE_OPERATOR else site.number, begin, begin)
        done = self._at_operator(kind) if kind in AT_THE_OPERATOR else self._at_site(kind, site, accident)
        if done:
            self.accidents.append(accident)
            print(accident, flush=True)

    def _at_operator(self, kind: str) -> bool:
        if kind == "deploy stop":
            command = [str(FCIT), "deploy", "stop", str(self.deployment.path)]
            return subprocess.run(command, capture_output=True).returncode == 0
        if kind == "kill up":
            self._restart_up()
            return True
        state = read_state(self.deployment.path / control.PROCESSES)
        processes = [] if state is None else state["processes"]
        pid = next((one["pid"] for one in processes if one["name"] == kind.removeprefix("kill ")), None)
        return pid is not None and _signalled(pid, signal.SIGKILL)

    def _restart_up(self) -> None:
        """Kill `up`, and start it again when what it had started is gone, as its service manager does."""
        children = [psutil.Process(pid) for pid in self.up.children()]
        self.up.process.kill()
        self.up.process.wait()
        psutil.wait_procs(children, timeout=120)
        self._count_resumes()
        for _ in range(5):
            with suppress(AssertionError):  # a port is not free yet
                self.up = Operator(self.deployment)
                return
            time.sleep(5.0)
        raise RuntimeError("`fcit deploy up` does not start again")

    def _count_resumes(self) -> None:
        self.resumed_by_up += self.up.log.read_text().count("it goes on from its last checkpoint")

    def _at_site(self, kind: str, site: Site, accident: Accident) -> bool:
        verb, _, name = kind.partition(" ")
        if kind == "clock":
            site.skew.write_text(str(SKEW))
            self._until(accident, lambda: site.skew.write_text("0"))
            return True
        if kind == "drop packets" and self.net is not None:
            net = self.net
            net.cut(site.number, True)
            self._until(accident, lambda: net.cut(site.number, False))
            return True
        pid = site.process.pid if name == "site" and site.process is not None else site.child(name)
        return pid is not None and _signalled(pid, signal.SIGKILL if verb == "kill" else signal.SIGSTOP)

    def _until(self, accident: Accident, mend: Callable[[], Any]) -> None:
        """Let an accident be over after a while."""
        accident.over = None

        def over() -> None:
            mend()
            accident.over = time.time()

        self._mend.append((time.monotonic() + self.random.uniform(*OUTAGE), over))

    def _look(self, run: Path) -> None:
        """Note accepted updates; now and then memory and disk."""
        for file in (run / "spill").glob("*.json"):
            with suppress(OSError, RunError, KeyError, TypeError):
                head = read_json(file)["update"]
                self.accepted.add((run, head["stage"], head["round"], head["client"]))
        if time.monotonic() - self._sampled < SAMPLE:
            return
        self._sampled = time.monotonic()
        sizes = {name: size_of(self.deployment.path / name) for name in ("superlink", "door")}
        homes = max(size_of(site.folder / "home" / "logs") for site in self.sites)
        self.rows.append(
            {
                "time": round(time.time(), 1),
                "operator_mb": memory_of(self.up.process.pid),
                "site_mb": max(site.memory() for site in self.sites),
                "superlink_disk_mb": sizes["superlink"],
                "door_disk_mb": sizes["door"],
                "site_logs_mb": homes,
            }
        )

    def lost(self) -> list[tuple[str, int, int, int]]:
        """Updates that were accepted and are not among those of their round, which is over."""
        missing = []
        for run in {run for run, *_ in self.accepted}:
            used = {
                (e["stage"], e["round"]): _contributors(e) for e in RunDir(run).read_events() if e["event"] == "round"
            }
            missing += [
                (run.name, stage, round_, client)
                for its_run, stage, round_, client in sorted(self.accepted)
                if its_run == run and (stage, round_) in used and client not in used[stage, round_]
            ]
        return missing


def _signalled(pid: int, number: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _contributors(event: dict[str, Any]) -> set[int]:
    return {int(name.partition("/")[0]) for name in event["loss"]}


def _median(seconds: list[float]) -> float | None:
    return round(statistics.median(seconds), 1) if seconds else None


def growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Median of the last quarter beyond that of the second one."""
    quarter = len(rows) // 4
    if quarter == 0:
        return {}
    names = [name for name in rows[0] if name != "time"]
    last = {n: statistics.median(r[n] for r in rows[-quarter:]) for n in names}
    second = {n: statistics.median(r[n] for r in rows[quarter : 2 * quarter]) for n in names}
    return {n: round(last[n] - second[n], 2) for n in names}


def make_common(folder: Path) -> Path:
    """The folder with the data and the benchmark that server and sites have alike."""
    common = folder / "common"
    common.mkdir()
    data(common / "data")
    benchmark = {key: value for key, value in BENCHMARK.items() if key != "heterogeneous"}
    (common / "two-tasks.yaml").write_text(yaml.safe_dump(benchmark))
    return common


def configured(common: Path, name: str, rounds: int, **federation: Any) -> Path:
    """A configuration with rounds in each of two stages."""
    raw = {**CONFIG, "name": name, "setting": "homogeneous"}
    raw["federation"] = {**CONFIG["federation"], "clients": SITES, "clients_per_round": SITES, "rounds": rounds}
    raw["federation"] |= federation
    path = common / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--dry", action="store_true", help="write nothing into results/")
    args = parser.parse_args()
    half = 30.0 * args.minutes
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder, common = Path(place), make_common(Path(place))
        net = stack.enter_context(netns.network(SITES)) if netns.available() else None
        together = configured(common, "together", max(1, int(half / ROUND / 2)), min_updates=SITES)
        apart = configured(common, "apart", 10_000, min_updates=2, timeout=60)
        with Soak(folder, common, net) as soak:
            first = soak.run(together, half, whole=True)
            before = len(soak.accidents)
            second = soak.run(apart, half, whole=False)
            finished = (first / "results.json").is_file()
            command = [str(FCIT), "run", str(together), f"output={folder / 'simulated'}"]
            subprocess.run(command, check=True, capture_output=True)
            rounds = absences.rounds(RunDir(second))
            missed = absences.count(soak.accidents[before:], rounds, SITES)
            raw = absences.longest(rounds, SITES)
            found = {
                "minutes": args.minutes,
                "packets_dropped": "whole links cut" if net is not None else "not tried: needs root and ip netns",
                "clock": "Flower's own clock of a site shifted by a sitecustomize",
                "accidents": dict(Counter(accident.kind for accident in soak.accidents)),
                "resumed_by_hand": soak.resumes,
                "accepted_updates_seen": len(soak.accepted),
                "accepted_updates_lost": soak.lost(),
                "together": {"finished": finished, "rounds": len(absences.rounds(RunDir(first)))},
                "same_bits_as_simulation": finished and bits(first) == bits(folder / "simulated" / "together-1"),
                "apart": {
                    "rounds": len(rounds),
                    "median_round_seconds": _median([one.end - one.begin for one in rounds]),
                    "missed_after_an_accident": {
                        "definition": absences.DEFINITION,
                        "longest": max((kind["longest"] for kind in missed.values()), default=0),
                        "by_kind": missed,
                    },
                    "missed_in_a_row_whatever_happened": {"longest": max(raw.values()), "longest_by_site": raw},
                },
                "growth_last_against_second_quarter": growth(soak.rows),
                "rows": soak.rows,
                "happened": [vars(accident) for accident in soak.accidents],
            }
        found["resumed_by_up"] = soak.resumed_by_up
    print(json.dumps({key: value for key, value in found.items() if key not in ("rows", "happened")}, indent=1))
    if not args.dry:
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
    good = not found["accepted_updates_lost"] and found["same_bits_as_simulation"]
    sys.exit(0 if good and found["apart"]["missed_after_an_accident"]["longest"] <= 2 else 1)


if __name__ == "__main__":
    main()
