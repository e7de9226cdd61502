import numpy as np

from fcit.federation.messages import Answers
from server.scoring import Parts


def stretch(first: int, texts: list[str]) -> Answers:
    mix = np.full((len(texts), 2), first, np.float32)
    return Answers(dataset="iconqa", first=first, texts=texts, seconds=1.0, tensors={"mix": mix})


def test_stretches_are_joined_in_dataset_order():
    parts = Parts("iconqa", 3)
    assert parts.add(stretch(4, ["e"])) is None
    assert parts.add(stretch(0, ["a", "b"])) is None
    assert parts.add(stretch(0, ["a", "b"])) is None  # the same again is not a new one
    whole = parts.add(stretch(2, ["c", "d"]))
    assert whole is not None
    assert whole.texts == ["a", "b", "c", "d", "e"]
    assert whole.tensors["mix"][:, 0].tolist() == [0, 0, 2, 2, 4]
    assert whole.seconds == 3.0
