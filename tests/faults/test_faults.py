"""A short campaign: every kind of fault, three applications, 2 and 4 ranks."""

from __future__ import annotations

import pytest

from tests.faults.campaign import campaign, faults, table
from tests.faults.kinds import KINDS
from tests.parallel.ranks import needs_mpi

pytestmark = needs_mpi

LIVES = {
    "mnist, 2 ranks": ("mnist", 2, list(KINDS)[::3]),
    "ptb, 2 ranks": ("ptb", 2, list(KINDS)[1::3]),
    "resnet, 2 ranks": ("resnet", 2, list(KINDS)[2::3]),
    "ptb, 4 ranks": ("ptb", 4, ["a rank stopped", "rank 0 killed in a checkpoint", "bit of a checkpoint flipped"]),
}


@pytest.mark.parametrize("name", LIVES)
def test_a_run_survives_faults_to_the_bit(name: str) -> None:
    pytest.importorskip("horovod")
    tallies, left_out = campaign([LIVES[name]], name, lambda *_: None)
    assert not faults(tallies), "\n\n".join(faults(tallies))
    tried, missed = (sum(getattr(tally, name) for tally in tallies.values()) for name in ("tried", "missed"))
    assert tried + missed == len(LIVES[name][2]) - len(left_out), table(tallies, left_out)
    assert missed <= 1, table(tallies, left_out)  # on a machine that is busy otherwise a run may end before its last fault
