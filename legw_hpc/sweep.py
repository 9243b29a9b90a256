"""A grid of runs of one recipe on this machine, resumable cell by cell, and what it came to."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legw_hpc import errors, runlog, strict
from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.errors import InputError
from legw_hpc.launcher import launched, local_ranks
from legw_hpc.recipe import Derived, derive, load

# A run that was told to stop has so long to write its checkpoint (assumed).
STOP_SECONDS = 60


@dataclass(frozen=True)
class Cell:
    """One run of the grid: its overrides, its folder's name, and what they come to."""

    name: str
    overrides: tuple[str, ...]
    derived: Derived


def cells(recipe: str, overrides: Sequence[str]) -> list[Cell]:
    """The grid: every override whose value has commas is a dimension, the last one varies fastest.

    Args:
        recipe: name or path.
        overrides: key=value or key=value,value,...

    Raises:
        InputError: any cell that cannot be trained; nothing has run by then.
    """
    dimensions = []
    for override in overrides:
        key, equals, values = override.partition("=")
        if key == "out":
            raise InputError("a sweep chooses the run folders itself: --to names the folder that holds them")
        many = [override] if not equals or values[:1] in ("[", '"', "'") else [f"{key}={value}" for value in values.split(",")]
        dimensions.append(many)
    grid = []
    for chosen in itertools.product(*dimensions):
        varied = [value for value, many in zip(chosen, dimensions, strict=True) if len(many) > 1]
        name = re.sub(r"[^\w.=+-]", "_", ",".join(varied)) or "run"
        grid.append(Cell(name, chosen, derive(load(recipe, chosen))))
    if len({cell.name for cell in grid}) < len(grid):
        raise InputError(f"the grid has a cell twice: {' '.join(overrides)}")
    return grid


def sweep(recipe: str, overrides: Sequence[str], ranks: int, to: Path) -> list[dict[str, Any]]:
    """Run what is missing of a grid, then write and print its table and plot.

    Args:
        recipe: name or path.
        overrides: see `cells`.
        ranks: of each run, launched on this machine.
        to: TO/CELL are the run folders; TO/table.md and TO/quality.png are written.

    Returns:
        A row a cell that has ended.

    Raises:
        InputError: a cell that cannot be trained; the cells that have ended stay.
        Interrupted: the run was told to stop; the same command goes on.
    """
    if launched().size > 1:
        raise InputError(f"legw-hpc sweep launches the ranks itself (--ranks); the launcher started {launched().size} of it")
    grid = cells(recipe, overrides)
    make_folder(to)
    for number, cell in enumerate(grid, 1):
        row = _row(to, cell)
        if row is None:
            _run(recipe, cell, ranks, to)
            row = _row(to, cell)
        said = "no result" if row is None else f"{metric([row])} {_quality(row)}"
        print(f"[{number}/{len(grid)}] {cell.name}: {said}", flush=True)
    rows = [row for cell in grid if (row := _row(to, cell)) is not None]
    if rows:
        from legw_hpc.figures import quality

        table = markdown(rows)
        with written_whole(to / "table.md") as path:
            path.write_text(table)
        with written_whole(to / "quality.png") as path:
            quality.draw(rows, metric(rows), path, f"{recipe}: quality against batch")
        print(f"\n{table}\ntable: {to / 'table.md'}\nplot:  {to / 'quality.png'}", flush=True)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table of the rows that `sweep` returns."""
    lines = [f"| scheme | batch | k | lr | warmup epochs | {metric(rows)} | samples/s |", "|---|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        rate = f"{row['samples_per_s']:,.0f}" if "samples_per_s" in row else ""
        numbers = [f"{row['batch']:,}", f"{row['k']:g}", f"{row['lr']:.4g}", f"{row['warmup_epochs']:.4g}"]
        lines.append("| " + " | ".join([row["scheme"], *numbers, _quality(row), rate]) + " |")
    return "\n".join(lines) + "\n"


def metric(rows: Sequence[dict[str, Any]]) -> str:
    """The name of the metric that tables show: the first of any row that has one."""
    return next((name for row in rows for name in row.get("metrics", {})), "quality")


def _quality(row: dict[str, Any]) -> str:
    return f"{row['metrics'][metric([row])]:.2f}" if row["status"] == "done" else row["status"]


def _row(to: Path, cell: Cell) -> dict[str, Any] | None:
    """The cell's derived values and how its run ended; None if it has not."""
    lines = runlog.read(to / cell.name)
    if lines:
        _same_recipe(to / cell.name, lines[0], cell)
    end = lines[-1] if lines and lines[-1]["event"] == "end" else None
    if end is None or end.get("steps", cell.derived.last) < cell.derived.last:
        return None
    return cell.derived.as_dict() | {key: value for key, value in end.items() if key not in ("event", "time", "steps")}


def _same_recipe(folder: Path, start: dict[str, Any], cell: Cell) -> None:
    """Refuse a folder whose run had other values: its number would stand beside ours in the table."""
    theirs, mine = strict.flatten(start.get("recipe", {})), strict.flatten(cell.derived.recipe.as_dict())
    for key in cell.derived.recipe.identity():
        if theirs.get(key) != json.loads(json.dumps(mine[key])):
            raise InputError(
                f"{folder}: holds a run with {key} {theirs.get(key)!r}, this sweep has {mine[key]!r}; choose another --to"
            )


def _run(recipe: str, cell: Cell, ranks: int, to: Path) -> None:
    """One training run as its own process or processes, its output in TO/CELL.out."""
    command, environment = local_ranks(ranks) if ranks > 1 else ([], None)
    command += [sys.executable, "-m", "legw_hpc", "train", recipe, *cell.overrides, f"out={to / cell.name}"]
    output = to / f"{cell.name}.out"
    with output.open("a") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the terminal has told the run as well; let it write its checkpoint
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
            raise errors.Interrupted(f"stopped in cell {cell.name}; the same command goes on from there") from None
    if code == errors.EXIT_RESUME:
        raise errors.Interrupted(f"cell {cell.name} was told to stop; the same command goes on from there")
    if code not in (errors.EXIT_DONE, errors.EXIT_DIVERGED):
        said = [line for line in output.read_text(errors="replace").splitlines() if line.startswith("legw-hpc: ")]
        why = said[-1].removeprefix("legw-hpc: ") if said else f"see {output}"
        raise InputError(f"cell {cell.name} ended with exit code {code}: {why}")
