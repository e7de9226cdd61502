"""What every section of a configuration has in common."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from fcit.io import bounded


def _is_number(annotation: Any) -> bool:
    """Whether a key holds a number, or a number or nothing."""
    return annotation in (int, float) or (bool(kinds := set(get_args(annotation))) and kinds <= {int, float, NoneType})


class Section(BaseModel):
    """A section of the configuration; unknown keys, booleans for numbers and damaged text are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _sound(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and _is_number(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("must be a number")
        if isinstance(value, str) and ("\0" in value or not bounded.is_text(value)):
            raise ValueError("must be text without null characters and halves of surrogate pairs")
        return value
