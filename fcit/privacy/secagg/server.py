"""The server's side of the protocol, for one group: it collects what members send and ends with their sum."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

import numpy as np

from fcit.privacy.secagg import masks
from fcit.privacy.secagg.keys import SEED, commitment, masking_key, pairwise, public, usable
from fcit.privacy.secagg.roster import Aborted, Member, Roster, Rules
from fcit.privacy.secagg.shares import combined


class Group:
    """One session of one group.

    Between phases (:meth:`close_keys`, :meth:`close_shares`, :meth:`close_vectors`, :meth:`total`) whatever comes from
    the members of the phase before is taken; a member whose message does not come, or is refused by a ``ValueError``,
    has dropped out. Vectors are added up as they come: none is kept.

    Args:
        session: names this attempt at a sum; new for every one.
        kind: uint32 or uint64.
        size: integers of a vector.
    """

    def __init__(self, session: str, rules: Rules, kind: np.dtype, size: int) -> None:
        self.session, self.rules, self._kind = session, rules, kind
        self._keys: dict[int, Member] = {}
        self.roster = Roster(session, (), rules)
        self._sealed: dict[int, dict[int, bytes]] = {}  # by sender
        self._commitments: dict[int, bytes] = {}
        #: Those who have sent shares, and those of them whose vector is in the sum; by ascending client.
        self.members: list[int] = []
        self.alive: list[int] = []
        self._sum = np.zeros(size, kind)
        self._revealed: dict[int, Mapping[int, bytes]] = {}  # by sender

    # ------------------------------------------------------------------ phase 1

    def keys(self, member: Member) -> None:
        """Take a member's public keys.

        Raises:
            ValueError: they cannot be used.
        """
        several = Roster(self.session, (*self._keys.values(), member), Rules(0, self.rules.dropout))
        problem = several.problem()
        if problem is None and not (usable(member.sealing) and usable(member.masking)):
            problem = "a public key cannot be used"
        if problem is not None:
            raise ValueError(problem)
        self._keys[member.client] = member

    def close_keys(self) -> Roster:
        """The roster of those whose keys have come, in a random order.

        Raises:
            Aborted: too few.
        """
        members = list(self._keys.values())
        secrets.SystemRandom().shuffle(members)
        self.roster = Roster(self.session, tuple(members), self.rules)
        problem = self.roster.problem()
        if problem is not None:
            raise Aborted(problem)
        return self.roster

    # ------------------------------------------------------------------ phase 2

    def shares(self, client: int, sealed: Mapping[int, bytes], bound: bytes) -> None:
        """Take the shares that a member has sealed for its neighbours.

        Raises:
            ValueError: they are not for its neighbours.
        """
        if sorted(sealed) != self.roster.neighbours(client):
            raise ValueError(f"client {client} has sealed shares for others than its neighbours")
        self._sealed[client], self._commitments[client] = dict(sealed), bound

    def close_shares(self) -> list[int]:
        """The members whose shares have come and who have neighbours enough.

        Raises:
            Aborted: too few.
        """
        self.members = self.roster.staying(self._sealed)
        if len(self.members) < self.rules.least:
            raise Aborted(
                f"{len(self._sealed)} members have shared their keys, {len(self.members)} of them have enough "
                f"neighbours, at least {self.rules.least} are needed (privacy.min_group)"
            )
        return self.members

    # ------------------------------------------------------------------ phase 3

    def vector(self, client: int, masked: np.ndarray) -> None:
        """Add a member's masked vector.

        Raises:
            ValueError: not of this group's size or kind, or a second one.
        """
        if masked.shape != self._sum.shape or masked.dtype != self._kind:
            raise ValueError(
                f"a masked vector of {masked.dtype} {list(masked.shape)}, expected {self._kind} {list(self._sum.shape)}"
            )
        if client not in self.members or client in self.alive:
            raise ValueError(f"client {client} was not asked for a vector, or has sent one")
        self._sum += masked
        self.alive = sorted([*self.alive, client])

    def close_vectors(self) -> list[int]:
        """The members whose vectors are in the sum.

        Raises:
            Aborted: too few for a sum, or some member's seeds cannot be had from those who are left.
        """
        if len(self.alive) < self.rules.least:
            raise Aborted(
                f"{len(self.alive)} masked updates, at least {self.rules.least} are needed (privacy.min_group)"
            )
        for client in self.members:
            self._enough(client, self.alive)
        return self.alive

    def sealed_for(self, client: int) -> dict[int, bytes]:
        """What a member's neighbours have sealed for it."""
        near = self.roster.neighbours(client)
        return {sender: self._sealed[sender][client] for sender in self.members if sender in near}

    # ------------------------------------------------------------------ phase 4

    def revealed(self, client: int, shares: Mapping[int, bytes]) -> None:
        """Take the shares that a member has opened.

        Raises:
            ValueError: it has none of these, or they are none.
        """
        if set(shares) - set(self.sealed_for(client)) or any(len(share) != SEED for share in shares.values()):
            raise ValueError(f"client {client} has revealed what are no shares of its neighbours")
        self._revealed[client] = dict(shares)

    def total(self) -> np.ndarray:
        """The sum of the vectors of those alive, without any mask.

        Raises:
            Aborted: too few shares, or too many false ones.
        """
        for client in self.members:
            if client in self.alive:
                self._unmask_alive(client)
            else:
                self._unmask_dropped(client)
        return self._sum

    def _unmask_alive(self, client: int) -> None:
        """Take back the own mask of one whose vector is in the sum."""
        bound = self._commitments[client]
        seed = self._secret(client, lambda seed: commitment(seed, self.session, client) == bound)
        masks.add(self._sum, seed, -1)

    def _unmask_dropped(self, client: int) -> None:
        """Take back the masks that those alive had in common with one who dropped out."""
        key = self.roster.member(client).masking
        private = masking_key(self._secret(client, lambda seed: public(masking_key(seed)) == key))
        for other in set(self.roster.neighbours(client)) & set(self.alive):
            seed = pairwise(private, self.roster.member(other).masking, self.session, (client, other))
            masks.add(self._sum, seed, -1 if other < client else 1)

    def _secret(self, client: int, right: Callable[[bytes], bool]) -> bytes:
        neighbours = self.roster.neighbours(client)
        came = {
            number: self._revealed[holder][client]
            for number, holder in enumerate(neighbours)
            if client in self._revealed.get(holder, {})
        }
        self._enough(client, [neighbours[number] for number in came])
        secret = combined(came, self.roster.threshold, right)
        if secret is None:
            raise Aborted(f"shares of client {client} are false: its mask cannot be taken off")
        return secret

    def _enough(self, client: int, holders: list[int]) -> None:
        count, needed = len(set(self.roster.neighbours(client)) & set(holders)), self.roster.threshold
        if count < needed:
            raise Aborted(f"{count} neighbours of client {client} are left, {needed} are needed (privacy.dropout)")
