"""A site of the soak of sites: its processes, a clock that can be wrong, its memory and disk."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from clients.site.supervisor import STATE
from fcit.deploy.deployment import Deployment
from fcit.deploy.watched import read_state
from fcit.errors import RunError
from tests.deploy.conftest import Up, free_port
from tests.evidence import netns
from tests.helpers.waiting import wait

FCIT = Path(sys.executable).with_name("fcit")
#: Imported by every Python of a site: Flower's clock is ahead by what stands in a file.
SKEWED = """\
import importlib.util, os, sys
from datetime import timedelta
from pathlib import Path

class Skewing:
    def find_spec(self, name, path=None, target=None):
        if name != "flwr.supercore.date":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            right = module.now
            module.now = lambda: right() + timedelta(seconds=float(Path(os.environ["SOAK_SKEW"]).read_text()))
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Skewing())
"""


class Operator(Up):
    """`fcit deploy up` as an operator's service manager starts it, with no memory but its own."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.log = deployment, deployment.path.with_name("up.log")
        command = [str(FCIT), "deploy", "up", str(deployment.path)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wait(lambda: self.process.poll() is not None or "sites reach the door" in self.log.read_text())
        assert self.process.returncode is None, self.log.read_text()

    def stop(self) -> int:
        """End it."""
        self.process.terminate()
        return self.process.wait()


class Site:
    """One site, as its service manager runs it."""

    def __init__(self, deployment: Deployment, number: int, common: Path, net: netns.Network | None) -> None:
        self.number, self.folder, self.net = number, deployment.site(str(number)), net
        self.file, self.skew = self.folder / "SITE.yaml", self.folder / "skew"
        address = f"127.0.0.{number + 2}"
        text = self.file.read_text().replace("data_root: data ", f"data_root: {common / 'data'} ")
        inner = f"address: {address}\nport: {free_port(address)}\n"
        self.file.write_text(f"{text}\n{inner}benchmark: {common / 'two-tasks.yaml'}\nthreads: 1\n")
        self.skew.write_text("0")
        (self.folder / "python").mkdir()
        (self.folder / "python" / "sitecustomize.py").write_text(SKEWED)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; when it runs already, nothing is done."""
        if self.process is not None and self.process.poll() is None:
            return
        paths = [str(self.folder / "python"), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "SOAK_SKEW": str(self.skew), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        env.pop("FCIT_CACHE", None)
        before = [] if self.net is None else self.net.inside(self.number)
        with (self.folder / "out.txt").open("a") as out:
            command = [*before, str(FCIT), "client", "start", str(self.file)]
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=env)

    def child(self, name: str) -> int | None:
        """Process id of the SuperNode or the executor, if it runs."""
        try:
            state = read_state(self.folder / "home" / STATE)
        except RunError:
            return None
        processes = [] if state is None else state["processes"]
        return next((one["pid"] for one in processes if one["name"] == name), None)

    def memory(self) -> float:
        """MB of all its processes."""
        return 0.0 if self.process is None else memory_of(self.process.pid)

    def stop(self) -> None:
        """End it."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            self.process.kill()


def memory_of(pid: int) -> float:
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in (me := psutil.Process(pid), *me.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return round(total / 1e6, 1)


def size_of(folder: Path) -> float:
    """MB of all files below a folder."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            total += file.lstat().st_size if file.is_file() else 0
    return round(total / 1e6, 2)
