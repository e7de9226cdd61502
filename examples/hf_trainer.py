"""A Hugging Face Trainer as the local training of clients: ``training.trainer=./examples/hf_trainer.py:make``.

A client then loads an order's tensors into the peft model as always, has this Trainer make the ordered number of steps,
and returns what has changed. Everything that a Trainer can do is at hand: callbacks, another optimiser or schedule,
gradient accumulation, a loss of one's own in ``compute_loss``.

    fcit run configs/demo-disco.yaml training.trainer=./examples/hf_trainer.py:make
    fcit run configs/demo-disco.yaml training.trainer=hf          # without a file: a plain Trainer

At a deployed site this file is the site's: ``trainer: ./hf_trainer.py:make`` in SITE.yaml, where the run has
``sites.trainer: true``; code that a run names is never run there.
"""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback

from fcit.integrations import hf


class Softer(Trainer):
    """Cross-entropy minus a small reward for undecided answers: the entropy of the predicted words."""

    reward = 0.01

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **more)
        learnt = inputs["labels"][:, 1:] != -100
        words = outputs.logits[:, :-1][learnt].float().log_softmax(dim=-1)
        loss = loss + self.reward * (words.exp() * words).sum(dim=-1).mean()
        return (loss, outputs) if return_outputs else loss


class Halted(TrainerCallback):
    """Refuses to go on with a loss that has left the numbers."""

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        lost = [entry["loss"] for entry in state.log_history if entry.get("loss", 0.0) != entry.get("loss", 0.0)]
        if lost:
            raise FloatingPointError(f"the loss is {lost[-1]} after {state.global_step} steps")


def make(task: hf.Task) -> Trainer:
    """The Trainer of one order."""
    return Softer(
        model=task.model,
        args=hf.arguments(task, lr_scheduler_type="linear", warmup_steps=0, logging_strategy="steps", logging_steps=1),
        train_dataset=task.dataset,
        data_collator=task.collate,
        callbacks=[Halted()],
    )
