"""``fcit data download`` against a hub in a folder: resumes, unpacks into place, refuses what leads out."""

import errno
import fnmatch
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from fcit.cli import main
from fcit.data import download as module
from fcit.data.download import download, fetch_from_hub, unpack
from fcit.data.spec import Source, read_spec
from fcit.errors import ConfigError, DataError, RunError
from tests.helpers.official import official_tree


def pack(archive: Path, folder: Path, prefix: str = "") -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as opened:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            opened.write(file, f"{prefix}{file.relative_to(folder).as_posix()}")


class Hub:
    """Stands for the hub: repositories are folders; can break off after some files."""

    def __init__(self, folder: Path, breaks_after: int | None = None) -> None:
        self.folder, self.breaks_after = folder, breaks_after
        self.copied: list[str] = []

    def __call__(self, repository: str, patterns: list[str], target: Path) -> None:
        base = self.folder / repository
        for file in sorted(p for p in base.rglob("*") if p.is_file()):
            name = file.relative_to(base).as_posix()
            if patterns and not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                continue
            if (target / name).is_file():
                continue
            if self.breaks_after is not None and len(self.copied) >= self.breaks_after:
                raise RunError("connection lost")
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / name)
            self.copied.append(name)


@pytest.fixture
def published(tmp_path) -> tuple[Path, Path]:
    """A tree of fcit-cap, and a hub that has of it what the real one is said to have."""
    tree = official_tree(tmp_path / "tree", "fcit-cap", records=3, tests=2, clients=2, betas=("1.0",))
    hub = tmp_path / "hub"
    pack(hub / "MLLM-CL/FCIT/instruction/instruction_all.zip", tree / "instructions", "instruction_all/")
    pack(hub / "MLLM-CL/FCIT/partitioned_data.zip", tree / "partitioned_data", "partitioned_data/")
    pack(hub / "MLLM-CL/FCIT/dataset/DVQA.zip", tree / "datasets/DVQA/images", "images/")  # no DVQA inside
    pack(hub / "MLLM-CL/FCIT/dataset/FigureQA.zip", tree / "datasets/FigureQA", "FigureQA/")
    pack(hub / "HaiyangGuo/UCIT/UCIT/ImageNet-R/images.zip", tree / "datasets/ImageNet-R")
    shutil.copytree(tree / "datasets/Flickr30k", hub / "HaiyangGuo/UCIT/UCIT/Flickr30k")
    (hub / "HaiyangGuo/UCIT/README.md").write_text("not asked for")
    return tree, hub


@pytest.mark.parametrize(
    ("name", "hub", "pages"),
    [
        ("coin", ["Zacks-Chen/CoIN"], ["textvqa.org/dataset", "image-net.org", "cocodataset.org", "vizwiz.org"]),
        ("coin-6", ["Zacks-Chen/CoIN"], ["image-net.org", "cocodataset.org"]),
        (
            "coin-long-10",
            [],
            ["docvqa.org", "github.com/vis-nlp/ChartQA", "to be written as instructions/<Name>/train.json"],
        ),
        ("mllm-acl", [], ["modelscope.cn/datasets/zhaohongbo/MLLM-CL"]),
        ("trigap", ["JuntaoTang/TriGap"], ["huggingface.co/datasets/HaiyangGuo/UCIT"]),
    ],
)
def test_what_the_hub_has_is_fetched_and_the_rest_is_said(name, hub, pages, tmp_path):
    asked, told = [], []
    download(read_spec(name), tmp_path, told.append, lambda repository, patterns, folder: asked.append(repository))
    assert asked == hub
    assert told[0] == "to be downloaded by hand:"
    for page in pages:
        assert any(page in line for line in told), page


def test_coins_files_lie_as_they_are_named(tmp_path):
    tree = official_tree(tmp_path / "tree", "coin", records=1, tests=1)
    hub = tmp_path / "hub/Zacks-Chen/CoIN"
    shutil.copytree(tree / "Instructions_Original", hub / "Instructions_Original")
    shutil.copytree(tree / "Instructions_Original/GQA", hub / "Instructions_10Type/GQA")  # not asked for
    download(read_spec("coin"), tmp_path / "root", lambda text: None, Hub(tmp_path / "hub"))
    there = sorted(p.relative_to(tmp_path / "root") for p in (tmp_path / "root/Instructions_Original").rglob("*.json"))
    assert there == sorted(p.relative_to(tree) for p in (tree / "Instructions_Original").rglob("*.json"))


