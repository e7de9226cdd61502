"""What a site demands for each of its records, and the account it keeps of them itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fcit.errors import Refused, RunError
from fcit.io.files import read_json, write_json
from fcit.privacy.record_accountant import Steps
from fcit.privacy.record_ledger import RecordLedger


@dataclass(frozen=True)
class RecordTerms:
    """Limits on what trainings may spend of the records here; the default has none and keeps no account.

    Attributes:
        max_epsilon: of any record, over all trainings of all runs.
        min_noise: smallest noise multiplier of a step.
        delta: of ``max_epsilon``.
        account: file of the account.
    """

    max_epsilon: float | None = None
    min_noise: float | None = None
    delta: float = 1e-5
    account: Path | None = None

    @property
    def demanded(self) -> bool:
        """Whether nothing may be trained without privacy of records."""
        return self.max_epsilon is not None or self.min_noise is not None

    def spend(self, origins: Iterable[str], steps: Steps) -> None:
        """Note a training before it begins: what is sent afterwards is counted, and perhaps what is not.

        Args:
            origins: names of the records that it draws from.

        Raises:
            Refused: it would have too little noise, or exceed the limit; then nothing is noted.
            RunError: the account cannot be read.
        """
        if self.min_noise is not None and steps.multiplier < self.min_noise:
            raise Refused(
                f"privacy.record_dp: the noise multiplier of this training is {steps.multiplier:.4g}, below SITE.yaml "
                f"min_record_noise: {self.min_noise:g}"
            )
        if self.max_epsilon is None or self.account is None:
            return
        ledger, names = self._read(), list(origins)
        for name in names:
            ledger.add(name, steps)
        epsilon = ledger.epsilon(self.delta, names).pld
        if epsilon > self.max_epsilon:
            raise Refused(
                f"privacy.record_dp: with this training, epsilon of the records of {', '.join(names)} would be "
                f"{epsilon:.4g}, above SITE.yaml max_record_epsilon: {self.max_epsilon:g} (account of all runs: "
                f"{self.account})"
            )
        write_json(self.account, asdict(ledger))

    def spent(self) -> dict[str, float]:
        """Epsilon so far of the records of every name in the account.

        Raises:
            RunError: the account cannot be read.
        """
        ledger = self._read()
        return {name: ledger.epsilon(self.delta, [name]).pld for name in sorted(ledger.spent)}

    def _read(self) -> RecordLedger:
        if self.account is None or not self.account.is_file():
            return RecordLedger()
        try:
            return TypeAdapter(RecordLedger).validate_python(read_json(self.account))
        except ValidationError as error:
            raise RunError(f"{self.account}: not an account of records ({error.error_count()} mistakes)") from None
