"""How large the images of a run's data are to a model that sees them at their own size: what an estimate rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark
from fcit.data.collate import as_shown
from fcit.data.images.sizes import ImageSizes
from fcit.data.records import Record, TestRecord, placed
from fcit.errors import DataError
from fcit.models.families.base import AnySize
from fcit.models.loading import unloaded
from fcit.models.patches import Grid

LOOKED = 2000  # records whose images' headers are read


@dataclass(frozen=True)
class Looked:
    """The images of a benchmark as a model sees them.

    Attributes:
        images: how many were looked at.
        all: how many there are, of every record one after the other; of a sample, the number expected.
        least: placeholders of the image that has fewest; ``mean``: on average; ``most``: of the one that has most.
        record: placeholders of all images of one record together, of the record that has most.
        numbers: of kept features of an image, on average.
    """

    images: int
    all: float
    least: int
    mean: float
    most: int
    record: int
    numbers: float

    @property
    def whole(self) -> bool:
        """Whether all of them were looked at."""
        return self.images == round(self.all)


def look(benchmark: Benchmark, config: RunConfig, most: int = LOOKED) -> Looked | None:
    """Sizes of a benchmark's images, by their headers.

    Of so many records that looking takes long, some are chosen, evenly spread over every data set, training records and
    questions; means count a data set as often as it has records.

    Args:
        most: records that are looked at, one of each data set at least.

    Returns:
        None where all images become one size, or none can be read.

    Raises:
        ConfigError: the model is not here or cannot be used. DataError: records cannot be read.
    """
    family = unloaded(config.backbone)
    if not (isinstance(family, AnySize) and family.native):
        return None
    parts = list(_parts(benchmark))
    weights: list[float] = []
    counts: list[int] = []
    kept: list[int] = []
    record = 0
    for part in parts:
        chosen = _spread(len(part.places), max(1, most // len(parts)))
        for place in chosen:
            grids = part.grids(family, part.places[place])
            weights += [len(part.places) / len(chosen)] * len(grids)
            counts += [family.count(grid) for grid in grids]
            kept += [family.kept(grid) for grid in grids]
            record = max(record, sum(family.count(grid) for grid in grids))
    if not counts:
        return None
    return Looked(
        images=len(counts),
        all=sum(weights),
        least=min(counts),
        mean=float(np.average(counts, weights=weights)),
        most=max(counts),
        record=record,
        numbers=float(np.average(kept, weights=weights)) * int(np.prod(family.shape)),
    )


class _Part(NamedTuple):
    """A data set's training records or questions.

    Attributes:
        places: of the records that are used.
        folder: what their image names are relative to, under the root of ``sizes``.
    """

    records: Sequence[Record | None] | Sequence[TestRecord]
    places: Sequence[int]
    folder: str
    sizes: ImageSizes

    def grids(self, family: AnySize, place: int) -> list[Grid]:
        """Of a record's images; none of one that cannot be used, which is told where records are judged."""
        record = self.records[place]
        names = () if record is None else placed(self.folder, record.images)
        try:
            return [family.grid_of(name, self.sizes) for name in as_shown(names)]
        except DataError:
            return []


def _parts(benchmark: Benchmark) -> Iterator[_Part]:
    """What is trained, and what is asked at the end."""
    way = benchmark.config.data.pictures
    sizes = ImageSizes(benchmark.image_root, way)
    for name in dict.fromkeys(name for task in benchmark.tasks for name in task):
        records = benchmark.files.train_file(name).records
        used = benchmark.files.used(name, len(records))
        yield _Part(records, range(len(records)) if used is None else used, benchmark.datasets[name].images, sizes)
    for name in [*benchmark.evaluation(benchmark.stage_count - 1), *benchmark.held_out]:
        asked = benchmark.test(name)
        yield _Part(asked, range(len(asked)), "", ImageSizes(benchmark.owner(name).image_root, way))


def _spread(count: int, most: int) -> list[int]:
    """At most so many of ``count`` places, evenly spread, the first and the last among them."""
    places: list[int] = np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()
    return places
