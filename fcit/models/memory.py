"""Running out of memory, of a GPU or of the machine: how it is recognised, and what can be freed."""

from __future__ import annotations

import gc

import torch

#: Text in a RuntimeError of torch that is not one of its out-of-memory errors.
_NO_MEMORY = (
    "can't allocate memory",
    "cuda error: out of memory",
    "cuda driver error: out of memory",  # while a compiled kernel is loaded
    "triton error [cuda]: out of memory",
    "cublas_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory, of a GPU or of the machine, ran out, also while something was compiled."""
    inner = getattr(error, "inner_exception", None)  # what a compiler of torch's stopped at
    if isinstance(inner, BaseException) and is_out_of_memory(inner):
        return True
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def free() -> None:
    """Free the memory of a failed attempt."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
