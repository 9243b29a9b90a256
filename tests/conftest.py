"""Fixtures: small data folders, and the command line as a user calls it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from legw_hpc.cli import main
from legw_hpc.data.sources import synthetic
from legw_hpc.errors import STOP_SIGNALS
from legw_hpc.launcher import mpirun
from tests.pictures import CLASSES, picture
from tests.stubs import Stubs

torch.set_num_threads(1)  # bit-for-bit comparisons, and no fight with the ranks of other tests

SAMPLES = 300  # 96 does not divide it: steps of 96, 96, 96, 12


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start ranks want an mpirun."""
    for item in items:
        if item.get_closest_marker("mpi"):
            item.add_marker(pytest.mark.skipif(mpirun() is None, reason="no mpirun here"))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """28x28 images in four shards: 300 for training, 101 for test."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    synthetic.write(folder, (28, 28), 10, SAMPLES, 101, samples_per_shard=83)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three classes of images; 5, 6 and 7 images for training, 2 each for val."""
    folder = tmp_path / "source"
    for label, name in enumerate(CLASSES):
        for split, count in (("train", 5 + label), ("val", 2)):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                (folder / split / name / f"{name}{i}.JPEG").write_bytes(picture(100 * label + i + (50 if split == "val" else 0)))
    return folder


@pytest.fixture(scope="session")
def arguments(shards: Path) -> list[str]:
    """A training command of 4 steps an epoch on `shards`; not to be changed in place."""
    return [
        "mnist-lstm",
        f"data.dir={shards}",
        f"data.train_samples={SAMPLES}",
        "batch=96",
        "epochs=6",
        "micro_batch=32",
        "threads=1",
    ]


@pytest.fixture(scope="session")
def grid(arguments: list[str]) -> list[str]:
    """A sweep of the same, without its batch."""
    return ["sweep", *(word for word in arguments if not word.startswith("batch"))]


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def process(tmp_path: Path) -> Cli:
    """Run `legw-hpc` as a process of its own, in an empty folder."""

    def call(*words: str | Path, env: dict[str, str] | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "legw_hpc", *map(str, words)]
        environment = os.environ | (env or {})
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=timeout)

    return call


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The same, within this process: saves seconds of importing torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("legw_hpc.cli._bug", _raise_again)  # a bug, or a time limit, fails its test and not pytest

    def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        for number, handler in handlers.items():
            signal.signal(number, handler)
        said = capsys.readouterr()
        code = end.value.code if isinstance(end.value.code, int) else 0
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    return call


def _raise_again() -> NoReturn:
    error = sys.exc_info()[1]
    assert error is not None
    raise error


@pytest.fixture
def stubs(tmp_path: Path) -> Stubs:
    """A folder of commands in the place of a cluster's; each does nothing but write down its arguments."""
    made = Stubs(tmp_path)
    for name in ("legw-hpc", "python", "srun", "scontrol", "qsub", "sbatch", "qstat", "ompi_info", "prte_info"):
        made.says(name)
    return made


@pytest.fixture
def whole(cli: Cli, arguments: list[str], tmp_path: Path) -> Path:
    """The uninterrupted run: 24 steps."""
    assert cli("train", *arguments, "out=whole").returncode == 0
    return tmp_path / "whole"
