"""Who may import whom, read from the source of the whole tree."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from importlib import resources
from pathlib import Path

from fcit.data.shipped import shipped

ROOT = Path(__file__).parent.parent
FILES = sorted(f for folder in ("fcit", "server", "clients") for f in (ROOT / folder).rglob("*.py"))
NAMES = [str(f.relative_to(ROOT)) for f in FILES]


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


@cache
def imports(name: str) -> frozenset[str]:
    """Dotted names of everything a file imports, wherever in it; ``from a import b`` counts as ``a.b``."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def importers(*packages: str) -> set[str]:
    return {n for n in NAMES if any(i.split(".")[0] in packages for i in imports(n))}


def module(name: str) -> str:
    return name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def called(call: ast.Call) -> str:
    return ast.unparse(call.func)


def test_there_is_something_to_read():
    assert len(FILES) > 40


def test_flower_and_ray_stay_at_the_wire():
    outside = {n for n in importers("flwr", "ray") if not n.startswith(("fcit/federation/", "server/", "clients/"))}
    assert outside == set()


def test_flowers_private_parts_are_touched_in_few_files():
    public = ("flwr.app.", "flwr.serverapp.", "flwr.clientapp.")
    private = {n for n in NAMES for i in imports(n) if i.split(".")[0] == "flwr" and not i.startswith(public)}
    assert private == {"fcit/federation/engines/private.py", "clients/site/executor.py", "clients/site/signoff.py"}


def test_transformers_and_peft_stay_with_the_models():
    """Beside them only what makes a Trainer, which is a part of transformers and loads no model."""
    outside = {n for n in importers("transformers", "peft") if not n.startswith("fcit/models/")}
    assert outside == {"fcit/integrations/hf.py"}


def test_server_and_clients_do_not_know_each_other():
    assert {n for n in importers("clients") if n.startswith("server/")} == set()
    assert {n for n in importers("server") if n.startswith("clients/")} == set()


def test_apps_are_imported_where_they_are_run():
    running = {"fcit/cli/client.py", "fcit/simulation.py", "fcit/federation/engines/ray_worker.py"}
    assert {n for n in importers("server", "clients") if n.startswith("fcit/")} == running


def test_report_reads_run_folders_only():
    strange = ("fcit.methods", "fcit.models", "fcit.federation", "fcit.fedopt", "torch")
    assert {(n, i) for n in NAMES if n.startswith("fcit/report/") for i in imports(n) if i.startswith(strange)} == set()


def room(dotted: str) -> str | None:
    """The folder, or loose file, that a module of ours belongs to; None for the public face and for libraries."""
    parts = dotted.split(".")
    if parts[0] == "server":
        return "server"
    if parts[0] not in ("fcit", "clients") or len(parts) == 1:
        return None
    if parts[:3] == ["fcit", "federation", "engines"]:
        return "fcit.federation.engines"
    return ".".join(parts[:2]) if any(module(n).startswith(".".join(parts[:2])) for n in NAMES) else None


def test_rooms_form_no_circle():
    arrows: dict[str, set[str]] = {}
    for name in NAMES:
        own = room(module(name))
        if own is not None:  # the public face imports names from above when they are asked for
            others = {room(imported) for imported in imports(name)}
            arrows.setdefault(own, set()).update(others - {own, None})
    assert {"fcit.errors", "fcit.config", "server", "clients.worker"} <= set(arrows)
    TopologicalSorter(arrows).prepare()  # raises CycleError with the rooms of the circle


def test_global_generators_are_touched_in_one_place():
    seeds = {"torch.manual_seed", "np.random.seed", "random.seed"}
    touching = {n for n in NAMES for node in ast.walk(tree(n)) if isinstance(node, ast.Call) and called(node) in seeds}
    assert touching <= {"fcit/seeding.py", "fcit/models/tiny/pretrain.py"}


def test_package_data():
    package = resources.files("fcit")
    assert shipped()
    for folder in ("llava", "clip"):
        files = {entry.name for entry in (package / "assets" / "fcit-tiny" / folder).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert sum(f.stat().st_size for f in (ROOT / "fcit" / "assets").rglob("*") if f.is_file()) < 15e6
