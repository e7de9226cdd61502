"""What a resident worker saves a site: ``python -m tests.evidence.site_worker`` (part of ``make evidence``).

Seconds from an order's sending to its first training step, three orders each with ``worker: process`` (a fresh
process for every order, as stock Flower does) and ``worker: resident``, fcit-tiny, through a real SuperLink with
TLS and one SuperNode on loopback. Both share Flower's own waiting (a SuperNode asks for work every 3 s).
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path

from fcit import config as configuration
from fcit.data.benchmark import open_benchmark
from tests.helpers.superlink import Site, SuperLink

RESULT = Path(__file__).parent / "results" / "site_worker.json"
ORDERS = 3
CONFIG = {
    "benchmark": "fcit-mini-short",
    "method": "finetune",
    "federation": {"clients": 20, "clients_per_round": 1},
    "backbone": {"threads": 1},
}

PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "orders"
version = "1.0.0"
description = "sends a few training orders and writes down when"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "tests"
fab-include = ["ordering/**/*.py"]
[tool.flwr.app.components]
serverapp = "ordering.app:app"
clientapp = "ordering.app:client"
[tool.flwr.app.config]
"""

SERVER = """\
import json, time
from pathlib import Path
import numpy as np
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from fcit.federation import codec
from fcit.federation.messages import ClientUpdate, Probe, ProbeOrder, TrainOrder

app = ServerApp()
client = ClientApp()
TEXT = {config!r}

def ask(grid, node, order, kind, answer):
    sent = time.time()
    reply, = grid.send_and_receive([Message(codec.encode(order), dst_node_id=node, message_type=kind)], timeout=300)
    if reply.has_error():
        raise RuntimeError(reply.error.reason)
    return sent, time.time(), codec.decode(reply.content, answer)

@app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    probe = ask(grid, nodes[0], ProbeOrder(config=TEXT, run="evidence"), "query.probe", Probe)[2]
    tensors = {{n: np.zeros(s, np.float32) for n, s in probe.shapes.items()}} | probe.tensors
    times = []
    for number in range({orders}):
        order = TrainOrder(
            config=TEXT,
            stage=0,
            round=number,
            client=0,
            shard="shard",
            tasks=[0],
            subspace="0",
            tensors=tensors,
            run="evidence",
        )
        sent, received, update = ask(grid, nodes[0], order, "train", ClientUpdate)
        times.append({{"sent": sent, "received": received, "training": update.seconds, "steps": update.steps}})
    Path({result!r}).write_text(json.dumps(times))
"""

#: Imported by every Python of the site: notes when a learning rate is asked for the first time.
NOTING = """\
import importlib.util, os, sys, time

class Noting:
    def find_spec(self, name, path=None, target=None):
        if name != "clients.worker.training":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            rates = module.learning_rates
            def noting(*arguments):
                with open(os.environ["FIRST_STEPS"], "a") as file:
                    file.write(f"{time.time()}\\n")
                yield from rates(*arguments)
            module.learning_rates = noting
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Noting())
"""


def measure(superlink: SuperLink, folder: Path, kind: str, data: Path) -> dict[str, list[float]]:
    """Seconds to the first step, and to the reply, of each order."""
    folder.mkdir()
    app = folder / "app"
    (app / "ordering").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "ordering" / "__init__.py").write_text("")
    text = configuration.dump(configuration.parse(CONFIG, "evidence"))
    server = SERVER.format(config=text, orders=ORDERS, result=str(folder / "times.json"))
    (app / "ordering" / "app.py").write_text(server)
    (folder / "noting").mkdir()
    (folder / "noting" / "sitecustomize.py").write_text(NOTING)
    os.environ |= {"FIRST_STEPS": str(folder / "first"), "PYTHONPATH": str(folder / "noting")}
    site = Site(folder / "site", superlink, apps=[superlink.pin(app)], worker=kind, threads=1, data_root=str(data))
    superlink.register(site.folder / "site.key.pub", "0")
    with site:
        status = superlink.submit(app)
        assert status == "finished:completed", site.logs() + (superlink.folder / "superlink.log").read_text()
    del os.environ["PYTHONPATH"]
    times = json.loads((folder / "times.json").read_text())
    first = [float(line) for line in (folder / "first").read_text().split()]
    assert len(first) == ORDERS
    return {
        "first_step": [round(at - t["sent"], 2) for at, t in zip(first, times, strict=True)],
        "reply": [round(t["received"] - t["sent"], 2) for t in times],
        "training": [round(t["training"], 2) for t in times],
    }


def main() -> None:
    """Measure both and write the result."""
    benchmark = open_benchmark(configuration.parse(CONFIG, "evidence"))
    benchmark.prepare()
    os.environ["FCIT_CACHE"] = os.environ.get("FCIT_CACHE", str(Path.home() / ".cache" / "fcit"))
    with tempfile.TemporaryDirectory() as folder:
        with SuperLink(Path(folder) / "superlink-process") as superlink:
            process = measure(superlink, Path(folder) / "process", "process", benchmark.root)
        with SuperLink(Path(folder) / "superlink-resident") as superlink:
            resident = measure(superlink, Path(folder) / "resident", "resident", benchmark.root)
    ratio = statistics.median(process["first_step"]) / statistics.median(resident["first_step"])
    figures = {"orders": ORDERS, "process": process, "resident": resident, "ratio_of_medians": round(ratio, 2)}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
