"""What can be read back from what a site sends: ``python -m tests.evidence.inversion`` (part of ``make evidence``).

The attacker is the server, or whoever holds what it holds: the messages of one site, the configuration, the seed, the
model and the identity encoder.

- ``tokens``: which questions an identity token was made of. Candidates are all training questions of the eight mini
  data sets; the token is of so many records of one of them. Also with ``privacy.token_epsilon``, and from a list that
  lacks the question.
- ``updates``: which records an update was trained on, among 128 candidates (image, question, answer) of the same data
  set, each of which the server trains on itself.
- ``texts``: the same for single records of which the server has question and answer but not the image.
- ``answers``: tokens of the answer, without candidates.

The attacks were developed on ``super-clevr`` and ``flickr30k`` and other draws, and then frozen; updates are judged on
``ocr-vqa``. Finished parts are kept in ``results/inversion.json``.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fcit import seeding
from fcit.data.records import Record
from fcit.io.trees import Tensors
from fcit.models.layout import B
from fcit.privacy import accountant, clipping
from fcit.privacy import tokens as private_tokens
from fcit.privacy.mechanism import Mechanism
from fcit.privacy.noise import Noise, fresh
from tests.evidence.leaks import scores, tokens, updates
from tests.evidence.leaks.world import NOT_RUN, World, keep, read

RESULTS = Path(__file__).parent / "results" / "inversion.json"
TRIALS = 4
SIZES = (1, 4, 16, 64)  # records of an update
CANDIDATES, OTHERS, CLIENTS = 128, 160, 5
TASK = 0  # ocr-vqa
MEANS = (1, 5, 20, 100)  # records of a token
DATASETS = ("arxivqa", "iconqa", "figureqa", "super-clevr")
NOISE = {"none": None, "token_epsilon 8": 8.0}  # ``privacy.token_epsilon``
DELTA = 1e-5
LAST = "layers.5.mlp.down_proj.lora_B.weight"


@dataclass(frozen=True)
class Arm:
    """What is seen of a client's update.

    Attributes:
        settings: of the client, ``key=value``; the server, which does not have a client's secrets, replays without
            ``privacy.``.
        later: the start has been trained on 128 other records; otherwise it is that of a new subspace.
        clients: only the mean of so many updates is seen, the others of records that are no candidates.
        epsilon: what one round of ``privacy.client_dp`` spends on that mean.
    """

    settings: tuple[str, ...] = ()
    later: bool = False
    clients: int = 1
    epsilon: float | None = None

    @property
    def exact(self) -> bool:
        """Whether the gradient of a first step can be computed from what is seen."""
        return self.clients == 1 and not self.later and "federation.wire=bfloat16" not in self.settings


ARMS = {
    "first round": Arm(),
    "later round": Arm(later=True),
    "first round, bfloat16 on the wire": Arm(("federation.wire=bfloat16",)),
    "first round, sum of five clients": Arm(clients=CLIENTS),
    "the same with noise, epsilon 8": Arm(clients=CLIENTS, epsilon=8.0),
    "first round, record_epsilon 8": Arm(("privacy.record_dp=on", "privacy.record_epsilon=8")),
}


# ---------------------------------------------------------------------- identity tokens


@cache
def _questions() -> tuple[dict[str, list[str]], list[str], np.ndarray]:
    """The questions of every data set, the distinct ones together, and their features."""
    world = World(["benchmark=fcit-mini-task"])
    benchmark = world.benchmark
    asked = {names[0]: [r.turns[0].question for r in benchmark.pooled(t)] for t, names in enumerate(benchmark.tasks)}
    distinct = sorted({question for questions in asked.values() for question in questions})
    return asked, distinct, world.worker.backbone.identity.text(distinct)


def described(rows: np.ndarray, epsilon: float | None) -> np.ndarray:
    """The feature sum that a client sends of its records' features ``(N, d)``, with the noise of an epsilon."""
    if epsilon is None:
        return rows.astype(np.float64).sum(axis=0)
    multiplier = accountant.multiplier_for(epsilon, DELTA, 1)
    return private_tokens.noised(private_tokens.clipped(rows).sum(axis=0), multiplier, Noise(fresh()))


