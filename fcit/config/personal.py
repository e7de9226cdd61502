"""``evaluation.personal``: clients whose own models are evaluated, and what does not go together with that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from fcit.config.section import Section

if TYPE_CHECKING:
    from fcit.config.schema import RunConfig


class Personal(Section):
    """Clients whose models are evaluated on records of their own shards; a number alone is how many clients."""

    clients: int = Field(5, ge=1, description="clients asked after a stage, drawn among those that have trained it")
    share: float = Field(0.2, gt=0, lt=1, description="share of every shard that is kept out of training")
    most: int = Field(32, ge=1, description="records that are kept out of a shard at most")
    alone: int | None = Field(
        None, ge=1, description="rounds that a client trains on its own, to compare with; default: federation.rounds"
    )

    @model_validator(mode="before")
    @classmethod
    def _number(cls, raw: Any) -> Any:
        """``true`` means the defaults, and a number so many clients."""
        if raw is True:
            return {}
        return {"clients": raw} if type(raw) is int else raw


def contradictions(config: RunConfig) -> list[str]:
    """Settings that do not go together with ``evaluation.personal``."""
    if config.evaluation.personal is None:
        return []
    privacy, problems = config.privacy, []
    on = {
        "client_dp": privacy.on,
        "record_dp": privacy.records,
        "token_*": privacy.tokens,
        "secure_aggregation": privacy.secure,
    }
    for key in (key for key, given in on.items() if given):
        problems.append(
            f"evaluation.personal: a client's scores on its own records are sent as they are, which privacy.{key} does "
            "not cover; leave evaluation.personal out"
        )
    if config.stream == "site":
        problems.append(
            "evaluation.personal: with stream: 'site' each site is scored on its own test files already; leave it out, "
            "or choose stream: benchmark"
        )
    if config.adapter.ranks is not None:
        problems.append(
            "evaluation.personal: clients are tuned at adapter.rank, which those of smaller adapter.ranks cannot "
            "afford; leave one of them out"
        )
    if config.centralised:
        problems.append(
            "evaluation.personal: is about clients, and with setting: 'centralised' there is one participant; leave it "
            "out, or choose setting: homogeneous"
        )
    return problems
