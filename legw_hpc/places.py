"""A place of a table or a plot: the runs that differ in their seed alone, as one number with its spread."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from legw_hpc.derived import Derived
from legw_hpc.grid import Cell
from legw_hpc.records import Record, Records, but_seed

GUESS = 15.0  # accuracy below which a network with ten classes, such as MNIST's, has hardly learnt (assumed)


@dataclass(frozen=True)
class Spread:
    """What a metric came to over seeds.

    Attributes:
        values: of the runs that are done and have been evaluated.
        diverged: how many were not.
        unscored: how many are done and were never evaluated.
        unlearnt: how many are done, and are no better than a guess: a mean of both would be of no run.
    """

    values: tuple[float, ...]
    diverged: int = 0
    unscored: int = 0
    unlearnt: int = 0

    @property
    def runs(self) -> int:
        """All of them."""
        return len(self.values) + self.diverged + self.unscored + self.unlearnt

    @property
    def mean(self) -> float:
        """Of the runs that are done; there is one at least."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Sample standard deviation; 0 of one run, which shows none."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def lost(self) -> str:
        """How many diverged or learnt nothing, such as "1 of 3 diverged"; "" if none did."""
        counts = {"diverged": self.diverged, "not learnt": self.unlearnt}
        return ", ".join(how if self.runs == 1 else f"{n} of {self.runs} {how}" for how, n in counts.items() if n)

    def __str__(self) -> str:
        """Such as "98.32 ± 0.12 (3)", the last being n; "1 of 3 diverged" is said."""
        n, lost = len(self.values), self.lost
        if not n:
            return lost or ("not evaluated" if self.unscored else "missing")
        shown = f"{self.mean:.2f}" if n == 1 else f"{self.mean:.2f} ± {self.deviation:.2f} ({n})"
        return f"{shown}, {lost}" if lost else shown


def learnt(spread: Spread, metric: str) -> Spread:
    """Where some seeds have learnt and others have not, of those that have."""
    values = tuple(value for value in spread.values if metric != "accuracy" or value >= GUESS)
    return replace(spread, values=values, unlearnt=len(spread.values) - len(values)) if values else spread


@dataclass(frozen=True)
class Place:
    """See the module's text.

    Attributes:
        derived: what its runs trained with, but for the seed.
        records: of its finished runs.
    """

    derived: Derived
    records: tuple[Record, ...]

    @property
    def done(self) -> list[dict[str, Any]]:
        """The last lines of those that did not diverge."""
        return [end for record in self.records if (end := record.end) is not None and end["status"] == "done"]

    def spread(self, metric: str) -> Spread:
        """A metric over the runs; those without an evaluation have none."""
        done = self.done
        values = tuple(end["metrics"][metric] for end in done if metric in end["metrics"])
        return Spread(values, len(self.records) - len(done), len(done) - len(values))

    @property
    def samples_per_s(self) -> float | None:
        """All their samples over all their seconds, the runs being equally long: the harmonic mean."""
        rates = [end["samples_per_s"] for end in self.done]
        return statistics.harmonic_mean(rates) if rates else None


def places(grid: Iterable[Cell], records: Records, every_seed: bool = False) -> list[Place]:
    """The grid's places, in its order, each with those of its runs that are finished.

    Args:
        grid: the cells.
        records: where their logs are.
        every_seed: also runs whose seed the grid does not have.
    """
    by_place: dict[str, list[Cell]] = {}
    for cell in grid:
        by_place.setdefault(but_seed(cell.derived.recipe), []).append(cell)
    made = []
    for alike in by_place.values():
        found = records.seeds(alike[0].derived)
        seeds = sorted(found) if every_seed else [cell.derived.recipe.seed for cell in alike]
        made.append(Place(alike[0].derived, tuple(found[seed] for seed in seeds if seed in found)))
    return made


def first_metric(places: Iterable[Place]) -> str:
    """The metric that tables show: the first of any run that has one."""
    return next((name for place in places for end in place.done for name in end["metrics"]), "quality")
