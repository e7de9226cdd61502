"""How long a client's update is, what is left of it, and how the clipping norm follows a quantile."""

from __future__ import annotations

import numpy as np

from fcit.io.threads import by_stretches
from fcit.io.trees import Tensors


def clipped(tensors: Tensors, old: Tensors, clip: float) -> tuple[Tensors, float]:
    """An update whose distance from the server's tensors is at most ``clip``, and its distance before.

        theta_k <- theta + min(1, C / ||theta_k - theta||) (theta_k - theta)

    with one norm over all tensors (McMahan et al., 2018, arXiv 1710.06963, flat clipping). What is shortened is
    float64: rounded to float32 it could be longer than C.
    """
    new = {name: tensor.reshape(-1) for name, tensor in tensors.items()}
    before = {name: old[name].reshape(-1) for name in tensors}

    def square(name: str, stretch: slice) -> float:
        difference = np.subtract(new[name][stretch], before[name][stretch], dtype=np.float64)
        return float(np.square(difference, out=difference).sum())

    norm = float(np.sqrt(sum(sum(parts) for parts in by_stretches(square, new).values())))
    if norm <= clip:
        return tensors, norm
    short = {name: np.empty(tensor.shape) for name, tensor in tensors.items()}

    def shorten(name: str, stretch: slice) -> None:
        difference = short[name].reshape(-1)[stretch]
        np.subtract(new[name][stretch], before[name][stretch], out=difference, dtype=np.float64)
        difference *= clip / norm
        difference += before[name][stretch]

    by_stretches(shorten, new)
    return short, norm


def count_noise(multiplier: float, clients: int, asked: float | None = None) -> float:
    """Standard deviation sigma_b of the noise on the number of updates that need no clipping.

    ``asked``, or a twentieth of the round's clients as in the paper, at least the noise multiplier: with so few
    clients as in silos the paper's choice would leave no noise multiplier for the updates.
    """
    return asked if asked is not None else max(clients / 20, multiplier)


def on_updates(multiplier: float, sigma: float) -> float:
    """z_Delta = (z^-2 - (2 sigma_b)^-2)^(-1/2): more noise on the updates, for what the noisy count tells.

    Both together are then one Gaussian mechanism of noise multiplier z (Andrew et al., 2021, arXiv 1905.03871,
    theorem 1).

    Raises:
        ValueError: sigma_b is not more than z / 2.
    """
    rest = multiplier**-2 - (2 * sigma) ** -2
    if rest <= 0:
        raise ValueError(f"quantile_noise {sigma:.4g} is not more than half of the noise multiplier {multiplier:.4g}")
    return float(rest**-0.5)


def followed(clip: float, share: float, quantile: float, rate: float) -> float:
    """The next clipping norm C <- C exp(-eta (b - gamma)): smaller if more than the quantile needed no clipping.

    Args:
        share: noisy share b of the updates that needed none (Andrew et al., 2021, section 2.2).
    """
    return float(clip * np.exp(-rate * (share - quantile)))
