"""What loading a model says, what it keeps quiet, and what `fcit doctor --config` says of it."""

import logging

import pytest
import torch
import yaml

from fcit.cli import main
from fcit.errors import ConfigError
from fcit.models.backbone import Backbone
from fcit.models.quieting import quiet
from tests.helpers.spoiled import POINTER, WEIGHTS, change, settings, without, write


@pytest.fixture
def library(caplog):
    """What transformers logs, whose loggers do not propagate."""
    logging.getLogger("transformers").addHandler(caplog.handler)
    yield caplog
    logging.getLogger("transformers").removeHandler(caplog.handler)


def test_only_what_is_named_is_hidden(library):
    from transformers.utils import logging as theirs

    logger, level = logging.getLogger("transformers.modeling_utils"), theirs.get_verbosity()
    with quiet():
        assert theirs.get_verbosity() == level
        logger.warning("CLIPTextModel LOAD REPORT from: x")
        logger.warning("a setting is wrong")
        logging.getLogger("transformers.generation").warning("another is, too")
    logger.warning("LOAD REPORT again")
    said = list(dict.fromkeys(record.getMessage() for record in library.records))
    assert said == ["a setting is wrong", "another is, too", "LOAD REPORT again"]


def test_bars_stay_as_they_were():
    from transformers.utils import logging as theirs

    before = theirs.is_progress_bar_enabled()
    try:
        for switch, on in ((theirs.disable_progress_bar, False), (theirs.enable_progress_bar, True)):
            switch()
            with quiet():
                assert not theirs.is_progress_bar_enabled()
            assert theirs.is_progress_bar_enabled() is on
    finally:
        (theirs.enable_progress_bar if before else theirs.disable_progress_bar)()


def test_a_warning_of_the_library_reaches_the_user(tiny, library):
    """A temperature without sampling, of which transformers warns when it reads the generation configuration."""
    Backbone(settings(tiny)).identity.width("image")
    assert not library.records
    write(tiny / "llava" / "generation_config.json", do_sample=False, temperature=0.3)
    Backbone(settings(tiny))
    assert any("temperature" in record.getMessage() for record in library.records)


# --------------------------------------------------------------------------- fcit doctor --config


@pytest.fixture
def doctor(tiny, tmp_path, capsys):
    def call(**backbone) -> tuple[int, str, str]:
        file = tmp_path / "c.yaml"
        chosen = {"model": str(tiny / "llava"), "identity": str(tiny / "clip"), **backbone}
        file.write_text(
            yaml.safe_dump({"name": "c", "benchmark": "fcit-task", "data_root": str(tmp_path), "backbone": chosen})
        )
        code = main(["doctor", "--config", str(file), "--no-probe"])
        return code, *capsys.readouterr()

    return call


def test_the_doctor_says_what_it_looked_at(doctor):
    code, out, _ = doctor()
    assert code == 0
    assert "c: fits on" in out
    assert "backbone.model: 115 tensors make a whole model; an answer ends at </s>" in out
    assert "backbone.identity: 78 tensors make a whole model; a text ends at </s>" in out


def test_the_doctor_names_every_fault_and_nothing_fits(doctor, tiny):
    change(tiny / "llava", without("multi_modal_projector"))
    (tiny / "clip" / WEIGHTS).write_text(POINTER)
    code, out, error = doctor()
    assert code == 2
    assert "fits" not in out
    assert "the checkpoint has no projector" in error
    assert "Git LFS pointer" in error


def test_a_model_that_is_elsewhere_is_not_called_whole(doctor):
    code, out, _ = doctor(model="/elsewhere/llava-1.5-7b-hf", dtype="bfloat16")
    assert code in (0, 2)
    assert "whole model; an answer" not in out
    if code == 0:
        assert (
            "backbone.model: /elsewhere/llava-1.5-7b-hf is not on this machine, so whether it loads is not known" in out
        )


def test_a_damaged_bin_file_is_one_sentence(tiny):
    """A web page saved under the name of the weights, and weights that are a list."""
    folder = tiny / "llava"
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    for content in (None, b"<html>404</html>", b"\x80\x04K\x01."):
        if content is not None:
            (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ConfigError, match=r"pytorch_model\.bin .*is cut short or damaged"):
            Backbone(settings(tiny))
