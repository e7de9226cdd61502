"""Variants of one computation, measured one after another on one model: limits, a row for each, a table of them."""

from __future__ import annotations

import gc
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch._dynamo.utils import counters

Row = dict[str, Any]
Bench = TypeVar("Bench")


@dataclass(frozen=True)
class Variant(Generic[Bench]):
    """One way to compute something.

    Attributes:
        means: what it is, in words for the table.
        work: measures it and writes what it measured into the row.
        limit: seconds it may take.
        needs: seconds that must be left for it to be worth starting.
    """

    name: str
    means: str
    work: Callable[[Bench, Row], None]
    limit: float = 40.0
    needs: float = 5.0


@dataclass(frozen=True)
class Column:
    """A column of the table: its heading, the key of the row, a factor and how the product is written."""

    heading: str
    key: str
    factor: float = 1.0
    form: str = "g"

    def of(self, row: Row) -> str:
        """The cell of a row, empty where the row has no such figure."""
        return "" if row.get(self.key) is None else format(row[self.key] * self.factor, self.form)


class TimeLimit(BaseException):
    """A variant's time is up; not an Exception, because compilers catch those and go on."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """The body for at most this many seconds, at least one; native code is interrupted when it returns to Python.

    Raises:
        TimeLimit: the time is up.
    """

    def stop(*_: Any) -> None:
        raise TimeLimit(f"{seconds:.0f} s are over")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(max(1, int(seconds)))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(
    variants: Sequence[Variant[Bench]], bench: Bench, report: dict[str, Any], file: Path | None, seconds: float
) -> None:
    """Measure variants within a time; every one leaves a row in ``report["rows"]``, and the file is always current.

    A row without all its figures says why: ``skipped`` (too little time left, at its start or in it) or ``error`` (its
    exception, its limit, or that it did not finish, which stays if the process is killed in it).
    """
    end = time.perf_counter() + seconds
    for variant in variants:
        row: Row = {"variant": variant.name, "means": variant.means}
        report["rows"].append(row)
        left = end - time.perf_counter()
        if left < variant.needs:
            row["skipped"] = f"{left:.0f} s left, {variant.needs:.0f} s needed"
        else:
            row["error"] = "not finished"
            _save(report, file)
            _measure(variant, bench, row, left)
        _save(report, file)
        print(json.dumps({k: v for k, v in row.items() if k != "means"}), flush=True)
        with suppress(RuntimeError):  # of a GPU that an error has left unusable: the rows to come say so
            release()


def _measure(variant: Variant[Bench], bench: Bench, row: Row, left: float) -> None:
    counters.clear()
    begin = time.perf_counter()
    try:
        reset_peak()
        with limited(min(variant.limit, left)):
            variant.work(bench, row)
        del row["error"]
    except TimeLimit as error:
        row["error"] = failure(error)
        if left < variant.limit:  # the time of all was over, which says nothing of this one
            del row["error"]
            row["skipped"] = f"{left:.0f} s left, more needed"
    except Exception as error:  # noqa: BLE001  (what comes after it is measured all the same)
        row["error"] = failure(error)
    row["total_seconds"] = time.perf_counter() - begin
    if torch.cuda.is_available():
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
    if counters["stats"]:  # of torch.compile: more graphs than one, or breaks, mean that shapes or code did not suit it
        row["graphs"], row["breaks"] = counters["stats"].get("unique_graphs"), len(counters["graph_break"])


def failure(error: BaseException) -> str:
    """An error for a row."""
    return f"{type(error).__name__}: {str(error)[:500]}"


def _save(report: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Rows as a Markdown table."""
    lines = [["variant", *(c.heading for c in columns), "what it is"]]
    lines.append(["---", *["---:"] * len(columns), "---"])
    for row in rows:
        remark = "".join(f" ({kind}: {row[kind]})" for kind in ("skipped", "error") if kind in row)
        lines.append([row["variant"], *(c.of(row) for c in columns), row["means"] + remark])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release() -> None:
    """Give memory that nothing refers to back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak() -> None:
    """Measure the peak of GPU memory from here on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def compiled(modules: Sequence[nn.Module], **options: Any) -> Iterator[None]:
    """These modules compiled in place for static shapes; afterwards as they were."""
    torch._dynamo.reset()
    for module in modules:
        module.compile(dynamic=False, **options)
    try:
        yield
    finally:
        for module in modules:
            module._compiled_call_impl = None
        torch._dynamo.reset()
