"""What of transformers' chatter is hidden while a model is loaded: each thing by its name, with the reason.

Whatever is not named here reaches the user, a library's warning of a wrong setting first of all.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

#: Logger and a part of its message -> why nobody misses it.
HIDDEN_LOGS = {
    ("transformers.modeling_utils", "LOAD REPORT"): (
        "a table of missing and unexpected keys; fcit.models.checking judges the same keys and refuses or allows them"
    ),
}
#: Beginning of a warning -> why nobody misses it.
HIDDEN_WARNINGS = {
    r"`gradient_checkpointing_(enable|disable)` is deprecated": (
        "an alias until transformers 6, and the only name that every 5.x has"
    ),
}


class _Named(logging.Filter):
    """Drops the records of one logger that hold a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in record.getMessage()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, what is named in this module is not shown, nor are transformers' progress bars; all else is.

    Loading a model is a matter of seconds or shown by whoever waits for it, so bars tell nothing. Whoever turned
    them off before finds them off afterwards.
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
