"""Who is in a group, whose shares each member holds, and how many of them give a secret back."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from fcit.config.privacy import Privacy
from fcit.privacy.secagg.keys import PUBLIC


class Aborted(Exception):
    """A group's sum cannot be computed, or may not; nothing about a single member came out."""


@dataclass(frozen=True)
class Rules:
    """What server and clients hold a group to; both take it from the configuration (``privacy:``).

    Attributes:
        least: members whose updates a sum must hold.
        dropout: share of a neighbourhood that may be lost; below one half, so that for no member both its secrets can
            be had from disjoint halves of its neighbourhood.
        neighbours: of each member; None: all others.
    """

    least: int
    dropout: float
    neighbours: int | None = None

    @classmethod
    def of(cls, privacy: Privacy) -> Rules:
        """The rules of a configuration."""
        return cls(privacy.min_group, privacy.dropout, privacy.neighbours)


@dataclass(frozen=True)
class Member:
    """A member with its two public keys of this session: for sealing shares, and for pairwise masks."""

    client: int
    sealing: bytes
    masking: bytes


@dataclass(frozen=True)
class Roster:
    """The members that have sent keys in one session, in the order of a ring that the server has drawn.

    Neighbours on the ring are those at most ``neighbours / 2`` places away (a Harary graph, as in Bell et al., 2020);
    with fewer members all are neighbours of all, which is the protocol of Bonawitz et al., 2017. A member counts as a
    neighbour of its own.
    """

    session: str
    members: tuple[Member, ...]
    rules: Rules

    def problem(self) -> str | None:
        """Why this is no roster that a member may share its secrets with, or None."""
        clients = {member.client for member in self.members}
        keys = {key for member in self.members for key in (member.sealing, member.masking)}
        if len(clients) < len(self.members) or len(keys) < 2 * len(self.members):
            return "a client or a key is named twice"
        if any(len(key) != PUBLIC for key in keys):
            return f"a public key has not {PUBLIC} bytes"
        if len(self.members) < self.rules.least:
            return f"{len(self.members)} members, at least {self.rules.least} are needed (privacy.min_group)"
        return None

    @cached_property
    def digest(self) -> bytes:
        """Hash of all of it: what is sealed for one roster opens with no other."""
        rules = [self.rules.least, self.rules.dropout, self.rules.neighbours]
        members = [[m.client, m.sealing.hex(), m.masking.hex()] for m in self.members]
        return hashlib.sha256(json.dumps([self.session, rules, members]).encode()).digest()

    @cached_property
    def _places(self) -> dict[int, int]:
        return {member.client: place for place, member in enumerate(self.members)}

    def __contains__(self, client: int) -> bool:
        return client in self._places

    def member(self, client: int) -> Member:
        """A member by its client."""
        return self.members[self._places[client]]

    @cached_property
    def size(self) -> int:
        """Members of a neighbourhood, with its centre."""
        others = len(self.members) - 1
        return 1 + (others if self.rules.neighbours is None else min(self.rules.neighbours, others))

    @cached_property
    def threshold(self) -> int:
        """Shares that give a secret back: t = h - floor(dropout h) of the h in a neighbourhood, so t > h / 2."""
        return self.size - math.floor(self.rules.dropout * self.size)

    def neighbours(self, client: int) -> list[int]:
        """The neighbourhood of a member, itself among them, by ascending client."""
        if self.size == len(self.members):
            return sorted(self._places)
        place, reach = self._places[client], (self.size - 1) // 2
        ring = [self.members[(place + step) % len(self.members)].client for step in range(-reach, reach + 1)]
        return sorted(ring)

    def staying(self, clients: Collection[int]) -> list[int]:
        """Those of these members with enough neighbours among them to be unmasked, by ascending client."""
        staying = sorted(clients)
        while True:
            enough = [c for c in staying if len(set(self.neighbours(c)) & set(staying)) >= self.threshold]
            if len(enough) == len(staying):
                return staying
            staying = enough
