"""Keys and values at fixed addresses: how large their buffers are, and what is written into them."""

import pytest
import torch

from fcit.models.decoding import slots
from fcit.models.decoding.slots import _FUNCTIONS, _OPERATORS, KeyValues


def test_buffers_are_as_large_as_all_batches_want_if_there_is_room():
    """Many short rows and few long ones in turn; a slot takes 16 bytes."""
    kept, states = KeyValues(1, torch.device("cpu")), torch.zeros(1, 1, 1, 2)
    (layer,), kept.prompt, kept.seen = kept._layers, 1, 1

    def reserved(rows: int, room: int, spare: float) -> tuple[bool, int, int]:
        stays = kept.reserve(rows, room, spare)
        layer.update(states, states)
        assert kept.bytes == 16 * kept.rows * kept.room
        return stays, kept.rows, kept.room

    assert reserved(8, 2, 0) == (False, 8, 2)
    assert reserved(4, 2, 0) == (True, 8, 2)
    assert reserved(2, 6, 0) == (False, 2, 6)  # as on a CPU: no more than the batch needs
    assert reserved(8, 2, 16 * 36 - 1) == (False, 8, 2)
    assert reserved(2, 6, 16 * 32) == (False, 8, 6)
    assert reserved(8, 2, 0) == (True, 8, 6)
    assert reserved(2, 6, 0) == (True, 8, 6)
    assert reserved(2, 6, -1) == (False, 2, 6)  # the prompts need it
    assert reserved(2, 6, -1) == (True, 2, 6)


def test_buffers_that_do_not_fit_leave_none(monkeypatch):
    """Otherwise a smaller batch would take those of some layers for its own."""
    kept, states = KeyValues(2, torch.device("cpu")), torch.zeros(1, 1, 1, 2)
    assert not kept.reserve(1, 64)
    kept.prompt = kept.seen = 1
    for layer in range(2):
        kept.cache.update(states, states, layer)
    made, buffer = [], slots._buffer

    def full(*of):
        made.append(of)
        if len(made) > 2:  # keys and values of the first layer fit
            raise torch.OutOfMemoryError
        return buffer(*of)

    monkeypatch.setattr(slots, "_buffer", full)
    with pytest.raises(torch.OutOfMemoryError):
        kept.reserve(8, 128)
    assert (kept.rows, kept.room, kept.bytes) == (0, 0, 0)
    monkeypatch.setattr(slots, "_buffer", buffer)
    assert not kept.reserve(1, 64)
    assert kept.bytes == 2 * 2 * 64 * 2 * 4


def test_operators_do_what_functions_do():
    """In compiled code they stand for each other."""
    prompt, token = torch.arange(24.0).reshape(2, 1, 3, 4), torch.arange(8.0).reshape(2, 1, 1, 4)
    written = []
    for keep_prompt, keep_token in (_FUNCTIONS, _OPERATORS):
        kept = torch.full((3, 1, 6, 4), 7.0)
        keep_prompt(kept, prompt, 5)
        keep_token(kept, token, torch.tensor([3]))
        written.append(kept)
    assert torch.equal(*written)
    assert torch.equal(written[0][:2, :, :3], prompt)
    assert torch.equal(written[0][:2, :, 3:4], token)
    assert written[0][0, 0].tolist()[4:] == [[0.0] * 4, [7.0] * 4]
    assert (written[0][2] == 7.0).all()  # a row that the batch does not have
