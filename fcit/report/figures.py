"""Pictures of accuracy matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fcit.evaluation.matrix import AccuracyMatrix


def matrices(runs: list[tuple[str, AccuracyMatrix]], path: Path) -> None:
    """Draw accuracy matrices side by side, each cell with its score; empty where not evaluated."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    widest = max(len(m.datasets) for _, m in runs)
    size = (1.1 + (0.72 * widest + 1.0) * len(runs), 2.0 + 0.5 * max(len(m.scores) for _, m in runs))
    figure, axes = pyplot.subplots(1, len(runs), figsize=size, squeeze=False, layout="constrained")
    image: Any = None
    for axis, (name, matrix) in zip(axes[0], runs, strict=True):
        stages = [n for n, row in enumerate(matrix.scores, start=1) if row]
        grid = np.array([[row.get(d, np.nan) for d in matrix.datasets] for row in matrix.scores if row], dtype=float)
        image = axis.imshow(grid, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for (y, x), value in np.ndenumerate(grid):
            if not np.isnan(value):
                axis.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if value < 60 else "black")
        axis.set_xticks(range(len(matrix.datasets)), matrix.datasets, rotation=40, ha="right")
        axis.set_yticks(range(len(stages)), [str(n) for n in stages])
        axis.set_ylabel("after stage")
        last = "-" if matrix.last is None else f"{matrix.last:.1f}"
        axis.set_title(f"{name}: Last {last}")
    figure.colorbar(image, ax=axes[0].tolist(), label="score (0-100)", shrink=0.9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
