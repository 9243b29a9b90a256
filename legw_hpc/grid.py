"""A grid of runs of one recipe, from `key=value,value` words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from legw_hpc.derived import Derived, derive
from legw_hpc.errors import InputError
from legw_hpc.recipe import load

SEEDS = "seeds"
MOST_SEEDS = 10_000  # assumed: far more than anyone trains, and quickly told


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        recipe: name or path.
        overrides: key=value.
        derived: what they come to.
    """

    recipe: str
    overrides: tuple[str, ...]
    derived: Derived

    @property
    def name(self) -> str:
        """Of its folder: the same whichever grid the run is a cell of, so that none is trained twice."""
        return self.derived.recipe.run_name()

    def out(self, to: Path) -> str:
        """The word that names its folder in TO; braces are those of the folder, not of a pattern."""
        return f"out={to / self.name}".replace("{", "{{").replace("}", "}}")


def folder(recipe: str) -> Path:
    """Of the runs of a recipe's grids, where none is named; grids of one recipe share it, so that none trains a run twice.

    Args:
        recipe: name or path.
    """
    return Path("runs", "sweep", Path(recipe).stem)


def labels(grid: Sequence[Cell]) -> list[str]:
    """The words of each cell that not all of them have; of a single cell, all its words."""
    words = [cell.overrides for cell in grid]
    shared = set.intersection(*map(set, words)) if len(grid) > 1 else set()
    return [" ".join(word for word in own if word not in shared) for own in words]


def cells(recipe: str, words: Sequence[str], runs: bool = True) -> list[Cell]:
    """The grid: every word whose value has commas is a dimension, the last one varies fastest.

    Args:
        recipe: name or path.
        words: key=value or key=value,value,...; `seeds=N` is the recipe's seed and the N-1 after it.
        runs: they are to be trained, each once: two that differ in what is no part of a run, such as its threads, are one.

    Raises:
        InputError: any cell that cannot be trained; nothing has run by then.
    """
    dimensions, first = [], [word for word in words if word.startswith("seed=")]
    if any(word.startswith(f"{SEEDS}=") for word in words):
        words = [word for word in words if word not in first]  # it is the first of them
    for word in words:
        key, equals, values = word.partition("=")
        again = [other for other in words if other.partition("=")[0] == key]
        many = [other for other in again if "," in other and other.partition("=")[2][:1] not in ("[", '"', "'")]
        if len(again) > 1 and (many or key == SEEDS):  # of single values the last counts, as for a run
            raise InputError(f"{key} is given twice: {' '.join(again)}")
        if key == "out":
            raise InputError("a grid chooses the run folders itself: --to names the folder that holds them")
        if key == SEEDS:
            dimensions.append(_seeds(recipe, first, values))
        elif not equals or values[:1] in ("[", '"', "'"):
            dimensions.append([word])
        else:
            dimensions.append([f"{key}={value}" for value in values.split(",")])
    grid = [Cell(recipe, chosen, derive(load(recipe, chosen))) for chosen in itertools.product(*dimensions)]
    if runs and len({cell.name for cell in grid}) < len(grid):
        same = [word for at, word in enumerate(words) if _alike(grid, dimensions, at)]
        why = f"; runs that differ in {' '.join(same)} alone are one run, in one folder" if same else ""
        raise InputError(f"the grid has a cell twice: {' '.join(words)}{why}")
    return grid


def _alike(grid: Sequence[Cell], dimensions: Sequence[Sequence[str]], at: int) -> bool:
    """Do different values of one dimension, beside the first value of each other, make one run?"""
    line = (cell for cell in grid if all(i == at or word == dimensions[i][0] for i, word in enumerate(cell.overrides)))
    return len(set(dimensions[at])) == len(dimensions[at]) > 1 and len({cell.name for cell in line}) == 1


def _seeds(recipe: str, first: Sequence[str], count: str) -> list[str]:
    if not (count.isdecimal() and len(count) <= len(str(MOST_SEEDS)) and 1 <= int(count) <= MOST_SEEDS):
        raise InputError(f"seeds={count[:20]}: how many, a whole number from 1 to {MOST_SEEDS:,}")
    seed = load(recipe, first).seed
    return [f"seed={seed + i}" for i in range(int(count))]
