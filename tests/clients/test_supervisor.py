"""A site as its engineer runs it: it registers, does what is pinned, refuses the rest, and comes back."""

import errno
import json
import logging
import os
import selectors
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from clients.site import signoff
from clients.site import supervisor as starting
from fcit import config as configuration
from fcit.cli import main
from fcit.config import site as sites
from fcit.data.benchmark import open_benchmark
from fcit.deploy import clock
from fcit.deploy.child import Child
from fcit.errors import ConfigError, DiskFull
from tests.helpers.commands import Process
from tests.helpers.runs import BACKBONE
from tests.helpers.superlink import Site, SuperLink, alive
from tests.helpers.waiting import wait

PIECES = "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"
PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "ask"
version = "{version}"
description = "sends a probe order and writes down the reply"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "tests"
fab-include = ["asking/**/*.py", "clients/**/*.py"]
[tool.flwr.app.components]
serverapp = "asking.app:app"
clientapp = "clients.app:app"
[tool.flwr.app.config]
"""

CONFIG = {"benchmark": "fcit-mini-short", "backbone": BACKBONE}
SERVER = """\
import json, time
from pathlib import Path
from flwr.app import Message
from flwr.serverapp import ServerApp
from fcit import config
from fcit.federation import codec
from fcit.federation.messages import Probe, ProbeOrder

app = ServerApp()

@app.main()
def main(grid, context):
    deadline = time.monotonic() + 600
    while not (nodes := list(grid.get_node_ids())) and time.monotonic() < deadline:
        time.sleep(0.2)
    text = config.dump(config.parse({config!r}, "test"))
    order = codec.encode(ProbeOrder(config=text, run="test"))
    reply, = grid.send_and_receive([Message(order, dst_node_id=nodes[0], message_type="query.probe")], timeout=600)
    if reply.has_error():
        said = {{"code": reply.error.code, "reason": reply.error.reason}}
    else:
        probe = codec.decode(reply.content, Probe)
        said = {{"shapes": len(probe.shapes)}}
    Path({result!r}).write_text(json.dumps(said))
