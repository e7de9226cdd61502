"""What a server takes in, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from fcit.errors import ConfigError

#: Requests whose bodies are read, and whose images are decoded, at the same time.
READING = 8
DECODING = 2


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; each is an option of ``fcit serve``, ``--max-`` and its name."""

    body: int = field(default=20 * 2**20, metadata={"help": "bytes of a request"})
    images: int = field(default=8, metadata={"help": "images of a conversation"})
    pixels: int = field(default=25_000_000, metadata={"help": "pixels of an image"})
    turns: int = field(default=32, metadata={"help": "messages of a conversation"})
    tokens: int = field(default=1024, metadata={"help": "tokens of the longest answer that can be asked for"})
    waiting: int = field(default=256, metadata={"help": "requests that wait for their turn"})
    seconds: float = field(default=120.0, metadata={"help": "seconds from a request to the end of its answer"})

    def __post_init__(self) -> None:
        from fcit.data.formats.conversation import MAX_IMAGES
        from fcit.data.images.opening import MAX_PIXELS  # imports Pillow, for which `fcit --help` does not wait

        most = {"images": MAX_IMAGES, "pixels": MAX_PIXELS}
        for bound in fields(self):
            name, value = bound.name, getattr(self, bound.name)
            if not value > 0:
                raise ConfigError(f"--max-{name}: must be above 0, got {value}")
            if value > most.get(name, value):
                raise ConfigError(f"--max-{name}: at most {most[name]:,}, got {value:,}")
