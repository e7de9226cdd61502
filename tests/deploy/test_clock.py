"""A site's clock beside the door's."""

import email.utils
import time

import pytest

from fcit.deploy import clock


class Answer:
    """The other end of a TLS connection, which answers once."""

    def __init__(self, text: str) -> None:
        self.pieces = [text[:20].encode(), text[20:].encode(), b""]

    def sendall(self, data: bytes) -> None:
        assert data.startswith(b"HEAD / HTTP/1.1\r\nHost: door\r\n")

    def recv(self, most: int) -> bytes:
        return self.pieces.pop(0)


def dated(seconds: float) -> Answer:
    date = email.utils.formatdate(seconds, usegmt=True)
    return Answer(f"HTTP/1.1 403 Forbidden\r\nServer: nginx\r\ndate: {date}\r\n\r\n")


@pytest.mark.parametrize("off", [-400.0, 0.0, 20.0])
def test_the_difference_is_right_within_a_second(off):
    assert clock.told(dated(time.time() - off), "door") == pytest.approx(off, abs=1.5)


def test_an_answer_without_a_date():
    with pytest.raises(ValueError, match="no Date"):
        clock.told(Answer("HTTP/1.1 200 OK\r\n\r\n"), "door")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(20.0, "20 s ahead of the door's"), (-400.0, "400 s behind the door's"), (4.0, None), (-299.0, None)],
)
def test_what_the_superlink_refuses_is_named(seconds, words):
    said = clock.problem(seconds)
    assert (said is None) if words is None else (words in said)


def test_the_clocks_are_compared_now_and_then_and_soon_after_a_fault():
    answers = iter([1.0, OSError("away"), 3.0])

    def compare() -> float:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    watch = clock.Watch(compare, every=1e9, soon=0.0)
    watch.look()
    watch.wait()
    assert watch.ahead == 1.0
    watch.look()  # not yet time
    watch.wait()
    assert watch.ahead == 1.0
    watch.look(urgent=True)
    watch.wait()
    assert watch.ahead is None
    watch.look(urgent=True)
    watch.wait()
    assert watch.ahead == 3.0
