"""Kinds of interchangeable parts: name -> dotted path, imported when first used.

Adding a part means one file and one line here; ``fcit --help`` is fast because parts are
imported when first used. A configuration may also name a part that is not in the
tables: ``my_package.my_file:MyMethod`` or ``./my_method.py:MyMethod``.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from fcit.errors import ConfigError
from fcit.io import bounded

METHODS = {
    "clmoe": "fcit.methods.clmoe:CLMoE",
    "disco": "fcit.methods.disco:Disco",
    "dop": "fcit.methods.dop:DOP",
    "ewc": "fcit.methods.ewc:EWC",
    "finetune": "fcit.methods.finetune:Finetune",
    "hide": "fcit.methods.hide:HiDe",
    "individual": "fcit.methods.individual:Individual",
    "joint": "fcit.methods.joint:Joint",
    "keeplora": "fcit.methods.keeplora:KeepLoRA",
    "l2p": "fcit.methods.l2p:L2P",
    "lwf": "fcit.methods.lwf:LwF",
    "mlora": "fcit.methods.mlora:MLoRA",
    "modalprompt": "fcit.methods.modalprompt:ModalPrompt",
    "moelora": "fcit.methods.moelora:MoELoRA",
    "mrlora": "fcit.methods.mrlora:MRLoRA",
    "olora": "fcit.methods.olora:OLoRA",
    "opcm": "fcit.methods.opcm:OPCM",
    "prism": "fcit.methods.prism:Prism",
    "proglora": "fcit.methods.proglora:ProgLoRA",
    "replay": "fcit.methods.replay:Replay",
    "sacuir": "fcit.methods.sacuir:SACUIR",
    "same": "fcit.methods.same:SAME",
    "sefe": "fcit.methods.sefe:SEFE",
    "smolora": "fcit.methods.smolora:SMoLoRA",
    "zero_shot": "fcit.methods.zero_shot:ZeroShot",
}

FEDOPTS = {
    "fedadagrad": "fcit.fedopt.fedadagrad:FedAdagrad",
    "fedadam": "fcit.fedopt.fedadam:FedAdam",
    "fedavg": "fcit.fedopt.fedavg:FedAvg",
    "fedavgm": "fcit.fedopt.fedavgm:FedAvgM",
    "fedprox": "fcit.fedopt.fedprox:FedProx",
    "fedyogi": "fcit.fedopt.fedyogi:FedYogi",
    "scaffold": "fcit.fedopt.scaffold:Scaffold",
}

#: Families of multimodal models by ``model_type`` in config.json; ``generic`` by ``backbone.family`` alone.
MODELS = {
    "gemma3": "fcit.models.families.gemma3:Gemma3",
    "generic": "fcit.models.families.generic:Generic",
    "idefics3": "fcit.models.families.idefics3:Idefics3",
    "internvl": "fcit.models.families.internvl:InternVL",
    "llava": "fcit.models.families.llava:Llava",
    "llava_next": "fcit.models.families.llava_next:LlavaNext",
    "llava_onevision": "fcit.models.families.llava_onevision:LlavaOnevision",
    "qwen2_5_vl": "fcit.models.families.qwen:Qwen",
    "qwen3_vl": "fcit.models.families.qwen3:Qwen3",
    "smolvlm": "fcit.models.families.idefics3:SmolVLM",
}

FACTORS = {
    "alternate": "fcit.fedopt.factors:Alternate",
    "fedex": "fcit.fedopt.stacked:FedEx",
    "fedsa": "fcit.fedopt.fedsa:FedSA",
    "flora": "fcit.fedopt.stacked:Flora",
    "frozen_a": "fcit.fedopt.factors:FrozenA",
    "hetlora": "fcit.fedopt.hetlora:Hetlora",
    "hlora": "fcit.fedopt.factors:Hlora",
    "separate": "fcit.fedopt.factors:Separate",
    "svd": "fcit.fedopt.factors:Svd",
}

ROBUST = {
    "median": "fcit.fedopt.robust:Median",
    "none": "fcit.fedopt.robust:Off",
    "norm_clip": "fcit.fedopt.robust:NormClip",
    "trimmed_mean": "fcit.fedopt.robust:TrimmedMean",
}

SCORERS = {
    "acl-gui-local": "fcit.evaluation.acl:gui_local",
    "acl-math-local": "fcit.evaluation.acl:math_local",
    "acl-ocr": "fcit.evaluation.acl:ocr",
    "acl-ocr-clean": "fcit.evaluation.acl:ocr_clean",
    "acl-vp": "fcit.evaluation.acl:vp",
    "acl-vp-clean": "fcit.evaluation.acl:vp_clean",
    "box-iou": "fcit.evaluation.scorers:box_iou",
    "box-iou-official": "fcit.evaluation.scorers:box_iou_official",
    "caption": "fcit.evaluation.captions:caption",
    "caption7": "fcit.evaluation.coco:caption7",
    "coin-gqa": "fcit.evaluation.coin:gqa",
    "coin-imagenet": "fcit.evaluation.coin:imagenet",
    "coin-imagenet-clean": "fcit.evaluation.coin:imagenet_clean",
    "coin-ocrvqa": "fcit.evaluation.coin:ocrvqa",
    "coin-science": "fcit.evaluation.coin:science",
    "coin-textvqa": "fcit.evaluation.coin:textvqa",
    "coin-textvqa-clean": "fcit.evaluation.coin:textvqa_clean",
    "dcl-choice": "fcit.evaluation.dcl:choice",
    "dcl-choice-clean": "fcit.evaluation.dcl:choice_clean",
    "dcl-contained": "fcit.evaluation.dcl:contained",
    "dcl-contained-clean": "fcit.evaluation.dcl:whole_words",
    "dcl-science": "fcit.evaluation.dcl:science",
    "dcl-science-clean": "fcit.evaluation.dcl:science_clean",
    "dcl-words": "fcit.evaluation.dcl:words",
    "dcl-words-clean": "fcit.evaluation.dcl:whole_words",
    "exact": "fcit.evaluation.scorers:exact",
    "exact-clean": "fcit.evaluation.scorers:exact_clean",
    "fmcl-contained": "fcit.evaluation.fmcl:contained",
    "fmcl-equal": "fcit.evaluation.fmcl:equal",
    "mme": "fcit.evaluation.mme:mme",
    "pope": "fcit.evaluation.pope:pope",
    "option-letter": "fcit.evaluation.coin:option_letter",
    "substring": "fcit.evaluation.scorers:substring",
    "substring-official": "fcit.evaluation.scorers:substring_official",
}

#: Forms of answers that instructions demand.
ANSWER_FORMS = {
    "box": "fcit.evaluation.forms:Box",
    "letter": "fcit.evaluation.forms:Letter",
    "number": "fcit.evaluation.forms:Number",
    "phrase": "fcit.evaluation.forms:Phrase",
    "sentence": "fcit.evaluation.forms:Sentence",
    "word": "fcit.evaluation.forms:Word",
    "yes/no": "fcit.evaluation.forms:YesNo",
}

#: Rules of published scripts -> our cleaned rule that is reported beside them.
OFFICIAL_RULES = {
    "acl-ocr": "acl-ocr-clean",
    "acl-vp": "acl-vp-clean",
    "box-iou-official": "box-iou",
    "caption7": "caption",
    "coin-gqa": "exact-clean",
    "coin-imagenet": "coin-imagenet-clean",
    "coin-ocrvqa": "exact-clean",
    "coin-science": "option-letter",
    "coin-textvqa": "coin-textvqa-clean",
    "dcl-choice": "dcl-choice-clean",
    "dcl-contained": "dcl-contained-clean",
    "dcl-science": "dcl-science-clean",
    "dcl-words": "dcl-words-clean",
    "exact": "exact-clean",
    "fmcl-contained": "dcl-contained-clean",
    "fmcl-equal": "exact-clean",
    "substring-official": "substring",
}

#: All rules of published scripts; those of yes-or-no benchmarks have no cleaned one beside them.
PUBLISHED = frozenset({*OFFICIAL_RULES, "mme", "pope"})

ENGINES = {
    "auto": "fcit.federation.engines.fork:Auto",
    "fork": "fcit.federation.engines.fork:ForkGrid",
    "inline": "fcit.federation.engines.inline:InlineGrid",
    "ray": "fcit.federation.engines.ray:RayGrid",
}

#: Formats of instruction files. That of a text file is guessed: the first whose ``is_row`` holds for its first row. The
#: last two follow from where rows lie: in Parquet files, or in a saved or hub data set.
FORMATS = {
    "llava": "fcit.data.formats.llava",
    "messages": "fcit.data.formats.messages",
    "mme": "fcit.data.formats.mme",
    "pope": "fcit.data.formats.pope",
    "parquet": "fcit.data.formats.hub",
    "hf": "fcit.data.formats.hub",
}

TRACKERS = {
    "mlflow": "fcit.runs.trackers.mlflow:MLflow",
    "tensorboard": "fcit.runs.trackers.tensorboard:TensorBoard",
    "trackio": "fcit.runs.trackers.trackio:Trackio",
    "wandb": "fcit.runs.trackers.wandb:WandB",
}

#: Hugging Face Trainers in place of the clients' own loop.
TRAINERS = {
    "hf": "fcit.integrations.hf:plain",
}

KINDS = {
    "method": METHODS,
    "fedopt": FEDOPTS,
    "model": MODELS,
    "factors": FACTORS,
    "robust": ROBUST,
    "scorer": SCORERS,
    "form": ANSWER_FORMS,
    "engine": ENGINES,
    "tracker": TRACKERS,
    "trainer": TRAINERS,
    "format": FORMATS,
}


#: Requirements for a part of the user's own, for each kind that accepts one.
_REQUIRED = {
    "method": ("fcit.methods.base:Method", "a subclass of fcit.methods.base.Method"),
    "fedopt": ("fcit.fedopt.base:FedOpt", "a subclass of fcit.fedopt.base.FedOpt"),
    "model": ("fcit.models.families.base:Family", "a subclass of fcit.models.families.base.Family"),
    "scorer": ("", "a function (answers, records) -> fcit.evaluation.scorers.Result"),
    "benchmark": ("", "a function (config) -> fcit.data.benchmark.Benchmark"),
    "trainer": ("", "a function (task) -> a Trainer with train()"),
    "tracker": ("", "a class (run_dir, config) with say(kind, **values) and close()"),
}

#: Hooks of methods and optimisers that had another name in 0.1.0: under the old one they would never be called.
_RENAMED = {"doubt": "reject_reason"}


def nearest(name: str, allowed: list[str]) -> str:
    """'; did you mean ...?' for a misspelt name, or the empty string."""
    close = difflib.get_close_matches(name, allowed, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def is_own(name: str) -> bool:
    """Whether a name points at code outside the tables: ``package.module:Name`` or ``./file.py:Name``."""
    return ":" in name


def label(name: str) -> str:
    """The name of a part in tables and file names."""
    return name.rpartition(":")[2] if is_own(name) else name


def anchored(name: str, folder: Path) -> str:
    """``./file.py:Name`` with the full path of the file, independent of the current folder."""
    file, sign, attribute = name.rpartition(":")
    return f"{bounded.full_path(folder, file)}:{attribute}" if sign and file.endswith(".py") else name


def _module(source: str, where: str) -> Any:
    """Import a module by dotted name, or a file under a unique name.

    Raises:
        ConfigError: it does not exist or its import fails.
    """
    if not source.endswith(".py"):
        try:
            return importlib.import_module(source)
        except ImportError as error:
            raise ConfigError(f"{where}: cannot import {source!r} ({error}); is its folder on PYTHONPATH?") from None
    path = Path(source)
    alias = f"fcit_own_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if alias in sys.modules:
        return sys.modules[alias]
    if not path.is_file():
        raise ConfigError(f"{where}: no such file {source!r}")
    spec = importlib.util.spec_from_file_location(alias, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{where}: {source!r} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[alias]
        line = next(
            (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(path)), 0
        )
        at = f"{source}, line {line}" if line else source
        raise ConfigError(f"{where}: {at}: {type(error).__name__}: {error}") from error
    return module


def _own(kind: str, name: str) -> Any:
    source, _, attribute = name.rpartition(":")
    if kind not in _REQUIRED:
        raise ConfigError(unknown(kind, name))
    module = _module(source, kind)
    part = getattr(module, attribute, None)
    base, meaning = _REQUIRED[kind]
    if part is None:
        close = nearest(attribute, [n for n in vars(module) if not n.startswith("_")])
        raise ConfigError(f"{kind}: {source!r} has no {attribute!r}{close}")
    if base:
        wanted = resolve_path(base)
        good = isinstance(part, type) and issubclass(part, wanted)
    else:
        good = callable(part)
    if not good:
        raise ConfigError(f"{kind}: {name} is not {meaning}")
    for old in _RENAMED.keys() & set(dir(part)) if base else ():
        raise ConfigError(f"{kind}: {name} defines {old}(), which is called {_RENAMED[old]}() now; rename it")
    if base and "name" not in vars(part):
        part.name = attribute  # not the name of the class it derives from
    return part


def resolve_path(dotted: str) -> Any:
    """The object at ``package.module:Name``, or the module at ``package.module``."""
    module, _, attribute = dotted.partition(":")
    imported = importlib.import_module(module)
    return getattr(imported, attribute) if attribute else imported


def _source(module: str) -> Path:
    """The file of a module; only the outermost package is imported, where ``find_spec`` imports all in between.

    Raises:
        ModuleNotFoundError: there is none.
    """
    package, *parts = module.split(".")
    outermost = importlib.util.find_spec(package)
    if outermost is not None and outermost.origin is not None:
        inside = Path(outermost.origin).parent.joinpath(*parts)
        for file in (inside.with_suffix(".py"), inside / "__init__.py") if parts else [Path(outermost.origin)]:
            if file.is_file():
                return file
    raise ModuleNotFoundError(f"no module {module!r}", name=module)


class Described(NamedTuple):
    """What the source of a part says of it."""

    text: str
    dagger: bool  # its definition is ours
    family: str  # of methods


def described(dotted: str) -> Described:
    """What the part at ``package.module:Name`` (or the module) is.

    Read from its source, so that a list does not wait for the libraries that its parts import: the ``summary`` in the
    class, else the first line of the docstring; ``dagger`` and ``family``.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    module, _, attribute = dotted.partition(":")
    tree: Any = ast.parse(_source(module).read_text(encoding="utf-8"))
    if attribute:
        tree = next(node for node in tree.body if getattr(node, "name", None) == attribute)
    constants = {}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                constants[ast.unparse(target)] = node.value.value
    summary = constants.get("summary") or (ast.get_docstring(tree) or "").partition("\n")[0]
    return Described(str(summary), bool(constants.get("dagger", False)), str(constants.get("family", "")))


def problem(kind: str, name: str) -> str | None:
    """Why a name cannot be used, in one sentence, or None."""
    if not is_own(name):
        return None if name in KINDS[kind] else unknown(kind, name)
    try:
        _own(kind, name)
    except ConfigError as error:
        return str(error)
    return None


def unknown(kind: str, name: str) -> str:
    """One sentence about an unknown name of a kind."""
    if name.endswith(".py"):
        return f"{kind}: {name!r} names a file; say which part of it, e.g. {name}:MyName"
    allowed = sorted(KINDS[kind])
    hint = nearest(name, allowed)
    return f"{kind}: unknown name {name!r}{hint} (allowed: {', '.join(allowed)}; see `fcit list`)"


def resolve(kind: str, name: str) -> Any:
    """Import the part ``name`` of ``kind``, from its table or from the user's own code.

    Raises:
        ConfigError: the name is not in the kind's table, or the user's code does not meet the requirements.
    """
    if is_own(name):
        return _own(kind, name)
    table = KINDS[kind]
    if name not in table:
        raise ConfigError(unknown(kind, name))
    return resolve_path(table[name])