def test_archives_that_are_not_unpacked_are_told_of(tmp_path):
    hub = tmp_path / "hub/a/b/DVQA"
    hub.mkdir(parents=True)
    for name in ("images.tar.gz", "more.zip.001", "train.json"):
        (hub / name).write_bytes(b"x")
    told, source = [], Source(what="x", hub="a/b", to="datasets", anchors=["DVQA"])
    spec = read_spec("fcit-task").model_copy(update={"sources": [source]})
    download(spec, tmp_path / "root", told.append, Hub(tmp_path / "hub"))
    packed = [line for line in told if "not unpacked here" in line]
    assert [line.split()[0] for line in packed] == ["DVQA/images.tar.gz", "DVQA/more.zip.001"]


BY_HAND = ("ArxivQA", "COCO2014", "CLEVR", "IconQA", "OCR-VQA", "TabMWP", "super-CLEVR")


def test_download_puts_everything_where_it_belongs(published, tmp_path, monkeypatch, capsys):
    tree, folder = published
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    hub, root = Hub(folder), tmp_path / "root"
    monkeypatch.setattr(module.download, "__defaults__", (hub,))
    assert main(["data", "download", "fcit-cap", "--root", str(root)]) == 2  # images are still missing
    told = capsys.readouterr().out
    for name in BY_HAND:
        assert f"{root}/datasets/{name}" in told, name
        shutil.copytree(tree / "datasets" / name, root / "datasets" / name)
    assert "images.cocodataset.org" in told
    assert "sample of the images" in told
    assert "dvqa" in told

    def files(base: Path) -> dict[str, bytes]:
        found = [p for p in base.rglob("*") if p.is_file() and module.FOLDER not in p.parts]
        return {p.relative_to(base).as_posix(): p.read_bytes() for p in found}

    assert files(root) == files(tree)
    count = len(hub.copied)
    command = ["data", "download", "fcit-cap", "--root", str(root)]
    assert main(command) == 2
    assert "of 50 clients" in capsys.readouterr().out  # the tree has two
    assert len(hub.copied) == count  # nothing was fetched twice
    assert "README.md" not in " ".join(hub.copied)


def test_download_goes_on_where_it_stopped(published, tmp_path):
    _, folder = published
    spec, root, told = read_spec("fcit-cap"), tmp_path / "root", []
    broken = Hub(folder, breaks_after=2)
    with pytest.raises(RunError, match="connection lost"):
        download(spec, root, told.append, broken)
    assert (root / "instructions/AOKVQA/train.json").is_file()
    assert not (root / "datasets/FigureQA").exists()
    assert any("by hand" in line for line in told)  # told before the hub is asked for anything
    (root / "instructions/AOKVQA/train.json").write_text("half")  # not in its full length: written again
    whole = Hub(folder)
    download(spec, root, told.append, whole)
    assert not set(whole.copied) & set(broken.copied)
    assert (root / "instructions/AOKVQA/train.json").stat().st_size > 4
    assert (root / "datasets/Flickr30k/val/flickr30k_test_000000.jpg").is_file()
    told.clear()
    download(spec, root, told.append, whole)
    assert not any("in place" in line for line in told)


def archive(path: Path, *names: str, link: bool = False) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name in names:
            info = zipfile.ZipInfo(name)
            if link:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            opened.writestr(info, "/etc/passwd")
    return path


@pytest.mark.parametrize(
    "name", ["../out.json", "/tmp/out.json", "a/../../out.json", "a\\..\\out.json", "C:/out.json", "."]
)
def test_paths_that_lead_out_are_refused(tmp_path, name):
    file = archive(tmp_path / "evil.zip", "DVQA/fine.json", name)
    with pytest.raises(DataError, match="leads out"):
        unpack(file, tmp_path / "root/instructions", ["DVQA"])
    assert not (tmp_path / "root").exists()
    assert not (tmp_path / "out.json").exists()


