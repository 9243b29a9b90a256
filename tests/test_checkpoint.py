"""Checkpoints of a run: damaged, by the clock, of somebody else; what is kept in them, and what a run does with them."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from legw_hpc import apps, runlog
from legw_hpc.agreement import _sum_of_bits, stay_alike
from legw_hpc.comm import Serial
from legw_hpc.data.sources import text
from legw_hpc.errors import Diverged, InputError
from legw_hpc.recipe import load
from legw_hpc.runfolder import _all_rows
from legw_hpc.trainer import Timing
from legw_hpc.work import prepare
from tests.conftest import Cli
from tests.test_run import assert_same_bits
from tests.test_text import training, write


def put(path: Path, content: Any) -> None:
    """Something else in the place of a state, with a right manifest."""
    torch.save(content, path)
    manifest = {"step": 0, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(manifest))


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "empty": lambda path: path.write_bytes(b""),
    "bit flipped": lambda path: path.write_bytes(
        path.read_bytes()[:-9] + bytes([path.read_bytes()[-9] ^ 1]) + path.read_bytes()[-8:]
    ),
    "gone": lambda path: path.unlink(),
    "manifest torn": lambda path: path.with_suffix(".json").write_text('{"step"'),
    "not a dict": lambda path: put(path, [1, 2]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(cli: Cli, arguments: list[str], whole: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "parts"
    assert cli("train", *arguments, "out=parts", "max_steps=9", "checkpoint.every_steps=4").returncode == 0
    DAMAGE[name](max((run / "checkpoints").glob("*.pt")))
    done = cli("train", *arguments, "out=parts")
    assert "step-00000009.pt: damaged" in done.stdout
    assert "resumed after step 8" in done.stdout
    assert_same_bits(whole, run)


def test_nothing_is_begun_anew_in_silence_where_no_checkpoint_is_whole(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "r"
    assert cli("train", *arguments, "out=r", "max_steps=9", "checkpoint.every_steps=4").returncode == 0
    before = (run / "log.jsonl").read_bytes()
    for path in (run / "checkpoints").glob("*.pt"):
        DAMAGE["truncated"](path)
    done = cli("train", *arguments, "out=r")
    assert (done.returncode, "none of its 2 checkpoints is whole" in done.stderr) == (2, True)
    assert (run / "log.jsonl").read_bytes() == before


def without(run: Path, *endings: str) -> None:
    for ending in endings:
        for path in (run / "checkpoints").glob(f"*.{ending}"):
            path.unlink()


# What a partial copy or a purge leaves of two checkpoints, and what is said of it.
PURGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "states alone": (lambda run: without(run, "json"), "2 step-*.pt and 0 step-*.damaged, but no manifest"),
    "a state and a damaged one": (
        lambda run: (
            (run / "checkpoints" / "step-00000009.json").rename(run / "checkpoints" / "step-00000009.damaged"),
            (run / "checkpoints" / "step-00000009.pt").unlink(),
            without(run, "json"),
        ),
        "1 step-*.pt and 1 step-*.damaged, but no manifest",
    ),
    "a damaged one alone": (
        lambda run: (
            (run / "checkpoints" / "step-00000009.json").rename(run / "checkpoints" / "step-00000009.damaged"),
            without(run, "json", "pt"),
        ),
        "0 step-*.pt and 1 step-*.damaged, but no manifest",
    ),
}


@pytest.mark.parametrize("name", PURGES)
def test_nothing_is_begun_anew_in_silence_where_the_manifests_are_gone(
    cli: Cli, arguments: list[str], tmp_path: Path, name: str
) -> None:
    run = tmp_path / "r"
    assert cli("train", *arguments, "out=r", "max_steps=9", "checkpoint.every_steps=4").returncode == 0
    harm, words = PURGES[name]
    harm(run)
    before = {path.name: path.read_bytes() for path in [run / "log.jsonl", *(run / "checkpoints").iterdir()]}
    done = cli("train", *arguments, "out=r")
    assert (done.returncode, done.stderr.count("\n"), words in done.stderr) == (2, 1, True), done.stderr
    assert {path.name: path.read_bytes() for path in [run / "log.jsonl", *(run / "checkpoints").iterdir()]} == before


def test_a_kill_between_the_first_state_and_its_manifest_is_survived(
    cli: Cli, arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    assert cli("train", *arguments, "out=r", "max_steps=4").returncode == 0
    without(tmp_path / "r", "json")
    done = cli("train", *arguments, "out=r")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "beginning anew" in line] == [
        "step-00000004.pt: without a manifest, as after a kill during the first checkpoint; beginning anew"
    ]
    assert_same_bits(whole, tmp_path / "r")


def test_no_state_without_a_manifest_stays(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    """Of a damaged checkpoint, or of a process that was killed between the two files."""
    folder = tmp_path / "r" / "checkpoints"
    assert cli("train", *arguments, "out=r", "max_steps=9", "checkpoint.every_steps=4").returncode == 0
    DAMAGE["bit flipped"](folder / "step-00000009.pt")
    (folder / "step-00000006.pt").write_bytes(b"killed")
    assert cli("train", *arguments, "out=r", "max_steps=10").returncode == 0
    assert sorted(path.name for path in folder.glob("*.pt")) == ["step-00000008.pt", "step-00000010.pt"]


def test_a_checkpoint_executes_nothing(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    """One that somebody else has made, with a right manifest and a pickle that would run a command."""
    assert cli("train", *arguments, "out=r", "max_steps=2").returncode == 0
    state = tmp_path / "r" / "checkpoints" / "step-00000002.pt"
    torch.save({"version": 2, "step": 2, "model": Evil(tmp_path / "owned")}, state)
    manifest = {"step": 2, "bytes": state.stat().st_size, "sha256": hashlib.sha256(state.read_bytes()).hexdigest()}
    state.with_suffix(".json").write_text(json.dumps(manifest))
    done = cli("train", *arguments, "out=r")
    assert (done.returncode, "no checkpoint of this program" in done.stderr) == (2, True)
    assert not (tmp_path / "owned").exists()


def test_no_torch_is_allowed_whose_loader_can_be_made_to_execute() -> None:
    """weights_only is what the test before this one relies on: CVE-2025-32434, CVE-2026-24747."""
    root = Path(__file__).parents[1]
    (lowest,) = re.findall(r'"torch>=(\d+)\.(\d+)"', (root / "setup.py").read_text())
    (taken,) = re.findall(r"^torch==(\d+)\.(\d+)", (root / ".setup" / "constraints.txt").read_text(), re.M)
    assert (2, 10) <= tuple(map(int, lowest)) <= tuple(map(int, taken))


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("minutes", ["0.0001", "0"])
def test_checkpoints_by_the_clock(minutes: str, cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    words = [*arguments, "out=r", "max_steps=6", f"checkpoint.every_minutes={minutes}", "checkpoint.keep=9"]
    assert cli("train", *words).returncode == 0
    steps = len(list((tmp_path / "r" / "checkpoints").glob("*.pt")))
    assert (steps == 1) if minutes == "0" else (steps > 3)


def test_what_a_stop_left_unevaluated_is_evaluated_by_the_run_that_goes_on(
    cli: Cli, arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    """A stop must not wait for an evaluation: the job may have three minutes left."""
    assert cli("train", *arguments, "out=r", "max_steps=8", "checkpoint.every_steps=4").returncode == 0
    log = tmp_path / "r" / "log.jsonl"
    lines = [line for line in log.read_text().splitlines(keepends=True) if '"end"' not in line]
    # As a signal at step 4 would have left it: a checkpoint of that step, and no evaluation before it.
    for path in (tmp_path / "r" / "checkpoints").glob("step-00000008.*"):
        path.unlink()
    state = tmp_path / "r" / "checkpoints" / "step-00000004.pt"
    kept = torch.load(state, weights_only=True)
    before = [line for line in lines if json.loads(line).get("step", 0) <= 4 and '"eval"' not in line]
    log.write_text("".join(before))
    torch.save(kept | {"log": log.stat().st_size}, state)
    manifest = {"step": 4, "bytes": state.stat().st_size, "sha256": hashlib.sha256(state.read_bytes()).hexdigest()}
    state.with_suffix(".json").write_text(json.dumps(manifest))
    assert cli("train", *arguments, "out=r").returncode == 0
    evaluations = [[line["step"] for line in runlog.read(run) if line["event"] == "eval"] for run in (tmp_path / "r", whole)]
    assert evaluations[0] == evaluations[1]
    assert_same_bits(whole, tmp_path / "r")


def test_a_damaged_checkpoint_does_not_outlive_whole_ones(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    """Resumed from step 4 past a damaged 9, with keep=1: the checkpoint of step 6 must stay."""
    run = tmp_path / "r"
    words = [*arguments, "out=r", "checkpoint.keep=1"]
    assert cli("train", *words, "checkpoint.keep=2", "max_steps=9", "checkpoint.every_steps=4").returncode == 0
    DAMAGE["truncated"](run / "checkpoints" / "step-00000009.pt")
    assert cli("train", *words, "max_steps=8").returncode == 0
    assert cli("train", *words, "max_steps=10").returncode == 0
    assert "resumed after step 10" in cli("train", *words, "max_steps=11").stdout


def test_a_checkpoint_of_another_version_is_refused(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    """Whole, but of a program that kept other things in it."""
    assert cli("train", *arguments, "out=r", "max_steps=2").returncode == 0
    state = tmp_path / "r" / "checkpoints" / "step-00000002.pt"
    torch.save({"version": 1, "step": 2}, state)
    manifest = {"step": 2, "bytes": state.stat().st_size, "sha256": hashlib.sha256(state.read_bytes()).hexdigest()}
    state.with_suffix(".json").write_text(json.dumps(manifest))
    done = cli("train", *arguments, "out=r")
    assert (done.returncode, "checkpoint version 1, this program reads version 2" in done.stderr) == (2, True)


def test_only_the_newest_checkpoints_stay(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    assert cli("train", *arguments, "out=r", "checkpoint.every_steps=5", "checkpoint.keep=3", "max_steps=22").returncode == 0
    names = sorted(path.name for path in (tmp_path / "r" / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}.{kind}" for step in (15, 20, 22) for kind in ("json", "pt")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_what_rows_carry_is_kept_in_any_type(dtype: torch.dtype) -> None:
    carried = [torch.arange(12).reshape(2, 3, 2).to(dtype), torch.arange(6).reshape(1, 3, 2).to(dtype)]
    rows = _all_rows(carried, Serial())
    assert rows is not None
    assert rows.dtype == dtype
    assert torch.equal(rows, torch.cat(carried))


def test_statistics_that_are_not_finite_are_never_kept(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An infinite variance leaves the outputs finite; a mask of -inf is meant."""
    build = apps.application

    def application(name: str, **options: Any) -> apps.Application:
        app = build(name, **options)

        def model() -> nn.Module:
            made = app.model()
            made.norm = nn.BatchNorm2d(3)
            made.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
            return made

        return dataclasses.replace(app, model=model)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(apps, "application", application)
    work = prepare(load("mnist-lstm", arguments[1:]), Serial())
    work.check(3)
    work.model.norm.running_var[1] = torch.inf
    with pytest.raises(Diverged, match=r"^diverged: norm\.running_var is not finite after step 3 \(epoch .*, lr .*\)$"):
        work.check(3)


