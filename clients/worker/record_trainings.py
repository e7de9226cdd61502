"""What a client has trained in a run under ``privacy.record_dp``, kept beside its secret: the client's own count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fcit.config import RunConfig
from fcit.errors import Refused, RunError
from fcit.io.files import read_json, write_json


@dataclass
class _Training:
    """One order.

    Attributes:
        origins: names of the records that it draws from.
        target: epsilon and delta that its noise was computed for; empty with a given noise multiplier.
        announced: how often the order said that these records are trained on in the run.
        sums: a hash of what noise was added to; empty before the training has ended.
    """

    origins: list[str] = field(default_factory=list)
    target: list[float] = field(default_factory=list)
    announced: int = 0
    sums: str = ""


class RecordTrainings:
    """The trainings of one client in one run, a file each, by the mark of its order.

    What it holds a server to: with ``record_epsilon`` the noise of a training is computed from how often the records
    will be trained on, which is true only if the client counts. And an order that is done again has the batches of
    the first time, so that its sums must be the same, to the last bit: another sum would have noise of its own, and
    the mean of many such updates less of it.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, mark: str, config: RunConfig, origins: Sequence[str], announced: int) -> None:
        """Note a training before it begins; one that was begun before is not counted again.

        Raises:
            Refused: it is one more than was announced, or has another target. RunError: a file is damaged.
        """
        privacy = config.privacy
        target = [] if privacy.record_epsilon is None else [privacy.record_epsilon, privacy.record_delta]
        this = _Training(list(origins), target, announced)
        others = [self._read(file) for file in sorted(self._folder.glob("*.json")) if file.stem != mark]
        for other in others:
            if other.target != target:
                raise Refused(
                    f"privacy.record_epsilon: {privacy.record_epsilon} (record_delta {privacy.record_delta:g}) is "
                    "ordered, and this run's first trainings had another; start another run for other values"
                )
        for name in origins if target else ():
            among = [other for other in others if name in other.origins]
            least = min(other.announced for other in [*among, this])
            if len(among) >= least:
                raise Refused(
                    f"privacy.record_epsilon: the noise was computed for {least} trainings on the records of {name} in "
                    f"this run, and {len(among)} have begun"
                )
        if not self._file(mark).is_file():
            write_json(self._file(mark), asdict(this))

    def end(self, mark: str, sums: str) -> None:
        """Note what noise was added to, before anything of it is sent.

        Raises:
            Refused: the same order came to other sums before. RunError: the file is damaged.
        """
        known = self._read(self._file(mark))
        if known.sums and known.sums != sums:
            raise Refused(
                "privacy.record_dp: this order was done before and came to other sums in the last bits (other "
                "micro-batches, or a GPU), which would be a second release of the same batches; it is not sent"
            )
        known.sums = sums
        write_json(self._file(mark), asdict(known))

    def _file(self, mark: str) -> Path:
        return self._folder / f"{mark}.json"

    @staticmethod
    def _read(file: Path) -> _Training:
        try:
            return TypeAdapter(_Training).validate_python(read_json(file))
        except ValidationError as error:
            raise RunError(f"{file}: not a training of private records ({error.error_count()} mistakes)") from None
