"""Who may import whom, read from the source of the whole tree."""

import ast
from functools import cache
from importlib import resources
from pathlib import Path

import pytest

from fcit.data.spec import shipped

ROOT = Path(__file__).parent.parent
FILES = sorted(f for folder in ("fcit", "server", "clients") for f in (ROOT / folder).rglob("*.py"))
NAMES = [str(f.relative_to(ROOT)) for f in FILES]

#: Imports point from higher to lower.
LEVELS = {
    "fcit": 0, "fcit.errors": 0, "fcit.registry": 0, "fcit.seeding": 0, "fcit.config": 0, "fcit.run_dir": 0,
    "fcit.trees": 0, "fcit.schema": 0, "fcit.mistakes": 0, "fcit.strict": 0, "fcit.bounded": 0,
    "fcit.data": 1,
    "fcit.models": 2,
    "fcit.doctor": 4,
    "fcit.environment": 3, "fcit.fedopt": 3, "fcit.methods": 3,
    "fcit.federation": 4, "fcit.evaluation": 4,
    "server": 5, "clients": 5, "fcit.results": 5, "fcit.report": 5, "fcit.progress": 5,
    "fcit.trackers": 5, "fcit.serving": 5, "fcit.export": 5, "fcit.chat": 6,
    "fcit.federation.engines": 6, "fcit.simulation": 6, "fcit.bench": 6, "fcit.deploy": 5, "fcit.deploy.submit": 6,
    "fcit.cli": 7, "fcit.cli_data": 7, "fcit.cli_adapters": 7, "fcit.cli_deploy": 7, "fcit.cli_evaluate": 7,
}  # fmt: skip


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


def part(dotted: str) -> str | None:
    """The longest entry of LEVELS that a module belongs to."""
    own = [p for p in LEVELS if dotted == p or dotted.startswith(p + ".")]
    return max(own, key=len) if own else None


def module(name: str) -> str:
    return name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def test_there_is_something_to_read():
    assert len(FILES) > 40


@pytest.mark.parametrize("package", ["flwr", "ray"])
def test_flower_and_ray_stay_at_the_wire(package):
    assert {n for n in importers(package) if not n.startswith(("fcit/federation/", "server/", "clients/"))} == set()


def test_flowers_private_parts_are_touched_in_one_file_on_each_side():
    public = ("flwr.app.", "flwr.serverapp.", "flwr.clientapp.")
    private = {n for n in NAMES for i in imports(n) if i.split(".")[0] == "flwr" and not i.startswith(public)}
    assert private == {"fcit/federation/engines/identity.py", "clients/executor.py"}


def test_transformers_and_peft_stay_with_the_models():
    assert {n for n in importers("transformers", "peft") if not n.startswith("fcit/models/")} == set()


def test_server_and_clients_do_not_know_each_other():
    assert {n for n in importers("clients") if n.startswith("server/")} == set()
    assert {n for n in importers("server") if n.startswith("clients/")} == set()


def test_apps_are_imported_where_they_are_run():
    running = {"fcit/cli.py", "fcit/simulation.py", "fcit/federation/engines/ray_worker.py"}
    assert {n for n in importers("server", "clients") if n.startswith("fcit/")} == running


def test_report_reads_run_folders_only():
    strange = ("fcit.methods", "fcit.models", "fcit.federation", "fcit.fedopt", "torch")
    assert {(n, i) for n in NAMES if n.startswith("fcit/report/") for i in imports(n) if i.startswith(strange)} == set()


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_one_way(name):
    if name == "fcit/__init__.py":
        return  # the public face: names from above, imported when asked for
    own = part(module(name))
    assert own is not None
    for imported in imports(name):
        other = part(imported)
        if other is not None and other != "fcit":
            assert LEVELS[other] <= LEVELS[own], f"{name} imports {imported}"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_unpickled(name):
    forbidden = ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "torch.load")
    assert not [i for i in imports(name) if i.split(".")[0] in forbidden or i in forbidden]
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Attribute) and node.attr == "load" and isinstance(node.value, ast.Name):
            assert node.value.id != "torch", f"{name}:{node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant) and node.value.value is False, f"{name}:{node.lineno}"


@pytest.mark.parametrize("name", NAMES)
def test_global_generators_are_touched_in_one_place(name):
    if name in ("fcit/seeding.py", "fcit/models/tiny/pretrain.py"):
        return
    calls = [ast.unparse(n.func) for n in ast.walk(tree(name)) if isinstance(n, ast.Call)]
    assert not {"torch.manual_seed", "np.random.seed", "random.seed"} & set(calls)


def test_package_data():
    package = resources.files("fcit")
    assert shipped()
    for folder in ("llava", "clip"):
        files = {entry.name for entry in (package / "assets" / "fcit-tiny" / folder).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert sum(f.stat().st_size for f in (ROOT / "fcit" / "assets").rglob("*") if f.is_file()) < 15e6
