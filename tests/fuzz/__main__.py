"""python -m tests.fuzz: the readers under atheris, a coverage-guided fuzzer; the record goes to results/fuzz.md (make fuzz).

An input that takes longer than TIMEOUT_SECONDS or more than MEMORY_MB, or ends in anything but a refusal, is a finding:
it is left in the folder that is printed.
"""

from __future__ import annotations

import argparse
import atexit
import re
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

# Target -> inputs: the readers of whole files are slower.
RUNS = {"idx": 500_000, "shards": 50_000, "recipe": 500_000}
TIMEOUT_SECONDS, MEMORY_MB = 10, 2048
LENGTH = {"idx": 512, "shards": 4096, "recipe": 4096}
INSTRUMENTED = [f"legw_hpc.{name}" for name in ("data", "recipe", "derived", "strict", "legw", "schedule", "steps")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of inputs (default: 1)")
    parser.add_argument("--to", type=Path, default=Path("results/fuzz.md"), help="default: results/fuzz.md")
    parser.add_argument("--target", choices=RUNS, help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.target:
        _fuzz(options.target, rest)
        return
    rows, total = [], 0
    for name, runs in RUNS.items():
        count, row = _child(name, round(runs * options.share))
        rows.append(row)
        total += count
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    text = "\n".join([
        "# Readers under a fuzzer", "",
        f"{total:,} inputs, none of which ended in anything but a result or a refusal in one line, took longer than "
        f"{TIMEOUT_SECONDS} s or more than {MEMORY_MB:,} MB.", "",
        "| reader | inputs | a second | slowest input, s | largest memory, MB |", "|---|--:|--:|--:|--:|", *rows, "",
        f"`make fuzz` (`python -m tests.fuzz`, atheris {_version()}), {when}, commit {_commit()}.",
    ])  # fmt: skip
    options.to.write_text(text + "\n")
    print(f"\n{text}")


def _child(name: str, runs: int) -> tuple[int, str]:
    """Inputs, and a row of the table."""
    folder = Path(tempfile.mkdtemp(prefix=f"legw-fuzz-{name}-"))
    flags = [
        f"-runs={runs}", f"-max_len={LENGTH[name]}", f"-timeout={TIMEOUT_SECONDS}", f"-rss_limit_mb={MEMORY_MB}",
        "-seed=1", "-print_final_stats=1", f"-artifact_prefix={folder}/",
    ]  # fmt: skip
    process = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--target", name, *flags, str(folder)], capture_output=True, text=True
    )
    said = process.stdout + process.stderr
    if process.returncode:
        raise SystemExit(f"{said[-4000:]}\n{name}: a finding; inputs are in {folder}")
    stats = dict(re.findall(r"stat::(\w+): +(\d+)", said))
    count = int(stats["number_of_executed_units"])
    slowest, memory = stats["slowest_unit_time_sec"], int(stats["peak_rss_mb"])
    row = f"| {name} | {count:,} | {int(stats['average_exec_per_sec']):,} | {'< 1' if slowest == '0' else slowest} | {memory:,} |"
    print(row, flush=True)
    return count, row


def _fuzz(name: str, flags: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz import targets
    corpus = Path(flags[-1])
    for number, seed in enumerate(targets.seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    atexit.register(targets.clear)
    atheris.Setup([sys.argv[0], *flags], targets.TARGETS[name])
    atheris.Fuzz()


def _commit() -> str | None:
    from legw_hpc import runlog  # not before the readers are instrumented, in the other processes

    return runlog.commit()


def _version() -> str:
    return metadata.version("atheris")


if __name__ == "__main__":
    main()
