"""LLaVA with LoRA in plain transformers and peft, as the three programs use it; nothing of fcit is imported."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, get_cosine_schedule_with_warmup

from tests.evidence.peers.compare import exact

IGNORE = -100

State = dict[str, torch.Tensor]


class Example(NamedTuple):
    """A record or a question as tokens; ``start`` is where the answer begins."""

    ids: list[int]
    start: int
    image: str


class Batch(NamedTuple):
    """Examples padded on the left: tensors ``(B, L)``, and the paths of their pictures."""

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    images: list[str]


class Trained(NamedTuple):
    """What a client's local epoch gives the server."""

    state: State
    records: int
    steps: int
    loss: float


#: Arguments of the model's forward pass for a batch: from kept features, or from the pictures.
Inputs = Callable[[Batch], dict[str, Any]]


def read(path: str) -> dict[str, Any]:
    """The plan of the work to do."""
    plan: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return plan


def load(plan: dict[str, Any]) -> tuple[Any, Any]:
    """The model with its LoRA and a trainable projector, and its processor; one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(plan["seed"])
    processor = AutoProcessor.from_pretrained(plan["model"])
    model = LlavaForConditionalGeneration.from_pretrained(plan["model"], dtype=torch.float32)
    lora = plan["lora"]
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=lora["targets"],
        modules_to_save=["multi_modal_projector"],
    )
    return get_peft_model(model, config), processor


# --------------------------------------------------------------------------- data


def _encoded(model: Any, processor: Any, questions: list[str], answers: list[str], images: list[str]) -> list[Example]:
    tokenizer, places = processor.tokenizer, processor.image_token * model.config.image_seq_length
    prompts = tokenizer([f"USER: {places}\n{question} ASSISTANT:" for question in questions])
    # A question is asked without its answer, and without an end token.
    tails = tokenizer([f" {answer}" for answer in answers], add_special_tokens=False).input_ids if answers else None
    examples = []
    for number, (prompt, image) in enumerate(zip(prompts.input_ids, images, strict=True)):
        tail = [*tails[number], tokenizer.eos_token_id] if tails else []
        examples.append(Example([*prompt, *tail], len(prompt), image))
    return examples


def records(model: Any, processor: Any, plan: dict[str, Any], file: str) -> list[Example]:
    """The records of a client's file: a JSON list in LLaVA's format, a question and an answer about one picture."""
    rows = json.loads(Path(file).read_text(encoding="utf-8"))
    questions = [row["conversations"][0]["value"].removeprefix("<image>\n") for row in rows]
    answers = [row["conversations"][1]["value"] for row in rows]
    return _encoded(model, processor, questions, answers, [picture(plan, row["image"]) for row in rows])


def questions(model: Any, processor: Any, plan: dict[str, Any], name: str) -> list[Example]:
    """The questions of a data set."""
    asked = plan["questions"][name]["asked"]
    images = [picture(plan, question["image"]) for question in asked]
    return _encoded(model, processor, [question["text"] for question in asked], [], images)


def picture(plan: dict[str, Any], name: str) -> str:
    """The path of a picture."""
    return str(Path(plan["images"]) / name)


def pixels(processor: Any, images: Sequence[str]) -> torch.Tensor:
    """Pictures as the vision tower sees them ``(N, 3, H, W)``."""
    opened = [Image.open(image).convert("RGB") for image in images]
    values: torch.Tensor = processor.image_processor(images=opened, return_tensors="pt").pixel_values
    return values


def collate(processor: Any, examples: Sequence[Example]) -> Batch:
    """A batch, padded on the left."""
    length, pad = max(len(example.ids) for example in examples), processor.tokenizer.pad_token_id
    ids, mask, labels = [], [], []
    for example in examples:
        space = length - len(example.ids)
        ids.append([pad] * space + example.ids)
        mask.append([0] * space + [1] * len(example.ids))
        labels.append([IGNORE] * (space + example.start) + example.ids[example.start :])
    return Batch(torch.tensor(ids), torch.tensor(mask), torch.tensor(labels), [example.image for example in examples])


# --------------------------------------------------------------------------- work


def trainable(model: Any) -> State:
    """The LoRA's and the projector's parameters themselves."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def restore(model: Any, state: State) -> None:
    """Overwrite what is trained."""
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(state[name])


