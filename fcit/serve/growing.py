"""The text of an answer while its tokens come: what can be sent of it, and where it stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: What a decoder writes for a character of which bytes are missing.
HALF = "\ufffd"


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """A text up to the first of the stops in it, which is left out; whether there was one."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return (text[: min(places)].rstrip(), True) if places else (text, False)


class Growing:
    """An answer that is told in parts; the parts together are the whole answer.

    Args:
        decode: text of tokens, stripped.
        stops: texts before which the answer ends.
        send: called with each part; None: nothing is told before the end.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stops: Sequence[str], send: Callable[[str], None] | None
    ) -> None:
        self._decode, self._stops, self._send = decode, stops, send
        self._sent = ""

    def add(self, tokens: list[int]) -> bool:
        """Tell what is certain of an answer that begins with these tokens; whether it ends here."""
        if self._send is None and not self._stops:
            return False
        text, over = cut(self._decode(tokens), self._stops)
        if not over:
            self._tell(self._certain(text))
        return over

    def whole(self, text: str) -> tuple[str, bool]:
        """The whole answer up to the first stop, and whether there was one; what was not told of it yet is not told.

        Raises:
            ValueError: it does not begin with what was told.
        """
        final, over = cut(text, self._stops)
        if not final.startswith(self._sent):
            raise ValueError("the answer's text does not begin with what was sent of it")
        return final, over

    def _certain(self, text: str) -> str:
        """Without an end that may turn out to be half a character, or the beginning of a stop."""
        text = text.rstrip(HALF)
        held = max(
            (size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
        )
        return text[: len(text) - held].rstrip()

    def _tell(self, text: str) -> None:
        if self._send is not None and text.startswith(self._sent) and len(text) > len(self._sent):
            self._send(text[len(self._sent) :])
            self._sent = text
