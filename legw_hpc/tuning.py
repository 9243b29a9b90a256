"""The micro-batch that computes fastest on this machine, for recipes that ask for it with micro_batch=0.

How many samples go through the model at once changes the time of a step and not its result (but for rounding), and the
best count is another one on every machine, model and precision.  So it is measured where the run starts, on the run's own
model and data, by all ranks at once, as they will compute; what was found is kept, and taken the next time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legw_hpc.comm import Comm
from legw_hpc.device import processor
from legw_hpc.errors import InputError
from legw_hpc.recipe import MOST_MEASURED

# A step's share is cut into 1, 2, 4 ... equal pieces; smaller ones than this are never the fastest (assumed).
LEAST = 8
ROUNDS = 3  # each candidate, in turns, so that a busy moment meets all of them
SLOWER = 1.02  # a smaller micro-batch is taken if it is no more than this slower: less memory (assumed)


@dataclass(frozen=True)
class Tuned:
    """What was found.

    Attributes:
        micro_batch: samples, or rows of a text.
        seconds: per sample, of each candidate; of the slowest rank.  Empty where a run is gone on with.
        kept: it was found by an earlier run.
    """

    micro_batch: int
    seconds: dict[int, float]
    kept: bool

    def __str__(self) -> str:
        """Such as "128 (of 64, 128, 256: 5,100, 5,300, 5,200 a second a rank; kept from an earlier run)"."""
        if not self.seconds:
            return f"{self.micro_batch:,}, as this run began"
        sizes = ", ".join(f"{size:,}" for size in self.seconds)
        rates = ", ".join(f"{1 / seconds:,.0f}" for seconds in self.seconds.values())
        return f"{self.micro_batch:,} (of {sizes}: {rates} a second a rank{'; kept from an earlier run' if self.kept else ''})"


def candidates(share: int) -> list[int]:
    """The micro-batches worth trying for a rank's share of the global batch, smallest first."""
    pieces = [-(-share // (1 << n)) for n in range(share.bit_length())]
    return sorted({size for size in pieces if LEAST <= size <= MOST_MEASURED} or {min(share, MOST_MEASURED)})


def fastest(share: int, measure: Callable[[int], float], comm: Comm, about: dict[str, Any], folder: Path | None = None) -> Tuned:
    """The fastest micro-batch for a rank's share; a collective, the same on every rank.

    Args:
        share: samples of a step, of the rank with most.
        measure: seconds that a micro-batch of so many samples takes; infinite if it does not fit in memory.
        comm: a rank's time is that of the slowest, for which all wait.
        about: all that decides the time besides the machine's processor.
        folder: where it is kept; `cache()` by default.

    Raises:
        InputError: nothing fits; on every rank.
    """
    file = folder / "micro_batch.json" if (folder := folder or cache()) else None
    key = json.dumps(about | {"share": share, "ranks": comm.local_size, "processor": processor()}, sort_keys=True)
    known = comm.broadcast(_read(file).get(key) if file and comm.rank == 0 else None)
    if known is not None:
        return _choice({int(size): seconds for size, seconds in known.items()}, kept=True)
    sizes = candidates(share)
    for size in sizes:
        measure(size)  # what is made at the first call: memory, oneDNN's primitives
    rounds = [{size: measure(size) / size for size in sizes} for _ in range(ROUNDS)]
    mine = {size: statistics.median(round[size] for round in rounds) for size in sizes}
    everyone = comm.gather(mine)  # JSON: the sizes come back as text
    slowest = {size: max(theirs[str(size)] for theirs in everyone) for size in sizes}
    fit = {size: seconds for size, seconds in slowest.items() if math.isfinite(seconds)}
    if not fit:
        raise InputError(f"micro_batch=0: not even {sizes[0]} samples at once fit in the device's memory", agreed=True)
    if file and comm.rank == 0:
        _keep(file, key, fit)
    return _choice(fit, kept=False)


def cache() -> Path | None:
    """The folder of what was measured on this machine; None for a user without a home."""
    named = os.environ.get("LEGW_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "legw_hpc"
    try:
        return Path(named).expanduser()
    except RuntimeError:
        return None


def _choice(seconds: dict[int, float], kept: bool) -> Tuned:
    best = min(seconds.values())
    return Tuned(min(size for size, taken in seconds.items() if taken <= SLOWER * best), seconds, kept)


def _read(file: Path) -> dict[str, Any]:
    """What is kept; a file that cannot be read, or is another's, keeps nothing."""
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(kept, dict):
            return {key: value for key, value in kept.items() if _is_measured(value)}
    return {}


def _is_measured(value: Any) -> bool:
    return (
        isinstance(value, dict) and bool(value)
        and all(size.isdigit() and int(size) > 0 for size in value)
        and all(isinstance(seconds, float) and seconds > 0 for seconds in value.values())
    )  # fmt: skip


def _keep(file: Path, key: str, seconds: dict[int, float]) -> None:
    """Best effort: a home that is full or read-only costs the next run a second."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{os.getpid()}.{time.monotonic_ns()}")
        beside.write_text(json.dumps(_read(file) | {key: seconds}, indent=1), encoding="utf-8")
        beside.replace(file)
