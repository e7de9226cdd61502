"""`fcit deploy submit` and `follow`: a run given to the SuperLink, followed to its end, with its true exit code."""

from __future__ import annotations

import math
import time
from pathlib import Path

from fcit import config as configuration
from fcit.config import RunConfig, device_checks
from fcit.data.stream import open_stream
from fcit.deploy import app, control
from fcit.deploy.control import SuperLinkAway, flwr, unfinished
from fcit.deploy.deployment import Deployment
from fcit.deploy.interrupted import cut_off
from fcit.deploy.steps import DeployError, Steps
from fcit.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED, ConfigError, DiskFull
from fcit.io.console import console
from fcit.io.files import write_text
from fcit.io.printable import printable
from fcit.report import terminal
from fcit.report.page import write_page
from fcit.runs.create import create
from fcit.runs.folder import BELONGS, RunDir
from fcit.runs.progress import ConsoleWatcher
from fcit.runs.reader import Run
from fcit.runs.recorded import hold_data
from fcit.runs.trackers import Trackers

_LOOK = 0.5  # seconds between two looks at the events
#: Seconds without a sign of the run after which the SuperLink is asked for its status. Asking is a process of more than
#: a second of processor time, and while events come it would say nothing else.
_ASK = 10.0
_PATIENCE = 300.0  # seconds without a sign of the run, nor of a SuperLink
_RESUMPTION = 60.0  # seconds in which `fcit deploy up` has begun a run anew that was interrupted
_CODES = {"completed": EXIT_OK, "stopped": EXIT_STOPPED}


def submit(deployment: Deployment, config: Path, overrides: list[str], steps: Steps) -> int:
    """Check a configuration, make its run folder, run it on the sites and follow it.

    Raises:
        ConfigError: the configuration or the data are wrong; nothing is started.
        DeployError: the SuperLink is not up or refuses.
    """
    loaded = configuration.load(config, overrides)
    if problem := device_checks.deployed(loaded):
        raise ConfigError(problem, str(config))
    # The server's working folder is another: its runs go into the deployment's folder, unless `output` is absolute.
    loaded = loaded.model_copy(update={"output": str(deployment.path / loaded.output)})
    if not steps.dry:
        _seats(deployment, loaded, steps)
    _ready(deployment, steps)
    if steps.dry:
        run = Path(loaded.output) / f"{loaded.name}-N"
        steps.say(f"make  {run}")
    else:
        run = create(loaded).path
        write_text(run / BELONGS, f"{deployment.path}\n")
    return _start(deployment, run, steps)


def _seats(deployment: Deployment, loaded: RunConfig, steps: Steps) -> None:
    """Enough sites are registered to begin; the others may join while the run goes on.

    Raises:
        ConfigError: they are not.
    """
    clients, needed = loaded.federation.clients, loaded.federation.min_updates
    members = deployment.remembered("nodes")
    absent = [str(n) for n in range(clients) if str(n) not in members]
    if not absent:
        return
    if clients - len(absent) < min(needed, clients):
        raise ConfigError(
            f"federation.clients: {clients} means the sites 0 to {clients - 1}, but {_few(absent)} not registered, and "
            f"{needed} are needed for a round (federation.min_updates); `fcit deploy register {deployment.path}`, or "
            "set federation.clients"
        )
    steps.say(
        f"{_few(absent)} not registered yet and missed in the rounds until then: `fcit deploy add` and `register` also "
        "while the run goes on"
    )


def resume(deployment: Deployment, run: Path, steps: Steps, accept_changed_data: bool = False) -> int:
    """Go on with a run folder from its checkpoint, as a new run of the SuperLink.

    Raises:
        ConfigError: there is no run, or the server's own data or code have changed and that is not accepted.
        DeployError: the SuperLink is not up or refuses.
    """
    folder = RunDir.open(run.resolve())
    if folder.results.is_file():
        steps.say(f"{run} is already finished; `fcit report {run}` shows it")
        return EXIT_OK
    _ready(deployment, steps)
    if folder.begun and not steps.dry:
        # Checked here, where a person reads it, before the server checks it.
        hold_data(folder, open_stream(configuration.load_resolved(folder.config)), accept_changed_data)
    return _start(deployment, folder.path, steps)


def follow(deployment: Deployment, number: str | None) -> int:
    """Show a run that was submitted before, from its beginning, and wait for its end.

    Raises:
        ConfigError: no such run.
    """
    known = deployment.remembered("runs")
    number = number or (list(known)[-1] if known else "")
    if number not in known:
        raise ConfigError(f"run {number or '(none)'} was not submitted here (there are: {', '.join(known) or 'none'})")
    return _follow(deployment, number, Path(known[number]), 0.0)


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _ready(deployment: Deployment, steps: Steps) -> None:
    """The app is the installed one, and the sites are free."""
    changed = app.differs(deployment)
    if changed:
        raise ConfigError(
            f"{deployment.app} is not what is installed ({_few(changed)} different); "
            f"`fcit deploy update {deployment.path}` makes it anew, and sites have to pin its hash"
        )
    going_on = [] if steps.dry else unfinished(deployment)
    if going_on:
        raise DeployError(
            f"run {', '.join(going_on)} is going on; `fcit deploy follow {deployment.path}` shows it, "
            f"`fcit deploy stop {deployment.path}` ends it"
        )


def _start(deployment: Deployment, run: Path, steps: Steps) -> int:
    began = time.time() - 0.001  # events are dated to the millisecond, rounded
    number = control.start(deployment, run, steps)
    if steps.dry:
        return EXIT_OK
    steps.say(f"run {number} of the SuperLink, folder {run}")
    return _follow(deployment, number, run, began)


