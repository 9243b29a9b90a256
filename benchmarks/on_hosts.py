"""Benchmarks of which each point is measured by ranks on emulated hosts of its own."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import measure
from benchmarks.namespaces import hosts
from legw_hpc.errors import InputError

SECONDS = 300  # that a point may take

Point = TypeVar("Point")


def command(
    name: str,
    about: str,
    quick: str,
    point: type[Point],
    measured: Callable[[Point], None],
    rows: Callable[[bool], list[dict[str, Any]]],
    table: Callable[[Sequence[dict[str, Any]]], str],
) -> None:
    """The command line of a benchmark: measures all points and keeps rows and table; on a rank, one point.

    Args:
        name: of its module in this folder.
        about, quick: what it measures, and what --quick makes of it.
        point: a dataclass of what JSON holds.
        measured: runs on every rank; rank 0 prints the row as its last line.
        rows: of all points, or the quick ones, by `measure_on`.
        table: of the rows, Markdown.
    """
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--to", type=Path, help=f"folder for the results (default: {measure.WHERE})")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        measured(point(**json.loads(options.point)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the hosts go first
    try:
        found = rows(options.quick)
    except (InputError, RuntimeError) as error:
        sys.exit(f"{name}: {error}")
    measure.keep(options.to or measure.results(options.quick), name, found, table(found))


def measure_on(ranks: int, alpha: float, rate: float, name: str, point: Any) -> dict[str, Any]:
    """A point's row, from a rank on each of so many hosts.

    Args:
        alpha: seconds from host to host.
        rate: bytes a second that leave a host; 0 is as many as can.
        name, point: as of `command`.
    """
    with hosts(ranks, alpha, 1 / rate if rate else 0.0) as up:
        said = up.run([sys.executable, "-m", f"benchmarks.{name}", "--point", json.dumps(asdict(point))], SECONDS)
    row: dict[str, Any] = json.loads(said.splitlines()[-1])
    return row | {"command": f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip()}
