"""The metadata of a model card: what hubs read of it, by huggingface_hub's own classes."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Literal

from huggingface_hub import EvalResult, ModelCardData

from fcit import registry
from fcit.data.shipped import shipped
from fcit.data.spec import BenchmarkSpec, read_spec
from fcit.data.subset import reduced
from fcit.export.format import Routing
from fcit.report.tables import FIGURES
from fcit.runs.reader import Run

TASK = "image-text-to-text"
#: How hubs name what an export is of its base model.
Relation = Literal["adapter", "finetune"]
#: ``organisation/name`` or ``name`` as hubs have it; not a path on the run's machine.
_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def base_model(model: str) -> str:
    """The backbone's name without folders of the run's machine."""
    return model if _HUB.fullmatch(model) else PurePath(model).name


def metadata(run: Run, routing: Routing, relation: Relation = "adapter") -> ModelCardData:
    """Base model, library, data sets, tags and results. No licence, which is for the owner to choose."""
    base = base_model(routing.backbone.model)
    federated = [] if run.config.centralised else ["federated-learning"]
    lora = ["lora"] if relation == "adapter" else []
    data = hub_datasets(run.config.benchmark)
    return ModelCardData(
        base_model=base,
        base_model_relation=relation,
        library_name="peft" if relation == "adapter" else "transformers",
        pipeline_tag=TASK,
        datasets=data or None,
        tags=[f"base_model:{relation}:{base}", *lora, *federated, "continual-learning", "fcit"],
        model_name=run.name,
        eval_results=results(run, data),
    )


def hub_datasets(benchmark: str) -> list[str]:
    """Repositories of a hub that the benchmark names as its sources; others cannot be named where hubs link to them.

    A benchmark file of one's own may have gone since the run: then none is known.
    """
    spec = _spec(benchmark)
    if spec is None:
        return []
    named = [source.hub for source in spec.sources if source.hub is not None]
    named += [
        file.removeprefix("hub:").partition("#")[0]
        for dataset in spec.datasets.values()
        for file in (dataset.train, dataset.test)
        if file.startswith("hub:")
    ]
    return list(dict.fromkeys(named))


def _spec(name: str) -> BenchmarkSpec | None:
    known = name in shipped() or (Path(name).suffix in (".yaml", ".yml") and Path(name).is_file())
    return read_spec(name) if known else None


def results(run: Run, data: list[str]) -> list[EvalResult]:
    """The last row of the accuracy matrix and the figures of merit, as results of a model index (0 to 100).

    What makes numbers reduced ones stands beside each (``dataset.args``).
    """
    config, matrix = run.config, run.matrix
    spec, split = _spec(config.benchmark), config.evaluation.split
    benchmark = spec.name if spec else PurePath(config.benchmark).stem
    rules = run.results.get("scorers", {})
    why = reduced(config)
    args = {"reduced": why} if why else None

    def result(name: str, subset: str | None, kind: str, value: float, what: str) -> EvalResult:
        return EvalResult(
            task_type=TASK,
            dataset_type=data[0] if data else benchmark,
            dataset_name=name,
            dataset_config=subset,
            dataset_split=split,
            dataset_args=args,
            metric_type=kind,
            metric_value=round(value, 2),
            metric_name=what,
        )

    found = []
    for name, score in matrix.scores[-1].items():
        rule = registry.label(str(rules.get(name, "score")))
        found.append(result(f"{name} ({benchmark})", name, rule, score, f"{rule}, after the last stage"))
    for name, value in matrix.summary().items():
        if value is not None and name in FIGURES:
            shown = matrix.avg_name if name == "Avg" else name
            found.append(result(benchmark, "all", name.lower(), value, shown))
    return found
