"""Who was in the training data: ``python -m tests.evidence.membership`` (part of ``make evidence``).

Three attackers, each of whom knows the configuration, the seed and the tensors that training began with:

- ``update``: a server that sees one client's update and asks of each of 64 records of its kind whether the client has
  it (a random half of them it has).
- ``adapters``: a user of the adapters that a federation has ended with, who asks of single records and of whole clients
  whether they took part. Eight clients of eight records are asked in every round, four of them, drawn anew for each
  federation, contribute; the others count as zero, which is what ``privacy.client_dp`` calls neighbours.
- ``everything``: who sees what a round releases, knows the updates of all others and the one in question, and asks
  whether that one is in the sum: the attacker that epsilon is about.

The first two use the loss of a record (Yeom et al., 2018, arXiv 1709.01604) and the likelihood ratio of it against
shadow models (LiRA; Carlini et al., 2022, arXiv 2112.03570), every model being attacked with all others as shadows. An
arm is any list of settings; finished arms are kept in ``results/membership.json``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from fcit import seeding
from fcit.privacy import accountant, clipping
from fcit.privacy.mechanism import Mechanism
from fcit.privacy.noise import Noise, fresh
from tests.evidence.leaks import scores
from tests.evidence.leaks.world import NOT_RUN, World, keep, read

RESULTS = Path(__file__).parent / "results" / "membership.json"
TASK = 0  # ocr-vqa, whose answers are the most varied
MODELS = 48  # of the first attacker: one is attacked, the others are its shadow models
POOL = 64  # records that a client may have, of which each model has half
RUNS = 16  # federations
CLIENTS, RECORDS, ROUNDS = 8, 8, 4
TRIALS = 600  # releases with the client in question, and as many without
#: The clipping norm was chosen on other records, sixteen for each client, by the loss of unseen ones: with 0.75, the
#: norm of a first update, epsilon 8 ruins the model (28.8), with 0.1 it does not (8.6; 9.2 at the start, 5.6 without
#: privacy).
PRIVATE = ("privacy.client_dp=on", "privacy.clip=0.1")
#: Private for single records, by the clients themselves.
RECORD = ("privacy.record_dp=on",)

#: What each attacker is tried on: settings by name.
ARMS: dict[str, dict[str, tuple[str, ...]]] = {
    "update": {
        "one epoch": (),
        "four epochs": ("training.epochs=4",),
        "one epoch, record_epsilon 8": (*RECORD, "privacy.record_epsilon=8"),
    },
    "adapters": {
        "no privacy": (),
        "clipping alone": (*PRIVATE, "privacy.noise_multiplier=0.01"),
        "epsilon 8": (*PRIVATE, "privacy.epsilon=8"),
        "epsilon 4": (*PRIVATE, "privacy.epsilon=4"),
        "epsilon 1": (*PRIVATE, "privacy.epsilon=1"),
    },
    "everything": {f"epsilon {epsilon}": (*PRIVATE, f"privacy.epsilon={epsilon}") for epsilon in (8, 4, 1)},
}


def halves(models: int, many: int, owner: str) -> np.ndarray:
    """Who is in: for each model another half of ``many``, ``(models, many)`` bool."""
    inside = np.zeros((models, many), dtype=bool)
    for model, row in enumerate(inside):
        row[seeding.generator(0, "membership", owner, model).permutation(many)[: many // 2]] = True
    return inside


def update(settings: tuple[str, ...]) -> dict[str, Any]:
    """The server that sees one client's update."""
    world = World(settings)
    pool = world.records(TASK, POOL)
    member = halves(MODELS, POOL, "update")
    losses = []
    for row in member:
        sent = world.train(world.first, [pool[number] for number in np.flatnonzero(row)])
        losses.append(world.losses(sent.tensors, pool))
    found = np.stack(losses)
    return {
        "threshold": scores.measured(-found, member),
        "lira": scores.measured(scores.lira(scores.logit(found), member), member),
        "loss": {"members": round(float(found[member].mean()), 4), "others": round(float(found[~member].mean()), 4)},
    }


