"""A Hugging Face ``Trainer`` as a client's local training (``training.trainer``).

A trainer is named like every part of one's own: a function that is given a :class:`Task` and returns something with
``train()``: a ``transformers.Trainer``, or one derived from it as TRL's are. ``training.trainer: hf`` is :func:`plain`.
What stays with fcit: which records are learnt in which order, loading the order's tensors before and reading what was
trained after, seeding, and the method's work around a training (``prepare``, ``finish``). What is the Trainer's:
forward pass, loss, optimiser, schedule, clipping, precision. So methods and federated optimisers that have a loss or a
hook of their own within the steps are refused with the configuration, as are gradients of single records
(:mod:`fcit.config.trainer_checks`).

transformers is imported here, inside functions: a Trainer is its part, and no model is loaded here.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from fcit.config import Training
from fcit.data.collate import Encoded, padded
from fcit.errors import FCITError

#: Families whose model takes images as pixels and nothing else beside tokens.
_FAMILIES = ("llava",)


class Rows(Dataset[Any]):
    """Encoded records by place, with the pixels of their images.

    Args:
        order: indices into ``examples``, in the order of the rows.
        pixels: opens an image of the shard: ``(3, H, W)``.
    """

    def __init__(
        self, examples: Sequence[Encoded], order: Sequence[int], pixels: Callable[[str], torch.Tensor]
    ) -> None:
        self._examples, self._order, self._pixels = examples, order, pixels

    def __len__(self) -> int:
        return len(self._order)

    @property
    def tokens(self) -> list[tuple[int, ...]]:
        """Of every row, without its images."""
        return [self._examples[index].tokens for index in self._order]

    def __getitem__(self, place: int) -> tuple[Encoded, list[torch.Tensor]]:
        example = self._examples[self._order[place]]
        return example, [self._pixels(image) for image in example.images]


@dataclass(frozen=True)
class Task:
    """One local training, for a Trainer.

    Attributes:
        model: the peft model on the run's device; the order's tensors are loaded, only what is to be trained requires
            gradients.
        dataset: rows of the shard in the order in which the run presents them, all local epochs one after the other;
            a Trainer that shuffles presents them otherwise.
        collate: rows to a batch: ``input_ids``, ``attention_mask``, ``position_ids``, ``labels`` ``(B, L)``, padded on
            the left, and ``pixel_values`` ``(images, 3, H, W)`` where there are images.
        steps: optimiser steps to make, no more and no less.
        rates: the learning rate of each step by ``training.schedule``.
        training: the section ``training`` of the configuration.
        seed: of this training, another for each order.
        folder: for what a Trainer writes; it is removed after the training.
    """

    model: Any
    dataset: Rows
    collate: Callable[[list[Any]], dict[str, torch.Tensor]]
    steps: int
    rates: Sequence[float]
    training: Training
    seed: int
    folder: Path


def collated(rows: list[Any], dataset: Rows, pad: int) -> dict[str, torch.Tensor]:
    """A batch as the model's ``forward`` takes it, see :class:`Task`; of rows, or of what names their places."""
    rows = [dataset[row["place"]] if isinstance(row, dict) else row for row in rows]
    ids, mask, labels = map(torch.from_numpy, padded([example for example, _ in rows], pad))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}
    images = [image for _, pictures in rows for image in pictures]
    return batch | ({"pixel_values": torch.stack(images)} if images else {})


def table(task: Task) -> Any:
    """The rows as a ``datasets.Dataset`` of ``input_ids`` and ``place``, for Trainers that take no other, as TRL's.

    :attr:`Task.collate` finds a row by its place, with labels and pixels.
    """
    import datasets

    tokens = task.dataset.tokens
    return datasets.Dataset.from_dict({"input_ids": tokens, "place": list(range(len(tokens)))})


