"""What an opened picture becomes: RGB of eight bits, the official way or upright.

The published trainer opens a picture with Pillow and calls ``convert("RGB")``; so do we, bit for bit, for every picture
of eight bits. Two ways differ in what that call ignores:

* ``official``: as it is. A turned photograph stays turned, and what is transparent has the colour that happens to be
  stored below it, which for clip art is mostly black.
* ``upright``: turned as its EXIF orientation says, transparency laid on white.

Numbers of more than eight bits are scaled (:func:`scaled`): Pillow cuts them off at 255, which makes a picture of
sixteen bits white and one of fractions black.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image

from fcit.config.kinds import Way

MAX_EXIF = 2**16  # bytes; a JPEG's segment holds no more
_BAND = 2**20  # pixels scaled at a time
#: What undoes an EXIF orientation (CIPA DC-008, tag 274); 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Those of them that change width and height for each other.
SIDEWAYS = frozenset({5, 6, 7, 8})


def as_rgb(image: Image.Image, way: Way = "official") -> Image.Image:
    """An opened image as RGB pixels and nothing else: no orientation or transparency stays with it."""
    plain = flat(image)
    if way == "upright":
        if plain.has_transparency_data:
            white = Image.new("RGBA", plain.size, "white")
            white.alpha_composite(plain.convert("RGBA"))
            plain = white
        turn = _TURNS.get(orientation(image))
        plain = plain if turn is None else plain.transpose(turn)
    rgb = plain.convert("RGB")
    rgb.info = {}
    return rgb


def flat(image: Image.Image) -> Image.Image:
    """The decoded image, eight bits a channel."""
    image.load()
    return scaled(image) if image.mode in ("I", "F") or image.mode.startswith("I;16") else image


def orientation(image: Image.Image) -> int:
    """EXIF orientation of a decoded image; 1 where it has none, or none that can be read."""
    if any(len(image.info.get(key) or "") > 2 * MAX_EXIF for key in ("exif", "Raw profile type exif")):
        return 1  # reading it could take many times its size
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  (damaged EXIF, in any way; the pixels are whole)
        return 1
    return turn if turn in _TURNS else 1


def scaled(image: Image.Image) -> Image.Image:
    """An image of more than eight bits (modes ``I;16``, ``I``, ``F``) with eight, by the range its numbers are in.

    The range is the smallest of these that holds all of them: fractions 0..1 (of floating point numbers only), 0..255,
    0..4095, 0..65535. So numbers up to 255 stay what they are, as with Pillow; whole numbers of twelve or sixteen bits
    keep their upper eight, as Pillow does with colour of sixteen; and a picture saved with eight and with sixteen bits
    looks the same. A picture with negative or larger numbers is stretched from its lowest to its highest. What is not
    finite is black. The one mistake that can be made: a picture of sixteen bits whose brightest pixel is below a
    sixteenth of white is taken for one of twelve.

    Returns:
        mode ``L``, or ``LA`` where one of the numbers means transparent (PNG's tRNS).
    """
    low, high = np.inf, -np.inf
    for _, band in _bands(image):
        finite = band[np.isfinite(band)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    pixels = np.zeros((image.height, image.width), np.uint8)
    for rows, band in _bands(image):
        pixels[rows] = _eight(band, low, high)
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return Image.fromarray(pixels)
    alpha = np.full_like(pixels, 255)
    for rows, band in _bands(image):
        alpha[rows][band == clear] = 0
    return Image.merge("LA", (Image.fromarray(pixels), Image.fromarray(alpha)))


def _bands(image: Image.Image) -> Iterator[tuple[slice, np.ndarray]]:
    """Stretches of rows, few enough to compute with."""
    step = max(1, _BAND // image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        yield slice(top, bottom), np.asarray(image.crop((0, top, image.width, bottom)))


def _eight(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Eight bits of numbers of which ``low`` and ``high`` are the extremes."""
    whole = values.dtype.kind in "iu"
    white = next((top for top in ((255, 4095, 65535) if whole else (1, 255, 4095, 65535)) if high <= top), None)
    if low < 0 or white is None:
        span = high - low
        values = (values.astype(np.float64) - low) * (255 / span if span else 0)
    elif whole:
        return (values >> {255: 0, 4095: 4, 65535: 8}[white]).astype(np.uint8)
    else:
        values = values.astype(np.float64) * (255 / white)
    return np.rint(np.nan_to_num(values, nan=0, posinf=0, neginf=0)).astype(np.uint8)
