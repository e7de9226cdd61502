"""What is tried before the first training step, and what a problem says."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import fcit
from fcit.data.records import TestRecord
from fcit.data.shipped import SHIPPED
from fcit.errors import RunError, StopRequested
from fcit.federation import codec
from fcit.federation.messages import Answers
from fcit.runs.folder import RunDir
from server.preflight import Preflight
from tests.helpers.runs import SMALL

SCORER = """
from pathlib import Path

from fcit.evaluation.scorers import Result


def picky(texts, records):
    if not Path(__file__).with_name("fine").is_file():
        raise KeyError("no lexicon")
    return Result(50.0)


def wordy(texts, records):
    return 50.0


def lost(texts, records):
    return Result(float("nan"))
"""


class Begun:
    """A watcher that stops the run where its training would begin."""

    def say(self, kind, **values):
        if kind == "start":
            raise StopRequested("begun")


def begin(folder: Path, **changes) -> list[dict]:
    """Events of a run that is stopped where its training would begin."""
    raw = {**SMALL, "output": str(folder), **changes}
    with pytest.raises(StopRequested, match="begun"):
        fcit.simulate(raw, Begun())
    return list(RunDir(max(folder.glob("small-*"))).read_events())


def benchmark(folder: Path, dataset: str, file: Path = Path(SMALL["benchmark"]), **changes) -> str:
    """A benchmark with one data set changed."""
    spec = yaml.safe_load(file.read_text())
    spec["datasets"][dataset] |= changes
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(spec))
    return str(path)


def refused(folder: Path, **changes) -> str:
    """What a run that is stopped before training says."""
    with pytest.raises(RunError) as error:
        fcit.simulate({**SMALL, "output": str(folder / "runs"), **changes})
    run = RunDir(folder / "runs" / "small-1")
    assert [e["event"] for e in run.read_events() if e["event"] in ("round", "start", "preflight")] == []
    assert "nothing was trained" in str(error.value)
    assert f"`fcit resume {run.path}`" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("method", ["disco", "l2p", "moelora", "mlora", "replay", "joint", "individual", "zero_shot"])
def test_every_data_set_is_tried_before_anything_else(tmp_path, method):
    events = begin(tmp_path, method=method)
    assert [e["event"] for e in events] == ["data", "preflight", "start"]
    assert events[1]["datasets"] == ["ocr-vqa", "figureqa"]


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": {"projector": "per_subspace"}},
        {"method": {"name": "disco", "mix": "oracle"}},
        {"setting": "heterogeneous", "federation": {**SMALL["federation"], "clients_per_round": 5}},
    ],
)
def test_other_settings_are_tried_too(tmp_path, changes):
    assert len(begin(tmp_path, **changes)[1]["datasets"]) == 2


def test_a_missing_java_stops_the_run_there(tmp_path, monkeypatch):
    changed = benchmark(tmp_path, "flickr30k", SHIPPED / "fcit-mini-short.yaml", scorer="caption7")
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *more, **m: None if name == "java" else which(name, *more, **m))
    said = refused(tmp_path, benchmark=changed)
    assert "data set 'flickr30k'" in said
    assert "scorer 'caption7'" in said
    assert "default-jre-headless" in said


def test_a_scorer_beside_is_tried_too_and_the_run_begins_when_it_is_mended(tmp_path):
    (tmp_path / "mine.py").write_text(SCORER)
    changed = benchmark(tmp_path, "figureqa", also=["./mine.py:picky"])
    said = refused(tmp_path, benchmark=changed)
    assert "data set 'figureqa'" in said
    assert "mine.py:picky" in said
    assert "KeyError: 'no lexicon'" in said
    (tmp_path / "fine").touch()
    from fcit.simulation import execute

    with pytest.raises(StopRequested, match="begun"):
        execute(tmp_path / "runs" / "small-1", Begun())
    run = RunDir(tmp_path / "runs" / "small-1")
    assert [e["event"] for e in run.read_events()] == ["data", "preflight", "start"]
    (tmp_path / "fine").unlink()
    with pytest.raises(StopRequested, match="begun"):  # its training has begun: it is not tried again
        execute(run.path, Begun())


@pytest.mark.parametrize(("name", "said"), [("wordy", "got 50.0"), ("lost", "finite score, got Result(score=nan")])
def test_a_scorer_that_gives_no_score(tmp_path, name, said):
    (tmp_path / "mine.py").write_text(SCORER)
    assert said in refused(tmp_path, benchmark=benchmark(tmp_path, "ocr-vqa", scorer=f"./mine.py:{name}"))


def test_a_ground_truth_that_the_rule_cannot_read_is_found_now(tmp_path):
    said = refused(tmp_path, benchmark=benchmark(tmp_path, "ocr-vqa", also=["box-iou-official"]))
    assert "data set 'ocr-vqa'" in said
    assert "is not a box like" in said


def test_a_rule_that_cannot_read_clients_records_is_found_now(tmp_path):
    """A client's record has one answer, where a test question of TextVQA has ten."""
    ten = {"scorer": "coin-textvqa", "references": ("a",) * 10}
    with pytest.raises(RunError, match=r"'b': evaluation.personal: scorer 'coin-textvqa': question 'q7': 0 answers"):
        preflight(FakeCourier({100: {}}), ["b"], tmp_path, **ten)
    preflight(FakeCourier({100: {}}), ["b"], tmp_path, pooled="all", **ten)  # no client of which is asked
    preflight(FakeCourier({100: {}}), ["b"], tmp_path, scorer="box-iou", box="[0, 0, 1, 1]")