def from_token(dataset: str, epsilon: float | None) -> dict[str, Any]:
    """Which questions a token of records of a data set was made of, by the number of records."""
    asked, distinct, features = _questions()
    place = {question: number for number, question in enumerate(distinct)}
    candidates = features if epsilon is None else private_tokens.clipped(features)
    result: dict[str, Any] = {"distinct": len(set(asked[dataset])), "candidates": len(distinct)}
    for many in MEANS:
        whole, recall, nearest = [], [], []
        for trial in range(TRIALS):
            rng = seeding.generator(0, "tokens", dataset, many, trial)
            drawn = [place[asked[dataset][i]] for i in rng.permutation(len(asked[dataset]))[:many]]
            true = np.bincount(drawn, minlength=len(distinct))
            total = described(features[drawn], epsilon)
            counts = tokens.counted(total, many, candidates)
            whole.append(bool((counts == true).all()))
            recall.append(float(np.minimum(counts, true).sum() / many))
            nearest.append(updates.found(-np.argsort(tokens.nearest(total, candidates)), true > 0))
        result[str(many)] = {
            "all": scores.shares(whole),
            "recall": round(float(np.mean(recall)), 4),
            "nearest": round(float(np.mean(nearest)), 4),
        }
    return result


def _overlap(one: str, other: str) -> float:
    """F1 of the distinct words of two texts."""
    first, second = set(one.lower().split()), set(other.lower().split())
    return 2 * len(first & second) / (len(first) + len(second))


def without_the_question(dataset: str) -> dict[str, Any]:
    """Words that the nearest question of a list shares with the one in the token, of one record; the list lacks it."""
    asked, distinct, features = _questions()
    own = set(asked[dataset])
    rows = [number for number, question in enumerate(distinct) if question in own]
    rng = seeding.generator(0, "tokens", "without", dataset)
    nearest, other = [], []
    for row in rng.permutation(rows)[: 20 * TRIALS]:
        order = [n for n in tokens.nearest(features[row], features) if n != row]
        nearest.append(_overlap(distinct[row], distinct[order[0]]))
        drawn = rng.choice([n for n in rows if n != row])
        other.append(_overlap(distinct[row], distinct[drawn]))
    return {"nearest": round(float(np.mean(nearest)), 4), "any of the data set": round(float(np.mean(other)), 4)}


# ---------------------------------------------------------------------- updates


@cache
def _start(later: bool) -> tuple[World, Tensors, list[Record], list[Record]]:
    """The server's world, a start, the candidates, and other records."""
    world = World()
    records = world.records(TASK, CANDIDATES + OTHERS)
    candidates, others = records[:CANDIDATES], records[CANDIDATES:]
    start = world.train(world.first, others[:128], client=1).tensors if later else world.first
    return world, start, candidates, others


@cache
def _alone(later: bool) -> np.ndarray:
    """The update of every candidate alone."""
    world, start, candidates, _ = _start(later)
    return np.stack([updates.flat(world.train(start, [record]).tensors, start) for record in candidates])


def _compared(arm: Arm, moved: np.ndarray) -> np.ndarray:
    """What is compared of updates."""
    world = _start(arm.later)[0]
    return updates.gradients(moved, world.config.training.lr) if arm.exact else moved


@cache
def _of_others(later: bool, count: int) -> list[Tensors]:
    """Updates of so many other clients, of sixteen records each that are no candidates."""
    world, start, _, others = _start(later)
    return [world.train(start, others[16 * k :][:16], client=k + 1).tensors for k in range(count)]


