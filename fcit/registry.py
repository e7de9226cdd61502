"""Families of interchangeable parts: name -> dotted path, imported when first used.

Adding a part means one file and one line here; ``fcit list`` and ``--help`` stay instant because
nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from fcit.errors import ConfigError

METHODS = {
    "disco": "fcit.methods.disco:Disco",
    "finetune": "fcit.methods.finetune:Finetune",
    "individual": "fcit.methods.individual:Individual",
    "joint": "fcit.methods.joint:Joint",
    "zero_shot": "fcit.methods.zero_shot:ZeroShot",
}

FEDOPTS = {
    "fedavg": "fcit.fedopt.fedavg:FedAvg",
}

SCORERS = {
    "box-iou": "fcit.evaluation.scorers:box_iou",
    "box-iou-official": "fcit.evaluation.scorers:box_iou_official",
    "caption": "fcit.evaluation.scorers:caption",
    "exact": "fcit.evaluation.scorers:exact",
    "substring": "fcit.evaluation.scorers:substring",
    "substring-official": "fcit.evaluation.scorers:substring_official",
}

ENGINES = {
    "inline": "fcit.federation.engines.inline:InlineGrid",
    "ray": "fcit.federation.engines.ray:RayGrid",
}

FAMILIES = {"method": METHODS, "fedopt": FEDOPTS, "scorer": SCORERS, "engine": ENGINES}


def nearest(name: str, allowed: list[str]) -> str:
    """'; did you mean ...?' for a misspelt name, or the empty string."""
    close = difflib.get_close_matches(name, allowed, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def unknown(family: str, name: str) -> str:
    """One sentence about an unknown name of a family."""
    allowed = sorted(FAMILIES[family])
    hint = nearest(name, allowed)
    return f"{family}: unknown name {name!r}{hint} (allowed: {', '.join(allowed)}; see `fcit list`)"


def resolve(family: str, name: str) -> Any:
    """Import the part ``name`` of ``family``.

    Raises:
        ConfigError: the name is not in the family's table.
    """
    table = FAMILIES[family]
    if name not in table:
        raise ConfigError(unknown(family, name))
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
