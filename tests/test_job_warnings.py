"""The warning before the end of the walltime: it reaches the ranks, and the job ends as they do."""

from __future__ import annotations

import dataclasses

import pytest

from legw_hpc.submit import send
from tests.stubs import RIGHT, Stubs, run
from tests.test_job_scripts import small

SLOW = "trap 'exit 85' USR1; for i in $(seq 100); do sleep 0.1; done"


def test_slurm_warning_reaches_the_ranks(stubs: Stubs) -> None:
    stubs.says("mpirun", RIGHT.replace('else "$@"', 'else exec "$@"'))
    stubs.says("legw-hpc", 'kill -USR1 "$(cat pid)" & ' + SLOW)
    text = send.text(small("slurm", chain=2, bin=str(stubs.bin))).replace("set -eo pipefail", "set -eo pipefail; echo $$ >pid")
    done = run(text, stubs)
    assert done.returncode == 85, done.stderr
    assert stubs.calls("scontrol") == [["requeue", "7"]]


@pytest.mark.parametrize(("code", "goes_on"), [(3, False), (85, True)])
def test_a_run_that_ends_at_the_warning_ends_with_its_own_code(code: int, goes_on: bool, stubs: Stubs) -> None:
    """It is gone when the trap has slept its second."""
    stubs.says("mpirun", RIGHT.replace('else "$@"', 'else exec "$@"'))
    stubs.says("legw-hpc", f'kill -USR1 "$(cat pid)"; sleep 0.3; exit {code}')
    text = send.text(small("slurm", chain=2, bin=str(stubs.bin))).replace("set -eo pipefail", "set -eo pipefail; echo $$ >pid")
    done = run(text, stubs)
    assert done.returncode == code, done.stderr
    assert stubs.calls("scontrol") == ([["requeue", "7"]] if goes_on else [])


def test_pbs_warning_by_its_own_timer(stubs: Stubs) -> None:
    stubs.says("mpirun", RIGHT.replace('else "$@"', 'else exec "$@"'))
    stubs.says("legw-hpc", SLOW)
    made = dataclasses.replace(small("pbs", chain=2, bin=str(stubs.bin)), seconds=183)
    done = run(send.text(made), stubs)
    assert done.returncode == 85, done.stderr
    assert len(stubs.calls("qsub")) == 1
