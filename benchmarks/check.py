"""Has anything become slower?  Runs the quick set and compares every ratio with the recorded one (results/quick/)."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.__main__ import chosen, records, run
from benchmarks.measure import QUICK_RESULTS

LOSS = 0.15  # that is let pass: what a repetition differs by on a quiet machine (assumed)


@dataclass(frozen=True)
class Compared:
    """A ratio now and as recorded, None where it is not there.

    Attributes:
        name: "BENCHMARK: CASE / BESIDE".
    """

    name: str
    recorded: float | None
    found: float | None

    @property
    def loss(self) -> float:
        """Share of the recorded ratio that is lost; 0 where there is nothing to compare."""
        return 0.0 if self.recorded is None or self.found is None else 1 - self.found / self.recorded

    @property
    def failed(self) -> bool:
        return self.loss > LOSS

    def __str__(self) -> str:
        if self.recorded is None:
            return f"{self.name}: {self.found:.2f}, no record"
        if self.found is None:
            return f"{self.name}: not measured, recorded {self.recorded:.2f}"
        change = f"{abs(self.loss):.0%} {'less' if self.loss > 0 else 'more'}"
        return f"{self.name}: {self.found:.2f}, recorded {self.recorded:.2f}: {change}{', TOO SLOW' if self.failed else ''}"


def compare(recorded: Iterable[dict[str, Any]], found: Iterable[dict[str, Any]]) -> list[Compared]:
    """Every ratio of two records: those found in their order, then those that are only in the record.

    Args:
        recorded, found: lines of NAME.jsonl, of one or more benchmarks; those without a ratio are left out.
    """
    then, now = _ratios(recorded), _ratios(found)
    return [Compared(name, then.get(name), now.get(name)) for name in now | then]


def _ratios(lines: Iterable[dict[str, Any]]) -> dict[str, float]:
    return {f"{line['benchmark']}: {line['goal']}": line["ratio"] for line in lines if "ratio" in line}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all benchmarks")
    which = chosen(parser, parser.parse_args().names)
    with tempfile.TemporaryDirectory(prefix="legw-bench-") as folder:
        faults = run(which, Path(folder), quick=True)
        then, now = ([line for name in which for line in records(to / f"{name}.jsonl")] for to in (QUICK_RESULTS, Path(folder)))
    compared = compare(then, now)
    slow = [one for one in compared if one.failed]
    print("\n".join(["", *map(str, compared)]))
    print(f"{len(compared)} ratios: {len(slow)} lost more than {LOSS:.0%}; {len(faults)} benchmarks failed")
    sys.exit(1 if slow or faults else 0)


if __name__ == "__main__":
    main()
