"""How a finished mini image may look otherwise: the same things in the same cells and colours, another picture.

``fcit-tiny`` saw plain images only. A style changes every pixel in the same way on every machine and draws no random
number, so that what is drawn, and what the plain data sets hold, does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fcit.data.mini.canvas import CELL, PIXELS


def _plain(images: np.ndarray) -> np.ndarray:
    return images


def _dusk(images: np.ndarray) -> np.ndarray:
    """A quarter darker."""
    return (images.astype(np.uint16) * 3 // 4).astype(np.uint8)


def _faded(images: np.ndarray) -> np.ndarray:
    """A quarter of the way to white."""
    return (255 - (255 - images.astype(np.uint16)) * 3 // 4).astype(np.uint8)


def _grid(images: np.ndarray) -> np.ndarray:
    """Gray lines between the cells, as in a window or a table."""
    drawn = images.copy()
    drawn[:, ::CELL] = drawn[:, :, ::CELL] = 150
    return drawn


def _dotted(images: np.ndarray) -> np.ndarray:
    """Darker dots on every fourth pixel of every fourth row, as on cheap paper."""
    drawn = images.copy()
    drawn[:, 1::4, 1::4] = drawn[:, 1::4, 1::4] * np.float32(0.7)
    return drawn


def _framed(images: np.ndarray) -> np.ndarray:
    """A dark frame of two pixels."""
    drawn = images.copy()
    inner = slice(2, PIXELS - 2)
    outside = np.ones((PIXELS, PIXELS), dtype=bool)
    outside[inner, inner] = False
    drawn[:, outside] = 40
    return drawn


#: Each takes images ``(B, 64, 64, 3)`` uint8 RGB and returns as many.
STYLES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": _plain,
    "dusk": _dusk,
    "faded": _faded,
    "grid": _grid,
    "dotted": _dotted,
    "framed": _framed,
}
