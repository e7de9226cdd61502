"""What a mini image shows, before it is drawn: five kinds of scene on the 4 x 4 grid."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fcit.data.mini import canvas
from fcit.data.mini.canvas import CELLS, SIDE

# Everything under this many of the 16 hash buckets belongs to the mini datasets, the rest to
# pre-training, so that no layout of a mini image is ever seen before tuning.
MINI_BUCKETS = 8
BUCKETS = 16
MAX_BAR = (SIDE - 1) * canvas.FILLS


@dataclass(frozen=True)
class Thing:
    """One drawn object: its kind and colour (indices) and its cell (0..15, row by row)."""

    kind: int
    color: int
    cell: int

    @property
    def name(self) -> str:
        return canvas.KINDS[self.kind]

    @property
    def paint(self) -> str:
        return canvas.COLOR_NAMES[self.color]

    @property
    def row(self) -> int:
        return self.cell // SIDE

    @property
    def column(self) -> int:
        return self.cell % SIDE


@dataclass(frozen=True)
class Bar:
    """One bar of a chart: its label (a letter), colour index, column and height (1..9)."""

    label: str
    color: int
    column: int
    height: int

    @property
    def paint(self) -> str:
        return canvas.COLOR_NAMES[self.color]


@dataclass
class Scene:
    """A drawn grid and what it means."""

    contents: np.ndarray = field(default_factory=lambda: np.zeros(CELLS, dtype=np.int64))
    colors: np.ndarray = field(default_factory=lambda: np.full(CELLS, canvas.BLACK))
    variants: np.ndarray = field(default_factory=lambda: np.zeros(CELLS, dtype=np.int64))
    background: np.ndarray = field(default_factory=lambda: np.full(3, 255))
    things: list[Thing] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    prices: list[tuple[Thing, int]] = field(default_factory=list)

    def put(self, cell: int, content: int, color: int = canvas.BLACK) -> None:
        self.contents[cell], self.colors[cell] = content, color

    def put_thing(self, thing: Thing) -> None:
        self.put(thing.cell, canvas.KIND0 + thing.kind, thing.color)

    @property
    def bucket(self) -> int:
        """Hash bucket 0..15 of the layout (contents and colours of all cells)."""
        layout = np.concatenate([self.contents, self.colors]).astype(np.uint8).tobytes()
        return hashlib.sha256(layout).digest()[0] % BUCKETS

    def decorate(self, rng: np.random.Generator) -> Scene:
        """Choose the pixel shifts and the background tint."""
        self.variants = rng.integers(canvas.VARIANTS, size=CELLS)
        bars = self.contents >= canvas.FILL0
        # The segments of one bar share their horizontal shift, or the bar would look broken.
        self.variants[bars] = 3 + rng.integers(3)
        self.background = rng.integers(226, 256, size=3)
        return self

    def image(self) -> np.ndarray:
        """The scene as ``(64, 64, 3)`` uint8 RGB."""
        return images([self])[0]


def images(scenes: Sequence[Scene]) -> np.ndarray:
    """Several scenes at a time, ``(B, 64, 64, 3)`` uint8 RGB."""
    contents, colors, variants, background = (
        np.stack([getattr(scene, name) for scene in scenes])
        for name in ("contents", "colors", "variants", "background")
    )
    return canvas.compose(contents, colors, variants, background)


def scatter(rng: np.random.Generator, low: int = 2, high: int = 6) -> Scene:
    """``low..high`` things of distinct kinds and distinct colours in random cells."""
    count = int(rng.integers(low, high + 1))
    cells = rng.choice(CELLS, count, replace=False)
    kinds = rng.choice(len(canvas.KINDS), count, replace=False)
    colors = rng.choice(len(canvas.COLOR_NAMES), count, replace=False)
    scene = Scene()
    for cell, kind, color in sorted(zip(cells, kinds, colors, strict=True)):
        thing = Thing(int(kind), int(color), int(cell))
        scene.things.append(thing)
        scene.put_thing(thing)
    return scene


def renditions(rng: np.random.Generator, low: int = 1, high: int = 5) -> Scene:
    """One kind of thing, drawn ``low..high`` times in any colours."""
    kind = int(rng.integers(len(canvas.KINDS)))
    scene = Scene()
    for cell in np.sort(rng.choice(CELLS, int(rng.integers(low, high + 1)), replace=False)):
        thing = Thing(kind, int(rng.integers(len(canvas.COLOR_NAMES))), int(cell))
        scene.things.append(thing)
        scene.put_thing(thing)
    return scene


def cover(rng: np.random.Generator) -> Scene:
    """A book cover: a title of letters on one line, an author below it, one small picture."""
    top, bottom = sorted(rng.choice(SIDE, 2, replace=False).tolist())
    scene = Scene()
    for row in (top, bottom):
        word = "".join(rng.choice(list(canvas.LETTERS), int(rng.integers(2, 4))))
        scene.lines.append(word)
        for column, letter in enumerate(word):
            content = canvas.LETTER0 + canvas.LETTERS.index(letter)
            scene.put(row * SIDE + column, content)
    row = int(rng.choice([r for r in range(SIDE) if r not in (top, bottom)]))
    thing = Thing(
        int(rng.integers(len(canvas.KINDS))),
        int(rng.integers(len(canvas.COLOR_NAMES))),
        row * SIDE + int(rng.integers(SIDE)),
    )
    scene.things.append(thing)
    scene.put_thing(thing)
    return scene


def chart(rng: np.random.Generator, low: int = 2) -> Scene:
    """A bar chart: up to four bars of distinct labels, colours and heights over their labels."""
    count = int(rng.integers(low, SIDE + 1))
    columns = np.sort(rng.choice(SIDE, count, replace=False))
    labels = rng.choice(list(canvas.LETTERS), count, replace=False)
    colors = rng.choice(len(canvas.COLOR_NAMES), count, replace=False)
    heights = 1 + rng.choice(MAX_BAR, count, replace=False)
    scene = Scene()
    for column, label, color, height in zip(columns, labels, colors, heights, strict=True):
        bar = Bar(str(label), int(color), int(column), int(height))
        scene.bars.append(bar)
        letter = canvas.LETTER0 + canvas.LETTERS.index(bar.label)
        scene.put((SIDE - 1) * SIDE + bar.column, letter)
        full, rest = divmod(bar.height, canvas.FILLS)
        for level in range(full + (rest > 0)):
            fill = canvas.FILLS if level < full else rest
            cell = (SIDE - 2 - level) * SIDE + bar.column
            scene.put(cell, canvas.FILL0 + fill - 1, bar.color)
    return scene


def table(rng: np.random.Generator) -> Scene:
    """A price list: two to four rows, each a thing and, right of it, a digit 1..9."""
    count = int(rng.integers(2, SIDE + 1))
    rows = np.sort(rng.choice(SIDE, count, replace=False))
    kinds = rng.choice(len(canvas.KINDS), count, replace=False)
    left = int(rng.integers(SIDE - 1))
    scene = Scene()
    for row, kind in zip(rows, kinds, strict=True):
        cell = int(row) * SIDE + left
        thing = Thing(int(kind), int(rng.integers(len(canvas.COLOR_NAMES))), cell)
        price = int(rng.integers(1, 10))
        scene.prices.append((thing, price))
        scene.put_thing(thing)
        scene.put(cell + 1, canvas.DIGIT0 + price)
    return scene


_ALL: list[Callable[[np.random.Generator], Scene]] = [scatter, renditions, cover, chart, table]


def any_scene(rng: np.random.Generator) -> Scene:
    """A scene of any kind."""
    return _ALL[int(rng.integers(len(_ALL)))](rng)
