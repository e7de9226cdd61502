"""Messages of transformers that are hidden while a model is loaded, each named with the reason.

All other messages reach the user, first of all warnings of wrong settings.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

#: Logger and part of its message -> why it is hidden.
HIDDEN_LOGS = {
    ("transformers.modeling_utils", "LOAD REPORT"): (
        "a table of missing and unexpected keys; fcit.models.checking judges the same keys and refuses or allows them"
    ),
}
#: Beginning of a warning -> why it is hidden.
HIDDEN_WARNINGS = {
    r"`gradient_checkpointing_(enable|disable)` is deprecated": (
        "an alias until transformers 6, and the only name that every 5.x has"
    ),
    r"`is_gradient_checkpointing` is deprecated": "another alias until transformers 6, which peft reads",
}


class _Named(logging.Filter):
    """Drops log records that contain a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in record.getMessage()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the messages named in this module, and progress bars of transformers.

    Loading takes seconds or is reported by the caller. Progress bars that were off before stay off.
    """
    from transformers.utils import logging as theirs

    filters = [(logging.getLogger(name), _Named(text)) for name, text in HIDDEN_LOGS]
    bars = theirs.is_progress_bar_enabled()
    for logger, named in filters:
        logger.addFilter(named)
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for message in HIDDEN_WARNINGS:
                warnings.filterwarnings("ignore", message=message, category=FutureWarning)
            yield
    finally:
        for logger, named in filters:
            logger.removeFilter(named)
        if bars:
            theirs.enable_progress_bar()
