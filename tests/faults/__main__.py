"""python -m tests.faults: the whole campaign (make faults); its table goes to results/faults.md."""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from random import Random

from legw_hpc import runlog
from tests.faults.campaign import Tallies, campaign, faults, table
from tests.faults.job import Job
from tests.faults.kinds import KINDS
from tests.faults.subjects import CHECKPOINT_STEPS, STALL_SECONDS, SUBJECTS

FAULTS_A_LIFE = 10
MOST_MISSED = 0.05  # of all faults (assumed): what has not struck has shown nothing
RANKS = (2, 2, 4, 2)  # of one life after the other; 4 are oversubscribed on two cores


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=216, help="how many (default: 216)")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn (default: 1)")
    parser.add_argument("--to", type=Path, default=Path("results/faults.md"), help="default: results/faults.md")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: 1)")
    options = parser.parse_args()

    def end(number: int, frame: object) -> None:
        Job.end_all()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    random = Random(options.seed)
    kinds = list(itertools.islice(itertools.cycle(KINDS), options.faults))
    random.shuffle(kinds)
    subjects = zip(itertools.cycle(RANKS), itertools.cycle(SUBJECTS), strict=False)  # 4 and 3: every pair comes
    lives = []
    for start in range(0, len(kinds), FAULTS_A_LIFE):
        ranks, name = next(subjects)
        lives.append((name, ranks, kinds[start : start + FAULTS_A_LIFE]))
    started, commit = time.monotonic(), runlog.commit()
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    counts = " and ".join(map(str, sorted({ranks for _, ranks, _ in lives})))
    applications = ", ".join(f"`{subject.name}`" for subject in SUBJECTS.values())
    command = f"python -m tests.faults --faults {options.faults} --seed {options.seed} --jobs {options.jobs}"
    where = f"{len(os.sched_getaffinity(0))} cores (4 ranks: oversubscribed)"

    told: list[str] = []

    def write(line: str, tallies: Tallies, left_out: Sequence[str]) -> None:
        """The page, as far as the campaign is."""
        print(line, flush=True)
        for text in faults(tallies):  # at once: the whole takes most of an hour
            if text not in told:
                print(text, flush=True)
                told.append(text)
        minutes = (time.monotonic() - started) / 60
        options.to.write_text(f"""# Faults, and what came of them

Each fault comes at a random step of a training, or in the part of it that the table names; then the same command goes on.
A run takes {FAULTS_A_LIFE} faults; at its end weights, optimizer, carried state and metrics must be those of an undisturbed
run, to the bit. Of a killed or stopped rank the output must name its number and host (but not as it starts: MPI
does not know it yet). The applications are {applications}, small, on {counts} ranks,
with a checkpoint every {CHECKPOINT_STEPS} steps; a rank that stops is reported after {STALL_SECONDS:g} s.

{table(tallies, left_out)}
`make faults` (`{command}`), {when}, commit {commit}, {where}, {minutes:.0f} minutes, {line.partition("]")[0][1:]} runs.
""")

    tallies, _ = campaign(lives, str(options.seed), write, options.jobs)
    print(f"\n{options.to.read_text()}", flush=True)
    found = faults(tallies)
    missed = sum(tally.missed for tally in tallies.values())
    if missed > MOST_MISSED * options.faults:
        found.append(f"{missed} of {options.faults} faults came too late to be tried")
    if found:
        raise SystemExit("\n\n".join(found))


if __name__ == "__main__":
    main()