def _seen(arm: Arm, world: World, start: Tensors, sent: Tensors) -> np.ndarray:
    """What is seen of a client's update."""
    if arm.clients == 1:
        return updates.flat(sent, start)
    more = _of_others(arm.later, arm.clients - 1)
    if arm.epsilon is None:
        return np.mean([updates.flat(each, start) for each in (sent, *more)], axis=0)
    privacy = world.config.privacy
    multiplier, clip = accountant.multiplier_for(arm.epsilon, privacy.delta, 1), 0.1
    short = [clipping.clipped(each, start, clip)[0] for each in (sent, *more)]
    sums = {n: np.sum([each[n].astype(np.float64) - start[n] for each in short], axis=0) for n in sent}
    mechanism = Mechanism(clip, multiplier, arm.clients, {"all": sorted(sums)}, Noise(fresh()), (0, 0))
    return updates.flat(mechanism.release("all", sums, start), start)


def _sizes(arm: Arm) -> tuple[int, ...]:
    """The numbers of records that an arm is tried with."""
    return SIZES if arm.clients == 1 else (16,)


def from_update(arm: Arm) -> dict[str, Any]:
    """Which candidates an update was trained on, by the number of its records."""
    _, start, candidates, _ = _start(arm.later)
    world, result = World(arm.settings), dict[str, Any]()
    replayed = updates.Replayed(_compared(arm, _alone(arm.later)))
    for many in _sizes(arm):
        shares, areas = [], []
        for trial in range(TRIALS):
            drawn = seeding.generator(0, "updates", many, trial).permutation(CANDIDATES)[:many]
            true = np.isin(np.arange(CANDIDATES), drawn)
            sent = world.train(start, [candidates[i] for i in drawn]).tensors
            weights = replayed.weights(_compared(arm, _seen(arm, world, start, sent)))
            shares.append(updates.found(weights, true))
            areas.append(scores.auc(weights, true))
        result[str(many)] = {
            "found": round(float(np.mean(shares)), 4),
            "all": scores.shares(share == 1 for share in shares),
            "chance": many / CANDIDATES,
            "auc": round(float(np.mean(areas)), 4),
        }
    return result


def from_texts() -> dict[str, Any]:
    """Question and answer of single records, replayed with an image that is not theirs."""
    world, start, candidates, others = _start(later=False)
    replayed = np.stack(
        [updates.flat(world.train(start, [replace(r, images=others[0].images)]).tensors, start) for r in candidates]
    )
    replayed /= np.linalg.norm(replayed, axis=1, keepdims=True)
    hits: dict[str, list[bool]] = {"first": [], "first five": []}
    for number, record in enumerate(candidates[: 12 * TRIALS]):
        order = np.argsort(-replayed @ updates.flat(world.train(start, [record]).tensors, start), kind="stable")
        texts = [candidates[i].turns[0] for i in order[:5]]
        hits["first"].append(texts[0] == candidates[number].turns[0])
        hits["first five"].append(candidates[number].turns[0] in texts)
    distinct = len({record.turns[0] for record in candidates})
    return {"distinct": distinct, **{name: scores.shares(found) for name, found in hits.items()}}


def from_last_layer() -> dict[str, Any]:
    """Tokens of the answers of single records, without candidates."""
    world, start, candidates, _ = _start(later=False)
    backbone = world.worker.backbone
    [scale] = [p for n, p in backbone.model.named_parameters() if n.endswith("language_model.norm.weight")]
    embeddings = backbone.word_embeddings.astype(np.float64) * scale.detach().numpy()
    [name] = [n for n in start if n.endswith(LAST) and B in n]
    hits: dict[str, list[bool]] = {"best": [], "five best": []}
    lengths = []
    for record in candidates[: 12 * TRIALS]:
        *answer, end = world.worker.judge.examples([record])[0].targets
        order = updates.taught(world.train(start, [record]).tensors[name] - start[name], embeddings, end)
        hits["best"].append(order[0] in answer)
        hits["five best"].append(bool(set(order[:5]) & set(answer)))
        lengths.append(len(answer))
    found = {key: scores.shares(values) for key, values in hits.items()}
    return {**found, "vocabulary": len(embeddings), "tokens of an answer": round(float(np.mean(lengths)), 2)}


