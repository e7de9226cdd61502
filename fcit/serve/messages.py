"""The body of a request for an answer: which fields there are, and which values of them this server can serve."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fcit.io import bounded
from fcit.serve.problems import Problem

#: Fields that change nothing in greedy answers of one model, or only say who asks; any value is passed over.
IGNORED = frozenset(
    "seed top_p user store metadata service_tier safety_identifier prompt_cache_key parallel_tool_calls".split()
)
#: Fields of which one value, or leaving them out, means what this server does.
ONLY: dict[str, tuple[Any, str]] = {
    "temperature": (0, "answers are greedy"),
    "n": (1, "a greedy answer is the same every time"),
    "presence_penalty": (0, "answers are greedy"),
    "frequency_penalty": (0, "answers are greedy"),
    "logprobs": (False, "probabilities are not told"),
    "response_format": ({"type": "text"}, "answers are text"),
    "modalities": (["text"], "answers are text"),
    "tool_choice": ("none", "there are no tools"),
    "tools": ([], "there are no tools"),
    "logit_bias": ({}, "answers are greedy"),
}
MAX_STOPS, MAX_STOP = 4, 100


class ImageURL(BaseModel):
    """Where an image is to be had; ``detail`` makes no difference."""

    url: str
    detail: str | None = None


class TextPart(BaseModel):
    """A text of a message."""

    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    """A message of a conversation; ``developer`` is another name of ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class StreamOptions(BaseModel):
    """What a stream holds beside the answer."""

    include_usage: bool = False


class Request(BaseModel):
    """A request for an answer."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _others(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            raise ValueError("the body must be a JSON object")
        for name, (value, why) in ONLY.items():
            if raw.get(name) not in (None, value):
                raise ValueError(f"{name}: only {value!r} can be served, because {why}; got {bounded.shown(raw[name])}")
        return {name: value for name, value in raw.items() if name not in IGNORED and name not in ONLY}

    @field_validator("stop")
    @classmethod
    def _few(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MAX_STOPS or not all(0 < len(text) <= MAX_STOP for text in stops):
            raise ValueError(f"at most {MAX_STOPS} texts of 1 to {MAX_STOP} characters")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts before which an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def counts(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def limit(self) -> int | None:
        """Tokens of the longest answer; None: as the run had it."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def parsed(body: bytes) -> Request:
    """The request in a body.

    Raises:
        Problem: with the field that is wrong.
    """
    try:
        raw = bounded.parse_json(body.decode("utf-8"), unique=True)
        problem = bounded.depth_problem(raw)
        if problem:
            raise ValueError(problem)
        return Request.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        known = ", ".join([*Request.model_fields, *ONLY])
        more = f" (known: {known})" if first["type"] == "extra_forbidden" else ""
        param = place or text.partition(":")[0]
        raise Problem(400, f"{place}: {text}{more}" if place else text, param=param) from None
    except ValueError as error:  # no UTF-8, no JSON
        raise Problem(400, f"the body is not the JSON of a request ({error})") from None
