"""legw-hpc figures and keep: their options, and what they do with them.  Parsing imports nothing heavy."""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.errors import InputError
from legw_hpc.strict import named

if TYPE_CHECKING:
    from legw_hpc.grid import Cell

LOGS = "logs"  # in the folder of the pages: the kept logs
INDEX = "figures.md"

EXAMPLES = (
    "  legw-hpc figures figure1 --quick --jobs 2       the whole path on the packaged sample\n"
    "  legw-hpc figures figure2                        nothing to train\n"
    "  legw-hpc figures figure1 mnist --jobs 2         what is missing of it is trained, one seed\n"
    "  legw-hpc figures figure1 mnist --seeds 3        two seeds more\n"
    "  legw-hpc figures table1 imagenet --commands     what is missing of it, a command a line\n"
    "  legw-hpc figures --draw                         every page and drawing again; nothing is trained\n"
    "A run is known by what its log says of its recipe: it is trained once, whichever figure asks for it, and one that was\n"
    "trained otherwise counts once `legw-hpc keep` has copied its log to TO/logs."
)
KEEP_EXAMPLES = "  legw-hpc keep runs/first\n  legw-hpc keep runs/sweep/mnist-lstm/* --to results"


def arguments(figures: argparse.ArgumentParser) -> None:
    """The options besides ranks and jobs."""
    figures.add_argument(
        "names", nargs="*", default=[], metavar="NAME",
        help="figure1 ... figure7, table1, others, or an application: mnist, ptb, ptb-paper, cifar, small ... "
        "(default: all but imagenet, which is to be named)",
    )  # fmt: skip
    figures.add_argument("--seeds", type=int, default=1, help="seeds of each run (default: 1); drawn is what there is")
    figures.add_argument("--quick", action="store_true", help="the packaged sample in place of the paper's data")
    figures.add_argument("--draw", action="store_true", help="run nothing: pages and drawings of what is finished")
    figures.add_argument("--commands", action="store_true", help="run nothing: print the commands of what is missing")
    figures.add_argument("--runs", type=named, help="folder of the runs (default: runs/figures, with --quick runs/quick)")
    figures.add_argument(
        "--to", type=named, help="folder of pages, drawings and kept logs (default: results, with --quick runs/quick)"
    )


def keep_arguments(keep: argparse.ArgumentParser) -> None:
    keep.add_argument("runs", nargs="+", type=named, metavar="RUN", help="run folder, or log of one")
    keep.add_argument("--to", type=named, default=Path("results"), help="their logs go to TO/logs (default: results)")


def run(options: argparse.Namespace) -> None:
    """Train what is missing of the figures asked for, keep the logs, and write the pages.

    Raises:
        InputError: an unknown name, or a run that cannot be trained.
        Interrupted: told to stop; the same command goes on.
    """
    from legw_hpc import records, sweep
    from legw_hpc.launcher import alone

    alone("figures")  # it launches the ranks of its runs itself
    names, applications = _chosen(options.names, options.quick)
    runs = options.runs or Path("runs/quick" if options.quick else "runs/figures")
    to = options.to or Path("runs/quick" if options.quick else "results")
    if options.seeds < 1:
        raise InputError(f"--seeds {options.seeds}: at least 1")
    grid = _cells(names, applications, options.seeds)
    if options.commands:
        for cell in sweep.missing(grid, runs, to):
            print(shlex.join(["legw-hpc", "train", cell.recipe, *cell.overrides, cell.out(runs)]))
        return
    kept, done = records.Records(to), records.Records(runs)
    failed = None
    try:
        for cell in grid:
            if kept.of(cell.derived) is None and (ended := done.of(cell.derived)) is not None:
                records.keep(ended, to / LOGS)
        if not options.draw:
            sweep.train_missing(
                grid, runs, to, ranks=options.ranks, jobs=options.jobs, another="--runs",
                ended=lambda ended: records.keep(ended, to / LOGS),
            )  # fmt: skip
    except InputError as error:  # told after the pages of the others
        failed = error
    _write(names, to, options.quick)
    if failed:
        raise failed


