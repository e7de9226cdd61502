"""The benchmark of a run as tasks of lmms-eval, so that other models are asked the same questions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from fcit import __version__
from fcit.data.benchmark import Benchmark, open_benchmark
from fcit.errors import ConfigError
from fcit.export import lmms
from fcit.io.files import write_text, writing
from fcit.runs.reader import Run

UTILS = '''"""What the tasks in this folder call; needs `pip install fcit` beside lmms-eval."""

from fcit.export.lmms import doc_to_text, doc_to_visual, process_results, score

__all__ = ["doc_to_text", "doc_to_visual", "process_results", "score"]
'''


class _Function(str):
    """The name of a function in ``utils.py``: ``!function utils.NAME`` in YAML."""


class _Dumper(yaml.SafeDumper):
    """Writes :class:`_Function` as lmms-eval reads it."""


def _represented(dumper: _Dumper, name: _Function) -> yaml.Node:
    return dumper.represent_scalar("!function", str(name))


_Dumper.add_representer(_Function, _represented)


def write_tasks(run: str | Path, to: str | Path) -> Path:
    """Write a task for each data set of a run's benchmark, and a group of all, to the folder ``to``.

    ``NAME.yaml`` is the task ``fcit_BENCHMARK_NAME``, ``NAME.jsonl`` its questions and truths, ``_group.yaml`` the
    group ``fcit_BENCHMARK``. Images stay where they are; their folder is named in every row.

    Raises:
        ConfigError: no run, its data are not there, or ``to`` is not empty.
    """
    target, source = Path(to), Run(run)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--tasks: {str(target)!r} is not an empty folder; name another one")
    benchmark = open_benchmark(source.config)
    names = source.matrix.datasets
    if len({_word(name) for name in names}) < len(names):
        raise ConfigError(f"--tasks: names of data sets differ in blanks or marks alone: {', '.join(names)}")
    benchmark.prepare(names)
    group = _group(benchmark.spec.name)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            _task(target, benchmark, group, name)
        write_text(
            target / "_group.yaml", _yaml({"group": group, "task": [f"{group}_{_word(name)}" for name in names]})
        )
        write_text(target / "utils.py", UTILS)
    return target


def _task(target: Path, benchmark: Benchmark, group: str, name: str) -> None:
    config, spec = benchmark.config, benchmark.datasets[name]
    file = target / f"{_word(name)}.jsonl"
    rows = [lmms.row(r, benchmark.image_root, spec.scorer, config.data.pictures) for r in benchmark.test(name)]
    write_text(file, "".join(f"{json.dumps(row)}\n" for row in rows))
    task: dict[str, Any] = {
        "task": f"{group}_{_word(name)}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file.resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_visual": _Function("utils.doc_to_visual"),
        "doc_to_text": _Function("utils.doc_to_text"),
        "doc_to_target": "answer",
        "generation_kwargs": {
            "max_new_tokens": config.evaluation.longest(spec.max_new_tokens),
            "temperature": 0,
            "num_beams": 1,
            "do_sample": False,
        },
        "process_results": _Function("utils.process_results"),
        "metric_list": [
            {"metric": lmms.METRIC, "aggregation": _Function("utils.score"), "higher_is_better": True},
        ],
        "metadata": [{"version": __version__, "benchmark": benchmark.spec.name, "rule": spec.scorer}],
    }
    write_text(target / f"{_word(name)}.yaml", _yaml(task))


def _yaml(value: dict[str, Any]) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def _group(benchmark: str) -> str:
    """The group's name, which begins every task's and tells them from those of lmms-eval."""
    return f"fcit_{_word(benchmark).removeprefix('fcit_')}"


def _word(name: str) -> str:
    """A name as tasks have it."""
    return re.sub(r"\W+", "_", name).strip("_").lower()
