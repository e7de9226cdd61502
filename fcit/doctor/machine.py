"""Whether this machine is fit for a run: libraries, folders, the built-in model."""

from __future__ import annotations

import os
from collections.abc import Iterator

from fcit.runs.environment import LIBRARIES, SOMETIMES, versions


def check() -> Iterator[tuple[str, bool, str]]:
    """Checks of ``fcit doctor``: what is checked, whether it is good, detail."""
    installed = versions()
    for name in LIBRARIES:
        if name in installed:
            yield name, True, installed[name]
        elif name in SOMETIMES:
            yield name, True, f"not installed; only {SOMETIMES[name]} needs it (`make install` brings it)"
        else:
            yield name, False, "not installed; run `make install`"
    from fcit.io.cache import cache_folder

    folder = cache_folder()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    yield "cache folder", os.access(existing, os.W_OK), f"{folder} (set FCIT_CACHE to move it)"
    from fcit.errors import FCITError
    from fcit.models.features import features_size
    from fcit.models.places import locate

    features, taken = features_size()
    yield "frozen features", True, f"{taken / 2**20:.0f} MB in {features} (backbone.feature_cache_gb bounds them)"
    try:
        yield "built-in model", True, locate("fcit-tiny", None)[0]
    except FCITError as error:
        yield "built-in model", False, str(error)
        return
    yield from _answer()


def _answer() -> Iterator[tuple[str, bool, str]]:
    """Load the built-in model and let it answer one question."""
    import torch

    from fcit.config import Adapter, Backbone
    from fcit.models.adapters import Adapters
    from fcit.models.backbone import Backbone as Model

    yield "torch", True, f"{torch.get_num_threads()} threads, CUDA {'yes' if torch.cuda.is_available() else 'no'}"
    model = Model(Backbone(feature_cache="off"))
    size = sum(p.numel() for p in model.model.parameters())
    Adapters(model, Adapter())
    yield "model loads", True, f"{size / 1e6:.2f} M parameters, identity width {model.identity.width()}"
    encoded = model.encode("Name the color.", None, "")
    blank = model.vision.blank([""])
    text = model.generate([encoded], blank, 4)[0]
    yield "model answers", True, repr(text)
