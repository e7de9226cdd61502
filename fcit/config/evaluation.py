"""The section ``evaluation``: when the model is evaluated, on which questions, and how answers are made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fcit.config.effects import BITS, SCOPE, WORK
from fcit.config.kinds import BatchSize, Compile, Decoder
from fcit.config.personal import Personal
from fcit.config.section import Section

LONGEST = 24  # tokens of an answer, unless benchmark or configuration set another limit
AT_ONCE = 64  # questions answered at a time, unless another number is set or found


When = Literal["stage", "final"] | list[int]


class HeldOut(Section):
    """A benchmark whose questions are asked although nothing of it is trained; a name alone stands for all of it."""

    benchmark: str = Field(description="a shipped one (`fcit list held-out`, `fcit list benchmark`) or a YAML file")
    only: list[str] | None = Field(None, min_length=1, description="data sets of it; default: all")
    data_root: str | None = Field(
        None, description="its data root, relative to this file; default: that of the run, or where it is rendered"
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, raw: Any) -> Any:
        return {"benchmark": raw} if isinstance(raw, str) else raw


class Evaluation(Section):
    """Evaluation of the model after a stage."""

    batch_size: Annotated[BatchSize, BITS] = Field(
        64,
        description="questions answered at a time; auto: as many as fit into a GPU, at most 128, and half as many when "
        "memory runs out; on a CPU 64",
    )
    by_length: Annotated[bool, BITS] = Field(
        True, description="the questions of an order are put into batches by their length, which saves padding"
    )
    decoder: Annotated[Decoder, BITS] = Field(
        "auto",
        description="static: ours, with keys and values at fixed addresses, where rows leave the batch when they end "
        "and, on CUDA, a step is one graph; transformers: its `generate`; auto: static, but transformers for a method "
        "of one's own that answers with code of its own",
    )
    compile: Annotated[Compile, BITS] = Field(
        "auto",
        description="decoder layers through torch.compile, in whole batches, once for all prompts and once for all "
        "steps; auto: for test sets of 2,000 questions or more, on one CUDA GPU, without quantization",
    )
    mixture: Annotated[Literal["float32", "backbone"], BITS] = Field(
        "float32",
        description="number format of the subspaces that answer, and of the projector's products; backbone: "
        "backbone.dtype, so that layers cast nothing (of no use with float32)",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="tokens of the longest answer; default: what the benchmark says of a data set, else 24"
    )
    when: Annotated[When, SCOPE] = Field(
        "stage", description="after every stage, after the last only, or after these, e.g. [4, 8]; the last always"
    )
    samples: Annotated[int | None, SCOPE] = Field(
        None, ge=1, description="questions of each test set, chosen at random once for all runs: reduced numbers"
    )
    seed: Annotated[int, SCOPE] = Field(
        0, ge=0, description="which questions evaluation.samples chooses; seed does not change them"
    )
    batches_per_order: Annotated[int, WORK] = Field(
        4, ge=1, description="batches answered before the next order; workers share orders"
    )
    verify: Annotated[float, WORK] = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the answers that a deployment gets from two sites and compares; 0 for none (a simulation "
        "compares none: its clients are one program)",
    )
    clients: int = Field(
        3,
        ge=1,
        description="with factors: fedsa, clients that answer every data set, each with its own factors; drawn for "
        "each stage from those that have trained",
    )
    split: Annotated[Literal["test", "val"], SCOPE] = Field(
        "test", description="which questions of a data set are asked"
    )

    unseen: Annotated[bool, SCOPE] = Field(
        False,
        description="ask the data sets of later stages, too: before the first stage of the untouched model, and after "
        "every evaluated stage of the tuned one; scores of what was not trained yet, and forward transfer",
    )
    held_out: Annotated[list[HeldOut], SCOPE] = Field(
        default_factory=list,
        description="benchmarks that are asked and never trained, before the first stage and after stages: general "
        "ability and what is lost of it, e.g. [mini-general], or [{benchmark: fcit-mini-all, only: [aokvqa]}]",
    )
    held_out_when: Annotated[When, SCOPE] = Field(
        "stage", description="the stages after which held_out is asked, as `when` names them; the last always"
    )

    personal: Annotated[Personal | None, SCOPE] = Field(
        None,
        description="true, a number of clients or a mapping (clients, share, most, alone): after a stage, clients that "
        "have trained it are scored on records of their shards, kept out of training, with the run's model, after a "
        "round of local training, and trained on their own",
    )

    @field_validator("personal", mode="before")
    @classmethod
    def _nothing(cls, value: Any) -> Any:
        return None if value is False else value

    @model_validator(mode="before")
    @classmethod
    def _older(cls, raw: Any) -> Any:
        """Accept ``limit: null`` of old run folders, which had no effect."""
        if isinstance(raw, dict) and "limit" in raw and raw["limit"] is None:
            return {key: value for key, value in raw.items() if key != "limit"}
        return raw

    @field_validator("when", "held_out_when", mode="before")
    @classmethod
    def _stages(cls, value: Any) -> Any:
        numbers = isinstance(value, list) and value and all(type(n) is int and 1 <= n < 10_000 for n in value)
        if value not in ("stage", "final") and not numbers:
            raise ValueError("must be stage, final or a list of stage numbers from 1 on, e.g. [4, 8]")
        return value

    @property
    def at_once(self) -> int:
        """Questions answered at a time; where it is not known what fits, 64 for ``auto``."""
        return AT_ONCE if self.batch_size == "auto" else self.batch_size

    @property
    def stretch(self) -> int:
        """Questions of an order."""
        return self.at_once * self.batches_per_order

    def stages(self, count: int, held_out: bool = False) -> list[int]:
        """The stages, numbered from 1 to ``count``, after which the model is evaluated; includes the last.

        Args:
            held_out: those after which ``held_out`` is asked.
        """
        when = self.held_out_when if held_out else self.when
        if when == "stage":
            return list(range(1, count + 1))
        return [count] if when == "final" else sorted({*when, count})

    def longest(self, benchmark: int | None = None) -> int:
        """Maximum of tokens of an answer; ``benchmark`` is the limit that the benchmark sets for the data set."""
        return self.max_new_tokens or benchmark or LONGEST
