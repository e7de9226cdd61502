"""Accepted updates wait on disk and are folded in ascending client order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fcit.federation.records import EXTRA, FEDOPT, ClientUpdate
from fcit.methods.base import Update
from fcit.run_dir import RunDir, read_tensors, write_tensors


class Spill:
    """Updates of one round, one safetensors file each; memory holds their heads only."""

    def __init__(self, run: RunDir) -> None:
        self._folder = run.spill
        self._heads: dict[tuple[int, str], ClientUpdate] = {}  # without tensors

    def __len__(self) -> int:
        return len(self._heads)

    @property
    def clients(self) -> list[int]:
        """Whose updates wait."""
        return sorted({client for client, _ in self._heads})

    def head(self, key: tuple[int, str]) -> ClientUpdate | None:
        """An accepted update without its tensors."""
        return self._heads.get(key)

    def put(self, update: ClientUpdate) -> None:
        """Keep an accepted update."""
        key = (update.client, update.shard)
        write_tensors(self._path(key), update.tensors, durable=False)
        self._heads[key] = replace(update, tensors={})

    def _path(self, key: tuple[int, str]) -> Path:
        return self._folder / f"{key[0]}-{key[1]}.safetensors"

    def __iter__(self) -> Iterator[Update]:
        """Updates by ascending (client, shard), whatever order they came in."""
        for key in sorted(self._heads):
            head = self._heads[key]
            tensors = read_tensors(self._path(key))
            extra, fedopt = (
                {n.removeprefix(prefix): tensors.pop(n) for n in list(tensors) if n.startswith(prefix)}
                for prefix in (EXTRA, FEDOPT)
            )
            yield Update(key[0], head.subspace, head.examples, tensors, extra, fedopt)

    def clear(self) -> None:
        """Forget the round."""
        for key in self._heads:
            self._path(key).unlink(missing_ok=True)
        self._heads.clear()
