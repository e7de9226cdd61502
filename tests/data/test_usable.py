"""Verdicts on images: kept small, kept between runs, shown while they are made."""

import io
import json
import sys

import pytest
from PIL import Image

from fcit.data import bar, usable
from fcit.data.usable import ImageVerdicts

COUNT = 7


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "datasets" / "a" / "b"
    folder.mkdir(parents=True)
    for n in range(COUNT):
        Image.new("RGB", (5 + n, 3)).save(folder / f"{n}.png")
    return tmp_path / "datasets"


NAMES = [f"a/b/{n}.png" for n in range(COUNT)]


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The images that are decoded."""
    found: list[str] = []
    real = usable.open_image
    monkeypatch.setattr(usable, "open_image", lambda root, image: found.append(image) or real(root, image))
    return found


def test_an_interruption_loses_little(root, tmp_path, monkeypatch, asked):
    monkeypatch.setattr(usable, "AT_ONCE", 3)
    monkeypatch.setattr(usable.os, "cpu_count", lambda: 1)
    look = ImageVerdicts._verdict

    def verdict(self, image):
        if image == NAMES[5]:
            raise KeyboardInterrupt
        return look(self, image)

    monkeypatch.setattr(ImageVerdicts, "_verdict", verdict)
    with pytest.raises(KeyboardInterrupt):
        ImageVerdicts(root, tmp_path / "kept").problems(NAMES)
    monkeypatch.setattr(ImageVerdicts, "_verdict", look)
    asked.clear()
    assert ImageVerdicts(root, tmp_path / "kept").problems(NAMES) == {}
    assert asked == NAMES[3:]


def test_good_and_bad_are_known_to_the_next_process(root, tmp_path, asked):
    (root / NAMES[2]).write_bytes(b"x")
    first = ImageVerdicts(root, tmp_path / "kept").problems(NAMES)
    assert list(first) == [NAMES[2]] and len(asked) == COUNT
    (file,) = (tmp_path / "kept").glob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [verdict is None for _, verdict in rows] == [n != 2 for n in range(COUNT)]
    assert ImageVerdicts(root, tmp_path / "kept").problems(NAMES) == first and len(asked) == COUNT
    Image.new("RGB", (9, 9)).save(root / NAMES[2])
    assert ImageVerdicts(root, tmp_path / "kept").problems(NAMES) == {} and asked[COUNT:] == [NAMES[2]]


def test_names_are_followed_as_when_images_are_opened(root, tmp_path):
    (tmp_path / "out.png").write_bytes((root / NAMES[0]).read_bytes())
    (root / "link.png").symlink_to(root / NAMES[0])
    (root / "far.png").symlink_to(tmp_path / "out.png")
    (root / "up").symlink_to(tmp_path)
    (root / "side").symlink_to(root / "a")
    names = ["link.png", "side/b/1.png", "a/../a/b/2.png", "a/b/./3.png", "far.png", "up/out.png", "../out.png",
             "a/b", "a/b/", "a/b/9.png", "a/b/1.png/x", "/etc/hostname", "a/b/..", ""]  # fmt: skip
    bad = ImageVerdicts(root, None).problems(names)
    assert sorted(set(names) - set(bad)) == sorted(names[:4])
    for name in names[4:7]:
        assert "leaves the image root" in bad[name]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(root, monkeypatch, terminal):
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(bar, "SHOWN_FROM", 5)
    ImageVerdicts(root, None).problems(NAMES)
    assert ("looking at images" in screen.getvalue() and f"{COUNT}/{COUNT}" in screen.getvalue()) == terminal
    screen.truncate(0)
    ImageVerdicts(root, None).problems(NAMES[:4])  # a few are quick
    assert not screen.getvalue()
