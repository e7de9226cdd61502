"""The keys ``privacy.record_*``: differential privacy of single records, added by the clients."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fcit.config.kinds import WORDS
from fcit.config.section import Section


class RecordPrivacy(Section):
    """Differential privacy of single records (``docs/privacy.md``)."""

    record_dp: Annotated[Literal["off", "on"], WORDS] = Field(
        "off",
        description="on: clients train by DP-SGD: batches drawn at random, the gradient of every record clipped, noise "
        "added to their sum; what they send is differentially private for single records, also against the server. "
        "training.max_grad_norm is then not applied (needs `pip install 'fcit[privacy]'`)",
    )
    record_noise_multiplier: float | None = Field(
        None,
        ge=0.01,
        description="standard deviation of the noise of a client's step, in units of record_clip; or give "
        "record_epsilon",
    )
    record_epsilon: float | None = Field(
        None,
        gt=0,
        le=1e4,
        description="epsilon of a record over the whole run; each client computes its noise multiplier from it, its "
        "number of records and how often it will take part",
    )
    record_delta: float = Field(
        1e-5, gt=0, lt=1, description="delta of record_epsilon; below 1 / records of the largest client"
    )
    record_clip: float = Field(
        1.0, gt=0, description="norm that the gradient of one record is clipped to, over all tensors that are trained"
    )

    @property
    def records(self) -> bool:
        """Whether clients train by DP-SGD."""
        return self.record_dp == "on"