def arguments(task: Task, **changes: Any) -> Any:
    """``TrainingArguments`` of a task: its steps and batches in order, nothing written, nothing reported.

    Args:
        changes: further or other arguments.
    """
    from transformers import TrainingArguments

    device = next(task.model.parameters()).device
    given = {
        "output_dir": str(task.folder),
        "max_steps": task.steps,
        "per_device_train_batch_size": task.training.batch_size,
        "learning_rate": task.training.lr,
        "weight_decay": task.training.weight_decay,
        "max_grad_norm": task.training.max_grad_norm or 0.0,
        "train_sampling_strategy": "sequential",
        "seed": task.seed,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**given, **changes})


def plain(task: Task) -> Any:
    """A ``Trainer`` with the run's own optimiser and rates: what fcit's own loop computes, up to rounding."""
    from transformers import Trainer

    trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=task.training.weight_decay)
    rates = [*task.rates, 0.0]  # the schedule looks one step ahead
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)])
    return Trainer(
        model=task.model,
        args=arguments(task),
        train_dataset=task.dataset,
        data_collator=task.collate,
        optimizers=(optimizer, schedule),
    )


def train(
    make: Callable[[Task], Any],
    name: str,
    session: Any,
    order: Sequence[int],
    rates: Sequence[float],
    training: Training,
) -> float:
    """Have a Trainer train the loaded slot; the mean loss of its steps.

    Called with the global generators seeded and the slot in training mode.

    Args:
        make: makes the Trainer; ``name`` is what the configuration calls it.
        session: the method's view of the training (:class:`fcit.methods.base.Session`).
        order: indices of records as they are presented, all local epochs one after the other.
        rates: one for each step.

    Raises:
        FCITError: the model's family has other inputs, the Trainer is none, makes another number of steps, or its loss
            is not finite.
    """
    from transformers import PrinterCallback, Trainer

    backbone = session.backbone
    family = backbone.family.base.config.model_type
    if family not in _FAMILIES:
        raise FCITError(
            f"training.trainer: {name!r} trains models of the family {', '.join(_FAMILIES)}, and this is {family!r}; "
            "leave training.trainer out"
        )
    pad = backbone.tokenizer.pad_token_id
    dataset = Rows(session.examples, order, lambda image: backbone.vision.pixels(session.image_root, image))
    with tempfile.TemporaryDirectory(prefix="fcit-trainer-") as folder:
        task = Task(
            model=backbone.model,
            dataset=dataset,
            collate=lambda rows: collated(rows, dataset, pad),
            steps=len(rates),
            rates=rates,
            training=training,
            seed=int(torch.randint(2**31, ()).item()),
            folder=Path(folder),
        )
        trainer = make(task)
        if not callable(getattr(trainer, "train", None)):
            raise FCITError(f"training.trainer: {name!r} returned {type(trainer).__name__}, which has no train()")
        if isinstance(trainer, Trainer):
            trainer.remove_callback(PrinterCallback)  # prints a line about every training
        try:
            with _products(backbone):
                done = trainer.train()
        finally:
            _unwrap(trainer, backbone.model)
    if done.global_step != len(rates):
        raise FCITError(
            f"training.trainer: {name!r} made {done.global_step} steps and {len(rates)} were ordered; give its "
            "arguments max_steps=task.steps"
        )
    if not math.isfinite(done.training_loss):
        raise FCITError(f"training.trainer: {name!r}: the training loss is {done.training_loss}; lower training.lr")
    return float(done.training_loss)


def _products(backbone: Any) -> AbstractContextManager[object]:
    """On a backbone of 16 bits, whose adapters and projector are float32, products are made in its format.

    Not by the Trainer's own ``bf16``: accelerate prepares a model for it once, and this one is trained again and again.
    """
    if backbone.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(backbone.device.type, dtype=backbone.dtype)


def _unwrap(trainer: Any, model: Any) -> None:
    """Take off what accelerate put around the model's forward pass for a number format; the model lives on."""
    accelerator = getattr(trainer, "accelerator", None)
    if accelerator is not None:
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
