"""How every benchmark measures: cases in turn (A B C A B C ...), medians, and a record of what ran where.

A benchmark is `run(NAME, ABOUT, cases, ranks=...)` at the end of its file.  `cases` is called once on
every rank, after the ranks are connected, and makes the things to measure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from benchmarks.report import PEERS, table
from legw_hpc import runlog
from legw_hpc.comm import Comm, connect
from legw_hpc.data.command import positive
from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.device import processor
from legw_hpc.launcher import launched, local_ranks
from legw_hpc.local_runs import attended

RESULTS = Path(__file__).parent / "results"  # in it a folder for each kind of processor, see `results`
WHERE = "benchmarks/results/KIND OF PROCESSOR, quick/ in it"  # the same, for help texts
KINDS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # of processors, by the best that they have


@dataclass(frozen=True)
class Case:
    """Something to measure.

    Attributes:
        name: a row of the table.
        run: does it once; the seconds are the slowest rank's.  It may return the seconds itself, where a
            part of what it does is to be left out.
        work: units of work that one run does, over all ranks; the table shows units/s.  0 shows seconds.
        unit: of the work.
    """

    name: str
    run: Callable[[], float | None]
    work: float = 0.0
    unit: str = "s"


@dataclass(frozen=True)
class Goal:
    """A ratio that is to be reached: the speed of `case` over that of `beside`, both names of cases.

    Attributes:
        at_least: times as fast.
        note: what stands beside the figure in the table.
    """

    case: str
    beside: str
    at_least: float
    note: str = ""


@dataclass(frozen=True)
class Limit:
    """A number that is to stay at or below another, where a ratio of two cases does not say it.

    Attributes:
        name: with the unit.
        note: what stands beside the figure in the table.
    """

    name: str
    value: float
    at_most: float
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """What `cases` returns.

    Attributes:
        cases: in the order of measurement.
        goals: judged at the end.
        notes: lines under the table, such as a bound or a profile.
        after: called once after the measurements, on every rank, with the seconds by case; gives more
            notes, and limits.
    """

    cases: Sequence[Case]
    goals: Sequence[Goal] = ()
    notes: list[str] = field(default_factory=list)
    after: Callable[[dict[str, list[float]]], Sequence[str | Limit]] | None = None


@dataclass(frozen=True)
class Bench:
    """Where a benchmark runs.

    Attributes:
        comm: the ranks.
        quick: a smaller size is wanted.
        source: real data to read instead of made-up data, where the benchmark can.
    """

    comm: Comm
    quick: bool
    source: Path | None = None

    def seconds(self, work: Callable[[], float | None]) -> float:
        """The slowest rank's seconds; all start together."""
        self.comm.barrier()
        start = time.perf_counter()
        own = work()
        took = time.perf_counter() - start if own is None else own
        return max(self.comm.gather(took))

    def torch_distributed(self) -> None:
        """Let torch.distributed (gloo) join the same ranks, for peers that need it."""
        if distributed.is_initialized():
            return
        comm = self.comm
        tcp_store = distributed.TCPStore  # type: ignore[attr-defined]
        store = tcp_store("127.0.0.1", 0, comm.size, True, wait_for_workers=False) if comm.rank == 0 else None
        port = comm.broadcast(store.port if store is not None else None)
        store = store or tcp_store("127.0.0.1", port, comm.size, False)
        distributed.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size)


def run(name: str, about: str, cases: Callable[[Bench], Outcome], *, ranks: int = 1, rounds: int = 7) -> None:
    """The main program of a benchmark.

    Args:
        name: of the files in results/.
        about: the question, one line.
        cases: makes what is measured.
        ranks: how many it is for; started here if the launcher has not started them.
        rounds: how often every case is measured, after one round that does not count.
    """
    options = _options(about, ranks, rounds)
    if options.ranks > 1 and launched().size == 1:
        command, environment = on_ranks(options.ranks)
        words = [sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]]
        sys.exit(attended([*command, *words], environment, signal.SIGTERM))
    torch.set_num_threads(options.threads)
    comm = connect()
    try:
        bench = Bench(comm, options.quick, options.source)
        outcome = cases(bench)
        seconds = _interleaved(bench, outcome.cases, options.rounds)
        said = outcome.after(seconds) if outcome.after else []
        notes = outcome.notes + [line for line in said if isinstance(line, str)]
        if comm.rank == 0:
            rows = [row(name, case, seconds[case.name], bench, options.threads) for case in outcome.cases]
            judged = [_judged(goal, seconds, outcome.cases) for goal in outcome.goals]
            judged += [
                {"goal": line.name, "value": line.value, "at_most": line.at_most, "note": line.note}
                for line in said if isinstance(line, Limit)
            ]  # fmt: skip
            own = name if options.ranks == ranks else f"{name}_{options.ranks}_ranks"  # beside the usual record
            _write(own, about, rows, judged, notes, options.to)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        comm.close()


