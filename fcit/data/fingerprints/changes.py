"""Comparing fingerprints: what changed between two, and one hash of all data that scores rest on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from fcit import registry
from fcit.errors import RunError

SHORT = 8  # hexadecimal digits of a hash that people are shown
SHOWN = 3  # images or changes named at once

Concerns = Literal["test", "train", "held-out", "code"]


class Part(NamedTuple):
    """One fingerprint: what it is of, whether it changes scores, training or code, its file and its hash."""

    concerns: Concerns
    what: str
    file: str
    sha: str
    images: tuple[str, str] | None = None  # data set and split, if it is of images


class Change(NamedTuple):
    """A fingerprint that has changed; a hash is "-" where one of the two has none."""

    concerns: Concerns
    what: str
    file: str
    before: str
    now: str
    images: tuple[str, str] | None = None

    def sentence(self, before: str = "before", now: str = "now") -> str:
        """What, which file, and both short hashes."""
        file = f" ({self.file})" if self.file else ""
        return f"{self.what}{file}: {short(self.before)} {before}, {short(self.now)} {now}"


def short(sha: str) -> str:
    """The first digits of a hash, for messages."""
    return sha[:SHORT] if len(sha) == 64 else sha


def _hash(entry: dict[str, Any]) -> str:
    return f"rendered {entry['rendered']}" if "rendered" in entry else str(entry["sha256"] or "-")


def _parts(data: dict[str, Any]) -> Iterator[Part]:
    held_out = data.get("held_out", {})
    for name, splits in [*data["datasets"].items(), *held_out.items()]:
        for split, entry in splits.items():
            of = f"{name}, {entry.get('split', split)} split"
            for part in ("instructions", "questions", "references", "images", "asked"):
                if part in entry:
                    what = "how questions are asked and scored" if part == "asked" else part
                    concerns: Concerns = "held-out" if name in held_out else "test" if split == "test" else "train"
                    images = (name, split) if part == "images" else None
                    yield Part(concerns, f"{of}, {what}", str(entry[part].get("file", "")), _hash(entry[part]), images)
    for task, entry in enumerate(data.get("partitions", [])):
        of = f"task {task}, partition"
        if "delivered" in entry:
            yield Part("train", of, str(entry["delivered"]), str(entry["sha256"]))
            yield Part("train", f"{of}, images", str(entry["delivered"]), _hash(entry["images"]))
        else:
            yield Part("train", of, "", "generated")
    for named, entry in data.get("code", {}).items():
        family, _, name = named.partition(" ")
        concerns = "test" if family == "scorer" else "code"
        what = "benchmark file" if family in ("benchmark", "held-out") and not registry.is_own(name) else family
        label = "" if what == "benchmark file" else f" {registry.label(name)}"
        yield Part(concerns, f"{what}{label}", str(entry["file"]), _hash(entry))


def parts(data: dict[str, Any]) -> dict[str, Part]:
    """The fingerprints by the names of what they are of.

    Raises:
        RunError: they are damaged.
    """
    by_name: dict[str, Part] = {}
    try:
        if not isinstance(data["version"], int):
            raise TypeError(f"version {data['version']!r}")
        for part in _parts(data):
            # Two parts of one name from two files.
            by_name[f"{part.what} {part.file}" if part.what in by_name else part.what] = part
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"environment.json: damaged fingerprints under 'data' ({error!r}); remove this key") from None
    return by_name


def compare(before: dict[str, Any], now: dict[str, Any], *concerns: Concerns) -> list[Change]:
    """What is not the same, in the order of the fingerprints; of some kinds only, if any are given.

    Raises:
        RunError: they are damaged.
    """
    old, new = parts(before), parts(now)
    if before["version"] != now["version"]:  # other things were hashed
        return []
    changes = []
    for key in dict.fromkeys([*old, *new]):
        one, two = old.get(key), new.get(key)
        if (one and one.sha) != (two and two.sha):
            about = two or one
            assert about is not None
            change = Change(
                about.concerns, about.what, about.file, one.sha if one else "-", two.sha if two else "-", about.images
            )
            changes.append(change)
    return [change for change in changes if not concerns or change.concerns in concerns]


def some(sentences: list[str], most: int = SHOWN) -> str:
    """The first sentences, and the number of the others."""
    more = [f"and {len(sentences) - most} more"] if len(sentences) > most else []
    return "; ".join([*sentences[:most], *more])


def tested(data: dict[str, Any]) -> str:
    """One hash of everything that scores rest on: questions, references, images, rules.

    Empty for a run without fingerprints. File names and folders are not part of it: a copy counts as the same data.

    Raises:
        RunError: the fingerprints are damaged.
    """
    tests = sorted([part.what, part.sha] for part in parts(data).values() if part.concerns == "test") if data else []
    return hashlib.sha256(json.dumps([data["version"], tests]).encode()).hexdigest() if tests else ""