def adapters(settings: tuple[str, ...]) -> dict[str, Any]:
    """The user of the final adapters."""
    federation = [f"federation.{key}={CLIENTS}" for key in ("clients", "clients_per_round")]
    world = World([*federation, f"federation.rounds={ROUNDS}", *settings])
    records = world.records(TASK, CLIENTS * RECORDS + 2 * RECORDS)
    owned = [records[RECORDS * client :][:RECORDS] for client in range(CLIENTS)]
    asked, unseen = records[: CLIENTS * RECORDS], records[CLIENTS * RECORDS :]
    member = halves(RUNS, CLIENTS, "adapters")
    losses, held_out = [], []
    for row in member:
        final = world.federate([own if is_in else None for own, is_in in zip(owned, row, strict=True)])
        losses.append(world.losses(final, asked))
        held_out.append(world.losses(final, unseen).mean())
    found, of_record = np.stack(losses), np.repeat(member, RECORDS, axis=1)
    confidence = scores.logit(found)
    of_client = (RUNS, CLIENTS, RECORDS)
    mean_loss, mean_confidence = found.reshape(of_client).mean(axis=2), confidence.reshape(of_client).mean(axis=2)
    return {
        "record threshold": scores.measured(-found, of_record),
        "record lira": scores.measured(scores.lira(confidence, of_record), of_record),
        "client threshold": scores.measured(-mean_loss, member),
        "client lira": scores.measured(scores.lira(mean_confidence, member), member),
        "loss": {
            "start": round(float(world.losses(world.first, unseen).mean()), 4),
            "others": round(float(np.mean(held_out)), 4),
        },
    }


def everything(settings: tuple[str, ...]) -> dict[str, Any]:
    """The attacker that epsilon is about, one round of the whole epsilon.

    With y the released sum minus what is known of it, the likelihood ratio of N(d, (z C)^2) to N(0, (z C)^2) grows with
    <y, d>, so that is the score (Neyman and Pearson, 1933).
    """
    world = World(settings)
    privacy = world.config.privacy
    assert privacy.epsilon is not None
    multiplier = accountant.multiplier_for(privacy.epsilon, privacy.delta, 1)
    sent = world.train(world.first, world.records(TASK, RECORDS)).tensors
    short, norm = clipping.clipped(sent, world.first, privacy.clip)
    moved = {n: short[n].astype(np.float64) - world.first[n] for n in short}
    # Of the noise on tensors that do not move in a first step, the factors A, nothing can be learnt.
    difference = {n: change for n, change in moved.items() if change.any()}
    names = {"all": sorted(difference)}
    member = np.tile([True, False], (TRIALS, 1))
    found = np.empty(member.shape)
    for trial, row in enumerate(member):
        for place, is_in in enumerate(row):
            mechanism = Mechanism(privacy.clip, multiplier, CLIENTS, names, Noise(fresh()), (0, 0))
            mean = mechanism.release("all", difference if is_in else {}, world.first)
            found[trial, place] = sum(float(((mean[n] - world.first[n]) * difference[n]).sum()) for n in mean)
    return {
        "likelihood ratio": scores.measured(found, member),
        "norm": round(norm, 4),
        "noise_multiplier": round(multiplier, 4),
        "bound": round(scores.bound(multiplier, 1), 4),
    }


ATTACKS = {"update": update, "adapters": adapters, "everything": everything}


def table(results: dict[str, Any]) -> str:
    """Markdown: every attacker, arm and attack, AUC and true positives with intervals."""
    lines = [
        "| attacker sees | setting | attack | AUC | found at 1 % false alarms | loss of unseen records |",
        "|---|---|---|---|---|---|",
    ]
    for attacker, arms in ARMS.items():
        for arm in arms:
            entry = results.get(f"{attacker}, {arm}")
            if entry is None:
                lines.append(f"| {attacker} | {arm} | {NOT_RUN} | - | - | - |")
                continue
            loss = f"{entry['loss']['others']:.1f}" if "loss" in entry else "-"
            for attack, value in entry.items():
                if isinstance(value, dict) and "auc" in value:
                    low, high = value["auc_interval"]
                    found = " to ".join(f"{100 * bound:.0f}" for bound in value["tpr_interval"])
                    most = f"; bound {100 * entry['bound']:.0f}" if "bound" in entry else ""
                    lines.append(
                        f"| {attacker} | {arm} | {attack} | {value['auc']:.2f} ({low:.2f} to {high:.2f}) "
                        f"| {100 * value['tpr']:.0f} % ({found}{most}) | {loss} |"
                    )
    return "\n".join(lines)


TABLES = {"membership": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="arms whose names begin so, e.g. 'adapters, epsilon 8'")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the table")
    args = parser.parse_args()
    arms = {f"{attacker}, {arm}": (attacker, settings) for attacker in ARMS for arm, settings in ARMS[attacker].items()}
    for name, (attacker, settings) in ({} if args.table else arms).items():
        if not name.startswith(tuple(args.only)) or name in read(args.results):
            continue
        begin = time.process_time()
        result = ATTACKS[attacker](settings)
        seconds = round(time.process_time() - begin, 1)
        keep(args.results, name, {"settings": list(settings), **result, "cpu_seconds": seconds})
        print(f"{name}: {seconds} s", flush=True)
    print(table(read(args.results)))


if __name__ == "__main__":
    main()
