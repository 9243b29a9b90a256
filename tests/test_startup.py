"""A rank that does not come to its first collective is ended, whatever it hangs in."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from legw_hpc.errors import EXIT_STALLED
from tests.parallel.ranks import ROOT

PROGRAM = """
import ctypes, signal, sys, time
from legw_hpc import startup
startup.HARD_SECONDS = 0.5
def come():
    if sys.argv[1] == "sleeps":
        time.sleep(20)
    if sys.argv[1] == "holds Python":
        lock, c = ctypes.create_string_buffer(64), ctypes.PyDLL(None)
        [c.pthread_mutex_lock(lock) for _ in range(2)]  # for ever, and no signal ends it
    return 7
assert startup.within(float(sys.argv[2]), "come", come) == 7
assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
time.sleep(1.2)
"""
# what it does, limit, ranks -> exit code, what is said
CASES = {
    "sleeps": ("sleeps", 0.2, 2, EXIT_STALLED, f"legw-hpc: stalled: rank 1 on {socket.gethostname()} has not come within 0.2 s"),
    "holds Python's lock, as a library that is loaded": ("holds Python", 0.2, 2, 1, f"in rank 1 on {socket.gethostname()}"),
    "goes on": ("goes on", 0.5, 2, 0, ""),
    "no limit": ("goes on", 0, 2, 0, ""),
    "alone": ("goes on", 0.5, 1, 0, ""),
}


@pytest.mark.parametrize("name", CASES)
def test_a_start_is_limited(name: str) -> None:
    does, limit, ranks, code, said = CASES[name]
    environment = os.environ | {"OMPI_COMM_WORLD_RANK": str(min(1, ranks - 1)), "OMPI_COMM_WORLD_SIZE": str(ranks)}
    command = [sys.executable, "-c", PROGRAM, does, str(limit)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=15)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert bool(done.stderr) == bool(said)
