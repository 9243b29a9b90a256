"""All benchmarks, or those that are named, one after another: `python -m benchmarks [NAME ...] [--quick] [--to FOLDER]`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import WHERE, results
from benchmarks.report import figures, verdict

HERE = Path(__file__).parent
PROGRAMS = (
    "__main__",
    "check",
    "published",
    "calibrate",
    "relay",
    "emulated_network",
    "overlap",
    "scaling_study",
    "peer",
)  # they make no record of ours beside others
# Seconds that a benchmark may take; the whole quick set is to fit in 600 on two cores.
LIMIT, QUICK_LIMIT = 3600, 240
GRACE = 5


def names() -> list[str]:
    """Every file here that is a benchmark: a program."""
    files = sorted(HERE.glob("*.py"))
    return [file.stem for file in files if file.stem not in PROGRAMS and '__name__ == "__main__"' in file.read_text()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run benchmarks.", allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all, which are {', '.join(names())}")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds: within 10 minutes on 2 cores")
    parser.add_argument("--to", type=Path, help=f"folder for the results (default: {WHERE})")
    options = parser.parse_args()
    to = options.to or results(options.quick)
    sys.exit(1 if run(chosen(parser, options.names), to, options.quick) else 0)


def chosen(parser: argparse.ArgumentParser, given: list[str]) -> list[str]:
    """The benchmarks of a command line; all if it names none."""
    if unknown := set(given) - set(names()):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    return given or names()


def run(which: list[str], to: Path, quick: bool) -> list[str]:
    """Run each as a process of its own, then print which goals were reached.

    Returns:
        What failed, each with the reason.
    """
    start, failed, lines = time.monotonic(), [], []
    for number, name in enumerate(which, 1):
        began = time.monotonic()
        fault = one(name, to, quick)
        took = f"{time.monotonic() - began:.0f} s"
        print(f"[{number}/{len(which)}] {name}: {fault or 'done'}, {took}\n", flush=True)
        if fault:
            failed.append(f"{name}: {fault}")
        else:
            lines += [f"{name}: {line}" for line in goals(to, name)]
    print("\n".join([*lines, *(f"FAILED {fault}" for fault in failed)]))
    print(f"{len(which) - len(failed)} of {len(which)} benchmarks in {time.monotonic() - start:.0f} s; results in {to}")
    return failed


def one(name: str, to: Path, quick: bool) -> str:
    """Run one benchmark, its output on ours; the reason if it fails, else nothing."""
    limit = QUICK_LIMIT if quick else LIMIT
    command = [
        sys.executable,
        "-m",
        f"benchmarks.{name}",
        "--to",
        os.path.relpath(to, HERE.parent),
        *(["--quick"] if quick else []),
    ]
    # In a session of its own, so that all that it starts can be ended with it.
    process = subprocess.Popen(command, cwd=HERE.parent, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        end(process)
        return f"not done after {limit} s"
    except KeyboardInterrupt:
        end(process)
        raise
    return f"exit code {code}" if code else ""


def end(process: subprocess.Popen[bytes]) -> None:
    """End a benchmark and what it has started; mpirun gets the time to end its ranks."""
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def goals(to: Path, name: str) -> list[str]:
    """What its record says of goals."""
    lines = []
    for goal in records(to / f"{name}.jsonl"):
        if "goal" in goal:
            found, sign, wanted = figures(goal)
            lines.append(f"{goal['goal']} is {found:.3g}, goal at {sign} {wanted:.3g}: {verdict(goal)}")
    return lines


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a record; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
