"""One subspace merged into the base model: a plain checkpoint, without peft."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.io.trees import Tensors
from fcit.models import hashes
from fcit.models.loading import inspect, load_model
from fcit.models.places import locate
from fcit.models.quieting import quiet
from fcit.models.saving import save_peft

#: What ``save_pretrained`` writes of a model, or belongs to a repository and not to the model.
_NOT_COPIED = ("*.safetensors", "*.bin", "*.index.json", "config.json", "generation_config.json", "README.md", ".*")


def save_merged(
    folder: Path, tensors: Tensors, adapter: configuration.Adapter, backbone: configuration.Backbone
) -> None:
    """Write the base model with one subspace (and its projector) added to its weights, and its tokenizer beside it.

    W <- W + (alpha / r) B A in the number format of the run's backbone, so that answers of 16-bit models may differ
    from those of the subspace beside the base in their last bits. It is done on the CPU.

    Raises:
        ConfigError: the base cannot be loaded, or merging gives numbers that are not finite.
    """
    from peft import PeftModel

    source, _ = locate(backbone.model, backbone.identity)
    whole = backbone.model_copy(update={"device": "cpu", "quantization": "none"})
    model = load_model(source, whole, inspect(source, whole))
    with TemporaryDirectory(prefix="fcit-") as scratch, quiet():
        save_peft(Path(scratch), tensors, adapter, backbone)
        try:
            merged = PeftModel.from_pretrained(model, scratch).merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise ConfigError(f"--merge: the weights of {backbone.model!r} and the subspace: {error}") from None
        merged.save_pretrained(folder)
    files = hashes.folder_of(source)
    assert files is not None  # it was loaded from there
    for file in files.iterdir():
        if file.is_file() and not any(file.match(pattern) for pattern in _NOT_COPIED):
            shutil.copyfile(file, folder / file.name)