"""

CLIENT = """\
from pathlib import Path
Path({marker!r}).write_text("code of the app ran at the site")
from flwr.clientapp import ClientApp
app = ClientApp()
"""


def make_app(folder: Path, version: str) -> Path:
    """An app whose server asks a site to describe its model and whose client part leaves a mark when imported."""
    for package in ("asking", "clients"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("")
    (folder / "pyproject.toml").write_text(PROJECT.format(version=version))
    (folder / "asking" / "app.py").write_text(SERVER.format(config=CONFIG, result=str(folder / "result.json")))
    (folder / "clients" / "app.py").write_text(CLIENT.format(marker=str(folder / "marker")))
    return folder


@pytest.mark.slow
@pytest.mark.thorough
def test_a_site_does_pinned_orders_and_refuses_others(tmp_path):
    good, evil = make_app(tmp_path / "good", "1.0.0"), make_app(tmp_path / "evil", "6.6.6")
    benchmark = open_benchmark(configuration.parse(CONFIG, "test"))
    benchmark.prepare()  # once for all tests: a site would render it into a data root of its own
    with SuperLink(tmp_path / "superlink") as superlink:
        own = {key: BACKBONE[key] for key in ("model", "identity")}
        settings = {"apps": [superlink.pin(good)], "data_root": str(benchmark.root), **own}
        # A new process for every order; those of a resident executor are in the test of a whole deployment.
        site = Site(tmp_path / "site", superlink, worker="process", **settings)
        superlink.register(site.folder / "site.key.pub", "0")
        with site:
            assert superlink.submit(good).startswith("finished:completed"), site.logs()
            shapes = json.loads((good / "result.json").read_text())
            assert shapes.get("shapes"), (shapes, site.logs())

            assert superlink.submit(evil).startswith("finished:completed"), site.logs()
            said = json.loads((evil / "result.json").read_text())
            code, reference = said["reason"].split()
            assert code == "refused"
            assert len(said["reason"]) < 20
            assert f"[{reference}]" in site.log("site")
            assert superlink.pin(evil) in site.log("site")
            # Nobody ran a line of either app's client part: the site has its own.
            assert not (good / "marker").exists()
            assert not (evil / "marker").exists()
            assert not list((site.folder / "home").rglob("clients/app.py"))

            admitted = site.log("supernode").count("SuperNode ID: ")
            os.kill(site.child("SuperNode"), signal.SIGKILL)
            wait(lambda: site.log("supernode").count("SuperNode ID: ") > admitted, explain=site.logs)
            # It was let in at once, although its predecessor had said nothing of its end.
            assert "had not signed off" in site.log("supernode")
            assert "code: 2004" not in site.log("supernode")

            children = [site.child("SuperNode"), site.child("executor")]
            assert not psutil.Process(children[1]).children(recursive=True)  # nothing of an order stays
            assert site.stop() == 0, site.logs()
        assert not any(alive(pid) for pid in children)


# ------------------------------------------------ looking after the two processes, with stand-ins for them

RUNS = "echo up; exec sleep 300"


class StandIns(Site):
    """A site whose SuperNode and executor are shell commands."""

    def __init__(self, folder: Path, supernode: str = RUNS, executor: str = RUNS) -> None:
        self.folder, self.commands = folder, (supernode, executor)
        for name in ("site.key", "ca.crt"):
            (folder / name).write_text("")
        self.file = folder / "SITE.yaml"
        self.file.write_text("{}")

    def __enter__(self):
        self.process = Process("tests.helpers.stand_ins:start", self.file, *self.commands, folder=self.folder)
        wait(lambda: "the executor runs" in self.log("start"))
        return self


def test_what_ends_is_started_again_and_a_signal_ends_all(tmp_path):
    with StandIns(tmp_path) as site:
        first = site.child("SuperNode"), site.child("executor")
        os.kill(first[1], signal.SIGKILL)  # as when memory runs out
        wait(lambda: site.child("executor") != first[1])
        assert alive(first[0])
        assert "the executor was killed by SIGKILL" in site.log("start")
        os.kill(first[0], signal.SIGKILL)
        wait(lambda: site.child("SuperNode") != first[0])
        last = site.child("SuperNode"), site.child("executor")
        wait(lambda: site.log("supernode").count("up") == 2, explain=site.logs)
        assert site.stop() == 0
        assert not any(alive(pid) for pid in last)


def test_an_order_that_came_in_half_lets_both_begin_anew(tmp_path):
    said = "Run ID 7 is not in `RUNNING` status. Ignoring message ab12."
    once = f"test -e once || {{ touch once; echo '{said}'; }}; {RUNS}"
    with StandIns(tmp_path, supernode=once) as site:
        wait(lambda: site.log("supernode").count("up") == 2, explain=site.logs)
        wait(lambda: site.log("start").count("the executor runs as process") == 2, explain=site.logs)
        assert site.log("start").count("both processes begin anew") == 1


def test_a_killed_executor_lets_the_supernode_begin_anew_if_it_had_an_order_at_hand(tmp_path):
    """Else it would wait for a minute for an order that nobody does any more."""
    busy = f"touch order; {RUNS}"
    with StandIns(tmp_path, executor=busy) as site:
        wait(lambda: (tmp_path / "home" / "order").exists())
        os.kill(site.child("executor"), signal.SIGKILL)
        wait(lambda: site.log("start").count("the SuperNode runs as process") == 2, explain=site.logs)
        assert "the order at hand is lost; both processes begin anew" in site.log("start")
        wait(lambda: site.log("start").count("the executor runs as process") == 2)
        wait(lambda: (tmp_path / "home" / "order").exists())
        os.kill(site.child("SuperNode"), signal.SIGKILL)
        wait(lambda: site.log("start").count("the executor runs as process") == 3, explain=site.logs)
        assert site.stop() == 0
    assert not (tmp_path / "home" / "order").exists()


def test_the_number_of_the_node_is_kept_for_the_next_supernode(tmp_path):
    admitted = f'test -e twice && id=18 || id=17; touch twice; echo "INFO : SuperNode ID: $id"; {RUNS}'
    node = tmp_path / "home" / "node.json"
    with StandIns(tmp_path, supernode=admitted) as site:
        wait(lambda: signoff.remembered(node) == 17)
        os.kill(site.child("SuperNode"), signal.SIGKILL)  # registered anew meanwhile, it gets another one
        wait(lambda: signoff.remembered(node) == 18)


@pytest.mark.parametrize("error", [OSError(errno.EROFS, "Read-only file system"), DiskFull("no room")])
def test_a_number_that_cannot_be_written_is_told_of_once_and_ends_nothing(tmp_path, monkeypatch, error):
    def fails(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "SITE.yaml").write_text("{}")
    supervisor = starting.Supervisor(tmp_path / "SITE.yaml", sites.load(tmp_path / "SITE.yaml"))
    supervisor.supernode.child.tail.append("INFO :      SuperNode ID: 17")
    monkeypatch.setattr(signoff, "write_json", fails)
    told: list[str] = []
    monkeypatch.setattr(supervisor.log, "warning", lambda text, *values: told.append(text % values))
    for _ in range(2):
        supervisor._remember_node()
    assert told == [f"SuperNode: its number is not written down ({error}); killed, it is back in a minute"]


def test_a_supernode_that_stands_still_is_started_again_and_status_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QUIET", "0.3")
    with StandIns(tmp_path) as site:
        file = str(site.file)
        wait(lambda: site.log("start").count("the SuperNode runs as process") == 2, explain=site.logs)
        assert "the SuperNode has shown no sign of life for" in site.log("start")
        wait(lambda: "no sign of life" in (tmp_path / "home" / "status.json").read_text())
        main(["client", "status", file])
        shown = capsys.readouterr().out
        assert "ok   executor: runs since" in shown
        assert "it has shown no sign of life for" in shown
        assert site.stop() == 0
    assert main(["client", "status", file]) == 1
    assert f"does not run; `fcit client start {file}` starts it" in capsys.readouterr().out


def test_a_lost_heartbeat_thread_lets_the_supernode_begin_anew(tmp_path):
    once = f"test -e once || {{ touch once; echo 'Exception in thread Thread-2 (_run):'; }}; {RUNS}"
    with StandIns(tmp_path, supernode=once) as site:
        wait(lambda: site.log("start").count("the SuperNode runs as process") == 2, explain=site.logs)
        assert "has lost the thread that tells the server that this site is there" in site.log("start")
        assert site.log("start").count("the executor runs as process") == 1


def test_a_wrong_clock_is_said_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "SITE.yaml").write_text("{}")
    supervisor = starting.Supervisor(tmp_path / "SITE.yaml", sites.load(tmp_path / "SITE.yaml"))
    supervisor.clock = clock.Watch(lambda: 20.0)
    supervisor._look_at_the_clock()
    supervisor.clock.wait()
    for _ in range(3):
        supervisor._look_at_the_clock()
    log = (tmp_path / "home" / "logs" / "start.log").read_text()
    assert log.count("this machine's clock is 20 s ahead of the door's") == 1


def test_what_is_wrong_is_said_once_a_minute_and_it_never_gives_up(tmp_path):
    refused = "printf '\\033[91mERROR\\033[0m Exit Code: 305 [code: 2004] Failed to activate\\n'; exit 1"
    with StandIns(tmp_path, supernode=refused) as site:
        wait(lambda: site.log("start").count("the SuperNode ended with 1") >= 4)
        assert site.log("start").count("`fcit deploy register`") == 1
        assert "ERROR Exit Code: 305" in site.log("supernode")  # without colours


def test_children_do_not_outlive_a_killed_parent(tmp_path):
    with StandIns(tmp_path) as site:
        children = site.child("SuperNode"), site.child("executor")
        site.process.signal(signal.SIGKILL)
        site.process.wait()
        wait(lambda: not any(alive(pid) for pid in children))


def test_a_child_that_does_not_listen_is_killed(tmp_path):
    log = logging.getLogger("test.children")
    deaf = "trap '' TERM; echo up; while :; do sleep 0.1; done"
    with selectors.DefaultSelector() as selector:
        child = Child("deaf", ["sh", "-c", deaf], os.environ, tmp_path, log, (1.0, 1.0), signal.SIGKILL)
        pid = child.start(selector)
        wait(lambda: child.read() and child.tail)
        assert child.stop(selector, 0.3) is False
        assert not alive(pid)


def test_a_site_runs_once(tmp_path):
    with StandIns(tmp_path) as site, pytest.raises(ConfigError, match="runs already"):
        starting.start(site.file)


def test_what_is_made_is_for_nobody_else_to_read(tmp_path):
    with StandIns(tmp_path):
        home = tmp_path / "home"
        assert stat.S_IMODE((home / "secret").stat().st_mode) == 0o600
        assert (home / "secret").stat().st_size == 32
        for path in (home, *home.rglob("*")):
            assert not path.stat().st_mode & 0o077, path
        secret = (home / "secret").read_bytes()
    with StandIns(tmp_path):
        assert (home / "secret").read_bytes() == secret


def test_without_key_or_certificate_it_says_who_has_them(tmp_path):
    (tmp_path / "SITE.yaml").write_text("{}")
    with pytest.raises(ConfigError, match="fcit deploy init") as caught:
        starting.start(tmp_path / "SITE.yaml")
    assert len(caught.value.problems) == 2


def test_nothing_listens_beyond_loopback_and_no_secret_is_on_a_command_line(tmp_path):
    (tmp_path / "SITE.yaml").write_text("threads: 3\naddress: 127.0.0.5\nport: 9777\n")
    site = sites.load(tmp_path / "SITE.yaml")
    for open_to_others in ("0.0.0.0", "10.0.0.7", "127.0.0.1.example.org"):
        (tmp_path / "open.yaml").write_text(f"address: {open_to_others}\n")
        with pytest.raises(ConfigError, match="address"):
            sites.load(tmp_path / "open.yaml")
    command = starting.supernode_command(site)
    assert command[command.index("--host") + 1] == "127.0.0.5"
    assert command[command.index("--port") + 1] == "9777"
    assert "--insecure" not in command
    assert command[command.index("--isolation") + 1] == "process"
    assert command[command.index("--superexec-auth-secret-file") + 1] == str(tmp_path / "home" / "secret")
    environment = starting.environment(site)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["FLWR_HOME"] == str(tmp_path / "home" / "flwr")
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert "127.0.0.5" in environment["no_proxy"]


@pytest.mark.parametrize(
    ("uplink", "piece"), [(None, None), (100, 5 * 2**20), (4, 5_000_000), (1, 1_250_000), (0.01, 2**16)]
)
def test_a_thin_uplink_sends_small_pieces(tmp_path, uplink, piece):
    """Two pieces on their way take at most 20 of the 30 seconds after which Flower sends them again."""
    (tmp_path / "SITE.yaml").write_text("threads: 1\n" if uplink is None else f"uplink_mbit: {uplink}\n")
    environment = starting.environment(sites.load(tmp_path / "SITE.yaml"))
    if piece is None:
        assert PIECES not in environment
    else:
        assert int(environment[PIECES]) == piece


def test_flower_reads_the_size_of_pieces_from_the_environment():
    read = "from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as size; print(size)"
    run = subprocess.run([sys.executable, "-c", read], env={**os.environ, PIECES: "70000"}, check=True, stdout=-1)
    assert int(run.stdout) == 70_000
