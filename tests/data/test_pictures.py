"""From files to pixels: bounds, more than eight bits, which way up, what is told. Pictures are a few pixels each."""

import hashlib
import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fcit.data.images import opening
from fcit.data.images.opening import FORMATS, Look, look_at, open_image
from fcit.data.images.pixels import as_rgb
from fcit.errors import DataError

GRADIENT = np.tile(np.arange(256, dtype=np.uint8), (2, 1))
ORIENTATION = 274  # EXIF tag


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    Image.new("L", (4, 4), 7).save(folder / "good.png")
    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "outside.png")
    return folder


def red(root, image: Image.Image, kind: str, way="official", **how) -> list[int]:
    """First row of the red channel of an image that was saved and opened."""
    image.save(root / "x", kind, **how)
    opened = open_image(root, "x", way)
    assert opened.mode == "RGB"
    return np.asarray(opened)[0, :, 0].tolist()


# ---------------------------------------------------------------------- which files


def test_images_open_as_rgb(root):
    assert open_image(root, "good.png").getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("path", ["../outside.png", "x/../../outside.png", "/etc/hostname"])
def test_path_leaving_the_root(root, path):
    with pytest.raises(DataError, match="leaves the image root"):
        open_image(root, path)


def test_link_leaving_the_root(root, tmp_path):
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "folder").symlink_to(tmp_path)
    for path in ("link.png", "folder/outside.png"):
        with pytest.raises(DataError, match="leaves the image root"):
            open_image(root, path)


@pytest.mark.parametrize("path", ["none.png", "", "."])
def test_missing_image(root, path):
    with pytest.raises(DataError, match="missing"):
        open_image(root, path)


