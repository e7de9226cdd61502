"""``fcit evaluate``: scores a file of predictions by the official rules."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from fcit import registry
from fcit.cli.commands import Add
from fcit.errors import EXIT_OK

_TEXT = """\
The file holds JSON lines with question_id and text, as the official scripts of FCIT, UCIT and MLLM-CL write them, and
as run folders hold them (predictions/stage-N/DATASET.jsonl). The sum is divided by the number of lines, as officially;
lines that are missing or repeated are reported. Where questions demand a form of answers (`fcit list form`), the share
that has it is shown, and the scores of the answers once their form is mended."""
_EXAMPLE = """\
fcit evaluate --predictions merge.jsonl --dataset grounding --benchmark fcit-cap --root /data/fcit
  fcit evaluate --predictions runs/task-disco-1/predictions/stage-8/iconqa.jsonl --dataset iconqa \\
      --benchmark fcit-mini-task
  fcit list scorer                                       the rules for --rule"""


def arguments(add: Add) -> None:
    """Declare the command."""
    command = add("evaluate", _evaluate, "score a file of predictions by the official rules", _EXAMPLE, _TEXT)
    command.add_argument("--predictions", type=Path, required=True, metavar="FILE", help="JSON lines")
    command.add_argument("--dataset", required=True, help="which data set of the benchmark was answered")
    command.add_argument("--benchmark", default="fcit-task", help="shipped, or a YAML file (default: fcit-task)")
    command.add_argument("--root", metavar="DIR", help="data root (default: built-in data sets are rendered)")
    command.add_argument(
        "--split", choices=["test", "val"], default="test", help="which questions were answered (default: test)"
    )
    command.add_argument("--rule", metavar="SCORER", help="score by this rule and not by the data set's own")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _evaluate(args: argparse.Namespace) -> int:
    """Score the file and print the scores; returns the exit code."""
    from fcit import config as configuration
    from fcit.data.benchmark import open_benchmark, root_of
    from fcit.data.spec import read_spec
    from fcit.evaluation.scoring import rules, score_file

    raw = {"benchmark": args.benchmark, "data_root": args.root, "evaluation": {"split": args.split}}
    config = configuration.resolve(raw, Path.cwd(), "fcit evaluate")
    if not registry.is_own(config.benchmark):
        root_of(read_spec(config.benchmark), config.data_root, "--root", "--root /data/fcit")  # whose error names it
    benchmark = open_benchmark(config, trains=False)
    rules(benchmark, args.dataset, args.rule)  # before anything is rendered
    if benchmark.spec.source == "mini":
        benchmark.prepare([args.dataset])
    scores = score_file(benchmark, args.dataset, args.predictions, args.rule)
    for text in scores.warnings:
        print(f"fcit: {args.predictions}: {text}", file=sys.stderr)
    if args.json:
        head = {"predictions": str(args.predictions), "benchmark": benchmark.spec.name, "dataset": args.dataset}
        print(json.dumps({**head, **asdict(scores)}, indent=1))
        return EXIT_OK
    print(f"{args.dataset} of {benchmark.spec.name}: {scores.lines} predictions, {scores.questions} questions")
    for score in scores.scores:
        print(f"  {score.rule:20} {score.score:7.2f}  {'official rule' if score.official else 'our definition'}")
        for name, value in score.details.items():
            print(f"    {name:18} {value:7.2f}")
    first = scores.scores[0]
    if first.form_share is not None:
        count, forms = sum(first.demanded.values()), ", ".join(first.demanded)
        print(f"form ({forms}): {first.form_share:.2f} % of {count} answers have it; with their form mended:")
        for score in scores.scores:
            print(f"  {score.rule:20} {score.content:7.2f}")
    return EXIT_OK
