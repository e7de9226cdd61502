"""Three sites bring data that no benchmark file mentions, and begin new tasks at different times."""

import json
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from flwr.app import Context, Message, RecordDict
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clients.app import app as client_app
from fcit import config as configuration
from fcit.data.mini.render import VERSION, ensure
from fcit.errors import ConfigError
from fcit.federation import codec
from fcit.federation.engines.inline import InlineGrid
from fcit.federation.nodes import FIRST_NODE
from fcit.io.cache import cache_folder
from fcit.report.page import write_page
from fcit.report.tables import participant_rows
from fcit.runs.environment import describe
from fcit.runs.folder import RunDir
from fcit.runs.reader import Run
from server.app import run as serve
from tests.helpers.runs import BACKBONE

#: Stands in file names, image metadata and ids of every site.
CANARY = "zq7canary31"
#: What each site holds, and from which stage on.
STREAMS = [
    [("clevr-math", "CLEVR-Math", 0), ("ocr-vqa", "OCRVQA", 2)],
    [("iconqa", "IconQA", 0), ("super-clevr", "super-CLEVR", 1)],
    [("figureqa", "FigureQA", 0)],
]


class Sites(InlineGrid):
    """Virtual clients with a SITE.yaml each, as their SuperNodes would have."""

    def __init__(self, files: list[Path]) -> None:
        super().__init__(client_app, len(files))
        self._files = files
        self.sent = b""  # all that left a site

    def _work(self, message: Message) -> Message:
        reply = super()._work(message)
        if reply.has_error():
            self.sent += reply.error.reason.encode()
        else:
            head, arrays = codec.take_apart(reply.content)
            self.sent += head.encode() + b"".join(array.data for array in arrays.values())
        return reply

    def _context(self, node: int) -> Context:
        if node not in self._contexts:
            config = {"site": str(self._files[node - FIRST_NODE])}
            self._contexts[node] = Context(
                run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={}
            )
        return self._contexts[node]


def rows_of(mini: Path, dataset: str, folder: str, split: str, count: int, data: Path) -> list[dict]:
    """Records of a rendered dataset under image names of the site's own."""
    rows = json.loads((mini / "instructions" / folder / f"{split}.json").read_text())[:count]
    for number, row in enumerate(rows):
        name = f"{CANARY}-{dataset}-{split}-{number}.png"
        note = PngInfo()
        note.add_text("Comment", CANARY)
        Image.open(mini / "datasets" / row["image"]).save(data / "ward-photos" / name, pnginfo=note)
        row["image"], row["id"] = name, f"{CANARY}-{number}"
    return rows


def site(folder: Path, number: int, stream: list[tuple[str, str, int]], mini: Path) -> Path:
    """A SITE.yaml with its data beside it."""
    data = folder / "data"
    (data / "ward-photos").mkdir(parents=True)
    tasks = []
    for dataset, source, start in stream:
        ensure(dataset, mini)
        for split, count in (("train", 24), ("test", 8)):
            rows = rows_of(mini, dataset, source, split, count, data)
            (data / f"{dataset}-{split}.json").write_text(json.dumps(rows))
        tasks.append(
            {
                "train": f"{dataset}-train.json",
                "test": f"{dataset}-test.json",
                "images": "ward-photos",
                "start_stage": start,
            }
        )
    path = folder / "SITE.yaml"
    raw = {"name": str(number), "data_root": "data", "stream": "site", "tasks": tasks}
    path.write_text(yaml.safe_dump({**raw, **BACKBONE}))
    return path


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> tuple[Run, bytes]:
    """Three sites, three stages of one round: the run, and every byte that left a site."""
    folder = tmp_path_factory.mktemp("sites")
    mini = cache_folder() / VERSION
    files = [site(folder / f"site-{n}", n, stream, mini) for n, stream in enumerate(STREAMS)]
    raw = {
        "name": "own",
        "stream": "site",
        "method": "disco",
        "output": str(folder),
        "backbone": BACKBONE,
        "federation": {"clients": 3, "clients_per_round": 3, "rounds": 1, "stages": 3},
    }
    config = configuration.parse(raw)
    path = RunDir.create(folder, "own", configuration.dump(config), describe()).path
    with closing(Sites(files)) as grid:
        serve(path, grid)
    return Run(path), grid.sent


@pytest.fixture
def finished(played) -> Run:
    return played[0]


def test_new_tasks_at_different_times_are_found_and_scored(finished):
    rows = finished.matrix.scores
    assert [sorted(row) for row in rows] == [
        ["0.0", "1.0", "2.0"],
        ["0.0", "1.0", "1.1", "2.0"],
        ["0.0", "0.1", "1.0", "1.1", "2.0"],
    ]
    assert finished.results["subspaces"] == 5
    # A site that goes on with its task stays in its subspace, one that begins another opens one.
    by_stage = [event["subspaces"] for event in finished.of("round")]
    assert [len(set(stage) & set(by_stage[0])) for stage in by_stage] == [3, 2, 1]


def test_each_site_and_the_worst_one_stand_beside_the_mean(finished):
    last = finished.matrix.scores[-1]
    sites = finished.results["sites"]
    assert sites["0"] == pytest.approx((last["0.0"] + last["0.1"]) / 2, abs=1e-3)
    worst = finished.results["worst_site"]
    assert worst["score"] == min(sites.values()) == sites[worst["site"]]


def test_nothing_about_records_or_pictures_leaves_a_site(played):
    run, sent = played
    assert len(sent) > 1_000_000
    assert CANARY.encode() not in sent
    kept = b"".join(file.read_bytes() for file in run.path.rglob("*") if file.is_file())
    for secret in (CANARY, "clevr-math", "super-clevr", "ward-photos"):
        assert secret.encode() not in kept
    assert not list(run.folder.predictions.rglob("*.jsonl"))


def test_the_page_does_without_answers_and_shows_every_site(finished, tmp_path):
    write_page([finished], tmp_path / "page.html")
    assert "Score of every site, worst first" in (tmp_path / "page.html").read_text()
    head, *rows = participant_rows(finished)
    assert head == ["site", "Last"]
    assert rows[0] == [finished.results["worst_site"]["site"], f"{finished.results['worst_site']['score']:.1f}"]
    assert {name for name, _ in rows} == set(finished.results["sites"])


@pytest.mark.parametrize("method", ["joint", "individual"])
def test_references_that_need_the_data_are_refused(tmp_path, method):
    config = configuration.parse({"stream": "site", "method": method, "output": str(tmp_path)})
    path = RunDir.create(tmp_path, "own", configuration.dump(config), describe()).path
    with pytest.raises(ConfigError, match="stream"), closing(InlineGrid(client_app, 50)) as grid:
        serve(path, grid)
