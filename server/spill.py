"""Accepted updates wait on disk for aggregation, survive a crash there, and are read in ascending client order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fcit.errors import CodecError, RunError
from fcit.federation import codec
from fcit.federation.messages import CONSTANT, EXTRA, FEDOPT, ClientUpdate, TrainOrder
from fcit.io.files import map_tensors, read_json, read_tensors, write_json, write_tensors
from fcit.io.threads import beside, by_stretches, read_ahead
from fcit.io.trees import Tensors
from fcit.methods.base import Update
from fcit.runs.folder import RunDir

Memo = dict[int, tuple[np.ndarray, list[str]]]


def digest(tensors: Tensors, memo: Memo | None = None) -> str:
    """SHA-256 of names, types, shapes and values.

    Args:
        memo: hashes of stretches made so far by the identity of their array; it keeps the arrays.
    """
    memo = {} if memo is None else memo
    new = {str(id(t)): (t, np.ascontiguousarray(t).reshape(-1)) for t in tensors.values() if id(t) not in memo}
    flat = {key: values for key, (_, values) in new.items()}
    hashes = by_stretches(lambda key, stretch: hashlib.sha256(flat[key][stretch].view(np.uint8).data).hexdigest(), flat)
    memo |= {id(tensor): (tensor, hashes[key]) for key, (tensor, _) in new.items()}
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole.update(json.dumps([name, str(tensor.dtype), list(tensor.shape), memo[id(tensor)][1]]).encode())
    return whole.hexdigest()


def plain(record: Any) -> dict[str, Any]:
    """The fields of an order or an update besides its tensors."""
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "tensors"}


class Spill:
    """Updates of one round; memory holds their heads only.

    An update is a safetensors file and, written last, a JSON file with its head, a hash of its tensors and
    one of the order it answers. After a crash an update is as good as new if the order would be the same:
    training is a function of the order and of the client's data.
    """

    def __init__(self, run: RunDir) -> None:
        self._folder = run.spill
        self._heads: dict[tuple[int, str], ClientUpdate] = {}  # without tensors
        self._memo: Memo = {}

    def __len__(self) -> int:
        return len(self._heads)

    def head(self, key: tuple[int, str]) -> ClientUpdate | None:
        """An accepted update without its tensors."""
        return self._heads.get(key)

    def put(self, order: TrainOrder, update: ClientUpdate, received: int = 0) -> None:
        """Keep an accepted update, which came in a message of ``received`` bytes.

        Raises:
            DiskFull: there is no room for it.
        """
        key = (update.client, update.shard)
        head: dict[str, Any] = {"update": plain(update), "received": received}

        def hash_() -> None:
            head.update(order=self._same(order), tensors=digest(update.tensors))

        with beside(hash_, sum(tensor.size for tensor in update.tensors.values())):
            # Not waiting for the disk is safe: the hash tells what a power cut left incomplete.
            write_tensors(self._path(key, "safetensors"), update.tensors, durable=False)
        write_json(self._path(key, "json"), head, durable=False)
        self.take(update)

    def received(self, order: TrainOrder) -> int:
        """Bytes of the message that an update which :meth:`find` found came in."""
        return int(read_json(self._path((order.client, order.shard), "json"))["received"])

    def take(self, update: ClientUpdate) -> None:
        """Count an update that :meth:`find` found among the accepted ones."""
        self._heads[update.client, update.shard] = dataclasses.replace(update, tensors={})

    def find(self, order: TrainOrder) -> ClientUpdate | None:
        """The update to an equal order that was accepted before a crash, or None.

        Raises:
            RunError: it is damaged; the client must be asked again.
        """
        key = (order.client, order.shard)
        if not self._path(key, "json").is_file():
            return None
        raw = read_json(self._path(key, "json"))
        try:
            if raw["order"] != self._same(order):
                return None
            if not isinstance(raw["received"], int):
                raise TypeError("received")
            update = ClientUpdate(**raw["update"], tensors=read_tensors(self._path(key, "safetensors")))
            # Types are checked as for an update that comes over the wire.
            update = codec.decode(codec.encode(update), ClientUpdate)
            whole = digest(update.tensors) == raw["tensors"]
        except (CodecError, KeyError, TypeError) as error:
            raise RunError(f"{self._path(key, 'json')}: not an update that was kept ({error!r})") from None
        if not whole:
            raise RunError(f"{self._path(key, 'safetensors')}: its tensors are not those that were kept")
        return update

    def pairs(self) -> list[tuple[int, str]]:
        """Client and shard of the updates that are on the disk, in order."""
        names = [file.stem.partition("-") for file in self._folder.glob("*.json")] if self._folder.is_dir() else []
        return sorted((int(client), shard) for client, _, shard in names)

    def tidy(self, stage: int, round_: int) -> None:
        """Remove files of other rounds and unfinished ones."""
        if not self._folder.is_dir():
            return
        wanted = {f for f in self._folder.glob("*.json") if self._is_of(f, stage, round_)}
        wanted |= {f.with_suffix(".safetensors") for f in wanted}
        self._remove(lambda path: path not in wanted)

    @staticmethod
    def _is_of(file: Path, stage: int, round_: int) -> bool:
        try:
            head = read_json(file)["update"]
            return bool((head["stage"], head["round"]) == (stage, round_))
        except (RunError, KeyError, TypeError):
            return False

    def _remove(self, unwanted: Any) -> None:
        for path in self._folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif unwanted(path):
                path.unlink()

    def _same(self, order: TrainOrder) -> str:
        """A hash that is equal for orders that lead to the same update.

        Constants are part of it by name only: their tensors travel only if the client lacks them; and it does not
        matter what others the client keeps.
        """
        sent = {n: t for n, t in order.tensors.items() if not n.startswith(CONSTANT)}
        fields = {name: value for name, value in plain(order).items() if name != "keep"}
        text = json.dumps([fields, digest(sent, self._memo)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _path(self, key: tuple[int, str], kind: str) -> Path:
        return self._folder / f"{key[0]}-{key[1]}.{kind}"

    def __iter__(self) -> Iterator[Update]:
        """Updates by ascending (client, shard), independent of the order of their arrival."""
        keys = sorted(self._heads)
        files = read_ahead(self._tensors, keys)
        for key, tensors in zip(keys, files, strict=True):
            head = self._heads[key]
            extra, fedopt = (
                {n.removeprefix(prefix): tensors.pop(n) for n in list(tensors) if n.startswith(prefix)}
                for prefix in (EXTRA, FEDOPT)
            )
            yield Update(key[0], head.subspace, head.examples, tensors, extra, fedopt)

    def _tensors(self, key: tuple[int, str]) -> Tensors:
        """What an accepted update holds, as it is aggregated."""
        return map_tensors(self._path(key, "safetensors"))

    def clear(self) -> None:
        """Forget the round."""
        if self._folder.is_dir():
            self._remove(lambda path: True)
        self._heads.clear()
        self._memo.clear()