# ---------------------------------------------------------------------- all of it

PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"updates, {name}": lambda arm=arm: from_update(arm) for name, arm in ARMS.items()},  # type: ignore[misc]
    "texts": from_texts,
    "answers": from_last_layer,
    **{
        f"tokens, {dataset}, noise: {noise}": lambda dataset=dataset, epsilon=epsilon: from_token(dataset, epsilon)  # type: ignore[misc]
        for noise, epsilon in NOISE.items()
        for dataset in DATASETS
    },
    **{
        f"tokens, {dataset}, not in the list": lambda dataset=dataset: without_the_question(dataset)  # type: ignore[misc]
        for dataset in DATASETS[:2]
    },
}


def token_table(results: dict[str, Any]) -> str:
    """Markdown: share of a token's records whose questions were read, by data set, records and noise."""
    lines = [
        f"| data set (distinct questions) | noise | {' | '.join(f'of {many}' for many in MEANS)} |",
        "|---|---|" + "---|" * len(MEANS),
    ]
    for dataset, noise in itertools.product(DATASETS, NOISE):
        entry = results.get(f"tokens, {dataset}, noise: {noise}")
        cells = [f"{100 * entry[str(many)]['recall']:.0f} %" if entry else NOT_RUN for many in MEANS]
        distinct = f" ({entry['distinct']:,})" if entry else ""
        lines.append(f"| {dataset}{distinct} | {noise} | {' | '.join(cells)} |")
    return "\n".join(lines)


def update_table(results: dict[str, Any]) -> str:
    """Markdown: share of an update's records that were found among the candidates, by arm and records."""
    lines = [
        f"| what is seen | {' | '.join(f'of {many}' for many in SIZES)} |",
        "|---|" + "---|" * len(SIZES),
        f"| (guessing) | {' | '.join(f'{100 * many / CANDIDATES:.0f} %' for many in SIZES)} |",
    ]
    for name, arm in ARMS.items():
        entry = results.get(f"updates, {name}")
        sizes = _sizes(arm)
        cells = [(f"{100 * entry[str(n)]['found']:.0f} %" if entry else NOT_RUN) if n in sizes else "-" for n in SIZES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def text_table(results: dict[str, Any]) -> str:
    """Markdown: what was read of single records without their images, and without candidates."""
    rows = {
        "question and answer, image unknown, best of 128": ("texts", "first"),
        "the same, among the best five": ("texts", "first five"),
        "a token of the answer, no candidates, best of 1,024": ("answers", "best"),
        "the same, among the best five (tokens)": ("answers", "five best"),
    }
    lines = ["| of single records, first round | share (95 % interval) |", "|---|---|"]
    for label, (part, key) in rows.items():
        entry, cell = results.get(part), NOT_RUN
        if entry:
            low, high = entry[key]["interval"]
            cell = f"{100 * entry[key]['share']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
        lines.append(f"| {label} | {cell} |")
    return "\n".join(lines)


TABLES = {"tokens": token_table, "updates": update_table, "texts": text_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="parts whose names begin so, e.g. 'tokens, iconqa'")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the tables")
    args = parser.parse_args()
    for name, part in ({} if args.table else PARTS).items():
        if not name.startswith(tuple(args.only)) or name in read(args.results):
            continue
        begin = time.process_time()
        result = part()
        seconds = round(time.process_time() - begin, 1)
        keep(args.results, name, {**result, "cpu_seconds": seconds})
        print(f"{name}: {seconds} s", flush=True)
    for table in TABLES.values():
        print(table(read(args.results)))


if __name__ == "__main__":
    main()
