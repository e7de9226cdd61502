"""Nothing that came over Flower's wire or out of a file is ever unpickled."""

import ast
import io
import json
import pickle
import sys
import traceback
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from clients.worker.memory import ClientMemory
from fcit import config as configuration
from fcit import simulate
from fcit.config import site
from fcit.data import formats as reading
from fcit.data.images.verdicts import ImageVerdicts
from fcit.data.spec import read_spec
from fcit.errors import CodecError, FCITError, StopRequested
from fcit.federation import codec
from fcit.federation.messages import Description
from fcit.io import bounded
from fcit.models.feature_store import FeatureStore
from fcit.report.page import write_page
from fcit.runs.folder import RunDir
from fcit.runs.reader import load_run
from fcit.simulation import execute
from server import checkpoint
from tests.helpers.own_data import make_own

ROOT = Path(__file__).parents[2]
FILES = sorted(f for folder in ("fcit", "server", "clients") for f in (ROOT / folder).rglob("*.py"))

# ---------------------------------------------------------------------- in the source

#: Modules whose whole purpose is to turn bytes into objects, or that do so on the way.
MODULES = set("pickle _pickle pickletools cPickle cloudpickle dill marshal shelve joblib jsonpickle".split())
#: Calls that unpickle or build arbitrary objects unless told otherwise.
CALLS = {
    "torch.load",
    "torch.jit.load",
    "np.fromfile",
    "numpy.fromfile",
    "pandas.read_pickle",
    "pd.read_pickle",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "yaml.full_load",
    "yaml.full_load_all",
    "ast.literal_eval",
    "eval",
    "exec",
    "compile",
    "__import__",
}
#: What must not even be handed on without being called.
REFERENCES = {"torch.load", "torch.jit.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
LOADERS = {"UnsafeLoader", "FullLoader", "Loader", "CLoader", "CUnsafeLoader", "CFullLoader"}
NUMPY_LOADS = {"np.load", "numpy.load", "np.lib.format.read_array", "npy.read_array"}


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an attribute; what is not a name is a question mark, and ``ast.unparse`` takes ten times as long."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id if isinstance(node, ast.Name) else "?", *reversed(parts)])


def unsafe(source: str) -> list[str]:
    """What in a source file could unpickle, with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in MODULES or name in CALLS | NUMPY_LOADS or name == "multiprocessing.connection":
                found.append(f"{node.lineno}: import {name}")
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            pickles = [k for k in node.keywords if k.arg == "allow_pickle"]
            if called in CALLS or called.split(".")[0] in MODULES:
                found.append(f"{node.lineno}: {called}")
            if called in NUMPY_LOADS and not pickles:
                found.append(f"{node.lineno}: {called} without allow_pickle=False")
            if any(not isinstance(k.value, ast.Constant) or k.value.value is not False for k in pickles):
                found.append(f"{node.lineno}: allow_pickle")
            if called.rpartition(".")[2] == "import_module" and any(
                isinstance(a, ast.Constant) and str(a.value).split(".")[0] in MODULES for a in node.args
            ):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Attribute) and (
            (name := dotted(node)) in REFERENCES or name.partition("yaml.")[2] in LOADERS
        ):
            found.append(f"{node.lineno}: {name}")
    return found


def test_no_source_file_unpickles():
    found = {str(f.relative_to(ROOT)): unsafe(f.read_text(encoding="utf-8")) for f in FILES}
    assert {file: places for file, places in found.items() if places} == {}


def test_the_check_of_the_source_sees():
    lines = [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as c",
        "from torch import load",
        "torch.load(f)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=x)",
        "yaml.load(t, Loader=yaml.Loader)",
        "yaml.compose(t, Loader=yaml.FullLoader)",
        "yaml.unsafe_load(t)",
        "import joblib",
        "importlib.import_module('dill')",
        "from numpy import load",
        "eval(t)",
        "import shelve, json",
        "from multiprocessing.connection import Client",
        "f = torch.load",
        "yaml.CLoader",
    ]
    assert [line for line in lines if not unsafe(line)] == []


# ---------------------------------------------------------------------- while it runs


class Watch:
    """Notes every unpickling in this process, by whoever, with the stack that led to it.

    ``pickle``'s own entries are replaced by ones that note the call; whoever took hold of them earlier is
    seen by Python's audit event of every class a pickle names.
    """

    on: "Watch | None" = None

    def __init__(self, monkeypatch) -> None:
        self.seen: list[str] = []
        hook()
        whole, part, kind = pickle.loads, pickle.load, pickle.Unpickler

        def loads(*args, **options):
            self.note("loads")
            return whole(*args, **options)

        def load(*args, **options):
            self.note("load")
            return part(*args, **options)

        class Unpickler(kind):
            def __init__(inner, *args, **options) -> None:
                self.note("Unpickler")
                super().__init__(*args, **options)

        for name, replacement in (("loads", loads), ("load", load), ("Unpickler", Unpickler)):
            monkeypatch.setattr(pickle, name, replacement)

    def note(self, what: str) -> None:
        """Remember who is unpickling."""
        stack = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_stack(limit=12)[:-2]]
        self.seen.append(f"{what} from {' < '.join(reversed(stack))}")

    def __enter__(self) -> "Watch":
        Watch.on = self
        return self

    def __exit__(self, *problem: object) -> None:
        Watch.on = None


@cache
def hook() -> None:
    """Audit hooks stay for the life of a process: one, which is quiet while nobody watches."""

    def listen(event: str, args: tuple) -> None:
        if Watch.on is not None and event == "pickle.find_class":
            Watch.on.note(f"class {args[0]}.{args[1]}")

    sys.addaudithook(listen)


@pytest.fixture
def watch(monkeypatch):
    with Watch(monkeypatch) as mine:
        yield mine


@pytest.fixture
def trap(tmp_path):
    """A pickle that makes a file when it is unpickled; the file."""
    marker = tmp_path / "unpickled"

    class Trap:
        def __reduce__(self):
            return open, (str(marker), "w")

    return pickle.dumps(Trap()), marker


def test_the_watch_sees(watch, trap, tmp_path):
    payload, marker = trap
    pickle.loads(payload).close()
    assert marker.exists()
    assert any("class io.open" in s or "class _io.open" in s for s in watch.seen)
    for work in (
        lambda: torch.load(saved_by_torch(tmp_path), weights_only=False),
        lambda: np.load(saved_by_numpy(tmp_path), allow_pickle=True),
        lambda: pickle.Unpickler(io.BytesIO(pickle.dumps(1))).load(),
    ):
        before = len(watch.seen)
        work()
        assert len(watch.seen) > before


def saved_by_torch(folder: Path) -> Path:
    torch.save({"a": torch.ones(1)}, folder / "a.pt")
    return folder / "a.pt"


def saved_by_numpy(folder: Path) -> Path:
    np.save(folder / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    return folder / "a.npy"


class StopOnce:
    """Asks the run to stop after its first round."""

    def say(self, kind: str, **values: object) -> None:
        if kind == "round":
            raise StopRequested("stop")


@pytest.mark.parametrize("method", ["disco", "replay"])
def test_a_run_its_resumption_and_its_report_unpickle_nothing(tmp_path, monkeypatch, watch, method):
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    own = make_own(tmp_path)
    with pytest.raises(StopRequested):
        simulate(own, watcher=StopOnce(), method=method, federation__rounds=2, evaluation__samples=2)
    run = execute(tmp_path / "runs" / "own-1")
    write_page([run], tmp_path / "page.html")
    assert run.finished
    assert len(run.of("round")) == 2
    assert run.predictions("colors")
    assert watch.seen == []


# ---------------------------------------------------------------------- pickles where something else should be


def message(payload: bytes, stype: str, layout: dict) -> RecordDict:
    head = {"wire": codec.WIRE, "type": "Description", "fields": {"client": 0, "shard": "s", "count": 1}}
    array = Array(dtype="object", shape=(1,), stype=stype, data=payload)
    text = json.dumps(head | {"tensors": layout})
    return RecordDict({"head": ConfigRecord({"json": text}), "tensors": ArrayRecord({"000000": array})})


def objects(payload: bytes) -> bytes:
    """A numpy file of objects: what follows its header is a pickle."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([None], dtype=object), allow_pickle=True)
    whole = buffer.getvalue()
    return whole[: whole.index(b"\n") + 1] + payload


def test_messages_with_pickles(watch, trap):
    payload, marker = trap
    for data_, stype in ((payload, "numpy.ndarray"), (payload, "pickle"), (objects(payload), "numpy.ndarray")):
        with pytest.raises(CodecError, match="serialisation"):
            codec.decode(message(data_, stype, {"a": ["uint8", [len(data_)], "000000"]}), Description)
    with pytest.raises(CodecError, match="type 'object' is not read"):
        codec.decode(message(payload, "raw", {"a": ["object", [1], "000000"]}), Description)
    # As plain bytes it is plain bytes.
    read = codec.decode(message(payload, "raw", {"a": ["uint8", [len(payload)], "000000"]}), Description)
    assert read.tensors["a"].tobytes() == payload
    assert not marker.exists()
    assert watch.seen == []


@pytest.fixture
def finished(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    own = make_own(tmp_path)
    return simulate(own, method="finetune", evaluation__samples=2).path


def test_run_folders_with_pickles(finished, watch, trap):
    payload, marker = trap
    run = RunDir(finished)
    readers = {
        "state/*/tensors.safetensors": lambda: checkpoint.load(run),
        "state/*/state.json": lambda: checkpoint.load(run),
        "events.jsonl": lambda: load_run(finished).events,
        "results.json": lambda: load_run(finished).results,
        "matrix.json": lambda: load_run(finished).matrix,
        "environment.json": lambda: load_run(finished).environment,
    }
    for pattern, read in readers.items():
        kept = {file: file.read_bytes() for file in finished.glob(pattern)}
        assert kept
        assert read()
        for file in kept:
            file.write_bytes(payload + b"\n")
        with pytest.raises(FCITError):
            read()
        for file, before in kept.items():
            file.write_bytes(before)
    run.config.write_bytes(payload)
    with pytest.raises(FCITError):
        execute(finished)
    assert not marker.exists()
    assert watch.seen == []


def test_files_of_clients_and_sites_with_pickles(tmp_path, watch, trap):
    payload, marker = trap
    file = tmp_path / "file.yaml"
    tag = "x: !!python/object/apply:builtins.open [{}, w]"
    for content in (payload, tag.format(marker).encode()):
        file.write_bytes(content)
        for reader in (
            configuration.load,
            site.load,
            lambda p: read_spec(str(p)),
            reading.read_train_file,
            reading.read_test,
        ):
            with pytest.raises(FCITError):
                reader(file)
    with pytest.raises(yaml.YAMLError):
        bounded.parse_yaml(tag.format(marker))
    (tmp_path / "image.png").write_bytes(payload)
    assert "not a readable image" in ImageVerdicts(tmp_path, None).problems(["image.png"])["image.png"]

    memory = ClientMemory(tmp_path / "memory")
    memory.save(0, "0-0", {"a": np.ones(1)})
    for name in ("0-0.json", "0-0.safetensors"):
        kept = (tmp_path / "memory/0" / name).read_bytes()
        (tmp_path / "memory/0" / name).write_bytes(payload)
        with pytest.raises(FCITError):
            memory.load(0, "0-0")
        (tmp_path / "memory/0" / name).write_bytes(kept)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "index.jsonl").write_bytes(payload + b"\n")
    with pytest.raises(FCITError):
        FeatureStore(tmp_path / "store", (1,), lambda keys: np.ones((len(keys), 1))).get(["a"])
    assert not marker.exists()
    assert watch.seen == []
