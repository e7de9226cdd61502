"""What a mini picture shows, read from its cells alone: oracles of the tests answer by it."""

from __future__ import annotations

from fcit.data.mini import canvas, scenes


class Grid:
    """What is drawn, read from the cells alone."""

    def __init__(self, scene: scenes.Scene) -> None:
        self.things, self.glyphs, self.heights, self.paints = [], {}, {}, {}
        for cell, (content, color) in enumerate(zip(scene.contents.tolist(), scene.colors.tolist(), strict=True)):
            row, column = divmod(cell, 4)
            if 1 <= content <= 16:
                self.things.append((canvas.COLOR_NAMES[color], canvas.KINDS[content - 1], row, column))
            elif canvas.LETTER0 <= content < canvas.FILL0:
                self.glyphs[row, column] = (canvas.LETTERS + canvas.DIGITS)[content - canvas.LETTER0]
            elif content >= canvas.FILL0:
                self.heights[column] = self.heights.get(column, 0) + content - canvas.FILL0 + 1
                self.paints[column] = canvas.COLOR_NAMES[color]

    @property
    def by_paint(self) -> dict[str, int]:
        """Bar heights by colour."""
        return {self.paints[c]: h for c, h in self.heights.items()}

    def line(self, which: int) -> str:
        row = sorted({r for r, _ in self.glyphs})[which]
        return "".join(self.glyphs[k] for k in sorted(self.glyphs) if k[0] == row)

    def price(self, kind: str) -> int:
        ((row, column),) = [(r, c) for _, k, r, c in self.things if k == kind]
        return int(self.glyphs[row, column + 1])