def test_null_byte_in_a_path(root):
    with pytest.raises(DataError):
        open_image(root, "a\0b.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_refused(root, kind):
    """The published trainer takes it (LOAD_TRUNCATED_IMAGES), with grey for what is missing."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(root / "whole", kind)
    whole = (root / "whole").read_bytes()
    (root / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"half: not a readable image .* perhaps truncated"):
        open_image(root, "half")


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_not_an_image(root, content):
    (root / "text.png").write_bytes(content)
    with pytest.raises(DataError, match="not a readable image") as caught:
        open_image(root, "text.png")
    assert " at 0x" not in str(caught.value)  # no address of an object


# ---------------------------------------------------------------------- bounds


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, data: bytes = b"") -> bytes:
    """An RGB PNG of that size; without ``data`` its pixels are missing."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = (header, *more, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_long_thin_picture_is_refused(root):
    """200,000 x 1 in some hundred bytes: padded to a square it would take 120 GB."""
    whole = png(200_000, 1, data=bytes(1 + 600_000))
    assert len(whole) < 1000
    (root / "x").write_bytes(whole)
    with pytest.raises(DataError, match=r"x: 200000 x 1 pixels, a side of more than 10,000"):
        open_image(root, "x")


def test_the_longest_side_is_still_opened(root):
    (root / "x").write_bytes(png(opening.MAX_SIDE, 1, data=bytes(1 + 3 * opening.MAX_SIDE)))
    assert open_image(root, "x").size == (10_000, 1)


@pytest.mark.parametrize(
    ("size", "told"), [((8000, 8000), "8000 x 8000 pixels, more than"), ((16_000, 16_000), "more pixels than the")]
)
def test_many_pixels_are_refused_by_the_header(root, size, told):
    (root / "x").write_bytes(png(*size))
    with pytest.raises(DataError, match=told):
        open_image(root, "x")


def tiff(*tags: tuple[int, int]) -> bytes:
    """An empty TIFF of whole numbers, one for each tag."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def test_a_tile_is_bounded_like_a_picture(root):
    """Ten by ten pixels in one tile of thirty thousand by thirty thousand, which would be decoded whole."""
    common = ((256, 10), (257, 10), (258, 8), (259, 8), (262, 1), (277, 1), (324, 8), (325, 100))
    (root / "x").write_bytes(tiff(*common, (322, 30_000), (323, 30_000)))
    with pytest.raises(DataError, match="x: tiles of 900,000,000 pixels, more than 16,777,216"):
        open_image(root, "x")


@pytest.mark.parametrize("bomb", [b"k\0\0", b"k\0\1\0\0\0"], ids=["zTXt", "iTXt"])
@pytest.mark.parametrize("kind", ["text", "profile"])
def test_text_and_profiles_are_bounded(root, bomb, kind):
    name = b"iCCP" if kind == "profile" else b"zTXt" if len(bomb) == 3 else b"iTXt"
    packed = zlib.compress(bytes(50_000_000), 9)
    body = (b"k\0\0" if kind == "profile" else bomb) + packed
    (root / "x").write_bytes(png(2, 2, chunk(name, body), data=bytes(14)))
    with pytest.raises(DataError, match="Decompressed data too large"):
        open_image(root, "x")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames(root, kind):
    first, *others = (Image.new("RGB", (8, 8), (v, v, v)) for v in (200, 10, 20))
    first.save(root / "x", kind, save_all=True, append_images=others)
    assert Image.open(root / "x").n_frames == 3
    assert set(np.asarray(open_image(root, "x")).flat) <= set(range(196, 205))


# ---------------------------------------------------------------------- eight bits: the official pixels


def small(mode: str) -> Image.Image:
    """Random pixels of a mode."""
    noise = np.random.default_rng(1).integers(0, 256, (6, 5, 4), np.uint8)
    if mode == "PA":
        return Image.fromarray(noise, "RGBA").convert("PA")
    if mode == "P":
        return Image.fromarray(noise[..., :3]).quantize(7)
    return Image.fromarray(noise, "RGBA").convert(mode)


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


# ---------------------------------------------------------------------- what is told


def test_what_a_look_tells(root):
    content = (root / "good.png").read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    assert look_at(root, "good.png") == Look(digest, rotated=False, transparent=False, single=True)
    assert opening.content_of(root, "good.png") == digest
    Image.fromarray(GRADIENT).save(root / "x", "PNG")
    assert not look_at(root, "x").single
    Image.new("RGBA", (2, 2), (0, 0, 0, 255)).save(root / "x", "PNG")  # an alpha channel that hides nothing
    assert not look_at(root, "x").transparent
    clip = Image.new("RGBA", (2, 1))
    clip.putdata([(0, 0, 0, 255), (0, 0, 0, 0)])  # a black line on nothing
    clip.save(root / "x", "PNG")
    assert look_at(root, "x").single
    assert look_at(root, "x").transparent


@pytest.fixture
def warned(root, monkeypatch):
    """A palette with transparency for each colour, of which Pillow warns."""
    monkeypatch.setattr(opening, "_warned", set())
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 200, 0, 0, 0])
    for name in ("a.png", "b.png"):
        image.save(root / name, transparency=bytes([255, 128]))
    return root


def test_pillows_warnings_name_the_file_once(warned):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for name in ("a.png", "a.png", "b.png", "good.png"):
            open_image(warned, name)
    assert [str(warning.message).split(": ")[0] for warning in told] == [str(warned / n) for n in ("a.png", "b.png")]
    assert "Pillow warns: Palette images with Transparency" in str(told[0].message)


def test_warnings_of_many_threads_are_kept_apart(warned):
    """And those of everybody else are shown as before, and nothing is changed for good."""
    before = (warnings.showwarning, list(warnings.filters))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")

        def work(number: int) -> None:
            for n in range(30):
                if number == 0:
                    warnings.warn(f"mine {n}", stacklevel=1)
                else:
                    open_image(warned, "a.png" if number % 2 else "good.png")

        threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    messages = [str(warning.message) for warning in told]
    assert sorted(m for m in messages if m.startswith("mine")) == sorted(f"mine {n}" for n in range(30))
    assert len([m for m in messages if "Pillow warns" in m]) == 1
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_a_refused_picture_is_told_once(root, monkeypatch):
    """Not refused and warned of, too."""
    (root / "x").write_bytes(png(10_000, 10_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="10000 x 10000"):
            open_image(root, "x")


def test_a_text_chunk_is_no_pixel(root):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 1000)
    small("RGB").save(root / "x", "PNG", pnginfo=info)
    assert open_image(root, "x").tobytes() == small("RGB").tobytes()
    assert io.BytesIO((root / "x").read_bytes()).read(4) == b"\x89PNG"
