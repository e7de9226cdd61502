"""Between a deployed site and the wire: every message is written down, every error becomes a code.

An order passes the trail, then SITE.yaml's limits, then it is done; its answer passes the trail and leaves.
Whatever goes wrong on the way stays in the site's own log, with all it says. The server is told one word and
the number of the order in the audit trail, under which the log has the rest.
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
    """One site's way to the wire, as its SITE.yaml stands now."""

    def __init__(self, site: Site, limited: Callable[[str], str]) -> None:
        self.site, self.terms = site, policy.terms(site)
        self.own = OwnTasks(site) if site.stream == "site" else None
        self._limited = limited

    def memory(self, run: str) -> Path:
        """Where this site remembers what belongs to a run."""
        return self.site.folder / "memory" / run

    def admit(self, order: Any) -> str:
        """The configuration to do an order with.

        Raises:
            Refused: it is not for this site, or SITE.yaml does not allow what it asks.
        """
        policy.check_order(order, self.site)
        return self._limited(order.config)


def answer(context: Context, message: Message, work: Callable[[Gate], Any]) -> Message:
    """The answer to an order at a site: a record, or an error that tells a code and a reference only.

    Nothing is raised: Flower would send the server an exception's text.

    Args:
        work: does the order within the gate's limits; returns ``(record, wire)``.
    """
    number, log, trail = 0, logging.getLogger("clients"), None
    entry: dict[str, Any] = {"number": 0}
    try:
        gate = _gate(context)
        log = _log(gate.site.folder)
        trail = Trail(gate.site.folder)
        entry = trail.incoming(message)
        number = entry["number"]
        record, wire = work(gate)
        reply = Message(codec.encode(record, wire), reply_to=message)
        trail.outgoing(reply, entry)
        return reply
    except Exception as error:
        log.error("[%s] %s", number, message.metadata.message_type, exc_info=error)
        reply = _failed(message, code(error), number)
    if trail is None or number == 0:  # no SITE.yaml or no trail to write to: the bare code is all that leaves
        return reply
    try:
        trail.outgoing(reply, entry)
    except Exception as error:
        log.error("[%s] the answer is not in the trail", number, exc_info=error)
        return _failed(message, code(error), number)
    return reply


def code(error: BaseException) -> str:
    """The one word about an error that leaves a site."""
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
