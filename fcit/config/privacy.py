"""The section ``privacy:``: differential privacy of clients and of records, and secure aggregation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fcit.config.kinds import WORDS
from fcit.config.record_privacy import RecordPrivacy
from fcit.config.token_privacy import TokenPrivacy


class Privacy(RecordPrivacy, TokenPrivacy):
    """Differential privacy of whole clients, by the server, and of single records, by the clients; sums of updates that
    no one sees singly (``docs/privacy.md``).
    """

    client_dp: Annotated[Literal["off", "on"], WORDS] = Field(
        "off",
        description="on: updates are clipped and the server adds Gaussian noise to their sums, which makes what is "
        "trained differentially private for whole clients (needs `pip install 'fcit[privacy]'`)",
    )
    noise_multiplier: float | None = Field(
        None,
        ge=0.01,
        description="standard deviation of the noise, in units of the clipping norm; or give epsilon (less than 0.01 "
        "protects no one)",
    )
    epsilon: float | None = Field(
        None, gt=0, le=1e4, description="epsilon of the whole run, from which the noise multiplier is computed"
    )
    sampling: Literal["public", "secret"] = Field(
        "public",
        description="public: participants follow from seed, which everyone knows; secret: the server draws each client "
        "with probability clients_per_round / clients and keeps to itself whom, which makes epsilon smaller (methods "
        "that train one subspace at a time)",
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="delta of every epsilon that is computed and shown")
    clip: float = Field(
        1.0,
        gt=0,
        description="norm that a client's update is clipped to, over all of its tensors; with clip_quantile "
        "that of the first round",
    )
    clip_quantile: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="the clipping norm follows this quantile of the updates' norms, e.g. 0.5; null: it is constant",
    )
    clip_rate: float = Field(0.2, gt=0, description="step of the adaptive clipping norm, with clip_quantile")
    quantile_noise: float | None = Field(
        None,
        gt=0,
        description="standard deviation of the noise on the number of updates that need no clipping; null: a twentieth "
        "of clients_per_round, at least the noise multiplier",
    )
    reproducible_noise: bool = Field(
        False,
        description="draw the noise (with record_dp also the batches) from seed, which everyone knows who knows the "
        "configuration: the same bits again, but no privacy",
    )

    secure_aggregation: Annotated[Literal["off", "on"], WORDS] = Field(
        "off",
        description="on: clients mask their updates so that the server learns the sums over groups (the clients of a "
        "round that train one subspace) and no single update",
    )
    min_group: int = Field(
        3, ge=3, description="clients whose updates a sum must hold at least; smaller groups are left out of the round"
    )
    dropout: float = Field(
        0.4,
        ge=0,
        lt=0.5,
        description="share of a group's clients that may be lost in a round without losing its sum; the others must "
        "still be min_group",
    )
    neighbours: int | None = Field(
        None,
        ge=2,
        multiple_of=2,
        description="clients that a client has masks in common with, on a random ring; null: all of its group, which "
        "is right below some hundred",
    )
    quantise_bits: int = Field(
        24, ge=8, le=32, description="bits of the integer that a masked number becomes, sign included"
    )
    quantise_range: float = Field(
        1.0,
        gt=0,
        description="largest change of a number that is summed as it is; larger ones are cut (with client_dp: the "
        "clipping norm)",
    )

    @property
    def secure(self) -> bool:
        """Whether clients mask their updates."""
        return self.secure_aggregation == "on"

    @property
    def on(self) -> bool:
        """Whether clients' updates are clipped and noised."""
        return self.client_dp == "on"

    @property
    def secret(self) -> bool:
        """Whether only the server knows who takes part in a round."""
        return self.on and self.sampling == "secret"
