"""TensorBoard and a tracker of one's own beside a whole run, cut and resumed."""

import pytest
import yaml

import fcit
from fcit.cli import main
from fcit.errors import StopRequested
from tests.helpers.runs import OWN, SMALL, bits
from tests.test_trackers import scalars

QUICK = {
    **SMALL,
    "evaluation": {"samples": 2},
    "method": "finetune",
    "federation": {"rounds": 2, "clients": 50, "clients_per_round": 1},
}


class Stops:
    """A watcher that stops the run in its third round, after the client and before the checkpoint."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def say(self, kind, **values):
        self.kinds.append(kind)
        if self.kinds.count("client") == 3:
            raise StopRequested("stopped by the watcher")


def test_trackers_beside_a_run_that_is_cut_and_resumed(tmp_path, capsys):
    (tmp_path / "breaks.py").write_text(
        "class Breaks:\n    def __init__(self, run_dir, config):\n        pass\n\n"
        "    def say(self, kind, **values):\n        raise ValueError(kind)\n\n    def close(self):\n        pass\n"
    )
    plain = fcit.simulate({**QUICK, "output": str(tmp_path), "name": "plain"})
    config = tmp_path / "told.yaml"
    own = [f"{OWN / 'tracker.py'}:Rounds", "./breaks.py:Breaks"]
    raw = {**QUICK, "output": str(tmp_path), "name": "told", "tensorboard": True, "trackers": own}
    config.write_text(yaml.safe_dump(raw))
    watcher = Stops()
    with pytest.raises(StopRequested):
        fcit.simulate(config, watcher=watcher)
    assert watcher.kinds[:2] == ["data", "tracker-failed"]
    assert main(["resume", str(tmp_path / "told-1")]) == 0
    assert "Breaks is told nothing more, the run goes on: ValueError: start" in capsys.readouterr().out
    told = fcit.load_run(tmp_path / "told-1")
    assert bits(told.path) == bits(plain.path)
    assert {event["tracker"] for event in told.of("tracker-failed")} == {"Breaks"}

    rounds = [line.split(",") for line in (told.path / "rounds.csv").read_text().splitlines()[1:]]
    assert [(int(stage), int(number)) for stage, number, *_ in rounds] == [(s, r) for s in range(1, 3) for r in (1, 2)]
    found = scalars(told.folder)
    assert [step for step, _ in found["round/loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in found["stage/last_so_far"]] == [2, 4]
    assert found["stage/last_so_far"][-1][1] == pytest.approx(told.matrix.last, abs=1e-3)
    assert [up for _, up in found["round/bytes_up"]] == [event["up"] for event in told.of("round")]


def test_a_tracker_that_is_not_there_is_refused_before_a_folder_is_made(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**QUICK, "output": str(tmp_path / "runs")}))
    assert main(["run", str(config), "trackers=[./nowhere.py:Mine]"]) == 2
    assert "trackers: no such file" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
