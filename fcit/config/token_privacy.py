"""The keys ``privacy.token_*``: differential privacy of the records behind an identity token, added by the clients."""

from __future__ import annotations

from pydantic import Field

from fcit.config.section import Section


class TokenPrivacy(Section):
    """Noise on descriptions of shards (``docs/privacy.md``)."""

    token_epsilon: float | None = Field(
        None,
        gt=0,
        le=1e4,
        description="epsilon of a record in the description of its shard (an identity token): clients add the noise "
        "themselves, before it is sent (needs `pip install 'fcit[privacy]'`, at the clients too)",
    )
    token_noise_multiplier: float | None = Field(
        None,
        ge=0.01,
        description="in place of token_epsilon: standard deviation of the noise on the sum of a shard's identity "
        "features, each of which is shortened to length 1",
    )
    token_delta: float = Field(1e-5, gt=0, lt=1, description="delta of token_epsilon")

    @property
    def tokens(self) -> bool:
        """Whether clients add noise to descriptions of their shards."""
        return self.token_epsilon is not None or self.token_noise_multiplier is not None
