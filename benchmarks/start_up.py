"""Seconds from mpirun to the first step, beside two ranks that only import torch and start Horovod."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks import made
from benchmarks.measure import Bench, Case, Limit, Outcome, run
from legw_hpc import runlog
from legw_hpc.launcher import local_ranks

RANKS = 2
OURS, BARE, SGD = "ours, to the end of step 1", "import torch, horovod; hvd.init()", "the same, and a step of torch.optim.SGD"
START = "import time, torch, horovod.torch as hvd; hvd.init()"
STEP = "w = torch.zeros(1, requires_grad=True); w.sum().backward(); torch.optim.SGD([w], 0.1).step()"
READY = "print('ready', time.time(), flush=True)"


def cases(bench: Bench) -> Outcome:
    folder = made.temporary(bench)
    numbers = itertools.count()

    def ours() -> float:
        out = f"run{next(numbers)}"
        start = time.time()
        mpirun(folder, "-m", "legw_hpc", "train", "mnist-lstm-sample", "max_steps=1", f"out={out}")
        return next(line["time"] for line in runlog.read(folder / out) if line["event"] == "step") - start

    def bare(*program: str) -> float:
        start = time.time()
        lines = mpirun(folder, "-c", "; ".join([*program, READY])).splitlines()
        return max(float(line.split()[1]) for line in lines if line.startswith("ready")) - start

    def after(seconds: dict[str, list[float]]) -> list[str | Limit]:
        more = {name: statistics.median(a - b for a, b in zip(seconds[OURS], seconds[name], strict=True)) for name in (BARE, SGD)}
        return [
            Limit(f"{OURS}: s more than hvd.init() alone", more[BARE], 1.0, f"{RANKS} ranks"),
            f"{more[SGD]:+.2f} s beside a program that steps with torch.optim, which then imports torch._dynamo.",
        ]

    return Outcome([Case(OURS, ours), Case(BARE, partial(bare, START)), Case(SGD, partial(bare, START, STEP))], after=after)


def mpirun(folder: Path, *arguments: str) -> str:
    """The output of a Python on so many ranks."""
    command, environment = local_ranks(RANKS)
    return subprocess.run(
        [*command, sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


if __name__ == "__main__":
    run("start_up", "seconds from mpirun to the first step", cases)