def _options(about: str, ranks: int, rounds: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="a smaller size and fewer rounds")
    parser.add_argument("--ranks", type=positive, default=ranks, help=f"default: {ranks}")
    parser.add_argument("--threads", type=positive, default=1, help="a rank (default: 1)")
    parser.add_argument("--rounds", type=positive, help=f"default: {rounds}; 3 if quick")
    parser.add_argument("--source", type=Path, help="real data, where the benchmark can read some")
    parser.add_argument("--to", type=Path, help=f"folder for NAME.jsonl and NAME.md (default: {WHERE})")
    options = parser.parse_args()
    options.to = options.to or results(options.quick)
    options.rounds = options.rounds or (3 if options.quick else rounds)
    return options


def nothing(result: object) -> None:
    """Drops what a call returns: a case's function gives seconds or nothing."""


def on_ranks(ranks: int) -> tuple[list[str], dict[str, str]]:
    """The command prefix and environment that start ranks here, each on a core of its own where there are enough."""
    command, environment = local_ranks(ranks)
    if ranks <= len(os.sched_getaffinity(0)):
        environment |= {"PRTE_MCA_hwloc_default_binding_policy": "core", "OMPI_MCA_hwloc_base_binding_policy": "core"}
    return command, environment


def _interleaved(bench: Bench, cases: Sequence[Case], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round; the first round warms up and is left out."""
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    for number in range(rounds + 1):
        for case in cases:
            took = bench.seconds(case.run)
            if number:
                seconds[case.name].append(took)
    return seconds


def row(name: str, case: Case, seconds: list[float], bench: Bench, threads: int) -> dict[str, Any]:
    """A case's line in the record: what was measured, and where."""
    values = [case.work / s for s in seconds] if case.work else seconds
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {
        "benchmark": name, "case": case.name, "unit": f"{case.unit}/s" if case.work else "s", "n": len(values),
        "median": statistics.median(values), "quartiles": [quartiles[0], quartiles[2]], "quick": bench.quick,
        "ranks": bench.comm.size, "threads": threads,
        "oversubscribed": bench.comm.local_size * threads > (os.cpu_count() or 1),
        "command": f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip(), "commit": runlog.commit(),
        "hardware": f"{processor()} {kind()}, {os.cpu_count()} cores",
        "versions": runlog.versions() | _peers(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def _peers() -> dict[str, str]:
    """Versions of what others' packages are installed here to be measured beside."""
    found = {}
    for name in PEERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def kind() -> str:
    """The kind of this processor, of KINDS; else its architecture."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith("flags")).split()
        return next(kind for kind in KINDS if kind in flags)
    return platform.machine()


def results(quick: bool) -> Path:
    """The folder of this processor's records; a ratio of one kind is no measure for another."""
    return RESULTS / kind() / "quick" if quick else RESULTS / kind()


def _judged(goal: Goal, seconds: dict[str, list[float]], cases: Sequence[Case]) -> dict[str, Any]:
    """The median over rounds of the ratio within each round, so that drift cancels; and all of them, in order."""
    work = {case.name: case.work or 1.0 for case in cases}
    pairs = zip(seconds[goal.case], seconds[goal.beside], strict=True)
    scale = work[goal.case] / work[goal.beside]
    ratios = sorted(scale * theirs / ours for ours, theirs in pairs)
    name, ratio = f"{goal.case} / {goal.beside}", statistics.median(ratios)
    return {"goal": name, "ratio": ratio, "rounds": ratios, "at_least": goal.at_least, "note": goal.note}


def _write(name: str, about: str, rows: list[dict[str, Any]], goals: list[dict[str, Any]], notes: list[str], to: Path) -> None:
    keep(to, name, rows + [{"benchmark": name} | goal for goal in goals], table(name, about, rows, goals, notes))


def keep(to: Path, name: str, rows: Sequence[dict[str, Any]], text: str) -> None:
    """Write TO/NAME.jsonl and TO/NAME.md, and print the latter."""
    make_folder(to)
    with written_whole(to / f"{name}.jsonl") as path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with written_whole(to / f"{name}.md") as path:
        path.write_text(text)
    print(text, flush=True)
