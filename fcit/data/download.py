"""Downloads the files of a benchmark that are on the Hugging Face hub, and says where the others are found.

Files of the hub stay in ``<root>/.download`` and are taken up again where an interruption left them; archives are
unpacked into place beside. Nothing an archive says leads out of its target folder, and no link in it is followed.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import lzma
import os
import re
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from fcit.data.spec import BenchmarkSpec, Source
from fcit.errors import ConfigError, DataError, RunError

FOLDER = ".download"
MAX_MEMBERS = 2_000_000  # files of one archive
MAX_UNPACKED = 200 * 2**30  # bytes of one archive, unpacked
CHUNK = 2**20

#: What zipfile and the libraries below it raise for an archive that is damaged, encrypted or packed in an unknown way.
_DAMAGED = (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, zlib.error, lzma.LZMAError)

#: Names of archives, and of parts of archives, other than zip.
_PACKED = re.compile(r"\.(tar|tgz|gz|bz2|xz|zst|7z|rar|z\d\d|\d{3}|part\w*)$", re.IGNORECASE)
#: Of errors that are about this machine's disk, and not about the connection.
_NOT_HERE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)

#: (repository, patterns, folder): brings the files of a data set repository that match any pattern into a folder.
Fetch = Callable[[str, list[str], Path], None]
#: Shows a sentence to the user.
Say = Callable[[str], None]


def fetch_from_hub(repository: str, patterns: list[str], folder: Path) -> None:
    """Bring files of a data set repository into a folder; files that exist are not downloaded again.

    Raises:
        RunError: the hub cannot be reached or does not have it.
        OSError: the folder cannot be written, or has no room.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(repository, repo_type="dataset", allow_patterns=patterns or None, local_dir=folder)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NOT_HERE:
            raise
        reason = str(error).strip().partition("\n")[0]
        raise RunError(
            f"{repository}: cannot be downloaded from huggingface.co ({type(error).__name__}: {reason}); check the "
            "connection (behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT) and give the same command again: "
            "it goes on where it stopped. Or copy the files there from another machine"
        ) from None


def download(spec: BenchmarkSpec, root: Path, say: Say, fetch: Fetch = fetch_from_hub) -> None:
    """Bring a benchmark's files under ``root`` as far as the hub has them; say where the others are.

    Raises:
        ConfigError: the benchmark names no sources, or one that leads out of the root.
        RunError: the hub cannot be reached, or files cannot be written under the root.
        DataError: an archive is broken, or names paths outside its folder.
    """
    if not spec.sources:
        raise ConfigError(f"benchmark {spec.name!r} names no sources; copy its files under {root} yourself")
    base = root.resolve()
    for source in spec.sources:
        if not (base / source.to).resolve().is_relative_to(base):
            raise ConfigError(f"sources: {source.to!r} of {source.what!r} leaves the data root")
    by_hand = [source for source in spec.sources if source.page is not None]
    if by_hand:
        say("to be downloaded by hand:")
    for source in by_hand:
        say(f"  {source.what}: {source.page} -> {root / source.to}")
    with _filling(root):
        root.mkdir(parents=True, exist_ok=True)
    for source in (s for s in spec.sources if s.hub is not None):
        say(f"from the hub, {source.hub}: {source.what} -> {root / source.to}")
        with _filling(root / source.to):
            _bring(source, root, say, fetch)


@contextlib.contextmanager
def _filling(folder: Path) -> Iterator[None]:
    """Around everything that writes below a folder.

    Raises:
        RunError: it cannot be written, or has no room.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be filled ({error}); make it writable and give it room, then the same command goes on "
            "where it stopped"
        ) from None


def _bring(source: Source, root: Path, say: Say, fetch: Fetch) -> None:
    """Fetch a source's files and put each in its place."""
    kept = root / FOLDER / str(source.hub).replace("/", "--")
    kept.mkdir(parents=True, exist_ok=True)
    fetch(str(source.hub), source.files, kept)
    for count, file in enumerate(_fetched(kept, source.files), start=1):
        if place(file, kept, root / source.to, source):
            say(f"  {file.relative_to(kept)} is in place ({count})")
        if _PACKED.search(file.name):
            say(f"  {file.relative_to(kept)} is packed in a way that is not unpacked here: unpack it by hand")