def _follow(deployment: Deployment, number: str, run: Path, since: float) -> int:
    """Show events until Flower says that the run is over; Ctrl-C ends the display only."""
    screen = console()
    shown = _Shown()
    with ConsoleWatcher(screen, run.name, shown) as watcher:
        try:
            status, details = _watch(deployment, number, RunDir(run), since, watcher, shown)
        except KeyboardInterrupt:
            screen.print(
                f"\nthe run goes on without being looked at; `fcit deploy follow {deployment.path} {number}` looks "
                f"again, `fcit deploy stop {deployment.path} {number}` ends it",
                soft_wrap=True,
                highlight=False,
            )
            return EXIT_INTERRUPTED
    code = _CODES.get(status, EXIT_FAILED)
    next_number = _next(deployment, number, run)
    # A run that was followed from its beginning has ended just now, however long ago its last event is.
    if next_number is None and code == EXIT_FAILED and cut_off(details) and (since or _lately(RunDir(run))):
        screen.print(
            f"\nthe run has lost its process; `fcit deploy up {deployment.path}` goes on with it", soft_wrap=True
        )
        next_number = _resumed(deployment, number, run)
    if code != EXIT_OK and next_number is not None:
        screen.print(f"\nthe run was interrupted and goes on as run {next_number} of the SuperLink", highlight=False)
        return _follow(deployment, next_number, run, shown.time + 0.001)
    if code == EXIT_OK:
        done = Run(run)
        try:
            write_page([done], run / "report.html")
        except DiskFull as error:  # the run is over and well; its page can be made at any time
            screen.print(f"\nno report: {error}", markup=False, soft_wrap=True)
            return code
        Trackers(done.folder, done.config, watcher).attach(run / "report.html")
        terminal.ending(screen, done)
    else:
        # The server does not know by which command it was started.
        details = printable(details).replace(
            f"fcit resume {run}", f"fcit deploy submit {deployment.path} --resume {run}"
        )
        screen.print(f"\nthe run {'was stopped' if code == EXIT_STOPPED else 'failed'}: {details}", markup=False)
        screen.print(
            f"log:    FLWR_HOME={deployment.home} flwr log {number} operator --show\n"
            f"resume: fcit deploy submit {deployment.path} --resume {run}",
            soft_wrap=True,
            highlight=False,
        )
    return code


def _next(deployment: Deployment, number: str, run: Path) -> str | None:
    """The number by which a run that was interrupted goes on, if `fcit deploy up` has resumed it."""
    folders = deployment.remembered("runs")
    numbers = [other for other, folder in folders.items() if folder == str(run)]
    return numbers[-1] if number in numbers[:-1] else None


def _lately(folder: RunDir) -> bool:
    """Whether a run has given a sign of itself in the last minutes, and so may be resumed in the next."""
    return folder.events.is_file() and time.time() - folder.events.stat().st_mtime < _PATIENCE


def _resumed(deployment: Deployment, number: str, run: Path) -> str | None:
    """The same, once it has; it is given a minute, as Flower may notice the end of a run first."""
    until = time.monotonic() + _RESUMPTION
    while (found := _next(deployment, number, run)) is None and time.monotonic() < until:
        time.sleep(_LOOK)
    return found


class _Shown:
    """The clock of what is shown: the time of the event that is shown now, as many may have passed unseen."""

    def __init__(self) -> None:
        self.time = time.time()

    def __call__(self) -> float:
        return self.time


def _watch(
    deployment: Deployment, number: str, folder: RunDir, since: float, watcher: ConsoleWatcher, clock: _Shown
) -> tuple[str, str]:
    """Pass every event to the watcher; returns how the run ended and Flower's details about it.

    Only events after ``since`` are shown: a resumed run first removes the events after its checkpoint. A run that is
    looked at from its beginning (``since`` 0) may be over and is asked for at once.
    """
    shown, size, last_sign = 0, -1, time.monotonic()
    last_query, took = (last_sign if since else -math.inf), 0.0
    ended: tuple[str, str] | None = None
    refused = False
    while True:
        over = folder.results.is_file() or _next(deployment, number, folder.path) is not None
        began = time.monotonic()
        quiet = began - (last_query if over else max(last_query, last_sign))
        if quiet >= max(min(1.0, _ASK) if over else _ASK, took):
            try:
                ended = _end(deployment, number)
                last_sign = time.monotonic()
            except SuperLinkAway:
                if time.monotonic() - last_sign > _PATIENCE:
                    raise
            except DeployError as error:  # a full disk, say: the events are read all the same
                ended = ("completed", "") if folder.results.is_file() else None
                if not refused:
                    watcher.console.print(f"followed by its events only: {error}", markup=False, soft_wrap=True)
                refused = True
            last_query = time.monotonic()
            took = last_query - began  # on a busy machine queries are fewer
        now_size = folder.events.stat().st_size if folder.events.is_file() else 0
        if now_size != size:
            size, last_sign = now_size, time.monotonic()
            fresh = [event for event in folder.read_events() if event["time"] >= since]
            for event in fresh[shown:]:
                clock.time = event["time"]
                watcher.say(event["event"], **{k: v for k, v in event.items() if k not in ("time", "event")})
            shown = len(fresh)
        if ended is not None:
            return ended
        time.sleep(_LOOK)


def _end(deployment: Deployment, number: str) -> tuple[str, str] | None:
    """How a run ended, and why; None while it goes on."""
    run = flwr(deployment, "ls", settings=("--run-id", number))["runs"][0]
    kind, _, end = str(run["status"]).partition(":")
    return (end, str(run.get("status-details") or "no reason was given; see the log")) if kind == "finished" else None
