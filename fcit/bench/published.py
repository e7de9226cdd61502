"""Finished runs in one small file, without their weights: another machine goes on with a bench instead of repeating it.

``fcit bench FILE --into FOLDER`` writes ``runs.tar.xz`` beside the tables: of every finished run the files that tables,
figures and intervals are made from, a few kilobytes each. ``fcit bench FILE --from FOLDER`` puts them where the bench
looks for finished runs. What was computed elsewhere stays recognisable: a run keeps its ``environment.json``.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from fcit.bench import folders, leaderboard
from fcit.bench.plan import Plan, Planned
from fcit.errors import ConfigError
from fcit.io.files import write_bytes, writing
from fcit.runs.folder import RunDir
from fcit.runs.reader import Run

FILE = "runs.tar.xz"
MAX_MEMBERS = 200_000
MAX_FILE = 2**28  # bytes of one file, unpacked
MAX_UNPACKED = 2**33  # of all
SIP = 2**20  # bytes that are read at a time


def _fixed(folder: RunDir) -> list[Path]:
    """The files that every packed run has; results come last: a folder with them is a finished run."""
    return [folder.config, folder.environment, folder.matrix, folder.events, folder.results]


def _kept(run: Planned) -> list[Path]:
    """The files of a finished run that are packed: the answers after its last stage, but no weights and no report."""
    folder = RunDir(run.folder)
    scores = Run(run.folder).matrix.scores
    last = max(number for number, row in enumerate(scores, start=1) if row)
    answers = sorted((folder.predictions / f"stage-{last}").glob("*.jsonl"))
    return [*(file for file in _fixed(folder) if file.is_file()), *answers]


def pack(runs: list[Planned], path: Path) -> None:
    """Write the finished ones of ``runs``; the same runs give the same bytes.

    Raises:
        DiskFull: there is no room; an existing file is left as it was.
    """
    files = [(run, file) for run in runs if folders.state(run) == "done" for file in _kept(run)]
    # Equal files of many runs side by side: they are nearly the same text, which the compression finds.
    names = {f"{run.name}/{file.relative_to(run.folder).as_posix()}": file for run, file in files}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name in sorted(names, key=lambda name: (name.partition("/")[2], name)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = names[name].stat().st_size, 0o644
            with names[name].open("rb") as source:
                archive.addfile(member, source)
    write_bytes(path, buffer.getvalue())


@dataclass
class Taken:
    """What became of the runs of a published file."""

    new: list[str] = field(default_factory=list)  # taken over
    here: list[str] = field(default_factory=list)  # not: the bench has or computes them itself
    unplanned: list[str] = field(default_factory=list)  # not: the bench file describes no such run
    refused: list[str] = field(default_factory=list)  # not: one sentence each

    @property
    def sentence(self) -> str:
        """Counts of all kinds that occurred."""
        parts = [f"{len(self.new)} taken over"]
        parts += [f"{len(self.here)} are here already"] if self.here else []
        parts += [f"{len(self.unplanned)} of no row or seed of this bench"] if self.unplanned else []
        parts += [f"{len(self.refused)} refused"] if self.refused else []
        return ", ".join(parts)


def locate(place: Path) -> Path:
    """The published file of a folder, or the file itself.

    Raises:
        ConfigError: there is none.
    """
    path = place / FILE if place.is_dir() else place
    if not path.is_file():
        raise ConfigError(f"--from {place}: no {FILE} there; `fcit bench FILE --into {place}` writes one")
    return path


def take(runs: list[Planned], path: Path) -> Taken:
    """Put the published runs that are planned and not begun here where the bench looks for them.

    Raises:
        ConfigError: not a file that :func:`pack` wrote, or larger than is read.
        DiskFull: there is no room.
    """
    planned, taken = {run.name: run for run in runs}, Taken()
    home = runs[0].folder.parent
    with writing(home):
        home.mkdir(parents=True, exist_ok=True)
        staging_folder = tempfile.TemporaryDirectory(dir=home, prefix=".taken-")
    with staging_folder as staging:
        for name in _unpack(path, Path(staging)):
            run = planned.get(name)
            if run is None:
                taken.unplanned.append(name)
            elif folders.state(run) != "new":
                taken.here.append(name)
            else:
                problem = _problem(replace(run, folder=Path(staging) / name)) or _move(Path(staging) / name, run)
                (taken.refused if problem else taken.new).append(problem or name)
    return taken


def further(made: Plan, path: Path) -> dict[str, list[int]]:
    """Seeds beyond the plan's of which a published file has runs, by the folder name of their row.

    Raises:
        ConfigError: not a file that :func:`pack` wrote.
    """
    more: dict[str, list[int]] = {}
    slugs = {row.slug: row.seeds for row in made.rows}
    for name in _names(path):
        slug, _, seed = name.rpartition("-s")
        if slug in slugs and re.fullmatch(r"0|[1-9]\d{0,17}", seed) and int(seed) not in slugs[slug]:
            more.setdefault(slug, []).append(int(seed))
    return more


def lost(runs: list[Planned], path: Path) -> list[str]:
    """Names of the runs of a published file that are not among the finished ones of ``runs``, or are others there.

    Raises:
        ConfigError: not a file that :func:`pack` wrote.
    """
    here = {run.name: run for run in runs if folders.state(run) == "done"}
    with tempfile.TemporaryDirectory() as staging:
        names = _unpack(path, Path(staging), {RunDir(Path()).config.name})
        return [
            name
            for name in names
            if name not in here or folders.foreign(replace(here[name], folder=Path(staging) / name)) is not None
        ]


def _names(path: Path) -> list[str]:
    with _opened(path) as members:
        return list(dict.fromkeys(name.parts[0] for name, _, _ in members))


def _problem(run: Planned) -> str | None:
    """Why an unpacked run is not taken, or None."""
    name = f"{run.name}: "
    absent = [file.name for file in _fixed(RunDir(run.folder)) if not file.is_file() and file.name != "events.jsonl"]
    if absent:
        return f"{name}without {', '.join(absent)}"
    if (foreign := folders.foreign(run)) is not None:
        return f"{name}{foreign.partition(' ')[2]}"
    try:
        leaderboard.probe(run)
    except Exception as error:  # noqa: BLE001  (whatever its files lead to, tables must not meet it later)
        return f"{name}its files cannot be used: {type(error).__name__}: {error}"
    return None


def _move(unpacked: Path, run: Planned) -> str | None:
    """Move an unpacked run into its folder, what makes it finished last; why not, or None."""
    with writing(run.folder):
        lock = folders.claim(run)
    if lock is None:
        return f"{run.name}: another process is at work in {run.folder}"
    try:
        results = RunDir(unpacked).results.name
        for entry in sorted(unpacked.iterdir(), key=lambda entry: entry.name == results):
            shutil.move(entry, run.folder / entry.name)
    finally:
        os.close(lock)
    return None


class _Sips(io.RawIOBase):
    """A file that is read in small pieces only: a tar's own long headers are read whole before anyone sees a member."""

    def __init__(self, file: lzma.LZMAFile) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= SIP:
            raise tarfile.ReadError(f"{size:,} bytes in one piece, which no file of a run needs")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Iterator[tuple[PurePosixPath, tarfile.TarInfo, tarfile.TarFile]]]:
    """The members of a published file in order, each checked before it is read.

    Raises:
        ConfigError: damaged, too large, or a member is no file of a run.
    """
    try:
        with lzma.open(path) as plain, tarfile.open(fileobj=_Sips(plain), mode="r:") as archive:
            yield _checked(archive, path)
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise ConfigError(f"{path}: not a readable {FILE} ({error})") from None