def keep(options: argparse.Namespace) -> None:
    """Copy the logs of runs to where figures find them; what is no run, as the table beside a sweep's, is passed over.

    Raises:
        InputError: no run there, or some that cannot be kept; the others have been.
    """
    from legw_hpc import records, runlog

    kept, failed = 0, 0
    for run in options.runs:
        path = run / runlog.LOG if os.path.isdir(run) else run
        try:
            record = records.read(path) if path.suffix == ".jsonl" else None
            if record is None and not os.path.exists(run):
                raise InputError(f"{run}: no such file or folder")
            if record is not None:
                print(f"{run}: {records.keep(record, options.to / LOGS)}", flush=True)
                kept += 1
        except InputError as error:
            if len(options.runs) == 1:
                raise
            failed += 1
            print(f"legw-hpc: {error}", file=sys.stderr, flush=True)
    if failed:
        raise InputError(f"{failed} of {kept + failed} could not be kept, as told above")
    if not kept:
        raise InputError(f"{options.runs[0]}: not the log of a run")


def _chosen(words: Sequence[str], quick: bool) -> tuple[list[str], list[str]]:
    """Figures and applications, in the paper's order; all of either if none is named."""
    from legw_hpc.paper.studies import FIGURES, QUICK

    known = {application: None for figure in FIGURES.values() for application in figure.studies if application != QUICK}
    for word in words:
        if word not in FIGURES and word not in known:
            near = difflib.get_close_matches(word, [*FIGURES, *known], 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join([*FIGURES, *known])}"
            raise InputError(f"unknown figure or application {word!r}: {hint}")
    figures, applications = [w for w in FIGURES if w in words], [w for w in known if w in words]
    if quick and applications:
        raise InputError(f"--quick trains the packaged sample, not {applications[0]}")
    for figure in figures:
        has = FIGURES[figure].studies
        if quick and has and QUICK not in has:
            raise InputError(f"{figure} has nothing to try on the packaged sample")
        if applications and not has.keys() & set(applications):
            there = ", ".join(application for application in has if application != QUICK)
            raise InputError(f"{figure} is not of {' or '.join(applications)}: it has {there or 'nothing to train'}")
    usual = [name for name in known if not any(name in has.studies and has.studies[name].named for has in FIGURES.values())]
    return figures or list(FIGURES), [QUICK] if quick else applications or usual


def _cells(names: Sequence[str], applications: Sequence[str], seeds: int) -> list[Cell]:
    """The runs of all of them, each once."""
    from legw_hpc.paper.studies import FIGURES

    found = [
        cell
        for name in names
        for application, study in FIGURES[name].studies.items()
        if application in applications
        for line in study.grid(application, seeds).values()
        for cell in line
    ]
    return list({cell.name: cell for cell in found}.values())


def _write(names: Sequence[str], to: Path, quick: bool) -> None:
    """The pages, the tables of pages written by hand, and the index of all figures."""
    from legw_hpc.paper import pages, tables
    from legw_hpc.paper.studies import FIGURES
    from legw_hpc.records import Records

    make_folder(to)
    records = Records(to)
    for name in FIGURES:
        found = [pages.found(study, application, records) for application, study in pages.studies(name, quick).items()]
        if name in names and (any(pages.count(lines)[0] for lines in found) or name in pages.UNTRAINED):
            _replace(to / f"{name}.md", pages.page(name, records, to, quick))
        if name in names:
            print(f"{name}: {pages.state(name, records, quick)}", flush=True)
    for path in sorted(to.glob("*.md")):
        _replace(path, tables.redrawn(path.read_text(encoding="utf-8"), to, path.name))
    _replace(to / INDEX, pages.index(records, to, quick))
    print(f"pages and drawings: {to / INDEX}", flush=True)


def _replace(path: Path, text: str) -> None:
    """Write a page, unless it says that already."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with written_whole(path) as aside:
            aside.write_text(text, encoding="utf-8")
