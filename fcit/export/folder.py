"""``fcit export``: a run's subspaces as peft adapters, with the routing that mixes them and a model card."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import mkdtemp

from rich.progress import track

from fcit import registry
from fcit.errors import ConfigError
from fcit.export import card, format
from fcit.export.format import SUBSPACES, Portable, Routing
from fcit.io.files import write_text, writing
from fcit.models.layout import GATE, PROMPTS, ROUTING
from fcit.models.saving import is_peft, save_peft
from fcit.runs.reader import Run

#: Contents of an export; other files in its folder are never changed.
PARTS = (SUBSPACES, format.ROUTING, format.TOKENS, "README.md")


def export_run(run: str | Path, to: str | Path, force: bool = False) -> Path:
    """Write a finished run's subspaces to the folder ``to``, for use elsewhere.

    Args:
        force: replace an earlier export there; other files of the folder stay.

    Raises:
        ConfigError: no run, not finished, not loadable by plain peft, or ``to`` is not empty.
        DataError: files of the run are damaged. DiskFull: there is no room.
    """
    source, target = Run(run), Path(to)
    given = Portable.open(source.path)
    _expressible(source, given)
    _free(target, force, source)
    scratch = _scratch(target)
    try:
        with writing(target):
            _write(scratch, source, given)
            for name in PARTS:
                _replace(target / name, scratch / name)
    finally:
        shutil.rmtree(scratch)
    return target


def export_merged(run: str | Path, name: str, to: str | Path) -> Path:
    """Write one subspace merged into the base model to the empty folder ``to``: a plain checkpoint of transformers.

    Raises:
        ConfigError: as :func:`export_run`, or there is no such subspace. DataError, DiskFull: as there.
    """
    source, target = Run(run), Path(to)
    given = Portable.open(source.path)
    _expressible(source, given)
    names = given.routing.subspaces
    if name not in names:
        hint = registry.nearest(name, names)
        raise ConfigError(f"--merge: no subspace {name!r}{hint} (there are: {', '.join(names)})")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"--to: {str(target)!r} is not empty; name another folder for the merged model")
    scratch = _scratch(target)
    try:
        with writing(target):
            from fcit.models.merged import save_merged  # transformers and peft take seconds

            save_merged(scratch, given.tensors(name), given.routing.adapter, given.routing.backbone)
            write_text(scratch / "README.md", card.merged(source, given.routing, name))
            mode = (scratch / "README.md").stat().st_mode
            for file in list(scratch.iterdir()):
                file.chmod(mode)  # weights are created readable by the owner only
                file.replace(target / file.name)
    finally:
        shutil.rmtree(scratch)
    return target


def _scratch(target: Path) -> Path:
    """A temporary folder: an earlier export is replaced only when everything is written.

    Raises:
        ConfigError: ``target`` cannot be created or written to.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        return Path(mkdtemp(prefix=".export-", dir=target))
    except OSError as error:
        raise ConfigError(f"--to: cannot write into {str(target)!r} ({error}); name another folder") from None


def _expressible(run: Run, given: Portable) -> None:
    """Check that plain peft can hold the subspaces and shipped code can route questions to them.

    Raises:
        ConfigError: with the reason and an alternative.
    """
    instead = f"`fcit chat {run.path}` and fcit.load({str(run.path)!r}) answer with the run folder as it is"
    if not given.routing.subspaces:
        raise ConfigError(f"{run.path}: method {run.method} trained no subspace; there is nothing to export")
    name = str(given.routing.method.get("name"))
    if registry.is_own(name):
        raise ConfigError(
            f"{run.path}: method {run.method} answers with code of your own ({name}), which an export cannot carry; "
            f"the subspaces as they are lie in {given.subspaces}"
        )
    for subspace in given.routing.subspaces:
        tensors = given.tensors(subspace)
        if not is_peft(tensors):
            parts = {"soft prompts": PROMPTS, "a key": ROUTING, "token gates": f"{GATE}weight"}
            content = next((what for what, part in parts.items() if any(part in n for n in tensors)), "routers")
            raise ConfigError(
                f"{run.path}: subspace {subspace!r} of method {run.method} holds {content}, which are no part of a "
                f"peft LoRA adapter and would be lost; {instead}"
            )


def _free(target: Path, force: bool, run: Run) -> None:
    if target.is_dir() and any(target.iterdir()) and not force:
        raise ConfigError(
            f"--to: {str(target)!r} is not empty; name another folder, or `fcit export {run.path} --to {target} "
            f"--force` to replace {', '.join(PARTS)} there"
        )


def _write(folder: Path, run: Run, given: Portable) -> None:
    routing = given.routing
    names = routing.subspaces
    for name in track(names, description="exporting", disable=not sys.stderr.isatty(), transient=True):
        save_peft(folder / SUBSPACES / name, given.tensors(name), routing.adapter, routing.backbone)
        write_text(folder / SUBSPACES / name / "README.md", card.subspace(run, routing, name))
    format.write(folder, _portable(routing), given.known())
    write_text(folder / "README.md", card.card(run, routing))
    for file in folder.rglob("*.safetensors"):  # created readable by the owner only
        file.chmod((folder / "README.md").stat().st_mode)


def _portable(routing: Routing) -> Routing:
    """The routing without settings of the run's machine."""
    backbone = routing.backbone.model_copy(update={"threads": 0})
    return routing.model_copy(update={"backbone": backbone})


def _replace(old: Path, new: Path) -> None:
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)
    new.replace(old)
