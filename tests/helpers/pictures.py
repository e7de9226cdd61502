"""Pictures of a few pixels, and parts of PNG files made by hand."""

import struct
import zlib

import numpy as np
from PIL import Image

GRADIENT = np.tile(np.arange(256, dtype=np.uint8), (2, 1))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def small(mode: str) -> Image.Image:
    """Random pixels of a mode."""
    noise = np.random.default_rng(1).integers(0, 256, (6, 5, 4), np.uint8)
    if mode == "PA":
        return Image.fromarray(noise, "RGBA").convert("PA")
    if mode == "P":
        return Image.fromarray(noise[..., :3]).quantize(7)
    return Image.fromarray(noise, "RGBA").convert(mode)
