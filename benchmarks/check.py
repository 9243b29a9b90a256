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

from benchmarks import measure, report
from benchmarks.__main__ import chosen, records, run

# That is let pass (assumed).  The quick set differs by more from one time to another (0.56 MB to gloo: 2.83, 2.32, 2.19),
# so that rounds count too.
LOSS = 0.15


@dataclass(frozen=True)
class Compared:
    """A figure now and as recorded, None where it is not there.

    Attributes:
        name: "BENCHMARK: CASE / BESIDE" of a ratio, "BENCHMARK: NAME" of a number with a limit.
        at_most: the limit; None for a ratio, which is to be large.
        overlap: rounds of a ratio then and now overlap: they do not tell the two apart.
    """

    name: str
    recorded: float | None
    found: float | None
    at_most: float | None = None
    overlap: bool = False

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
        return self.lost and not self.overlap

    @property
    def lost(self) -> bool:
        """Whether the median of a ratio is lower by more than is let pass."""
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
        return f"{self.name}: {self.found:.2f}, recorded {self.recorded:.2f}: {change}{self._told()}"

    def _told(self) -> str:
        return "" if not self.lost else ", TOO SLOW" if self.failed else ", but the rounds overlap"


def compare(recorded: Iterable[dict[str, Any]], found: Iterable[dict[str, Any]]) -> list[Compared]:
    """Every judged figure of two records: those found in their order, then those that are only in the record.

    Args:
        recorded, found: lines of NAME.jsonl, of one or more benchmarks; those without a goal are left out.
    """
    then, now = _judged(recorded), _judged(found)
    return [_compared(name, then.get(name), now.get(name)) for name in now | then]


def _compared(name: str, then: dict[str, Any] | None, now: dict[str, Any] | None) -> Compared:
    recorded, found = (None if line is None else report.figures(line)[0] for line in (then, now))
    before, after = (None if line is None else report.between(line) for line in (then, now))
    overlap = before is not None and after is not None and after[1] >= before[0]
    return Compared(name, recorded, found, ((now or then) or {}).get("at_most"), overlap)


def _judged(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{line['benchmark']}: {line['goal']}": line for line in lines if "goal" in line}


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
    what = f"lost more than {LOSS:.0%} in rounds that do not overlap, their limit, or all"
    print(f"{len(compared)} figures: {len(slow)} {what}; {len(faults)} benchmarks failed")
    sys.exit(1 if slow or faults else 0)


if __name__ == "__main__":
    main()
