"""Requests a second of ``fcit serve`` with 200 at a time, against the same questions one by one without a server.

``python -m tests.evidence.serve [RUN]`` writes ``results/serve.json``. The questions are test questions of a run of
``configs/demo-disco.yaml`` (made first if no run is named), most to the run, every fifth to one subspace alone; the
images travel as data URLs. One by one is what ``fcit chat`` does with a loaded model; the server runs in a process of
its own, its client in another, on the same cores. Both are done in turn, three times. CPU seconds, which other work on
the machine hardly changes, are told beside those on the clock: the server's process and the client's together.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from itertools import chain, cycle, islice
from pathlib import Path

import openai
import psutil
import torch

import fcit
from fcit.cli import main as command
from fcit.data.benchmark import open_benchmark
from fcit.export.assistant import Assistant
from fcit.io.files import write_text
from fcit.runs.environment import versions
from fcit.runs.reader import Run
from tests.helpers.serving import served

RESULT = Path(__file__).parent / "results" / "serve.json"
CONFIG = Path(__file__).parents[2] / "configs" / "demo-disco.yaml"
COUNT, TURNS, EVERY = 200, 3, 5

#: Image, text, and the subspace that answers alone, if one does.
Case = tuple[Path, str, str | None]


def cases(path: Path) -> list[Case]:
    """Test questions of the run's data sets, in turn."""
    run = Run(path)
    root = open_benchmark(run.config).image_root
    asked = zip(*(run.predictions(name) for name in run.matrix.datasets), strict=False)
    names = cycle(run.subspaces)
    records = islice(cycle(chain.from_iterable(asked)), COUNT)
    return [
        (root / record.image, record.prompt, next(names) if number % EVERY == 0 else None)
        for number, record in enumerate(records)
    ]


def alone(assistant: Assistant, asked: list[Case]) -> tuple[float, list[str]]:
    """Seconds and texts of questions one by one."""
    begin = time.perf_counter()
    texts = [assistant.answer([image], [text], None, subspace)[0].text for image, text, subspace in asked]
    return time.perf_counter() - begin, texts


def spent(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds of processes so far."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


async def together(url: str, asked: list[Case]) -> tuple[float, list[str]]:
    """Seconds and texts of requests at the same time."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=600)

    async def one(image: Path, text: str, subspace: str | None) -> str:
        data = f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": text}]
        model = "run" if subspace is None else f"run/{subspace}"
        reply = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}])
        return reply.choices[0].message.content

    async with client:
        await client.models.list()  # the server's start
        begin = time.perf_counter()
        texts = await asyncio.gather(*(one(*case) for case in asked))
        return time.perf_counter() - begin, list(texts)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="run folder (default: one is made)")
    parser.add_argument("--turns", type=int, default=TURNS, help=f"how often both are done (default: {TURNS})")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        path = args.run
        if path is None:
            assert command(["run", str(CONFIG), f"output={scratch}"]) == 0
            path = next(Path(scratch).iterdir())
        assistant, asked = fcit.load(path), cases(path)
        alone(assistant, asked[:5])
        seconds: dict[str, list[float]] = {"alone": [], "together": []}
        cpu: dict[str, list[float]] = {"alone": [], "together": []}
        same = COUNT
        load = os.getloadavg()[0]
        with served(assistant, waiting=COUNT, seconds=600.0) as (url, server):
            processes = psutil.Process(), psutil.Process(server.pid)
            for _ in range(args.turns):
                begin = spent(processes)
                taken, texts = alone(assistant, asked)
                seconds["alone"].append(taken)
                between = spent(processes)
                taken, others = asyncio.run(together(url, asked))
                seconds["together"].append(taken)
                cpu["alone"].append(between - begin)
                cpu["together"].append(spent(processes) - between)
                same = min(same, sum(a == b for a, b in zip(texts, others, strict=True)))
    rates = {name: round(COUNT / statistics.median(taken), 2) for name, taken in seconds.items()}
    result = {
        "questions": COUNT,
        "subspaces": len(assistant.subspaces),
        "seconds": {name: [round(value, 2) for value in taken] for name, taken in seconds.items()},
        "requests_per_second": rates,
        "cpu_seconds": {name: [round(value, 2) for value in taken] for name, taken in cpu.items()},
        "cpu_ratios": [round(a / b, 2) for a, b in zip(cpu["alone"], cpu["together"], strict=True)],
        "ratios": [round(a / b, 2) for a, b in zip(seconds["alone"], seconds["together"], strict=True)],
        "same_texts": same,
        "cores": os.cpu_count(),
        "load_before": round(load, 1),
        "versions": versions(),
    }
    write_text(RESULT, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
