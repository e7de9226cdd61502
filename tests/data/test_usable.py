"""Verdicts on images: kept small, kept between runs, shown while they are made."""

import hashlib
import io
import json
import sys

import PIL
import pytest
from PIL import Image

from fcit.data.images import opening, verdicts
from fcit.data.images.verdicts import ImageVerdicts
from fcit.io import console

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
    real = verdicts.look_at
    monkeypatch.setattr(verdicts, "look_at", lambda root, image: found.append(image) or real(root, image))
    return found


def test_an_interruption_loses_little(root, tmp_path, monkeypatch, asked):
    monkeypatch.setattr(verdicts, "AT_ONCE", 3)
    monkeypatch.setattr(verdicts, "cores", lambda: 1)
    look = ImageVerdicts._verdict

    def verdict(self, image, key):
        if image == NAMES[5]:
            raise KeyboardInterrupt
        return look(self, image, key)

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
    assert list(first) == [NAMES[2]]
    assert len(asked) == COUNT
    (file,) = (tmp_path / "kept").glob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row[1] is None for row in rows] == [n != 2 for n in range(COUNT)]
    assert ImageVerdicts(root, tmp_path / "kept").problems(NAMES) == first
    assert len(asked) == COUNT
    Image.new("RGB", (9, 9)).save(root / NAMES[2])
    assert ImageVerdicts(root, tmp_path / "kept").problems(NAMES) == {}
    assert asked[COUNT:] == [NAMES[2]]


def test_a_cache_that_cannot_be_written_only_costs_time(root, tmp_path, asked):
    (tmp_path / "kept").touch()  # a file, where a folder would have to be
    (root / NAMES[2]).write_bytes(b"x")
    look = ImageVerdicts(root, tmp_path / "kept")
    assert list(look.problems(NAMES)) == [NAMES[2]]
    assert list(look.problems(NAMES)) == [NAMES[2]]
    assert len(asked) == COUNT


def test_names_are_followed_as_when_images_are_opened(root, tmp_path):
    (tmp_path / "out.png").write_bytes((root / NAMES[0]).read_bytes())
    (root / "link.png").symlink_to(root / NAMES[0])
    (root / "far.png").symlink_to(tmp_path / "out.png")
    (root / "up").symlink_to(tmp_path)
    (root / "side").symlink_to(root / "a")
    names = [
        "link.png",
        "side/b/1.png",
        "a/../a/b/2.png",
        "a/b/./3.png",
        "far.png",
        "up/out.png",
        "../out.png",
        "a/b",
        "a/b/",
        "a/b/9.png",
        "a/b/1.png/x",
        "/etc/hostname",
        "a/b/..",
        "",
    ]
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
    monkeypatch.setattr(console, "SHOWN_FROM", 5)
    ImageVerdicts(root, None).problems(NAMES)
    assert ("looking at images" in screen.getvalue() and f"{COUNT}/{COUNT}" in screen.getvalue()) == terminal
    screen.truncate(0)
    ImageVerdicts(root, None).problems(NAMES[:4])  # a few are quick
    assert not screen.getvalue()


# ---------------------------------------------------------------------- what is remembered


def older(root, folder, names) -> None:
    """Verdicts as a version left them that did not bound sides: all good."""
    origin = json.dumps((str(root.resolve()), PIL.__version__, 50_000_000, 100 * 2**20))
    folder.mkdir()
    lines = [[f"{name}|{verdicts.stamp_of((root / name).stat())}", None] for name in names]
    file = folder / f"{hashlib.sha256(origin.encode()).hexdigest()[:16]}.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_verdicts_of_an_older_version_are_believed_but_for_sides(root, tmp_path, asked):
    Image.new("1", (opening.MAX_SIDE + 1, 1)).save(root / "long.png")
    older(root, tmp_path / "kept", [*NAMES, "long.png"])
    for _ in range(2):
        bad = ImageVerdicts(root, tmp_path / "kept").problems([*NAMES, "long.png"])
        assert list(bad) == ["long.png"]
        assert "a side of more than" in bad["long.png"]
    assert not asked  # nothing was decoded
    looks = ImageVerdicts(root, tmp_path / "kept").looks(NAMES)
    assert sorted(asked) == NAMES
    assert all(look.single for look in looks.values())  # what they are nobody knew


def test_looks_and_contents_are_remembered(root, tmp_path, asked, monkeypatch):
    clip = Image.new("RGBA", (3, 1), (9, 9, 9, 255))
    clip.putpixel((0, 0), (0, 0, 0, 0))
    clip.save(root / "clip.png")
    (root / "bad.png").write_bytes(b"x")
    names = [NAMES[0], "clip.png", "bad.png", "none.png"]
    first = ImageVerdicts(root, tmp_path / "kept")
    digests = {n: hashlib.sha256((root / n).read_bytes()).hexdigest()[:16] for n in names[:3]}
    assert first.contents(names) == digests
    assert not asked  # read, not decoded
    assert set(first.problems(names)) == {"bad.png", "none.png"}
    assert len(asked) == 3
    plain, clear = (
        opening.Look(digests[NAMES[0]], False, False, True),
        opening.Look(digests["clip.png"], False, True, False),
    )
    monkeypatch.setattr(verdicts, "content_of", lambda *_: pytest.fail("read again"))
    for looked in (first, ImageVerdicts(root, tmp_path / "kept")):
        assert looked.looks(names) == {NAMES[0]: plain, "clip.png": clear}
        assert {n: looked.contents(names)[n] for n in names[:2]} == {n: digests[n] for n in names[:2]}
        assert set(looked.problems(names)) == {"bad.png", "none.png"}
    assert len(asked) == 3


def test_what_could_not_be_read_is_tried_again(root, tmp_path, monkeypatch):
    """After `chmod`, size and time are what they were."""
    real = opening._read

    def refused(path):
        if path.name == "3.png":
            raise opening.Unreadable(f"{path}: cannot be read (Permission denied)")
        return real(path)

    monkeypatch.setattr(opening, "_read", refused)
    first = ImageVerdicts(root, tmp_path / "kept")
    assert list(first.problems(NAMES)) == list(first.problems(NAMES)) == [NAMES[3]]
    monkeypatch.undo()
    assert ImageVerdicts(root, tmp_path / "kept").problems(NAMES) == {}


def test_a_replaced_image_has_another_stamp(root):
    look = ImageVerdicts(root, None)
    before = look.stamp(NAMES)
    assert look.stamp(reversed(NAMES)) == before
    Image.new("RGB", (50, 50)).save(root / NAMES[3])
    replaced = look.stamp(NAMES)
    (root / NAMES[3]).unlink()
    gone = look.stamp(NAMES)
    assert len({before, replaced, gone}) == 3


def test_a_link_that_leads_elsewhere_is_followed_anew(root, tmp_path):
    """A folder of images may be a link that is moved to the next version of a data set."""
    for name, content in (("old", b"no image"), ("new", (root / NAMES[0]).read_bytes())):
        (root / name).mkdir()
        (root / name / "x.png").write_bytes(content)
    (root / "current").symlink_to(root / "old")
    look = ImageVerdicts(root, None)
    assert list(look.problems(["current/x.png"])) == ["current/x.png"]
    (root / "current").unlink()
    (root / "current").symlink_to(root / "new")
    assert look.problems(["current/x.png"]) == {}
    assert look.sizes(["current/x.png"]) == {"current/x.png": (root / NAMES[0]).stat().st_size}
