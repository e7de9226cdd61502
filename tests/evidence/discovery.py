"""How many tasks DISCO discovers: ``python -m tests.evidence.discovery`` (part of ``make evidence``).

Descriptions and assignments of whole homogeneous eight-task runs (ten rounds a stage), three seeds and
three betas, without training: assignment does not depend on it.
"""

from __future__ import annotations

import json
from pathlib import Path

from fcit import config as configuration
from tests.e2e.test_assignment import assign_rounds

RESULT = Path(__file__).parent / "results" / "discovery.json"


def main() -> None:
    found = []
    for beta in (0.5, 1.0, 5.0):
        for seed in (0, 1, 2):
            config = configuration.parse({"benchmark": "fcit-mini-task", "seed": seed, "federation": {"beta": beta}})
            homes: dict[int, set[str]] = {}
            for _, _, slot, name in assign_rounds(config, range(8), range(config.federation.rounds)):
                homes.setdefault(slot.tasks[0], set()).add(name)
            subspaces = len(set.union(*homes.values()))
            split = sum(len(names) > 1 for names in homes.values())
            found.append({"beta": beta, "seed": seed, "subspaces": subspaces, "tasks_in_several": split})
            print(found[-1], flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
