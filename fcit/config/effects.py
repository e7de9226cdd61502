"""What a setting can change. Stated beside each field of the schema, read wherever runs are compared.

    timeout: Annotated[float, WORK] = Field(3600.0, gt=0, description="seconds a round may take")

A field without a mark takes that of its section, and a section without one changes results.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel


class Effect(StrEnum):
    """What differs between two runs that differ in a setting."""

    #: What the numbers are numbers of: they are compared only where it is equal.
    SCOPE = "scope"
    #: The numbers themselves.
    RESULTS = "results"
    #: The last bits of the numbers: the same computation by another machine, kernel or number format.
    BITS = "bits"
    #: Nothing of the results: where work is done, how long it may take, what is kept to save time.
    WORK = "work"
    #: Nothing of the run: its name, its folder and the receivers of its events.
    RECORD = "record"


SCOPE, BITS, WORK, RECORD = Effect.SCOPE, Effect.BITS, Effect.WORK, Effect.RECORD


def effects(section: type[BaseModel], default: Effect = Effect.RESULTS, prefix: str = "") -> dict[str, Effect]:
    """The effect of every setting of a section, by its dotted key; options of parts are not listed."""
    effects_by_key: dict[str, Effect] = {}
    for name, field in section.model_fields.items():
        effect = next((mark for mark in field.metadata if isinstance(mark, Effect)), default)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            effects_by_key |= effects(kind, effect, f"{prefix}{name}.")
        else:
            effects_by_key[f"{prefix}{name}"] = effect
    return effects_by_key
