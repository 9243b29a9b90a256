"""Has anything become slower?  Runs the quick set and compares every figure with the recorded one of this kind of processor."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.__main__ import chosen, records, run

LOSS = 0.15  # that is let pass: what a repetition differs by on a quiet machine (assumed)


@dataclass(frozen=True)
class Compared:
    """A figure now and as recorded, None where it is not there.

    Attributes:
        name: "BENCHMARK: CASE / BESIDE" of a ratio, "BENCHMARK: NAME" of a number with a limit.
        at_most: the limit; None for a ratio, which is to be large.
    """

    name: str
    recorded: float | None
    found: float | None
    at_most: float | None = None

    @property
    def loss(self) -> float:
        """Of a ratio, the share of the recorded one that is lost; 0 where there is nothing to compare."""
        return 0.0 if self.recorded is None or self.found is None else 1 - self.found / self.recorded

    @property
    def failed(self) -> bool:
        """A ratio that is lost, or gone; a number that has left its limit, or that was beyond it and is further off."""
        if self.found is None:
            return self.recorded is not None
        if self.at_most is not None and self.recorded is not None:
            return self.found > max(self.at_most, self.recorded * (1 + LOSS))
        return self.at_most is None and self.loss > LOSS

    def __str__(self) -> str:
        if self.recorded is None:
            return f"{self.name}: {self.found:.2f}, no record"
        if self.found is None:
            return f"{self.name}: not measured, recorded {self.recorded:.2f}, FAILED"
        if self.at_most is not None:
            limit = f"limit {self.at_most:g}{', TOO LARGE' if self.failed else ''}"
            return f"{self.name}: {self.found:.2f}, recorded {self.recorded:.2f}, {limit}"
        change = f"{abs(self.loss):.0%} {'less' if self.loss > 0 else 'more'}"
        return f"{self.name}: {self.found:.2f}, recorded {self.recorded:.2f}: {change}{', TOO SLOW' if self.failed else ''}"


def compare(recorded: Iterable[dict[str, Any]], found: Iterable[dict[str, Any]]) -> list[Compared]:
    """Every judged figure of two records: those found in their order, then those that are only in the record.

    Args:
        recorded, found: lines of NAME.jsonl, of one or more benchmarks; those without a goal are left out.
    """
    then, now = _judged(recorded), _judged(found)
    nothing = (None, None)
    return [Compared(name, then.get(name, nothing)[0], now.get(name, nothing)[0], (now | then)[name][1]) for name in now | then]


def _judged(lines: Iterable[dict[str, Any]]) -> dict[str, tuple[float, float | None]]:
    """Name -> ratio, or number and its limit."""
    return {
        f"{line['benchmark']}: {line['goal']}": (line["ratio"], None) if "ratio" in line else (line["value"], line["at_most"])
        for line in lines if "goal" in line
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all benchmarks")
    which = chosen(parser, parser.parse_args().names)
    kept = measure.results(quick=True)
    if not any((kept / f"{name}.jsonl").exists() for name in which):
        sys.exit(
            f"nothing to compare with: {os.path.relpath(kept)} has no record of this kind of processor; make bench makes one"
        )
    with tempfile.TemporaryDirectory(prefix="legw-bench-") as folder:
        faults = run(which, Path(folder), quick=True)
        then, now = ([line for name in which for line in records(to / f"{name}.jsonl")] for to in (kept, Path(folder)))
    compared = compare(then, now)
    slow = [one for one in compared if one.failed]
    print("\n".join(["", *map(str, compared)]))
    print(f"{len(compared)} figures: {len(slow)} lost more than {LOSS:.0%}, their limit, or all; {len(faults)} benchmarks failed")
    sys.exit(1 if slow or faults else 0)


if __name__ == "__main__":
    main()