# ---------------------------------------------------------------------- clients


class FakeCourier:
    """Nodes that answer as they are told: ``troubles[node]`` maps a data set to an error."""

    def __init__(self, troubles: dict[int, dict[str, str]], deployed: bool = True) -> None:
        self.troubles, self.deployed, self.sent = troubles, deployed, []

    @property
    def nodes(self) -> list[int]:
        return list(self.troubles)

    def client(self, node: int) -> int:
        return node - 100

    def send(self, kind, orders, group):
        orders = list(orders)
        self.sent.append([(node, order.dataset) for node, order in orders])
        for node, order in orders:
            assert kind == "evaluate"
            assert (order.first, order.last, order.names, order.tensors) == (0, 1, [], {})
            trouble = self.troubles[node].get(order.dataset)
            if trouble == "silent":
                continue
            meta = SimpleNamespace(src_node_id=node)
            error = SimpleNamespace(reason=trouble)
            texts = ["x", "y"] if trouble == "two" else ["x"]
            content = codec.encode(Answers(dataset=order.dataset, first=0, texts=texts, seconds=0.1), "float32")
            failed = trouble not in (None, "two")
            yield SimpleNamespace(metadata=meta, error=error, content=content, has_error=lambda failed=failed: failed)


def preflight(
    courier: FakeCourier, names: list[str], tmp_path: Path, scorer: str = "exact", pooled: str = "", **more
) -> list[dict]:
    said = []
    records = {name: [TestRecord("q7", (f"{name}/7.png",), "?", "a", **more)] for name in names}
    spec = SimpleNamespace(datasets={name: SimpleNamespace(scorer=scorer, also=[]) for name in names})
    stage = [[0]]
    evaluation = SimpleNamespace(personal=True if more else None)
    config = SimpleNamespace(benchmark="mine.yaml", federation=SimpleNamespace(timeout=5), evaluation=evaluation)
    bench = SimpleNamespace(
        stages=stage, test=records.__getitem__, datasets=spec.datasets, root=tmp_path, config=config
    )
    bench.owner = lambda name: bench
    method = SimpleNamespace(pooled=pooled, trains=True)
    orders = SimpleNamespace(due=lambda stage: names, untrained=lambda stage: [], text="", run="r", method=method)
    run = SimpleNamespace(path=tmp_path / "run")
    Preflight(config, bench, run, orders, courier, lambda kind, **v: said.append({"event": kind, **v})).check()
    return said


def test_no_client_is_asked_two_things_at_a_time(tmp_path):
    courier = FakeCourier({100: {}, 101: {}})
    preflight(courier, ["a", "b", "c"], tmp_path)
    assert courier.sent == [[(100, "a"), (101, "b")], [(100, "c")]]


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("image 'a/7.png' is missing under /data", "image 'a/7.png' is missing under /data"),
        ("two", "2 answers to 'a' from record 0; one answer"),
        ("silent", "no answer within 5 s (federation.timeout)"),
    ],
)
def test_a_question_without_an_answer_stops_a_simulation(tmp_path, trouble, said):
    courier = FakeCourier({100: {"a": trouble}, 101: {}}, deployed=False)
    with pytest.raises(RunError) as error:
        preflight(courier, ["a", "b"], tmp_path)
    text = str(error.value)
    assert "data set 'a': question 'q7'" in text
    assert "image 'a/7.png'" in text
    assert said in text
    assert f"fcit data check mine.yaml --root {tmp_path} --all" in text
    assert len(courier.sent) == 1


def test_a_site_in_trouble_does_not_stop_a_deployment_that_others_can_serve(tmp_path):
    courier = FakeCourier({100: {"a": "data", "b": "data"}, 101: {}})
    said = preflight(courier, ["a", "b"], tmp_path)
    assert [(e["event"], e.get("client")) for e in said] == [("evaluate-failed", 0), ("preflight", None)]
    assert courier.sent == [[(100, "a"), (101, "b")], [(101, "a")]]
    with pytest.raises(RunError, match=r"data set 'a'.*\n.*fcit client check"):
        preflight(FakeCourier({100: {"a": "data"}, 101: {"a": "data"}}), ["a"], tmp_path)


def test_nobody_there(tmp_path):
    with pytest.raises(RunError, match="no client is connected"):
        preflight(FakeCourier({}), ["a"], tmp_path)