def test_momentum_that_is_not_finite_is_never_kept(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights would be at the next step; the last good checkpoint would be gone by then."""
    monkeypatch.chdir(tmp_path)
    work = prepare(load("mnist-lstm", arguments[1:]), Serial())
    next(work.train(0, Timing(), []))
    work.check(1)
    name, weight = next(iter(work.model.named_parameters()))
    work.optimizer.state[weight]["momentum_buffer"].view(-1)[0] = torch.inf
    with pytest.raises(Diverged, match=rf"^diverged: momentum_buffer of {name} is not finite after step 1 "):
        work.check(1)


class AnotherRank(Serial):
    """Rank 0 of ten, of which rank 3 and those from 5 on answer what they make of rank 0's word."""

    def __init__(self, answer: Callable[[Any], Any]):
        super().__init__()
        self.answer, self.size = answer, 10

    def gather(self, value: Any) -> list[Any]:
        return [self.answer(value) if rank == 3 or rank > 4 else value for rank in range(self.size)]


def test_what_one_rank_alone_finds_not_finite_ends_all(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's own buffers may differ between ranks; one that raises alone would leave the others waiting."""
    monkeypatch.chdir(tmp_path)
    work = prepare(load("mnist-lstm", arguments[1:]), Serial())
    with pytest.raises(Diverged, match="norm is not finite"):
        dataclasses.replace(work, comm=AnotherRank(lambda value: ["norm"] if value == [] else value)).check(3)


def test_ranks_whose_weights_differ_are_named(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit of one weight, as a memory that fails flips it."""
    monkeypatch.chdir(tmp_path)
    work = prepare(load("mnist-lstm", arguments[1:]), Serial())
    name = list(work.model.state_dict())[2]

    def other(value: Any) -> Any:
        if isinstance(value, str):
            return value[::-1]
        return value | {name: value[name] + 1} if isinstance(value, dict) else value

    with pytest.raises(InputError, match=rf"^after step 3 {name} of ranks 3, 5, 6, 7, 8, 9 is not that of rank 0"):
        dataclasses.replace(work, comm=AnotherRank(other)).check(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_a_bit_that_flips_shows(dtype: torch.dtype) -> None:
    values = (torch.arange(24.0) % 5).to(dtype).view(2, 3, 4)
    other = values.clone()
    other.view(-1).view(torch.uint8)[7] ^= 1
    alike = [(f"{i}", tensor) for i, tensor in enumerate([values, torch.tensor(1.0), torch.empty(0)])]
    stay_alike(AnotherRank(lambda value: value), alike, 1)
    assert _sum_of_bits(values) != _sum_of_bits(other)
    assert _sum_of_bits(values) == _sum_of_bits(values.transpose(0, 2).contiguous().transpose(0, 2))


def test_what_is_carried_is_cut_as_the_batch_is(tmp_path: Path) -> None:
    """10 rows in three micro-batches that ranks meet in: 4, 3 and 3, and not 4, 4 and 2."""
    text.convert(write(tmp_path / "source"), tmp_path / "text")
    words = training(tmp_path / "text", batch=10, micro_batch=4, **{"baseline.batch": 10})
    works = [dataclasses.replace(prepare(load(words[0], words[1:]), Serial()), meets=True) for _ in range(2)]
    carried, again = list[torch.Tensor](), list[torch.Tensor]()
    steps = works[0].train(0, Timing(), carried)
    next(steps)
    for part, other in zip(works[0].parts.values(), works[1].parts.values(), strict=True):
        other.load_state_dict(copy.deepcopy(part.state_dict()))
    again[:] = [torch.cat(carried)]
    losses = [next(steps).loss, next(works[1].train(1, Timing(), again)).loss]
    assert losses[0] == losses[1]
    assert [[len(rows) for rows in pieces] for pieces in (carried, again)] == [[4, 3, 3]] * 2
