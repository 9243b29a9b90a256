"""What a rank does with the machine's memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Page faults of a tensor of 50 MB, made and dropped again and again.
PROGRAM = """
import resource, sys, torch
from legw_hpc.device import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
torch.set_num_threads(1)
for _ in range(20):  # until the heap has found its size
    torch.ones(12_500_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(12_500_000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
@pytest.mark.parametrize(
    ("how", "environment", "faults"),
    [("plain", {}, True), ("kept", {}, False), ("kept", {"MALLOC_ARENA_MAX": "8"}, True)],
    ids=["by default", "kept", "as the user says"],
)
def test_freed_memory_is_kept(how: str, environment: dict[str, str], faults: bool) -> None:
    if any(name.startswith("MALLOC_") or name == "LD_PRELOAD" for name in os.environ):
        pytest.skip("the user has a malloc of his own")
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=60, check=True)
    assert (int(done.stdout) > 5000) == faults, done.stdout  # 12,207 pages of 4 KiB


BOUND = """
import os, legw_hpc.launcher as launcher
given = sorted(os.sched_getaffinity(0))
import torch
from legw_hpc.comm import Serial
from legw_hpc.device import set_threads
torch.ones(1000, 1000) @ torch.ones(1000, 1000)
print(len(given), set_threads(0, Serial()), launcher.CORES == given)
"""


def test_an_openmp_that_binds_its_threads_leaves_all_cores() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"OMP_PLACES": "cores", "OMP_PROC_BIND": "close"}
    done = subprocess.run([sys.executable, "-c", BOUND], capture_output=True, text=True, env=environment, timeout=60, check=True)
    given, threads, same = done.stdout.split()
    assert (threads, same) == (given, "True")
