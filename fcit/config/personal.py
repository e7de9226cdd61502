"""``evaluation.personal``: clients whose own models are evaluated."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from fcit.config.section import Section


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