def _checked(archive: tarfile.TarFile, path: Path) -> Iterator[tuple[PurePosixPath, tarfile.TarInfo, tarfile.TarFile]]:
    size = 0
    for count, member in enumerate(archive, start=1):
        size += member.size
        if count > MAX_MEMBERS or member.size > MAX_FILE or size > MAX_UNPACKED:
            raise ConfigError(
                f"{path}: more than {MAX_MEMBERS:,} files, {MAX_FILE:,} bytes in one or {MAX_UNPACKED:,} in all"
            )
        name = PurePosixPath(member.name)
        if not (member.isreg() and _is_of_a_run(name)):
            raise ConfigError(f"{path}: {member.name[:200]!r} is no file of a run; nothing was taken from it")
        yield name, member, archive


def _is_of_a_run(name: PurePosixPath) -> bool:
    """Whether a member is RUN/FILE or RUN/predictions/stage-N/DATASET.jsonl with ordinary names."""
    own = {file.name for file in _fixed(RunDir(Path()))}
    ordinary = not any(part == ".." or {"/", "\\", "\0"} & set(part) for part in name.parts)
    match name.parts:
        case (_, file):
            return ordinary and file in own
        case (_, "predictions", stage, file):
            return ordinary and re.fullmatch(r"stage-\d{1,6}", stage) is not None and file.endswith(".jsonl")
    return False


def _unpack(path: Path, target: Path, only: Container[str] | None = None) -> list[str]:
    """Unpack a published file below ``target``, or ``only`` files of these names; returns the names of its runs."""
    names: dict[str, None] = {}
    with _opened(path) as members:
        for name, member, archive in members:
            names.setdefault(name.parts[0])
            if only is not None and name.name not in only:
                continue
            source = archive.extractfile(member)
            assert source is not None  # of a regular file
            goal = target / name
            with writing(goal):
                goal.parent.mkdir(parents=True, exist_ok=True)
                with goal.open("wb") as file:
                    shutil.copyfileobj(source, file)
    return list(names)
