"""A machine's numbers: measured by real ranks, written as a file that `plan` takes, and the fit behind them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.calibrate import toml
from benchmarks.speeds import deviation, forget, line
from legw_hpc.plan import calibration
from legw_hpc.submit import machine as machines
from tests.conftest import SAMPLES, Cli
from tests.parallel.ranks import ROOT, needs_mpi


@given(st.floats(1, 1e5), st.floats(0, 1000))
def test_the_line_has_the_rate_and_the_half_batch(rate: float, half: float) -> None:
    points = {m: (m + half) / rate for m in (1, 4, 16, 64, 128)}
    assert line(points) == (pytest.approx(rate, rel=1e-6), pytest.approx(half, rel=1e-4, abs=1e-6))


def test_a_line_that_starts_below_zero_goes_through_0() -> None:
    assert line({1: 0.5, 10: 10.0, 100: 110.0}) == (pytest.approx(1.30, rel=0.01), 0)


@pytest.mark.parametrize("points", [{1: 2.0, 4: 2.0, 8: 1.5}, {1: 1.0, 8: 1.0}], ids=["falls", "is level"])
def test_a_time_that_does_not_grow_has_no_rate(points: dict[int, float]) -> None:
    assert line(points) is None


@pytest.mark.parametrize("name", ["knl", "skylake"])
def test_what_is_written_is_what_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(toml(calibration.load(name)))
    assert calibration.read(path) == calibration.load(name)


@needs_mpi
def test_ranks_measure_what_plan_takes(shards: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.copy(machines.MACHINES / "localhost.toml", tmp_path / "here.toml")
    numbers = tmp_path / "performance" / "here.toml"
    numbers.parent.mkdir()
    numbers.write_text(toml(calibration.load("skylake")))
    words = ["mnist-lstm", f"data.dir={shards}", f"data.train_samples={SAMPLES}", "batch=96", "micro_batch=24"]
    calibrate = [sys.executable, "-m", "benchmarks.calibrate", *words, "--quick", "--to", str(numbers), "--note", "in a test"]
    done = subprocess.run(calibrate, cwd=ROOT, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    made = calibration.read(numbers)
    assert done.stdout == numbers.read_text()
    assert set(made.compute) == {"imagenet-resnet50", "mnist-lstm"}  # what was there stays
    assert made.network.alpha_us == calibration.load("skylake").network.alpha_us  # one host has no network
    assert made.memory.gb_per_s.source == "measured, in a test"
    assert "from memory, where the data fit (" in made.compute["mnist-lstm"]["fp32"]["input_per_s"]["source"]
    assert "2 ranks x 1 threads" in made.jitter.measured_on
    assert 0 < made.start_s.likely < 200
    planned = cli("plan", *words, "--machine", "here.toml", "--nodes", "1,2", "--json")
    assert planned.returncode == 0, planned.stderr
    one, two = json.loads(planned.stdout)["nodes"]
    assert one["step"]["likely"]["exchange"] == 0 < two["step"]["likely"]["exchange"]


def test_what_is_forgotten_is_read_from_storage(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write(bytes(1 << 20))
        os.fsync(file.fileno())
    if _said("stat", "-f", "-c", "%T", str(path)) == "tmpfs":
        pytest.skip("a file in memory cannot be forgotten")

    def in_memory() -> str:
        return _said("fincore", "-b", "-n", "-o", "RES", str(path))

    assert in_memory() == str(1 << 20)
    forget([path])
    assert in_memory() == "0"


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


@needs_mpi
def test_ranks_that_are_not_laid_out_as_the_machines_are_refused(tmp_path: Path) -> None:
    machine = shutil.copy(machines.MACHINES / "gpu4.toml", tmp_path / "mine.toml")
    calibrate = [sys.executable, "-m", "benchmarks.calibrate", "mnist-lstm", "--machine", str(machine)]
    done = subprocess.run(calibrate, cwd=ROOT, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL)
    assert done.returncode != 0
    assert "calibrate: 2 ranks a node: machine mine has 4" in done.stderr


@needs_mpi
def test_one_rank_is_refused(shards: Path) -> None:
    words = ["mnist-lstm", f"data.dir={shards}", f"data.train_samples={SAMPLES}", "--ranks", "1"]
    calibrate = [sys.executable, "-m", "benchmarks.calibrate", *words]
    done = subprocess.run(calibrate, cwd=ROOT, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (1, "calibrate: one rank has no link and no jitter: --ranks 2\n")


REFUSED = {
    "an unknown recipe": (["mnst-lstm"], 1, "unknown recipe 'mnst-lstm': did you mean"),
    "the package's numbers": (["mnist-lstm", "--machine", "skylake"], 1, "--machine skylake: its numbers are the package's"),
    "another network": (["ptb-lstm", "options.hidden=64"], 1, "another network than ptb-lstm's; give it a recipe file"),
    "threads": (["mnist-lstm", "--threads", "-3"], 2, "expected a whole number of at least 1, not '-3'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused_before_ranks_are_launched(name: str) -> None:
    words, code, said = REFUSED[name]
    calibrate = [sys.executable, "-m", "benchmarks.calibrate", *words]
    done = subprocess.run(calibrate, cwd=ROOT, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL)
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr
    assert len(re.findall(r"calibrate: ", done.stderr)) <= 1


@given(st.integers(2, 6), st.floats(0.01, 0.2), st.integers(0, 2**32 - 1))
def test_the_jitter_of_ranks_is_found_again(ranks: int, sigma: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = rng.normal(1.0, sigma, (ranks, 400))
    assert deviation(steps.tolist()) == pytest.approx(sigma, rel=0.2)
