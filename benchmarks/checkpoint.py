"""What a checkpoint of ResNet-50 with its momentum costs: the time that training stands still, and what a start reads back."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

from benchmarks import made
from benchmarks.measure import Bench, Case, Limit, Outcome, run
from benchmarks.ours import Trained
from legw_hpc.runfolder import RunFolder

SAVE, LOAD, PLAIN = "ours: save, checked and synced", "ours: load, checked", "cp of the same bytes, not synced"
MINUTE = 60.0
GOAL = 5.0  # % of a minute, for one checkpoint a minute


def cases(bench: Bench) -> Outcome:
    """What a run does at a checkpoint, by all ranks, and at its start."""
    out = made.temporary(bench) / "run"
    batch = 8 * bench.comm.size
    words = [*made.jpegs(bench), f"batch={batch}", "micro_batch=8", "options.size=64", "options.resize=72", f"out={out}"]
    training = Trained(bench, "imagenet-resnet50", words)
    training.step()  # makes the momentum
    work, timing = training.work, training.timing
    folder = RunFolder(work.recipe, work.data, bench.comm).__enter__()  # until the program ends

    step = 0

    def save() -> None:
        nonlocal step
        step += 1
        work.check(step)
        folder.save(step, work.parts, timing, [])

    def newest() -> Path:
        return max((out / "checkpoints").glob("*.pt"))

    def load() -> None:
        assert folder.restore(work.parts, timing, [], step, print) == step

    def copy() -> None:
        if bench.comm.rank == 0:
            shutil.copy(newest(), out / "copy")

    def after(seconds: dict[str, list[float]]) -> list[str | Limit]:
        share = 100 * statistics.median(seconds[SAVE]) / MINUTE
        size = newest().stat().st_size / 1e6
        return [
            Limit("% of training that one checkpoint a minute takes", share, GOAL, "written while the ranks wait"),
            f"{size:.0f} MB: 25.6 million weights and as many of momentum. All that a run does at a checkpoint, on all ranks.",
        ]

    save()
    return Outcome([Case(SAVE, save), Case(LOAD, load), Case(PLAIN, copy)], after=after)


if __name__ == "__main__":
    run("checkpoint", "a checkpoint of ResNet-50 with momentum", cases, ranks=2)
