"""Draws mini images: a 4 x 4 grid of 16-pixel cells, each holding one thing.

Cells coincide with the patches of the vision tower of ``fcit-tiny``, so a small model can tell
what every patch shows. Pillow draws the mask of each thing once; an image is then composed from
masks, colours and a background, which is quick enough to render during pre-training too.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 16  # pixels
SIDE = 4  # cells per row and per column
CELLS = SIDE * SIDE
PIXELS = CELL * SIDE
VARIANTS = 9  # each thing is drawn shifted by -1, 0 or +1 pixel along both axes

KINDS = (
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "ring",
    "diamond",
    "moon",
    "heart",
    "arrow",
    "tree",
    "house",
    "fish",
    "flag",
    "cup",
    "bolt",
)
COLORS = {
    "red": (214, 40, 40),
    "green": (36, 150, 60),
    "blue": (40, 70, 210),
    "yellow": (232, 196, 20),
    "purple": (140, 50, 170),
    "orange": (244, 130, 20),
    "pink": (245, 120, 180),
    "gray": (120, 120, 120),
}
COLOR_NAMES = tuple(COLORS)
BLACK = len(COLOR_NAMES)  # the colour index of glyphs
_PALETTE = np.array([*COLORS.values(), (20, 20, 20)], dtype=np.uint8)

LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # I, O and Q are too like T, D and 0 at this size
DIGITS = "0123456789"
FILLS = 3  # a bar segment fills one, two or three thirds of its cell

BLANK = 0
KIND0 = 1
LETTER0 = KIND0 + len(KINDS)
DIGIT0 = LETTER0 + len(LETTERS)
FILL0 = DIGIT0 + len(DIGITS)
CONTENTS = FILL0 + FILLS


def _draw_kind(draw: ImageDraw.ImageDraw, kind: str, dx: int, dy: int) -> None:
    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x + dx, y + dy) for x, y in points]

    box = at((3, 3), (12, 12))
    match kind:
        case "circle":
            draw.ellipse(box, fill=255)
        case "square":
            draw.rectangle(box, fill=255)
        case "triangle":
            draw.polygon(at((7.5, 2), (13, 12), (2, 12)), fill=255)
        case "star":
            angles = np.pi * (np.arange(10) / 5 - 0.5)
            radii = np.where(np.arange(10) % 2 == 0, 6.5, 2.6)
            points = zip(7.5 + radii * np.cos(angles), 8 + radii * np.sin(angles), strict=True)
            draw.polygon(at(*points), fill=255)
        case "cross":
            draw.line(at((3, 3), (12, 12)), fill=255, width=3)
            draw.line(at((3, 12), (12, 3)), fill=255, width=3)
        case "ring":
            draw.ellipse(box, outline=255, width=2)
        case "diamond":
            draw.polygon(at((7.5, 2), (13, 7.5), (7.5, 13), (2, 7.5)), fill=255)
        case "moon":
            draw.ellipse(at((2, 2), (13, 13)), fill=255)
            draw.ellipse(at((6, 1), (15, 12)), fill=0)
        case "heart":
            draw.ellipse(at((2, 3), (8, 8)), fill=255)
            draw.ellipse(at((7, 3), (13, 8)), fill=255)
            draw.polygon(at((2, 7), (13, 7), (7.5, 13)), fill=255)
        case "arrow":
            draw.rectangle(at((2, 6), (8, 9)), fill=255)
            draw.polygon(at((8, 2), (14, 7.5), (8, 13)), fill=255)
        case "tree":
            draw.polygon(at((7.5, 1), (12, 9), (3, 9)), fill=255)
            draw.rectangle(at((6, 9), (9, 13)), fill=255)
        case "house":
            draw.polygon(at((7.5, 1), (13, 6), (2, 6)), fill=255)
            draw.rectangle(at((4, 7), (11, 13)), fill=255)
            draw.rectangle(at((6, 9), (9, 13)), fill=0)
        case "fish":
            draw.ellipse(at((1, 5), (10, 11)), fill=255)
            draw.polygon(at((9, 8), (13, 4), (13, 12)), fill=255)
        case "flag":
            draw.line(at((3, 2), (3, 13)), fill=255, width=2)
            draw.rectangle(at((4, 2), (12, 7)), fill=255)
        case "cup":
            draw.rectangle(at((3, 4), (9, 12)), fill=255)
            draw.ellipse(at((8, 5), (13, 10)), outline=255, width=2)
        case "bolt":
            draw.polygon(at((9, 1), (4, 8), (7, 8), (5, 14), (11, 6), (8, 6)), fill=255)


def _draw_mask(content: int, variant: int) -> np.ndarray:
    image = Image.new("L", (CELL, CELL), 0)
    draw = ImageDraw.Draw(image)
    dx, dy = variant % 3 - 1, variant // 3 - 1
    if KIND0 <= content < LETTER0:
        _draw_kind(draw, KINDS[content - KIND0], dx, dy)
    elif LETTER0 <= content < FILL0:
        glyph = (LETTERS + DIGITS)[content - LETTER0]
        # The bitmap font needs no FreeType, so every machine draws the same pixels.
        font = ImageFont.load_default_imagefont()
        small = Image.new("L", (6, 11), 0)
        ImageDraw.Draw(small).text((0, 0), glyph, fill=255, font=font)
        small = small.crop((0, 2, 6, 9)).resize((12, 14), Image.Resampling.NEAREST)
        image.paste(small, (2 + dx, 1 + dy))
    elif content >= FILL0:
        height = round(CELL * (content - FILL0 + 1) / FILLS)
        draw.rectangle((3 + dx, CELL - height, 12 + dx, CELL), fill=255)
    return np.asarray(image) > 0


@lru_cache(maxsize=1)
def _masks() -> np.ndarray:
    """Masks of everything drawable, ``(contents, variants, 16, 16)`` bool: nothing is drawn with soft edges."""
    return np.stack([np.stack([_draw_mask(c, v) for v in range(VARIANTS)]) for c in range(CONTENTS)])


def compose(contents: np.ndarray, colors: np.ndarray, variants: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Compose a batch of images.

    Args:
        contents: ``(B, 16)`` content index of each cell, row by row.
        colors: ``(B, 16)`` colour index of each cell.
        variants: ``(B, 16)`` which shifted drawing of the content is used.
        background: ``(B, 3)`` colour behind everything, whole numbers 0..255.

    Returns:
        ``(B, 64, 64, 3)`` uint8 RGB images.
    """
    batch = contents.shape[0]
    mask = _masks()[contents, variants]  # (B, 16, 16, 16)
    # A colour is one number here, and three bytes only at the end.
    cells = np.where(mask, _packed(_PALETTE)[colors][:, :, None, None], _packed(background)[:, None, None, None])
    grid = cells.reshape(batch, SIDE, SIDE, CELL, CELL).transpose(0, 1, 3, 2, 4).reshape(batch, PIXELS, PIXELS, 1)
    return np.ascontiguousarray(grid.view(np.uint8)[..., :3])


def _packed(colors: np.ndarray) -> np.ndarray:
    """Colours ``(N, 3)`` of 0..255 as numbers of four bytes, the last unused."""
    filled = np.zeros((len(colors), 4), dtype=np.uint8)
    filled[:, :3] = colors
    return filled.view(np.uint32)[:, 0]
