"""``fcit`` that kills itself with SIGKILL: ``python -m tests.e2e.killing MODULE,NAME,WHEN,COUNT ARGUMENTS``

The COUNT-th call of MODULE's NAME is the last thing the process does; WHEN is ``before`` or ``after`` it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

from fcit.runs.environment import own_packages_first


def arm(point: str) -> None:
    """Put the trap in."""
    module, path, when, count = point.split(",")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original, left = getattr(owner, name), int(count)

    def killing(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, killing)


if __name__ == "__main__":
    own_packages_first()
    from fcit.cli import main

    arm(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
