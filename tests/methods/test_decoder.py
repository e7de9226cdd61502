"""Whose code decodes the answers of a method."""

import pytest

from fcit.config import RunConfig
from fcit.methods.disco import Disco
from fcit.methods.l2p import L2P


class Quiet(Disco):
    """Answers as the shipped one does."""


class Hooked(Disco):
    """Answers with code of its own."""

    def answer(self, questions, mix):
        return super().answer(questions, mix)


@pytest.mark.parametrize(
    ("method", "setting", "decoder"),
    [
        (Disco, "auto", "auto"),
        (L2P, "auto", "auto"),
        (Disco, "transformers", "transformers"),
        (Quiet, "auto", "auto"),
        (Hooked, "auto", "transformers"),
        (Hooked, "static", "static"),
    ],
)
def test_code_of_ones_own_is_decoded_by_transformers(method, setting, decoder):
    assert method(RunConfig.model_validate({"evaluation": {"decoder": setting}})).answers_by == decoder