def _fetched(folder: Path, patterns: list[str]) -> Iterator[Path]:
    """The files of a source, without the hub library's own."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        own = name.startswith(".cache/") or file.name == ".gitattributes"
        wanted = not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        if file.is_file() and wanted and not own:
            yield file


def place(file: Path, kept: Path, target: Path, source: Source) -> bool:
    """Unpack an archive, or put a plain file where it belongs; False if that was done before.

    Raises:
        DataError: the archive is broken, or names paths outside its folder.
    """
    parts = PurePosixPath(file.relative_to(kept).as_posix()).parts
    if zipfile.is_zipfile(file):
        return unpack(file, target, source.anchors, _below(parts, source.anchors))
    if file.suffix.lower() == ".zip":
        raise DataError(f"{file}: not a whole zip archive; remove it and download again")
    goal = target.joinpath(*_anchored(parts, source.anchors, ()))
    if goal.is_file() and goal.stat().st_size == file.stat().st_size:
        return False
    goal.parent.mkdir(parents=True, exist_ok=True)
    staging = goal.with_name(f".{goal.name}.part")
    staging.unlink(missing_ok=True)
    try:
        os.link(file.resolve(), staging)  # takes no second room
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, staging)
    staging.replace(goal)
    return True


def _below(parts: tuple[str, ...], anchors: list[str]) -> tuple[str, ...]:
    """Where an archive's files go that lie in no anchor's folder: below the one it lies in itself, or its name."""
    folder = next((n for n, part in enumerate(parts[:-1]) if part in anchors), None)
    return (PurePosixPath(parts[-1]).stem,) if folder is None else parts[folder:-1]


def _anchored(parts: tuple[str, ...], anchors: list[str], otherwise: tuple[str, ...]) -> tuple[str, ...]:
    """A path from the first folder on that has an anchor's name; below ``otherwise`` if none has."""
    for number, part in enumerate(parts[:-1]):
        if part in anchors:
            return parts[number:]
    return (*otherwise, *parts) if otherwise else parts[-1:]


def unpack(archive: Path, target: Path, anchors: list[str], otherwise: tuple[str, ...] = ()) -> bool:
    """Unpack a zip archive below ``target``; files that exist in their full length are passed over.

    Args:
        anchors: see :class:`fcit.data.spec.Source`.
        otherwise: folders below which a member goes that has none of them.

    Returns:
        whether anything was written.

    Raises:
        DataError: it is broken, encrypted, holds links or paths that lead out, or exceeds the bounds or the disk.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.is_dir()]
            goals = {m: _goal(archive, m, target, anchors, otherwise) for m in members}
            new = [m for m, goal in goals.items() if not (goal.is_file() and goal.stat().st_size == m.file_size)]
            _bound(archive, members, sum(m.file_size for m in new), target)
            for member in _tracked(new, f"unpacking {archive.name}"):
                _write(opened, member, goals[member], archive)
    except _DAMAGED as error:
        raise DataError(f"{archive}: cannot be unpacked ({error}); remove it and download again") from None
    return bool(new)


def _goal(archive: Path, member: zipfile.ZipInfo, target: Path, anchors: list[str], otherwise: tuple[str, ...]) -> Path:
    """Where a member is written.

    Raises:
        DataError: it is a link or would lie outside.
    """
    name = member.filename
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in (path.parts or ":")[0]:
        raise DataError(f"{archive}: member {name[:200]!r} leads out of the archive's folder; nothing was unpacked")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(f"{archive}: member {name[:200]!r} is a link; nothing was unpacked")
    goal = target.joinpath(*_anchored(path.parts, anchors, otherwise or (archive.stem,)))
    if not goal.resolve().is_relative_to(target.resolve()):
        raise DataError(f"{archive}: member {name[:200]!r} would go through a link out of {target}")
    return goal


def _bound(archive: Path, members: list[zipfile.ZipInfo], size: int, target: Path) -> None:
    if len(members) > MAX_MEMBERS or size > MAX_UNPACKED:
        raise DataError(
            f"{archive}: {len(members):,} files of {size:,} bytes, more than the {MAX_MEMBERS:,} and "
            f"{MAX_UNPACKED:,} that are unpacked"
        )
    existing = next(folder for folder in (target, *target.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise DataError(f"{archive}: needs {size:,} bytes unpacked, {free:,} are free under {existing}")


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, goal: Path, archive: Path) -> None:
    """Write one member, all or nothing, never longer than its header says."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    staging = goal.with_name(f".{goal.name}.part")
    left = member.file_size
    try:
        with opened.open(member) as source, staging.open("wb") as file:
            while chunk := source.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise DataError(f"{archive}: member {member.filename[:200]!r} is longer than it says")
                file.write(chunk)
        staging.replace(goal)
    finally:
        staging.unlink(missing_ok=True)


def _tracked(members: list[zipfile.ZipInfo], what: str) -> Iterator[zipfile.ZipInfo]:
    from rich.progress import track

    from fcit.io.console import notes

    yield from track(members, description=what, console=notes(), disable=not sys.stderr.isatty())
