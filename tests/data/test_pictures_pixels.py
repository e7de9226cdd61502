"""Images from outside: their pixels, of eight bits and of more."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fcit.data.images.opening import FORMATS, look_at, open_image
from fcit.data.images.pixels import as_rgb
from tests.helpers.pictures import GRADIENT, chunk, small

ORIENTATION = 274  # EXIF tag


def red(root, image: Image.Image, kind: str, way="official", **how) -> list[int]:
    """First row of the red channel of an image that was saved and opened."""
    image.save(root / "x", kind, **how)
    opened = open_image(root, "x", way)
    assert opened.mode == "RGB"
    return np.asarray(opened)[0, :, 0].tolist()


# ---------------------------------------------------------------------- eight bits: the official pixels


@pytest.mark.parametrize("way", ["official", "upright"])
@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("RGB", FORMATS),
        ("L", FORMATS),
        ("1", ("PNG", "BMP", "TIFF", "PPM")),
        ("P", ("PNG", "GIF", "BMP", "TIFF")),
        ("CMYK", ("JPEG", "TIFF")),
        ("YCbCr", ("JPEG", "TIFF")),
        ("LAB", ("TIFF",)),
        ("RGBX", ("TIFF",)),
    ],
)
def test_opaque_pictures_are_what_convert_makes_of_them(root, mode, kinds, way):
    image = small("RGB").convert("LAB") if mode == "LAB" else small(mode)
    for kind in kinds:
        image.save(root / "x", kind)
        with Image.open(root / "x") as opened:
            meant = opened.convert("RGB")
        assert open_image(root, "x", way).tobytes() == meant.tobytes(), kind


CLEAR = [
    ("RGBA", "PNG"),
    ("RGBA", "TIFF"),
    ("RGBA", "WEBP"),
    ("LA", "PNG"),
    ("LA", "TIFF"),
    ("PA", "TIFF"),
    ("P", "PNG"),
    ("P", "GIF"),
]


@pytest.mark.parametrize(("mode", "kind"), CLEAR)
def test_transparency_is_ignored_or_laid_on_white(root, mode, kind):
    """Left: opaque blue (grey). Middle: half of it. Right: wholly transparent with black below, as clip art has it."""
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(0, 0, 200, 255), (0, 0, 200, 128), (0, 0, 0, 0)])
    how = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    if mode == "P":
        image = Image.new("P", (3, 1))
        image.putpalette([0, 0, 200, 0, 0, 0])
        image.putdata([0, 0, 1])
        how = {"transparency": 1}
    else:
        image = rgba.convert(mode)
    image.save(root / "x", kind, **how)
    official, upright = (np.asarray(open_image(root, "x", way))[0].tolist() for way in ("official", "upright"))
    assert official[2] == [0, 0, 0]
    assert upright[2] == [255, 255, 255]
    assert official[0] == upright[0] == official[1]
    if mode == "RGBA":
        assert upright[0] == [0, 0, 200]
        assert upright[1] == [127, 127, 227]
    assert look_at(root, "x").transparent


def test_a_transparent_colour_of_an_rgb_png(root):
    image = Image.new("RGB", (2, 1))
    image.putdata([(1, 2, 3), (9, 9, 9)])
    image.save(root / "x", "PNG", transparency=(9, 9, 9))
    assert np.asarray(open_image(root, "x"))[0].tolist() == [[1, 2, 3], [9, 9, 9]]
    assert np.asarray(open_image(root, "x", "upright"))[0].tolist() == [[1, 2, 3], [255, 255, 255]]


def turned(root, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    how = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(np.array([[10, 20, 30], [40, 50, 60]], np.uint8)).convert("RGB").save(
        root / "x", kind, exif=exif, **how
    )


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_exif_turns_only_what_is_to_be_upright(root, kind):
    """Orientation 6: the right side of what is stored is up; a viewer turns it clockwise."""
    turned(root, kind, 6)
    assert open_image(root, "x").size == (3, 2)
    upright = open_image(root, "x", "upright")
    assert upright.size == (2, 3)
    if kind != "JPEG":
        assert np.asarray(upright)[..., 0].tolist() == [[40, 10], [50, 20], [60, 30]]
    assert look_at(root, "x").rotated


def test_pillow_turns_a_tiff_itself(root):
    turned(root, "TIFF", 6)
    for way in ("official", "upright"):
        assert np.asarray(open_image(root, "x", way))[..., 0].tolist() == [[40, 10], [50, 20], [60, 30]]
    assert not look_at(root, "x").rotated


@pytest.mark.parametrize(
    ("orientation", "rows"),
    [
        (1, [[10, 20, 30], [40, 50, 60]]),
        (2, [[30, 20, 10], [60, 50, 40]]),
        (3, [[60, 50, 40], [30, 20, 10]]),
        (4, [[40, 50, 60], [10, 20, 30]]),
        (5, [[10, 40], [20, 50], [30, 60]]),
        (6, [[40, 10], [50, 20], [60, 30]]),
        (7, [[60, 30], [50, 20], [40, 10]]),
        (8, [[30, 60], [20, 50], [10, 40]]),
        (9, [[10, 20, 30], [40, 50, 60]]),
    ],
)
def test_every_orientation(root, orientation, rows):
    turned(root, "PNG", orientation)
    assert np.asarray(open_image(root, "x", "upright"))[..., 0].tolist() == rows
    assert look_at(root, "x").rotated == (2 <= orientation <= 8)


@pytest.mark.filterwarnings("ignore:.*Pillow warns. Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(200_000)])
def test_damaged_or_huge_exif_is_none(root, exif):
    small("RGB").save(root / "x", "PNG", exif=exif)
    assert open_image(root, "x", "upright").tobytes() == small("RGB").tobytes()


def test_pixels_bring_nothing_with_them(root):
    """Else who saves and opens them again would turn them twice."""
    turned(root, "PNG", 6)
    upright = open_image(root, "x", "upright")
    assert upright.info == {}
    assert as_rgb(upright, "upright").size == (2, 3)


# ---------------------------------------------------------------------- more than eight bits


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("sixteen", [GRADIENT.astype(np.uint16) * 257, GRADIENT.astype(np.uint16) << 8])
def test_sixteen_bits_look_like_eight(root, kind, sixteen):
    """However eight bits were made sixteen: by repeating them (PNG's way) or by zeros behind."""
    image = Image.fromarray(sixteen)
    assert red(root, image, kind) == red(root, Image.fromarray(GRADIENT), "PNG") == list(range(256))


def test_the_other_byte_order(root):
    image = Image.fromarray((GRADIENT.astype(np.uint16) * 257).astype(">u2"))
    assert image.mode == "I;16B"
    assert red(root, image, "TIFF") == list(range(256))


@pytest.mark.parametrize(
    ("numbers", "kind", "meant"),
    [
        (np.array([[0, 128, 255]], np.uint16), "PNG", [0, 128, 255]),  # eight bits in sixteen: as Pillow has them
        (np.array([[0, 256, 2048, 4095]], np.uint16), "PNG", [0, 16, 128, 255]),  # twelve
        (np.array([[0, 4096, 32768, 65535]], np.uint16), "PNG", [0, 16, 128, 255]),
        (np.array([[0, 65535, 32768]], np.int32), "TIFF", [0, 255, 128]),
        (np.array([[0, 100_000, 200_000]], np.int32), "TIFF", [0, 128, 255]),  # from lowest to highest
        (np.array([[-1000, 0, 1000]], np.int32), "TIFF", [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), "TIFF", [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), "PPM", [0, 128, 255]),  # a PFM
        (np.array([[0, 1, 127, 255]], np.float32), "TIFF", [0, 1, 127, 255]),
        (np.array([[0, 257, 65535]], np.float32), "TIFF", [0, 1, 255]),
        (np.array([[-1, 0, 1]], np.float32), "TIFF", [0, 128, 255]),
        (np.array([[np.nan, 0.5, np.inf, 1]], np.float32), "TIFF", [0, 128, 0, 255]),
        (np.array([[np.nan, np.nan]], np.float32), "TIFF", [0, 0]),
        (np.array([[-5, -5]], np.float32), "TIFF", [0, 0]),
        (np.array([[0, 0]], np.uint16), "PNG", [0, 0]),
    ],
)
def test_the_range_of_the_numbers(root, numbers, kind, meant):
    assert red(root, Image.fromarray(numbers), kind) == meant


def test_colour_of_sixteen_bits_keeps_the_upper_eight(root):
    """Pillow's own reading, of which the scale for grey is the same."""
    row = struct.pack(">6H", 257, 0x1234, 65535, 0, 255, 256)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    body = header + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    (root / "x").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert np.asarray(open_image(root, "x"))[0].tolist() == [[1, 0x12, 255], [0, 0, 1]]


def test_a_transparent_number_of_sixteen_bits(root):
    numbers = np.array([[0, 32768, 65535]], np.uint16)
    image = Image.fromarray(numbers)
    assert red(root, image, "PNG", transparency=0) == [0, 128, 255]
    assert red(root, image, "PNG", "upright", transparency=0) == [255, 128, 255]
    assert look_at(root, "x").transparent


def test_bands_do_not_show(root, monkeypatch):
    numbers = np.random.default_rng(0).integers(0, 65536, (50, 7)).astype(np.uint16)
    Image.fromarray(numbers).save(root / "x", "PNG")
    monkeypatch.setattr("fcit.data.images.pixels._BAND", 20)
    assert (np.asarray(open_image(root, "x"))[..., 0] == numbers >> 8).all()
