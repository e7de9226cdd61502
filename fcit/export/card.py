"""The model card of an export: contents, scores, usage."""

from __future__ import annotations

from fcit import registry
from fcit.data.stream import described
from fcit.data.subset import reduced
from fcit.export.format import Routing
from fcit.export.metadata import Relation, base_model, metadata
from fcit.report.scope import accepted
from fcit.report.tables import FIGURES, cell, matrix_rows, rules
from fcit.runs.reader import Run


def card(run: Run, routing: Routing) -> str:
    """``README.md`` of the export: YAML front matter as hubs read it, then Markdown."""
    parts = [
        front_matter(run, routing),
        f"# {_title(run)}",
        _what(run, routing),
        "## Results",
        _results(run),
        "## Subspaces",
        _subspaces(routing),
        "## How to use",
        _usage(routing),
        "## Licence",
        _LICENCE,
    ]
    return "\n\n".join(parts) + "\n"


def subspace(run: Run, routing: Routing, name: str) -> str:
    """``README.md`` of one subspace's folder."""
    trained = routing.trained_on.get(name)
    on = f" It was trained on {_counts(trained)}." if trained else ""
    text = (
        f"# Subspace {name}\n\nOne LoRA adapter of several that belong together.{on} What they are, how they are mixed "
        "and what they scored is in the `README.md` two folders up."
    )
    return f"{front_matter(run, routing)}\n\n{text}\n"


def front_matter(run: Run, routing: Routing, relation: Relation = "adapter") -> str:
    """Metadata for hubs, between lines of dashes."""
    return f"---\n{metadata(run, routing, relation).to_yaml()}\n---"


def merged(run: Run, routing: Routing, name: str) -> str:
    """``README.md`` of one subspace merged into the base model."""
    trained = routing.trained_on.get(name)
    on = f", trained on {_counts(trained)}" if trained else ""
    return f"""{front_matter(run, routing, "finetune")}

# {_title(run)}, subspace {name} merged

`{base_model(routing.backbone.model)}` with the weights of one LoRA subspace of several added to its own{on}. It answers
every question with this subspace; the routing of the run, which the results above are of, is not part of it.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("DIR")
processor = AutoProcessor.from_pretrained("DIR")
```

{_what(run, routing)}

## Licence

{_LICENCE}
"""


def _title(run: Run) -> str:
    return f"{base_model(run.config.backbone.model)} tuned by {registry.label(str(run.config.method['name']))}"


def _what(run: Run, routing: Routing) -> str:
    config = run.config
    federation, adapter = config.federation, config.adapter
    made = "federated continual instruction tuning"
    by = f"{federation.clients} clients, {federation.clients_per_round} in each of {federation.rounds} rounds per stage"
    if config.centralised:
        made, by = "continual instruction tuning", f"one participant, {config.training.epochs} epochs of each task"
    projector = {
        "shared": "one projector, trained by all, is in every folder (`modules_to_save`)",
        "per_subspace": "each brings a trained projector of its own (`modules_to_save`)",
        "frozen": "the projector is the backbone's own",
    }[routing.projector]
    method = registry.resolve("method", str(routing.method["name"]))
    how = method(config.model_copy(update={"method": routing.method})).answers
    count = len(routing.subspaces)
    return (
        f"{count} LoRA subspace{'' if count == 1 else 's'} (rank {adapter.rank}, alpha {adapter.alpha:g}) on "
        f"`{base_model(routing.backbone.model)}`, made by {made} with `fcit`: {described(config)}, {by}, "
        f"{routing.stage} stages. {how} In the language model's layers "
        f"`{adapter.targets}`; {projector}."
    )


def _results(run: Run) -> str:
    config, matrix = run.config, run.matrix
    parts = [f"> **Reduced** numbers, not comparable with full ones: {why}." for why in reduced(config)]
    parts += [f"> {sentence}" for sentence in accepted(run)]
    if config.backbone.model == "fcit-tiny":
        parts.append("> fcit-tiny is a toy of a few million parameters: these numbers say nothing about a real model.")
    scorers = ", ".join(f"{name} `{registry.label(rule)}`" for name, rule in run.results.get("scorers", {}).items())
    parts.append(
        f"Scores (0 to 100) on each data set's {config.evaluation.split} questions after each stage that was evaluated"
        f"{f', by these rules: {scorers}' if scorers else ''}."
    )
    summary = matrix.summary()
    figures = [matrix.avg_name if name == "Avg" else name for name in FIGURES]
    parts += [markdown(matrix_rows(run)), markdown([figures, [cell(summary[name]) for name in FIGURES]])]
    other_rules = rules(run)
    if len(other_rules) > 1:
        parts.append(markdown(other_rules))
    parts.append(
        "Last: mean of the last row. Avg: mean over stages of the mean over the data sets seen. MFT: mean when first "
        "seen. BWT: mean change since then. Forgetting: mean loss against the best score before the last stage."
        + (" Best constant answer: one text to every question, the best of some." if run.constants else "")
    )
    return "\n\n".join(parts)


def _subspaces(routing: Routing) -> str:
    rows = [["folder", "trained on (records in all rounds)"]]
    rows += [[f"`subspaces/{n}`", _counts(routing.trained_on.get(n, {})) or "not known"] for n in routing.subspaces]
    if not routing.formats:
        return markdown(rows)
    formats = [["data set", "last line of an instruction"], *([n, line] for n, line in routing.formats.items())]
    return f"{markdown(rows)}\n\nRouting goes by wording, format line included:\n\n{markdown(formats)}"


def _counts(trained: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in trained.items())


def _usage(routing: Routing) -> str:
    name, base = routing.subspaces[0], f'"{base_model(routing.backbone.model)}"'
    where = ""
    if routing.backbone.model == "fcit-tiny":  # no hub has it
        where, base = "from fcit.models.backbone import TINY\n", 'TINY / "llava"'
    upright = ""
    if routing.pictures == "upright":
        upright = (
            "\n\nPictures were turned as their EXIF says, and transparency was laid on white (`data.pictures: "
            "upright`). fcit does so here; with plain peft it is up to you."
        )
    return f"""All together, each question routed as in the run (`pip install fcit`):

```python
import fcit

assistant = fcit.load("DIR")
print(assistant.answer(["image.png"], ["What is this?"])[0])
```

or `fcit chat DIR --image image.png "What is this?"`. The backbone is compared by hash
(`{routing.hashes.get("backbone", "not known")}`); `backbone=` says where it lies.

One subspace alone, with plain peft:

```python
{where}from peft import PeftModel
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained({base})
model = PeftModel.from_pretrained(base, "DIR/subspaces/{name}")
```

`routing.json` and `tokens.safetensors` hold the mix: method, its options, identity tokens.{upright}"""


_LICENCE = (
    "Not stated: whoever publishes this folder chooses one that the licences of the base model and of the training "
    "data allow, and adds `license:` to the front matter."
)


def markdown(rows: list[list[str]]) -> str:
    """A table; the first row is its head."""
    clean = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in rows]
    head, *body = ["| " + " | ".join(row) + " |" for row in clean]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
