"""The same picture in training and in test: found by content, whatever the files are called."""

from __future__ import annotations

from collections.abc import Sequence

from fcit.data.usable import ImageVerdicts


def shared(verdicts: ImageVerdicts, train: Sequence[str], test: Sequence[str]) -> list[tuple[str, str]]:
    """The test images whose files equal one of the training images, each with that one, in the test's order.

    Only files of a size that both sides have are read.
    """
    trained, asked = verdicts.sizes(train), verdicts.sizes(test)
    both = set(trained.values()) & set(asked.values())
    contents = verdicts.contents(image for image, size in (trained | asked).items() if size in both)
    owners: dict[str, str] = {}
    for image in trained:
        if image in contents:
            owners.setdefault(contents[image], image)
    pairs = ((image, owners.get(contents.get(image, ""))) for image in asked)
    # A name that is in both stands for itself, not for the first of its content.
    return [(image, image if image in trained else owner) for image, owner in pairs if owner is not None]
