"""A server in a forked process, and the requests that need no client of OpenAI's."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from fcit.serve.limits import Limits
from fcit.serve.server import listening, serve


def post(url: str, body: dict, **headers: str) -> httpx.Response:
    """The reply to a request for an answer; httpx takes a third of a second to prepare for certificates."""
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60, verify=False)


def health(url: str) -> dict:
    """What the server says of itself."""
    return httpx.get(f"{url}/health", verify=False).json()


@contextmanager
def served(
    assistant, images: Path | None = None, key: str = "", **limits
) -> Iterator[tuple[str, multiprocessing.Process]]:
    """The base URL of a server in a forked process, which ends as Ctrl-C ends it."""
    with listening("127.0.0.1", 0, key) as place:
        port = place.getsockname()[1]
        work = multiprocessing.get_context("fork").Process(
            target=serve, args=(assistant, "run", place, images, Limits(**limits), key)
        )
        work.start()
    try:
        yield f"http://127.0.0.1:{port}", work
    finally:
        work.terminate()
        work.join()
