"""Accepted updates wait on disk and are folded in ascending client order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fcit.federation.records import EXTRA, ClientUpdate
from fcit.methods.base import Update
from fcit.run_dir import RunDir, read_tensors, write_tensors


class Spill:
    """Updates of one round, one safetensors file each; memory holds their heads only."""

    def __init__(self, run: RunDir) -> None:
        self._folder = run.spill
        self._heads: dict[tuple[int, str], tuple[str, int]] = {}

    def __len__(self) -> int:
        return len(self._heads)

    @property
    def clients(self) -> list[int]:
        """Whose updates wait."""
        return sorted({client for client, _ in self._heads})

    def examples(self, key: tuple[int, str]) -> int:
        """Records behind an accepted update; 0 if there is none."""
        return self._heads[key][1] if key in self._heads else 0

    def put(self, update: ClientUpdate) -> None:
        """Keep an accepted update."""
        key = (update.client, update.shard)
        write_tensors(self._path(key), update.tensors)
        self._heads[key] = (update.subspace, update.examples)

    def _path(self, key: tuple[int, str]) -> Path:
        return self._folder / f"{key[0]}-{key[1]}.safetensors"

    def __iter__(self) -> Iterator[Update]:
        """Updates by ascending (client, shard), whatever order they came in."""
        for key in sorted(self._heads):
            subspace, examples = self._heads[key]
            tensors = read_tensors(self._path(key))
            extra = {n.removeprefix(EXTRA): tensors.pop(n) for n in list(tensors) if n.startswith(EXTRA)}
            yield Update(key[0], subspace, examples, tensors, extra)

    def clear(self) -> None:
        """Forget the round."""
        for key in self._heads:
            self._path(key).unlink(missing_ok=True)
        self._heads.clear()