def copy(model: Any) -> State:
    """A copy of what is trained."""
    return {name: parameter.detach().clone() for name, parameter in trainable(model).items()}


def train(model: Any, processor: Any, plan: dict[str, Any], examples: list[Example], inputs: Inputs) -> Trained:
    """One local epoch from what the model holds."""
    size, parameters = plan["batch_size"], list(trainable(model).values())
    order = torch.randperm(len(examples)).tolist()
    batches = [order[first : first + size] for first in range(0, len(order), size)]
    optimizer = torch.optim.AdamW(parameters, lr=plan["lr"], weight_decay=0.0)
    warm = math.ceil(plan["warmup_ratio"] * len(batches))
    schedule = get_cosine_schedule_with_warmup(optimizer, warm, len(batches))
    losses = []
    model.train()
    for rows in batches:
        batch = collate(processor, [examples[row] for row in rows])
        loss = model(**inputs(batch), labels=batch.labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, plan["max_grad_norm"])
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return Trained(copy(model), len(examples), len(batches), sum(losses) / len(losses))


@torch.no_grad()
def answer(model: Any, processor: Any, plan: dict[str, Any], name: str, asked: list[Example], inputs: Inputs) -> int:
    """Answer the questions of a data set greedily; how many answers are exact."""
    size, of = plan["answer_batch_size"], plan["questions"][name]
    texts: list[str] = []
    model.eval()
    for first in range(0, len(asked), size):
        given = inputs(collate(processor, asked[first : first + size]))
        out = model.generate(**given, max_new_tokens=of["max_new_tokens"], do_sample=False)
        new = out[:, given["input_ids"].shape[1] :] if "input_ids" in given else out
        texts += processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return exact(texts, [question["answers"] for question in of["asked"]])


def mean(updates: Sequence[Trained]) -> State:
    """Sample-weighted mean of the clients' tensors."""
    total = sum(update.records for update in updates)
    return {
        name: torch.stack([update.state[name] * (update.records / total) for update in updates]).sum(dim=0)
        for name in updates[0].state
    }


def mean_loss(updates: Sequence[Trained]) -> float:
    """Sample-weighted mean of the clients' losses."""
    return sum(update.loss * update.records for update in updates) / sum(update.records for update in updates)


# --------------------------------------------------------------------------- kept features


class Features:
    """Frozen features of every picture of a plan, computed once and kept in a file beside it."""

    def __init__(self, model: Any, processor: Any, plan: dict[str, Any]) -> None:
        self.model = model
        file = Path(plan["features"])
        if not file.exists():
            torch.save(self._computed(processor, plan), file)
        kept = torch.load(file)
        self._features: torch.Tensor = kept["features"]
        self._rows: dict[str, int] = {image: row for row, image in enumerate(kept["images"])}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Embeddings with the projected features in the places of the pictures."""
        inner = self.model.get_base_model()
        projected = inner.model.multi_modal_projector(self._features[[self._rows[image] for image in batch.images]])
        places = (batch.ids == inner.config.image_token_index)[..., None]
        embeds = inner.get_input_embeddings()(batch.ids).masked_scatter(places, projected)
        return {"inputs_embeds": embeds, "attention_mask": batch.mask}

    @torch.no_grad()
    def _computed(self, processor: Any, plan: dict[str, Any]) -> dict[str, Any]:
        files = {share["file"] for stage in plan["stages"] for round_ in stage["rounds"] for share in round_}
        rows = [row for file in sorted(files) for row in json.loads(Path(file).read_text(encoding="utf-8"))]
        rows += [question for of in plan["questions"].values() for question in of["asked"]]
        images = sorted({picture(plan, row["image"]) for row in rows})
        tower, layer = self.model.get_base_model().model.vision_tower, self.model.config.vision_feature_layer
        features = []
        for first in range(0, len(images), 64):
            states = tower(pixels(processor, images[first : first + 64]), output_hidden_states=True).hidden_states
            features.append(states[layer][:, 1:])
        return {"images": images, "features": torch.cat(features)}
