"""The section ``privacy:``: differential privacy of clients, added by the server."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fcit.config.kinds import WORDS
from fcit.config.section import Section


class Privacy(Section):
    """Differential privacy of whole clients (``docs/privacy.md``)."""

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
        description="draw the noise from seed, which everyone knows who knows the configuration: the same bits again, "
        "but no privacy",
    )

    @property
    def on(self) -> bool:
        """Whether clients' updates are clipped and noised."""
        return self.client_dp == "on"

    @property
    def secret(self) -> bool:
        """Whether only the server knows who takes part in a round."""
        return self.on and self.sampling == "secret"
