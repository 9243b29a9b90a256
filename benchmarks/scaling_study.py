"""How a recipe scales over ranks or nodes, strong and weak, and which part of a step the loss goes to.

Every point is three short runs of the recipe: as it is, its twin without the exchange, and its twin with the first step's
samples for ever (legw_hpc/twins.py).  They are ordinary run folders: what is finished is not run again, and the page is
made of their logs alone, at any time.

    python -m benchmarks.scaling_study mnist-lstm batch=4096 --ranks 1,2
    python -m benchmarks.scaling_study imagenet-resnet50 batch=8192 --machine skylake --nodes 1,2,4,8,16 --time 01:00:00 --dry-run
    python -m benchmarks.scaling_study imagenet-resnet50 batch=8192 --machine skylake --nodes 1,2,4,8,16 --time 01:00:00
    python -m benchmarks.scaling_study imagenet-resnet50 --draw

Here the runs of a point follow one another, so the cores should have nothing else to do.  On a cluster every point is a
job array of `legw-hpc submit`, a task a run, which takes its further options too (--partition, --set ...); tasks that run
at the same time share the network that they measure.  --draw makes the page when they are through, or of those that are.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import scaling_report
from legw_hpc import local_runs
from legw_hpc.allowed import TWINS
from legw_hpc.errors import EXIT_DONE, EXIT_INPUT, EXIT_RESUME, InputError, Interrupted
from legw_hpc.grid import cells
from legw_hpc.recipe import load
from legw_hpc.strict import named
from legw_hpc.submit import command
from legw_hpc.sweep import missing

KINDS = ("strong", "weak")
RANKS, NODES = "1,2", "1,2,4"
TASK_TIME = "00:20:00"  # assumed: start-up and 20 steps; `plan` tells what a step takes on the fewest nodes


@dataclass(frozen=True)
class Point:
    """One number of ranks.

    Attributes:
        kind: "strong": all points share one global batch; "weak": each rank has the same part everywhere.
        nodes: 0 on this machine.
    """

    kind: str
    ranks: int
    nodes: int
    batch: int

    @property
    def folder(self) -> str:
        return f"{self.kind}-{self.nodes}-nodes-{self.ranks}-ranks" if self.nodes else f"{self.kind}-{self.ranks}-ranks"

    def words(self, recipe: Sequence[str], steps: int, repeats: int) -> list[str]:
        """Of a grid: the run and its twins, so often."""
        measured = [f"max_steps={steps}", "log_every=1e-9", "evaluate=false", "checkpoint.every_minutes=0"]
        others = [word for word in recipe if not word.startswith("batch=")]
        return [*others, f"batch={self.batch}", *measured, f"seeds={repeats}", "twin=" + ",".join(TWINS)]


def points(batch: int, counts: Sequence[tuple[int, int]], kinds: Sequence[str], share: int | None = None) -> list[Point]:
    """What is measured, the small points first.

    Args:
        batch: of the strong points.
        counts: (ranks, nodes).
        share: of a rank, of the weak points; by default so that the largest of them has `batch`.

    Raises:
        InputError: the ranks do not share the batch of strong points evenly.
    """
    most = max(ranks for ranks, _ in counts)
    if "strong" in kinds and (uneven := [ranks for ranks, _ in counts if batch % ranks]):
        raise InputError(f"batch {batch} over {uneven[0]} ranks leaves {batch % uneven[0]} samples over")
    if share is not None and share < 1:
        raise InputError(f"--share {share}: samples of a rank, at least 1")
    weak = {ranks: (share or batch // most) * ranks for ranks, _ in counts}
    batches = {"strong": dict.fromkeys(weak, batch), "weak": weak}
    return [Point(kind, ranks, nodes, batches[kind][ranks]) for ranks, nodes in sorted(counts) for kind in kinds]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        if not options.draw:
            points = _wanted(options)
            if options.machine:  # all of them before any is queued: the largest may want more nodes than there are
                for point in points:
                    _run(options, point, point.words(options.words[1:], options.steps, options.repeats), check=True)
            # Here once all of them, then again, so that a machine that slows down does so for all; arrays take all at once.
            for repeats in [options.repeats] if options.machine else range(1, options.repeats + 1):
                for point in points:
                    _run(options, point, point.words(options.words[1:], options.steps, repeats))
        if options.draw or not options.machine:
            scaling_report.write(options.to)
    except InputError as error:
        print(f"scaling_study: {error}", file=sys.stderr)
        return EXIT_INPUT
    except Interrupted as error:
        print(f"scaling_study: {error}", file=sys.stderr)
        return EXIT_RESUME
    return EXIT_DONE


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    about, _, examples = (__doc__ or "").partition("\n\n")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, epilog=examples, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("words", nargs="+", metavar="RECIPE key=value", help="the recipe, and batch=... of the strong points")
    parser.add_argument("--ranks", help=f"on this machine (default: {RANKS})")
    parser.add_argument("--machine", help="submit a job array for each number of nodes instead")
    parser.add_argument("--nodes", help=f"with --machine (default: {NODES})")
    parser.add_argument("--time", help=f"with --machine: walltime of a run, HH:MM:SS (default: {TASK_TIME})")
    parser.add_argument("--dry-run", action="store_true", help="with --machine: print the scripts")
    parser.add_argument("--kinds", default="strong,weak", help="which (default: strong,weak)")
    parser.add_argument("--share", type=int, help="samples a rank of weak points (default: the batch over the most ranks)")
    parser.add_argument("--steps", type=int, default=20, help="of each run; the first few are not counted (default: 20)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--to", type=named, help="folder of the runs and the page (default: runs/scaling/RECIPE)")
    parser.add_argument("--draw", action="store_true", help="run nothing: make the page of what is finished")
    command.job_arguments(parser.add_argument_group("with --machine, as legw-hpc submit takes them"))
    options = parser.parse_intermixed_args(arguments)
    options.submit = command.job_words(options) + (["--dry-run"] if options.dry_run else [])
    of_machine = [f"--{name}={value}" for name in ("nodes", "time") if (value := getattr(options, name))] + options.submit
    if not options.machine and of_machine:
        parser.error(f"{' '.join(of_machine)}: only with --machine")
    if options.machine and options.ranks:
        parser.error(f"--ranks={options.ranks}: machine {options.machine} has its own: --set ranks=...")
    if options.steps <= scaling_report.WARM:
        parser.error(f"--steps {options.steps}: the first {scaling_report.WARM} are not counted")
    options.to = options.to or Path("runs/scaling") / Path(options.words[0]).stem
    return options


def _wanted(options: argparse.Namespace) -> list[Point]:
    kinds = options.kinds.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"--kinds {unknown[0]}: {' or '.join(KINDS)}")
    machine = command.machine_of(options) if options.machine else None
    counts = _counts(options.nodes or NODES) if machine else _counts(options.ranks or RANKS)
    options.threads = max(1, len(os.sched_getaffinity(0)) // max(counts))
    pairs = [(count * machine.ranks, count) if machine else (count, 0) for count in counts]
    return points(load(options.words[0], options.words[1:]).batch, pairs, kinds, options.share)


def _counts(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and len(word) < 10 and int(word) for word in words):
        raise InputError(f"{text}: expected numbers such as 1,2,4")
    return sorted(set(map(int, words)))


def _run(options: argparse.Namespace, point: Point, words: list[str], check: bool = False) -> None:
    """Train what is missing of a point, or submit it; or only see that it could be submitted."""
    folder, recipe = options.to / point.folder, options.words[0]
    if not (options.machine or any(word.startswith("threads=") for word in words)):
        words = [*words, f"threads={options.threads}"]  # as many at every point, or one rank would have all cores
    left = missing(cells(recipe, words), folder)
    if not check:
        print(f"{point.folder}: batch {point.batch:,}, {len(left)} runs to do", flush=True)
    if options.machine and left:
        submit = [sys.executable, "-m", "legw_hpc", "submit", recipe, *words, "--machine", options.machine, "--array"]
        submit += ["--nodes", str(point.nodes), "--time", options.time or TASK_TIME, "--to", str(folder), *options.submit]
        done = subprocess.run([*submit, "--dry-run"], stdout=subprocess.DEVNULL) if check else subprocess.run(submit)
        if done.returncode:
            raise InputError(f"{point.folder} {'cannot be' if check else 'was not'} submitted")
    elif left:
        local_runs.train(left, folder, point.ranks, 1, lambda cell: print(f"  {cell.name}", flush=True))


if __name__ == "__main__":
    sys.exit(main())
