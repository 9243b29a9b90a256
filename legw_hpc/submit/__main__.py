"""python -m legw_hpc.submit: write the scripts in jobs/ anew, after a change of a machine or of the text."""

from __future__ import annotations

from pathlib import Path

from legw_hpc.submit import send
from legw_hpc.submit.job import generic
from legw_hpc.submit.machine import available, load

ROOT = Path(__file__).parents[2]


def scripts() -> dict[Path, str]:
    """The scripts of all packaged machines, by path from the checkout's top."""
    made = {}
    for name in available():
        for scheduler, suffix in (("slurm", "sbatch"), ("pbs", "pbs")):
            path = Path("jobs") / scheduler / f"{name}.{suffix}"
            made[path] = send.text(generic(load(name, [f"scheduler={scheduler}"]), path))
    return made


if __name__ == "__main__":
    for path, text in scripts().items():
        (ROOT / path).write_text(text)
        (ROOT / path).chmod(0o755)
