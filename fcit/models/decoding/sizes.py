"""How much memory answering takes, and how many questions fit at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fcit.models.decoding.greedy import bucket

#: Most questions at a time with ``evaluation.batch_size: auto``: beyond it a GPU answers hardly more a second.
MOST = 128
#: Share of the free memory that is planned with; the rest is for gaps and for libraries.
PLANNED = 0.85
_FLOAT = 4


@dataclass(frozen=True)
class Widths:
    """Of a language model: layers, its width, that of a feed-forward block, of keys and values; bytes of a number."""

    layers: int
    width: int
    inner: int
    key_width: int
    bytes: int

    def answering(self, rows: int, prompt: int, new: int) -> dict[str, float]:
        """Bytes that ``rows`` questions take, of ``prompt`` tokens each and answers of ``new``.

        Keys and values: ``2 layers k s`` per token.
        """
        return {
            "keys and values": rows * (prompt + new) * 2.0 * self.layers * self.key_width * self.bytes,
            "a whole prompt in one layer": self.prompts(rows, prompt),
        }

    def prompts(self, rows: int, prompt: int) -> float:
        """Bytes beside keys and values while prompts are computed.

        A whole prompt is in one layer at a time, whose feed-forward block and adapters make numbers of ``s`` bytes and
        of four.
        """
        s = self.bytes
        return rows * prompt * (self.inner * (3.0 * s + 2 * _FLOAT) + self.width * 4.0 * s)

    def at_once(self, free: float, prompt: int, new: int) -> int:
        """Questions that fit into ``free`` bytes, 1 to :data:`MOST`, in a size that steps are captured for."""
        each = sum(self.answering(1, prompt, new).values())
        fitting = min(MOST, max(1, int(PLANNED * free / each)))
        return fitting if bucket(fitting) == fitting else max(n for n in map(bucket, range(1, fitting)) if n <= fitting)


def widths(config: Any, number: int) -> Widths:
    """Of the language model with this configuration, whose numbers have so many bytes."""
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Widths(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_key_value_heads * head,
        number,
    )
