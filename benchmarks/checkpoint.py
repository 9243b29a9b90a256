"""What a checkpoint of ResNet-50 with its momentum costs: the time that training stands still, and what a start reads back."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

from benchmarks import made
from benchmarks.measure import Bench, Case, Limit, Outcome, nothing, run
from legw_hpc import checkpoint
from legw_hpc.models.resnet import resnet50
from legw_hpc.optim import parameter_groups
from legw_hpc.optim.lars import LARS
from legw_hpc.trainer import FlatGradients

SAVE, LOAD, PLAIN = "ours: save, checked and synced", "ours: load, checked", "cp of the same bytes, not synced"
MINUTE = 60.0
GOAL = 5.0  # % of a minute, for one checkpoint a minute


def cases(bench: Bench) -> Outcome:
    model = resnet50()
    gradients, optimizer = FlatGradients(model), LARS(parameter_groups(model), 0.1)
    gradients.gradients.normal_()
    optimizer.step()  # makes the momentum
    folder = made.temporary(bench) / "checkpoints"
    number = 0

    def save() -> None:
        nonlocal number
        number += 1
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoint.save(folder, number, state, keep=2)

    def newest() -> Path:
        return max(folder.glob("*.pt"))

    def load() -> None:
        assert checkpoint.load_newest(folder, bench.comm, print) is not None

    def after(seconds: dict[str, list[float]]) -> list[str | Limit]:
        share = 100 * statistics.median(seconds[SAVE]) / MINUTE
        size = newest().stat().st_size / 1e6
        return [
            Limit("% of training that one checkpoint a minute takes", share, GOAL, "written while the ranks wait"),
            f"{size:.0f} MB: 25.6 million weights and as many of momentum.",
        ]

    save()
    return Outcome(
        [Case(SAVE, save), Case(LOAD, load), Case(PLAIN, lambda: nothing(shutil.copy(newest(), folder / "copy")))], after=after
    )


if __name__ == "__main__":
    run("checkpoint", "a checkpoint of ResNet-50 with momentum", cases)
