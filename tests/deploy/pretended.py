"""A SuperLink that only pretends, for the commands that ask it."""

import threading
from collections.abc import Callable

import yaml

CONFIG = {
    "name": "tiny",
    "method": "finetune",
    "federation": {"clients": 2, "clients_per_round": 2},
    "stream": "site",  # the server needs no data
}


class Pretended:
    """Answers `flwr` commands; a run ends as told once ``over`` is set."""

    def __init__(self, end: str, details: str = "") -> None:
        self.end, self.details = end, details
        self.over = threading.Event()
        self.asked: list[tuple[str, ...]] = []
        self.going: list[str] = []

    def __call__(self, deployment, *words, settings=(), steps=None):
        self.asked.append((*words, *settings))
        if words[0] == "run":
            return {"run-id": "7"}
        if words[0] == "ls" and not settings:
            return {"runs": [{"run-id": number, "status": "running"} for number in self.going]}
        status = f"finished:{self.end}" if self.over.is_set() else "running"
        return {"runs": [{"run-id": "7", "status": status, "status-details": self.details}]}


def pretend(monkeypatch, *arguments) -> Pretended:
    pretended = Pretended(*arguments)
    monkeypatch.setattr("fcit.deploy.submit.flwr", pretended)
    monkeypatch.setattr("fcit.deploy.control.flwr", pretended)
    return pretended


def ended(states: dict[str, tuple[str, str]]) -> Callable[..., dict]:
    """Answers what `flwr ls` says of runs that are over: how each ended, and why."""

    def flwr(deployment, *words, settings=(), steps=None):
        end, details = states[settings[-1]]
        return {"runs": [{"run-id": settings[-1], "status": f"finished:{end}", "status-details": details}]}

    return flwr


def config(tmp_path, **changes) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **changes}))
    return str(path)
