"""What may be printed: text of others must not steer the terminal it is shown on."""

from __future__ import annotations

import logging


def printable(text: str) -> str:
    """Text of any author as it may be printed or logged: no escape sequences, nothing that hides or turns text.

    Lines and tabs stay; other white space is a blank, every other character that Unicode does not print a ``?``.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else " " if c.isspace() else "?" for c in text)


class PrintableFormatter(logging.Formatter):
    """Log lines that may be looked at on a terminal, whatever they quote."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
