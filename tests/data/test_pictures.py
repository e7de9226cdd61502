"""Images from outside: which files are opened, how large they may be, and what is told."""

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
from fcit.data.images.opening import Look, look_at, open_image
from fcit.errors import DataError
from tests.helpers.pictures import GRADIENT, chunk, small

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
