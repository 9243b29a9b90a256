"""A grid of runs of one recipe, resumable cell by cell, and what it came to."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

from legw_hpc import local_runs
from legw_hpc.data.files import written_whole
from legw_hpc.errors import InputError
from legw_hpc.grid import Cell, cells
from legw_hpc.launcher import alone
from legw_hpc.places import Place, first_metric, places
from legw_hpc.records import Record, Records, read
from legw_hpc.runlog import LOG

RESULTS = "results.jsonl"

SEED = {"seed"}
# Keys that the table's own columns tell of.
COLUMNS = {"scheme", "batch", "lr", "baseline.lr", "warmup_epochs", "baseline.warmup_epochs"}


def sweep(recipe: str, words: Sequence[str], to: Path, *, ranks: int = 1, jobs: int = 1, run: bool = True) -> None:
    """Run what is missing of a grid, then write and print its table and plot.

    Args:
        recipe: name or path.
        words: see `grid.cells`.
        to: TO/CELL are the run folders; TO/results.jsonl, TO/table.md and TO/quality.png are written.
        ranks, jobs: see `local_runs.train`.
        run: False writes what is finished; places without a finished run are "missing" in the table.

    Raises:
        InputError: a cell that cannot be trained; the others have been.
        Interrupted: the run was told to stop; the same command goes on.
    """
    alone("sweep")  # it launches the ranks of its runs itself
    grid = cells(recipe, words)
    failed = None
    try:
        if run:
            train_missing(grid, to, ranks=ranks, jobs=jobs, ended=lambda record: write_rows(grid, to))
    except InputError as error:  # told after the table of the others
        failed = error
    found = places(grid, Records(to))
    done = sum(len(place.records) for place in found)
    print(f"{done} of {len(grid)} cells are finished", flush=True)
    tell_other_data(found)
    if done:
        write_rows(grid, to)
        _write(recipe, found, to)
    if failed:
        raise failed


def missing(grid: Sequence[Cell], *folders: Path) -> list[Cell]:
    """The cells that no log below the folders has finished."""
    records = Records(*folders)
    return [cell for cell in grid if records.of(cell.derived) is None]


def train_missing(
    grid: Sequence[Cell], to: Path, *others: Path, ranks: int, jobs: int, ended: Callable[[Record], object], another: str = "--to"
) -> None:
    """Train the cells that have no result yet, and say how each ended.

    Args:
        grid: the cells.
        to: see `local_runs.train`.
        others: folders whose logs count besides those of `to`.
        ranks, jobs: see `local_runs.train`.
        ended: told of each run that has ended.
        another: option that names `to`, for a message.

    Raises:
        InputError: cells that could not be trained; the others have been.  An option that its application or solver does not
            take: nothing has.
    """
    left = missing(grid, to, *others)
    number = len(grid) - len(left)

    barred = [cell for cell in left if (there := read(to / cell.name / LOG)) and there.steps > cell.derived.last]
    for cell in barred:
        what = f"the run there is longer than {cell.derived.last} steps: another {another}"
        print(f"legw-hpc: {to / cell.name}: {what}", file=sys.stderr, flush=True)
    barred += _without_data([cell for cell in left if cell not in barred])

    def told(cell: Cell) -> None:
        nonlocal number
        number += 1
        record = read(to / cell.name / LOG)
        assert record is not None  # its process has ended well
        metric = first_metric([place := Place(cell.derived, (record,))])
        print(f"[{number}/{len(grid)}] {cell.name}: {metric} {place.spread(metric)}", flush=True)
        ended(record)

    if len(barred) < len(left):
        from legw_hpc.work import check_choices  # torch

        for cell in left:
            check_choices(cell.derived.recipe)
    local_runs.train([cell for cell in left if cell not in barred], to, ranks, jobs, told)
    if barred:
        raise InputError(f"{len(barred)} of {len(left)} cells cannot be trained, as told above")


def _without_data(grid: Sequence[Cell]) -> list[Cell]:
    """The cells whose data are not here; each folder is told once, in place of a process a cell that finds out."""
    from legw_hpc.data.format import read_index  # numpy

    found = []
    for folder in dict.fromkeys(cell.derived.recipe.data.folder() for cell in grid):
        try:
            read_index(folder)
        except InputError as error:
            print(f"legw-hpc: {error}", file=sys.stderr, flush=True)
            found += [cell for cell in grid if cell.derived.recipe.data.folder() == folder]
    return found


def tell_other_data(found: Sequence[Place]) -> None:
    """Say so if runs that count were trained on other data than those that are here now."""
    from legw_hpc.data.format import digest, read_index  # numpy

    other: dict[Path, list[Path]] = {}
    for folder in {place.derived.recipe.data.folder() for place in found}:
        records = [record for place in found if place.derived.recipe.data.folder() == folder for record in place.records]
        try:
            here = digest(read_index(folder))
        except InputError as error:  # it is for a run to complain of
            if records:
                print(f"note: whether {len(records)} that count are of these data is not known: {error}", file=sys.stderr)
            continue
        other[folder] = [record.path for record in records if record.lines[0].get("data", here) != here]
    for folder, paths in other.items():
        if paths:
            what = f"{len(paths)} that count are of other data, or of other shards, than {folder}"
            print(f"note: {what}: {paths[0]} ...", file=sys.stderr)


def write_rows(grid: Sequence[Cell], to: Path) -> None:
    """TO/results.jsonl: one result a run that is finished."""
    records = Records(to)
    rows = [record.row(cell.derived) for cell in grid if (record := records.of(cell.derived)) is not None]
    with written_whole(to / RESULTS) as path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write(recipe: str, found: Sequence[Place], to: Path) -> None:
    from legw_hpc.figures import quality  # matplotlib

    table, metric = markdown(found), first_metric(found)
    with written_whole(to / "table.md") as path:
        path.write_text(table)
    x = "batch" if len({place.derived.scaled.batch for place in found}) > 1 else "lr"
    along = SEED | ({"batch"} if x == "batch" else {"lr", "baseline.lr"})
    lines: dict[str, list[quality.Point]] = {}
    for place, told in zip(found, _varied(found, along), strict=True):
        label = ", ".join(f"{key} {value}" if key != "scheme" else f"{value}" for key, value in told.items())
        point = getattr(place.derived.scaled, x), place.spread(metric)
        lines.setdefault(label or place.derived.recipe.scheme, []).append(point)
    with written_whole(to / "quality.png") as path:
        quality.draw([quality.Line(label, points) for label, points in lines.items()], x, metric, path, f"{recipe}: {metric}")
    print(f"\n{table}\ntable: {to / 'table.md'}\nplot:  {to / 'quality.png'}", flush=True)


def markdown(found: Sequence[Place]) -> str:
    """A table of places: mean and sample standard deviation over their n seeds."""
    metric, told = first_metric(found), _varied(found, SEED | COLUMNS)
    extra = list(told[0])
    lines = [
        "| " + " | ".join(["scheme", *extra, "batch", "k", "lr", "warmup epochs", metric, "samples/s"]) + " |",
        "|" + "---|" * (1 + len(extra)) + "--:|" * 6,
    ]
    for place, values in zip(found, told, strict=True):
        now, rate = place.derived.scaled, place.samples_per_s
        numbers = [f"{now.batch:,}", f"{now.k:g}", f"{now.lr:.4g}", f"{now.warmup_epochs:.4g}", str(place.spread(metric))]
        words = [place.derived.recipe.scheme, *map(str, values.values())]
        lines.append("| " + " | ".join([*words, *numbers, "" if rate is None else f"{rate:,.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def _varied(found: Sequence[Place], but: Set[str]) -> list[dict[str, Any]]:
    """Of each place the values in which they are not all alike, of keys that all of them have."""
    identities = [place.derived.recipe.identity() for place in found]
    keys = [key for key in identities[0] if key not in but and all(key in identity for identity in identities)]
    varied = [key for key in keys if any(identity[key] != identities[0][key] for identity in identities)]
    return [{key: identity[key] for key in varied} for identity in identities]
