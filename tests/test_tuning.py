"""micro_batch=0: the fastest micro-batch of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from legw_hpc import runlog, tuning
from legw_hpc.comm.base import Serial
from legw_hpc.data import order
from legw_hpc.recipe import load
from legw_hpc.work import prepare
from tests.conftest import Cli


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEGW_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("share", "sizes"),
    [
        (1, [1]),
        (7, [7]),
        (20, [10, 20]),
        (96, [12, 24, 48, 96]),
        (4096, [8, 16, 32, 64, 128, 256, 512, 1024]),
        (3000, [12, 24, 47, 94, 188, 375, 750]),
    ],
)
def test_candidates_are_equal_pieces_of_the_share(share: int, sizes: list[int]) -> None:
    assert tuning.candidates(share) == sizes


class Timed:
    """Answers with a time a sample, and counts its calls."""

    def __init__(self, **seconds: float):
        self.seconds, self.calls = {int(name[1:]): value for name, value in seconds.items()}, 0

    def __call__(self, size: int) -> float:
        self.calls += 1
        return size * self.seconds[size]


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({"b10": 3.0, "b20": 2.0}, 20),
        ({"b10": 2.0, "b20": 3.0}, 10),
        ({"b10": 2.0, "b20": 1.99}, 10),  # no more than 2 % slower, and less memory
    ],
)
def test_the_fastest_is_taken(seconds: dict[str, float], best: int) -> None:
    found = tuning.fastest(20, Timed(**seconds), Serial(), {})
    assert (found.micro_batch, found.kept) == (best, False)


class Two(Serial):
    """Rank 0 of two, beside one that takes the same times the other way round."""

    size = local_size = 2

    def gather_bytes(self, data: bytes) -> list[bytes]:
        mine = json.loads(data)
        theirs = dict(zip(mine, reversed(mine.values()), strict=True)) if isinstance(mine, dict) else mine
        return [data, json.dumps(theirs).encode()]


def test_a_micro_batch_is_as_slow_as_the_slowest_rank() -> None:
    found = tuning.fastest(40, Timed(b10=1.0, b20=2.0, b40=3.0), Two(), {})
    assert found.seconds == {10: 3.0, 20: 2.0, 40: 3.0}
    assert found.micro_batch == 20


def test_it_is_measured_once_for_each_kind_of_run(tmp_path: Path) -> None:
    about = {"precision": "fp32"}
    measure = Timed(b10=3.0, b20=2.0)
    first = tuning.fastest(20, measure, Serial(), about)
    calls = measure.calls
    again = tuning.fastest(20, measure, Serial(), about)
    assert measure.calls == calls
    assert (again.micro_batch, again.seconds, again.kept) == (first.micro_batch, first.seconds, True)
    assert not tuning.fastest(20, measure, Serial(), {"precision": "bf16"}).kept
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["micro_batch.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"KEY": 3}', '{"KEY": {}}', '{"KEY": {"x": 1.0}}', '{"KEY": {"0": 1.0}}', '{"KEY": {"20": -1.0}}'],
)
def test_a_damaged_cache_is_measured_again(text: str, tmp_path: Path) -> None:
    measure = Timed(b10=3.0, b20=2.0)
    tuning.fastest(20, measure, Serial(), {})
    file = tmp_path / "cache" / "micro_batch.json"
    (key,) = json.loads(file.read_text())
    file.write_text(text.replace('"KEY"', json.dumps(key)))
    assert not tuning.fastest(20, measure, Serial(), {}).kept
    assert tuning.fastest(20, measure, Serial(), {}).kept


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert tuning.fastest(20, Timed(b10=3.0, b20=2.0), Serial(), {}).micro_batch == 20


def test_a_run_prints_what_it_found_and_goes_on_with_it_to_the_bit(cli: Cli, tmp_path: Path, arguments: list[str]) -> None:
    measured = [word for word in arguments if not word.startswith("micro_batch")] + ["micro_batch=0"]
    whole = cli("train", *measured, "out=whole")
    assert whole.returncode == 0, whole.stderr
    (start,) = [line for line in runlog.read(tmp_path / "whole") if line["event"] == "start"]
    found = start["recipe"]["micro_batch"]
    assert found in tuning.candidates(96)
    assert f"micro    {found} (of 12, 24, 48, 96: " in whole.stdout
    assert f"micro-batches of {found}" in whole.stdout

    assert cli("train", *measured, "out=halves", "max_steps=12").returncode == 0
    (tmp_path / "cache" / "micro_batch.json").unlink()
    rest = cli("train", *measured, "out=halves")
    assert f"micro    {found}, as this run began" in rest.stdout
    last = [max((tmp_path / out / "checkpoints").glob("*.pt")) for out in ("whole", "halves")]
    expected, got = (torch.load(path, weights_only=True)["model"] for path in last)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_batch_norm_needs_a_named_one(cli: Cli) -> None:
    said = cli("plan", "cifar10-resnet20", "micro_batch=0")
    assert said.returncode == 2
    assert "batch norm is over a micro-batch" in said.stderr


@pytest.mark.parametrize(("micro_batch", "drawn"), [(32, 0), (0, 1)])
def test_an_epochs_order_is_drawn_before_the_first_step_only_to_measure(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int, drawn: int
) -> None:
    """Every rank draws all of it."""
    monkeypatch.chdir(tmp_path)
    order.epoch_order.cache_clear()
    prepare(load(arguments[0], [*arguments[1:], f"micro_batch={micro_batch}"]), Serial())
    assert order.epoch_order.cache_info().misses == drawn
