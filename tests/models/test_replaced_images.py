"""An image file that another one takes the place of: nothing that was known of it counts any longer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clients.worker.memory import ClientMemory
from clients.worker.worker import Worker
from fcit.config import Backbone, RunConfig
from fcit.data.images.sizes import ImageSizes
from fcit.data.records import Record, TestRecord
from fcit.models import judging
from fcit.models.adapters import Adapters
from fcit.models.backbone import TINY
from fcit.models.backbone import Backbone as Model
from fcit.models.families.qwen3 import Qwen3
from fcit.models.families.small import save
from fcit.models.identity import IdentityEncoder
from fcit.models.judging import TokenJudge, judge_of

RECORDS = [Record.single("a.png", "How many?", "3"), Record.single("b.png", "How many?", "4")]
QUESTIONS = [TestRecord(str(n), record.images, "How many?", "3") for n, record in enumerate(RECORDS)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Backbone:
    small = Qwen3.small()
    folder = save(tmp_path_factory.mktemp("model") / "qwen3_vl", small)
    return Backbone(model=folder, identity=str(TINY / "clip"), threads=1, max_length=80, **small.options)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    for name in ("a", "b"):
        draw(tmp_path / f"{name}.png", 32)
    return tmp_path


def draw(file: Path, side: int) -> None:
    Image.new("RGB", (side, side), (side, 0, 0)).save(file)


@pytest.fixture
def judge(settings, root) -> TokenJudge:
    return judge_of(settings, ImageSizes(root))


def another_process() -> None:
    judging._memory.cache_clear()


def longest(judge: TokenJudge) -> tuple[int, int]:
    """Of the records and of the questions of one file, which itself never changes."""
    trained = judge.train(["file"], range(2), RECORDS)
    return trained.longest, judge.test(["file"], QUESTIONS, 9).longest


def test_a_verdict_on_records_is_made_anew(judge, root):
    """2 by 2 words become 4 by 4."""
    small = longest(judge)
    draw(root / "a.png", 64)
    assert longest(judge) == (small[0] + 12, small[1] + 12)


def test_a_verdict_on_disk_is_not_that_of_another_image(settings, judge, root, monkeypatch):
    monkeypatch.setattr(judging, "KEPT_FROM", 2)
    small = longest(judge)
    another_process()
    draw(root / "b.png", 64)
    again = judge_of(settings, ImageSizes(root))
    assert longest(again) == (small[0] + 12, small[1] + 12)
    another_process()
    silent = TokenJudge(judge.mark, lambda: pytest.fail("tokenised again"), ImageSizes(root))
    assert longest(silent) == (small[0] + 12, small[1] + 12)


def test_a_record_no_longer_fits(settings, root):
    tight = judge_of(settings.model_copy(update={"max_length": 24}), ImageSizes(root))
    assert tight.train(["file"], range(2), RECORDS).problems == {}
    draw(root / "a.png", 64)
    assert list(tight.train(["file"], range(2), RECORDS).problems) == [0]


def test_where_tokens_depend_on_no_size_the_files_do_not_count(root):
    plain = judge_of(Backbone(threads=1), ImageSizes(root))
    assert plain.stamp(RECORDS) == ""


def test_a_worker_takes_new_tokens(settings, root):
    """Those of before would not be as many as the image's features."""
    config = RunConfig(backbone=settings.model_dump(), method="finetune")
    model = Model(settings)
    data = SimpleNamespace(
        image_root=root,
        judged_by=lambda judge: None,
        records=lambda client, tasks: RECORDS,
        question_images=lambda name: root,
        test=lambda name: QUESTIONS,
    )
    worker = Worker(config, (model, Adapters(model, config.adapter)), ClientMemory(None), data)
    asked = worker._answering

    def lengths() -> list[int]:
        examples = [*worker._encoded(0, [0], RECORDS), *asked._questions("file", 0, 2)]
        return [len(example.tokens) for example in examples]

    small = lengths()
    assert worker._encoded(0, [0], RECORDS) is worker._encoded(0, [0], RECORDS)
    draw(root / "a.png", 64)
    assert np.subtract(lengths(), small).tolist() == [12, 0, 12, 0]


def test_identity_features_are_named_by_the_images_that_they_are_made_of(root):
    before = {kind: IdentityEncoder.stamp(kind, RECORDS, root) for kind in ("text", "suffix", "image", "both")}
    assert before["text"] == before["suffix"] == ""
    draw(root / "a.png", 64)
    assert IdentityEncoder.stamp("image", RECORDS, root) != before["image"]
    assert IdentityEncoder.stamp("both", RECORDS, root) == IdentityEncoder.stamp("image", RECORDS, root)
