"""Emulated hosts: when packets arrive, that MPI sees several machines, and what is made of the measurements."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from benchmarks import emulated_network, namespaces, overlap
from benchmarks.relay import SLACK, Egress
from legw_hpc.errors import InputError
from tests.parallel.ranks import needs_mpi


def test_packets_leave_one_after_another_and_arrive_later() -> None:
    egress = Egress(alpha=0.5, beta=0.001)
    arrivals = [egress.arrival(now, 1000) for now in (10.0, 11.0, 20.0)]
    assert arrivals == pytest.approx([11.5, 12.5, 21.5], abs=2 * SLACK)
    assert Egress(alpha=0.5, beta=0.0).arrival(10.0, 40) == 10.5  # never sooner than it travels


def test_late_packets_do_not_make_the_link_slower() -> None:
    """Each taken a millisecond after it could be: 100 take the time of 100."""
    egress, now = Egress(alpha=0.0, beta=1e-6), 5.0
    for _ in range(100):
        last = egress.arrival(now, 10_000)
        now = egress.free + 1e-3
    assert last == pytest.approx(5.0 + 100 * 0.01, abs=2 * SLACK)


ROW: dict[str, Any] = {"recipe": "mnist-lstm", "ranks": 2, "alpha": 1e-3, "rate": 50e6, "own_s": 0.1, "step_s": 0.12}


def test_the_forecast_adds_requests_and_a_ring() -> None:
    """546,344 bytes on two ranks: each sends them once, in two messages that are announced and answered."""
    bare = {"alpha_us": 0.0, "gb_per_s": 10.0, "add_gb_per_s": 1e9}
    row = emulated_network.forecast(ROW, bare)
    assert row["ring_s"] == pytest.approx(2 * 3 * 1e-3 + 546_344 / 50e6, rel=1e-6)
    assert row["requests_s"] == pytest.approx(1.5e-3, rel=1e-3)  # its vector takes as long as a cycle
    assert row["error"] == pytest.approx(row["predicted_s"] / 0.12 - 1)
    slow = emulated_network.forecast(ROW, bare | {"gb_per_s": 0.01})  # the hosts themselves are slower than what was set
    assert slow["ring_s"] > 0.05


def test_the_share_that_is_hidden_is_of_what_one_piece_takes() -> None:
    row: dict[str, Any] = {"own_s": 0.3, "step_s": {"1": 0.4, "2": 0.35, "4": 0.4, "8": 0.45}}
    assert [overlap.share(row, pieces) for pieces in (2, 4, 8)] == pytest.approx([0.5, 0.0, -0.5])


def test_all_points_differ_and_fit_the_devices_names() -> None:
    found = emulated_network.points(quick=False)
    assert len(set(found)) == len(found) >= 12
    assert {point.ranks for point in found} == {2, 3, 4}


needs_root = pytest.mark.skipif(bool(namespaces.missing()), reason=f"emulated hosts: {namespaces.missing()}")


def test_without_root_it_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InputError, match="hosts of network namespaces: not root"), namespaces.hosts(2, 0, 0):
        pass


LOOK = "from mpi4py import MPI; w = MPI.COMM_WORLD; n = w.Split_type(MPI.COMM_TYPE_SHARED).size; print(w.gather(n) or '', end='')"


@needs_mpi
@needs_root
def test_mpi_takes_them_for_machines_and_nothing_stays() -> None:
    pytest.importorskip("mpi4py")

    def names() -> str:
        return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout

    before = names()
    with namespaces.hosts(2, alpha=0.001, beta=1e-8) as up:
        assert len(names().splitlines()) == len(before.splitlines()) + 2
        assert up.run([sys.executable, "-c", LOOK], timeout=60).strip() == "[1, 1]"
        with pytest.raises(RuntimeError, match="exit code 3"):
            up.run([sys.executable, "-c", "raise SystemExit(3)"], timeout=60)
        with pytest.raises(RuntimeError, match="not done after 5 s"):
            up.run([sys.executable, "-c", "import time; time.sleep(600)"], timeout=5)
    assert names() == before
