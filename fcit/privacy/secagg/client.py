"""The client's side of the protocol: from a secret and what the server passes on to what is sent back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from fcit.privacy.secagg import masks
from fcit.privacy.secagg.keys import SEED, Keys, commitment, pairwise, public
from fcit.privacy.secagg.roster import Aborted, Member, Roster
from fcit.privacy.secagg.shares import split


@dataclass(frozen=True)
class Shared:
    """Shares of a client's two seeds, sealed for each of its neighbours, and what binds it to its own mask."""

    sealed: dict[int, bytes]
    commitment: bytes


@dataclass(frozen=True)
class Revealed:
    """Shares of the neighbours' seeds, one of each neighbour's two; ``unreadable``: whose could not be opened."""

    shares: dict[int, bytes]
    unreadable: list[int]


@dataclass(frozen=True)
class Participant:
    """One client in one session: pure, except for the randomness of shares and nonces.

    That nothing is shared, masked or revealed twice is kept by who calls it (:mod:`clients.worker.sessions`).
    """

    keys: Keys

    @property
    def client(self) -> int:
        """Its number."""
        return self.keys.client

    def member(self) -> Member:
        """Phase 1: the public keys."""
        return Member(self.client, public(self.keys.sealing), public(self.keys.masking))

    def share(self, roster: Roster) -> Shared:
        """Phase 2: shares of both seeds for every neighbour, itself among them.

        Raises:
            Aborted: the roster is none that it may take part in.
        """
        problem = roster.problem()
        if problem is None and (self.client not in roster or roster.member(self.client) != self.member()):
            problem = f"client {self.client} is not in it with the keys that it has sent"
        if problem is not None:
            raise Aborted(f"roster of session {roster.session}: {problem}")
        neighbours = roster.neighbours(self.client)
        seeds = self.keys.own_seed, self.keys.masking_seed
        halves = zip(*(split(seed, roster.threshold, len(neighbours)) for seed in seeds), strict=True)
        try:
            sealed = {
                other: self.keys.seal(own + masking, other, roster.member(other).sealing, roster.digest)
                for other, (own, masking) in zip(neighbours, halves, strict=True)
            }
        except ValueError as error:
            raise Aborted(f"roster of session {roster.session}: a public key cannot be used ({error})") from None
        return Shared(sealed, commitment(self.keys.own_seed, roster.session, self.client))

    def masked(self, roster: Roster, members: Collection[int], vector: np.ndarray) -> np.ndarray:
        """Phase 3: the vector with this client's own mask and those it has in common with its neighbours.

            y_u = x_u + PRG(b_u) + sum_{v in N(u), u < v} PRG(s_uv) - sum_{v in N(u), u > v} PRG(s_uv)

        Args:
            members: those who have sent shares.

        Raises:
            Aborted: with these members nobody must mask anything.
        """
        self._check(roster, members, set())
        masked = vector.copy()
        masks.add(masked, self.keys.own_seed)
        for other in set(roster.neighbours(self.client)) & set(members) - {self.client}:
            try:
                seed = pairwise(self.keys.masking, roster.member(other).masking, roster.session, (self.client, other))
            except ValueError as error:
                raise Aborted(f"session {roster.session}: key of client {other} cannot be used ({error})") from None
            masks.add(masked, seed, 1 if self.client < other else -1)
        return masked

    def reveal(
        self, roster: Roster, members: Collection[int], alive: Collection[int], sealed: Mapping[int, bytes]
    ) -> Revealed:
        """Phase 4: for each neighbour one share: of its own mask if it is alive, else of its masking key.

        Args:
            members: those of phase 3.
            alive: those of them whose masked vector the server has; all others have dropped out.
            sealed: what the neighbours sealed for this client.

        Raises:
            Aborted: so few are alive that nothing must be revealed, or this client is said to have dropped out.
        """
        self._check(roster, members, set(members) - set(alive))
        shares, unreadable = {}, []
        for other in sorted(set(roster.neighbours(self.client)) & set(members)):
            key = roster.member(other).sealing
            plain = self.keys.open(sealed.get(other, b""), other, key, roster.digest)
            if plain is None or len(plain) != 2 * SEED:
                unreadable.append(other)
                continue
            shares[other] = plain[:SEED] if other in alive else plain[SEED:]
        return Revealed(shares, unreadable)

    def _check(self, roster: Roster, members: Collection[int], dropped: Collection[int]) -> None:
        alive = set(members) - set(dropped)
        strangers = [client for client in members if client not in roster]
        near = set(roster.neighbours(self.client)) & alive
        problem = None
        if strangers:
            problem = f"client {strangers[0]} is not of its roster"
        elif self.client not in alive:
            problem = f"client {self.client} is said to have dropped out"
        elif len(alive) < roster.rules.least:
            problem = f"a sum of {len(alive)} updates, at least {roster.rules.least} are needed (privacy.min_group)"
        elif len(near) < roster.threshold:
            problem = f"{len(near)} of the neighbours are left, {roster.threshold} are needed (privacy.dropout)"
        if problem is not None:
            raise Aborted(f"session {roster.session}: {problem}")
