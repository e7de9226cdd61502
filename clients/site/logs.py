"""A site's own log files; their content never leaves the site."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from pathlib import Path

from fcit.io.printable import PrintableFormatter

_SIZE, _KEPT = 5_000_000, 5


def to_file(name: str, file: Path, console: bool = False) -> logging.Logger:
    """A logger that writes to a file of 5 MB, five older ones are kept; with ``console`` to stderr too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger(name)
    handlers: list[logging.Handler] = [
        logging.handlers.RotatingFileHandler(file, maxBytes=_SIZE, backupCount=_KEPT, encoding="utf-8")
    ]
    if console:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    for old in logger.handlers:
        old.close()
    logger.handlers[:] = handlers
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger
