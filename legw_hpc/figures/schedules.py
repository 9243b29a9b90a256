"""Learning rate against epoch, a panel a decay and a line a batch (the paper's Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display on a compute node
import matplotlib.pyplot as plt

from legw_hpc.derived import Derived

# Points of a line: every kink of a 90-epoch schedule within 0.05 epochs.
POINTS = 2000


def draw(panels: Mapping[str, Sequence[Derived]], path: Path, title: str) -> None:
    """Write a PNG.

    Args:
        panels: the runs whose schedules a panel shows, by its name.
        path: where to.
        title: above all.
    """
    figure, grid = plt.subplots(
        1, len(panels), figsize=(5.0 * len(panels), 4.0), dpi=150, layout="constrained", sharey=True, squeeze=False
    )
    for axes, (name, runs) in zip(grid[0], panels.items(), strict=True):
        for i, derived in enumerate(runs):
            epochs = [derived.recipe.epochs * point / POINTS for point in range(POINTS + 1)]
            colour = plt.get_cmap("viridis")(i / len(runs))
            label = f"{derived.scaled.batch:,}"
            axes.plot(epochs, [derived.schedule(epoch) for epoch in epochs], color=colour, label=label, linewidth=1.6)
        axes.set(xlabel="epoch", title=name)
        axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel("learning rate")
    grid[0, -1].legend(title="batch", fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, format="png")
    plt.close(figure)
