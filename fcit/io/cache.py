"""Where this machine keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Folder of rendered data sets, partitions, records, features and verdicts.

    The environment variable ``FCIT_CACHE``, or ``~/.cache/fcit``.
    """
    return Path(os.environ.get("FCIT_CACHE") or Path.home() / ".cache" / "fcit")
