"""What gets on is left alone; what stands still or ends is started again, and a file says so."""

import logging
import os
import selectors
import signal
import sys
import time

import pytest

from fcit.deploy import pulse, watched
from fcit.deploy.child import Child
from fcit.deploy.pulse import Pulse
from fcit.deploy.watched import StateFile, Watched
from fcit.errors import RunError
from tests.helpers.waiting import wait

#: A process like a SuperNode after an HTTP 500: its main thread waits for another one that works on.
HALF_DEAD = """
import threading, time
print("up", flush=True)
def serve():
    while True:
        time.sleep(0.01)
threading.Thread(target=serve).start()
"""
AT_WORK = "import time; print('up', flush=True)\nwhile True: time.sleep(0.01)"


class Clock:
    """Seconds that pass only when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def run(self, seconds: float, one: Watched, selector) -> str | None:
        """Let time pass while the child is looked at once a second; the first fault."""
        for _ in range(int(seconds)):
            self.now += 1.0
            fault = one.look(selector)
            if fault is not None:
                return fault
        return None


@pytest.fixture
def selector():
    with selectors.DefaultSelector() as one:
        yield one


@pytest.fixture
def begun(tmp_path, selector):
    """``begun(program, signs)``: a child that has printed its first line, and the clock of its pulse."""
    children = []

    def begin(program: str, signs=pulse.main_thread, deadly=None):
        log, clock = logging.getLogger("test.watched"), Clock()
        command = [sys.executable, "-c", program]
        child = Child("child", command, os.environ, tmp_path, log, (0.0, 0.0), signal.SIGKILL)
        one = Watched(child, Pulse(signs, 60.0, clock), 5.0, deadly or {})
        assert one.start_if_due(selector)
        children.append(child)
        wait(lambda: child.read() and child.tail)
        return one, clock

    yield begin
    for child in children:
        child.stop(selector, 1.0)


def settled(pid: int) -> None:
    """Wait until the main thread does nothing any more."""
    before = [None]

    def still() -> bool:
        last, before[0] = before[0], pulse.main_thread(pid)
        return last == before[0]

    wait(still, pause=0.1)


def test_a_process_whose_main_thread_has_ended_is_started_again(begun, selector):
    one, clock = begun(HALF_DEAD)
    first = one.child.process.pid
    settled(first)
    assert one.look(selector) is None
    assert clock.run(60, one, selector) is None
    assert clock.run(1, one, selector) == "has shown no sign of life for 61 s"
    assert one.child.process is None
    assert one.start_if_due(selector) not in (None, first)
    assert one.look(selector) is None  # its time begins anew
    assert (one.starts, one.state()["fault"]) == (2, "has shown no sign of life for 61 s")


def test_what_works_is_left_alone(begun, selector):
    one, clock = begun(AT_WORK)
    pid = one.child.process.pid
    for _ in range(40):
        clock.now += 5.0
        before = pulse.main_thread(pid)
        wait(lambda before=before: pulse.main_thread(pid) != before)
        assert one.look(selector) is None


def test_a_gap_in_the_supervisor_s_own_time_is_not_the_child_s_silence(begun, selector):
    """It was stopped itself, or the machine was: the child had no time to show anything."""
    one, clock = begun(HALF_DEAD)
    settled(one.child.process.pid)
    assert clock.run(30, one, selector) is None
    clock.now += 3599.0
    assert clock.run(25, one, selector) is None  # with the first of them, the gap has counted for five
    assert clock.run(3, one, selector) == "has shown no sign of life for 61 s"


def test_a_gap_is_not_the_time_for_which_a_child_was_stopped(begun, selector):
    one, clock = begun(AT_WORK)
    os.kill(one.child.process.pid, signal.SIGSTOP)
    wait(lambda: pulse.stopped(one.child.process.pid))
    one.look(selector)
    clock.now += 3600.0
    assert one.look(selector) is None
    os.kill(one.child.process.pid, signal.SIGCONT)
    wait(lambda: not pulse.stopped(one.child.process.pid))
    assert clock.run(30, one, selector) is None


def test_a_stopped_process_shows_no_sign(begun, selector):
    one, clock = begun(AT_WORK, pulse.whole)
    os.kill(one.child.process.pid, signal.SIGSTOP)
    wait(lambda: pulse.stopped(one.child.process.pid))
    one.look(selector)
    one.patience = 1e9  # it cannot hear that it is to end
    assert clock.run(10, one, selector) is None
    fault = clock.run(1, one, selector)
    assert fault == "has been stopped (SIGSTOP) for 11 s, did not end when told to and was killed"


def test_work_of_what_it_has_started_counts(begun):
    one, _ = begun(
        f"import subprocess, sys; print('up', flush=True); subprocess.run([sys.executable, '-c', {AT_WORK!r}])"
    )
    pid = one.child.process.pid
    wait(lambda: pulse.children(pid))
    settled(pid)
    before = pulse.whole(pid)
    wait(lambda: pulse.whole(pid) != before)


def test_an_open_connection_counts_and_one_that_it_serves_does_not(begun):
    talking = (
        "import socket, time; s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection("
        "s.getsockname()); a = s.accept(); print(s.getsockname()[1], c.getsockname()[1], flush=True); time.sleep(99)"
    )
    one, _ = begun(talking)
    pid, served = one.child.process.pid, int(one.child.tail[0].split()[0])
    assert pulse.connected(pid, served)
    signs = pulse.of_supernode(served)
    assert signs(pid) != signs(pid)
    os.kill(pid, signal.SIGSTOP)
    wait(lambda: pulse.stopped(pid))
    assert signs(pid) == signs(pid)
    served_only, _ = begun(AT_WORK)
    assert not pulse.connected(served_only.child.process.pid, served)


def test_a_line_that_says_that_a_thread_has_ended_is_enough(begun, selector):
    one, _ = begun(
        "print('Exception in thread Thread-2', flush=True)\n" + AT_WORK, deadly={"Exception in": "is broken"}
    )
    assert one.look(selector) == "is broken"


def test_an_end_is_a_fault_too(begun, selector):
    one, _ = begun("print('up', flush=True); raise SystemExit(7)")
    one.child.process.wait()
    assert one.look(selector) == "ended with 7"
    assert one.look(selector) is None
    assert one.state()["pid"] is None


def test_the_file_says_what_runs_and_what_was_wrong(begun, selector, tmp_path, monkeypatch):
    one, _ = begun("print('up', flush=True); raise SystemExit(7)")
    said: list[str] = []
    file = StateFile(tmp_path / "status.json", said.append)
    file.write([one])
    ((name, runs, last),) = watched.rows(watched.read_state(file.path))
    assert (name, last) == ("child", "-")
    assert runs.startswith("runs since")
    one.child.process.wait()
    one.look(selector)
    file.write([one])
    ((_, runs, last),) = watched.rows(watched.read_state(file.path))
    assert runs == "waits to be started again"
    assert last.endswith(": it ended with 7; started 1 times")
    later = time.time() + 31
    monkeypatch.setattr(time, "time", lambda: later)
    assert watched.read_state(file.path) is None  # its writer was killed
    file.path.write_text("[]")
    with pytest.raises(RunError, match="damaged"):
        watched.read_state(file.path)
    file.remove()
    assert watched.read_state(file.path) is None


def test_a_file_that_cannot_be_written_is_said_once(begun, tmp_path):
    one, _ = begun(AT_WORK)
    said: list[str] = []
    (tmp_path / "file").write_text("")
    broken = StateFile(tmp_path / "file" / "status.json", said.append)
    for number in range(3):
        broken.write([one], number=number)
    assert len(said) == 1


def test_a_server_is_asked_until_it_is_closed():
    asked = []

    def ask() -> None:
        asked.append(None)
        if len(asked) == 2:
            raise OSError("no answer")

    answers = pulse.Answers(ask, every=0.001)
    wait(lambda: answers(0) >= 3)
    answers.close()
    assert len(asked) >= 4  # one of them got no answer and does not count


def test_output_is_a_sign_of_life_of_one_that_talks(begun, selector):
    one, clock = begun("import time; print('up', flush=True); time.sleep(900)")
    one.talks = True
    settled(one.child.process.pid)
    one.look(selector)
    assert clock.run(50, one, selector) is None
    one.child.lines += 1  # "Connection attempt failed, retrying in 20 s"
    assert clock.run(51, one, selector) is None
    assert "has shown no sign of life" in clock.run(20, one, selector)
