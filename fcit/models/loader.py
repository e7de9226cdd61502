"""Images on their way to the vision tower: opened and prepared by several threads, ahead of the tower."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

#: One image as the tower sees it, from its root and its path; called in several threads.
Prepare = Callable[[Path, str], torch.Tensor]


class Loader:
    """Prepares images in threads; each as it would be alone, so their number changes nothing.

    Decoding and scaling leave Python's lock, and the tower, which works meanwhile, waits for less.

    Args:
        threads: images prepared at the same time; 0: one after the other, when they are needed.
    """

    def __init__(self, prepare: Prepare, threads: int) -> None:
        self._prepare, self._threads = prepare, threads
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[tuple[Path, str], Future[torch.Tensor]] = {}

    @contextmanager
    def working(self) -> Iterator[None]:
        """Threads live inside the body only: a process that is forked has none."""
        if self._pool is not None or not self._threads:
            yield
            return
        with ThreadPoolExecutor(self._threads, thread_name_prefix="images") as pool:
            self._pool = pool
            try:
                yield
            finally:
                self._pool = None
                for coming in self._coming.values():
                    coming.cancel()
                self._coming.clear()

    def ahead(self, root: Path, images: Sequence[str]) -> None:
        """Begin with images that :meth:`rows` will be asked for, where threads are at work."""
        if self._pool is not None:
            for image in images:
                if (root, image) not in self._coming:
                    self._coming[root, image] = self._pool.submit(self._prepare, root, image)

    def rows(self, root: Path, images: Sequence[str]) -> torch.Tensor:
        """Images ``(N, ...)`` in this order.

        Raises:
            DataError: an image is missing, unreadable or outside ``root``.
        """
        return torch.stack(list(self.each(root, images)))

    def each(self, root: Path, images: Sequence[str]) -> Iterator[torch.Tensor]:
        """The same one by one, for images of unlike shape.

        Raises:
            DataError: an image is missing, unreadable or outside ``root``.
        """
        if not self._threads:
            yield from (self._prepare(root, image) for image in images)
            return
        with self.working():
            self.ahead(root, images)
            try:
                for image in images:
                    yield self._coming[root, image].result()
            finally:
                for image in set(images):
                    self._coming.pop((root, image), None)
