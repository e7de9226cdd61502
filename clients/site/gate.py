"""A site's own admission of orders: every message is recorded in the audit trail, every error becomes a code.

An order is recorded, checked against SITE.yaml, and done; its reply is recorded and sent. An error is kept in the
site's own log with its full text. The server gets one word and the order's number in the audit trail, under which
the log has the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Error, Message

from clients.site import logs, policy
from clients.site.audit import Trail
from clients.site.tasks import OwnTasks
from fcit.config import site as sites
from fcit.config.site import Site
from fcit.errors import FCITError
from fcit.federation import codec
from fcit.federation.nodes import CLIENT_RAISED


class Gate:
    """Admission of orders at one site, by its current SITE.yaml."""

    def __init__(self, site: Site, limited: Callable[[str], str]) -> None:
        self.site, self.terms = site, policy.terms(site)
        self.own = OwnTasks(site) if site.stream == "site" else None
        self._limited = limited

    def memory(self, run: str) -> Path:
        """Folder of the memory that this site keeps for a run."""
        return self.site.folder / "memory" / run

    def admit(self, order: Any) -> str:
        """The configuration to do an order with.

        Raises:
            Refused: it is not for this site, or SITE.yaml does not allow it.
        """
        policy.check_order(order, self.site)
        return self._limited(order.config)


def reply(context: Context, message: Message, work: Callable[[Gate], Any]) -> Message:
    """The reply to an order at a site: its result, or an error with a code and a reference only.

    Nothing is raised: Flower would send the server an exception's text.

    Args:
        work: does the order within the gate's limits; returns the result and the number format of the wire.
    """
    number, log, trail = 0, logging.getLogger("clients"), None
    entry: dict[str, Any] = {"number": 0}
    try:
        gate = _gate(context)
        log = _log(gate.site.folder)
        trail = Trail(gate.site.folder)
        entry = trail.incoming(message)
        number = entry["number"]
        result, wire = work(gate)
        sent = Message(codec.encode(result, wire), reply_to=message)
        trail.outgoing(sent, entry)
        return sent
    except Exception as error:
        log.error("[%s] %s", number, message.metadata.message_type, exc_info=error)
        sent = _failed(message, code(error), number)
    if trail is None or number == 0:  # no SITE.yaml or no trail to write to: only the code is sent
        return sent
    try:
        trail.outgoing(sent, entry)
    except Exception as error:
        log.error("[%s] the reply is not in the trail", number, exc_info=error)
        return _failed(message, code(error), number)
    return sent


def code(error: BaseException) -> str:
    """The one word about an error that is sent to the server."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "memory"
    return error.code if isinstance(error, FCITError) else "internal"


def _failed(message: Message, word: str, number: int) -> Message:
    return Message(Error(code=CLIENT_RAISED, reason=f"{word} {number}"), reply_to=message)


def _gate(context: Context) -> Gate:
    """The gate of the SITE.yaml that the node names; read again when it has changed.

    Raises:
        ConfigError: SITE.yaml cannot be read or is wrong.
    """
    path = Path(str(context.node_config["site"]))
    return _opened(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=8)
def _opened(path: Path, stamp: int) -> Gate:
    site = sites.load(path)
    return Gate(site, lru_cache(maxsize=8)(lambda ordered: policy.limited(ordered, site)))


@lru_cache(maxsize=8)
def _log(home: Path) -> logging.Logger:
    """The site's log: the one its executor has opened, else a file of its own."""
    executor = logging.getLogger("clients")
    return executor if executor.handlers else logs.to_file(f"clients.{home}", home / "logs" / "site.log")
