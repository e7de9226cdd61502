"""A process that kills itself with SIGKILL at a point ``MODULE,NAME,WHEN,COUNT``.

The COUNT-th call of MODULE's NAME is the last thing the process does; WHEN is ``before`` or ``after`` it.
"""

from __future__ import annotations

import importlib
import os
import signal
from typing import Any


def arm(point: str) -> None:
    """Make this process kill itself at the point."""
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
