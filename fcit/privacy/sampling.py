"""Participants that only the server knows."""

from __future__ import annotations

from fcit.privacy.noise import Noise


def poisson(secret: bytes, stage: int, round_: int, clients: int, rate: float) -> list[int]:
    """Every client by itself with probability ``rate``, ascending: a function of (secret, stage, round).

    Poisson sampling, as the bounds of :mod:`fcit.privacy.accountant` assume: a round may have no participant, or all
    clients. Whether one client takes part tells nothing of another, which a number fixed in advance would.
    """
    drawn = Noise(secret).uniform((clients,), "sampling", stage, round_)
    return [client for client in range(clients) if drawn[client] <= rate]
