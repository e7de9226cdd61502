"""The benchmarks that are asked and never trained (``evaluation.held_out``)."""

from __future__ import annotations

from fcit import registry
from fcit.data.benchmark import Benchmark, root_of
from fcit.data.spec import read_spec
from fcit.errors import ConfigError


def owners(benchmark: Benchmark) -> dict[str, Benchmark]:
    """As :attr:`Benchmark.held_out`; verdicts, formats and warnings are written into the benchmark's own.

    Raises:
        ConfigError: an unknown benchmark or data set, no data root, or a name that is taken.
    """
    config, by_name = benchmark.config, dict[str, Benchmark]()
    for number, entry in enumerate(config.evaluation.held_out):
        key = f"evaluation.held_out.{number}"
        try:
            spec = read_spec(entry.benchmark)
        except ConfigError as error:
            raise ConfigError([f"{key}.{problem}" for problem in error.problems]) from None
        names = entry.only or list(spec.datasets)
        for name in names:
            if name not in spec.datasets:
                hint = registry.nearest(name, list(spec.datasets))
                raise ConfigError(
                    f"{key}.only: {spec.name!r} has no data set {name!r}{hint} (it has: {', '.join(spec.datasets)})"
                )
            if name in benchmark.datasets or name in by_name:
                other = benchmark.name if name in benchmark.datasets else by_name[name].name
                raise ConfigError(
                    f"{key}: {spec.name!r} and {other!r} both have a data set {name!r}, and what is held out is not "
                    f"trained; name others, e.g. {{benchmark: {entry.benchmark}, only: [...]}}"
                )
        # The run's data root is of its own benchmark's kind: files of a user, or rendered.
        given = config.data_root if spec.source == benchmark.spec.source else None
        example = f"{{benchmark: {entry.benchmark}, data_root: /data/{spec.name}}}"
        root = root_of(spec, entry.data_root or given, f"{key}.data_root", example)
        named = config.model_copy(update={"benchmark": entry.benchmark, "data_root": str(root)})
        # Their training files need not be there.
        asked = {name: spec.datasets[name].model_copy(update={"train": ""}) for name in names}
        spec = spec.model_copy(update={"datasets": asked, "tasks": []})
        notes = benchmark.judge, benchmark.verdicts, benchmark.formats, benchmark.warnings
        by_name |= dict.fromkeys(names, Benchmark(spec, root, named, *notes))
    return by_name