def test_links_are_refused(tmp_path):
    with pytest.raises(DataError, match="is a link"):
        unpack(archive(tmp_path / "evil.zip", "DVQA/link", link=True), tmp_path / "root", ["DVQA"])
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "root/DVQA").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="through a link"):
        unpack(archive(tmp_path / "b.zip", "DVQA/a.json"), tmp_path / "root", ["DVQA"])
    assert not list((tmp_path / "outside").iterdir())


def test_bombs_and_broken_archives_are_refused(tmp_path, monkeypatch):
    file = archive(tmp_path / "a.zip", "DVQA/a", "DVQA/b")
    monkeypatch.setattr(module, "MAX_MEMBERS", 1)
    with pytest.raises(DataError, match="more than the 1"):
        unpack(file, tmp_path / "root", [])
    monkeypatch.undo()
    monkeypatch.setattr(module, "MAX_UNPACKED", 10)
    with pytest.raises(DataError, match="22 bytes"):
        unpack(file, tmp_path / "root", [])
    monkeypatch.undo()
    content = bytearray(file.read_bytes())
    content[40] ^= 0xFF  # inside the first member
    file.write_bytes(content)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(file, tmp_path / "root", [])
    assert not list((tmp_path / "root").rglob("*.part"))


def test_a_damaged_stream_is_named(tmp_path):
    """Damage in what is compressed: zlib's own error, before any check of a sum."""
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("DVQA/a", " ".join(str(n * n % 9973) for n in range(20000)))
    content = bytearray(file.read_bytes())
    content[200:260] = bytes(255 - byte for byte in content[200:260])
    file.write_bytes(content)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(file, tmp_path / "root", [])
    assert not [p for p in (tmp_path / "root").rglob("*") if p.is_file()]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_is_one_clear_sentence(published, tmp_path, monkeypatch, number):
    import huggingface_hub

    _, folder = published
    spec, root = read_spec("fcit-cap"), tmp_path / "root"

    def fails(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, "_write", fails)
    with pytest.raises(RunError, match=f"root/instructions: cannot be filled.*{os.strerror(number)}.*goes on"):
        download(spec, root, lambda text: None, Hub(folder))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(RunError, match="root/instructions: cannot be filled"):
        download(spec, root, lambda text: None)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file/root: cannot be filled"):
        download(spec, tmp_path / "file" / "root", lambda text: None)


def test_a_truncated_archive_is_named(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "a.zip").write_bytes(archive(tmp_path / "a.zip", "DVQA/a").read_bytes()[:-30])
    with pytest.raises(DataError, match="not a whole zip"):
        module.place(kept / "a.zip", kept, tmp_path / "root", Source(what="x", hub="a/b", to="."))


def test_sources_stay_under_the_root(tmp_path):
    spec = read_spec("fcit-task")
    out = spec.model_copy(update={"sources": [Source(what="x", hub="a/b", to="../out")]})
    with pytest.raises(ConfigError, match="leaves the data root"):
        download(out, tmp_path, print, Hub(tmp_path))
    with pytest.raises(ConfigError, match="names no sources"):
        download(spec.model_copy(update={"sources": []}), tmp_path, print, Hub(tmp_path))


def test_no_network_is_one_clear_sentence(tmp_path, monkeypatch):
    import huggingface_hub

    def fails(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Name or service not known\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(RunError) as caught:
        fetch_from_hub("MLLM-CL/FCIT", ["instruction/*"], tmp_path)
    text = str(caught.value)
    assert "MLLM-CL/FCIT: cannot be downloaded" in text
    assert "HTTPS_PROXY" in text
    assert "more lines" not in text


@pytest.mark.parametrize("name", ["fcit-task", "fcit-cap", "ucit", "mllm-dcl"])
def test_every_official_benchmark_says_where_its_data_are(name):
    spec = read_spec(name)
    assert any(s.hub for s in spec.sources)
    assert any(s.page for s in spec.sources)
    for source in spec.sources:
        assert source.page is None or source.page.startswith(("https://", "http://images.cocodataset.org/"))
