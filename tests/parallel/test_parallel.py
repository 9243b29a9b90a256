"""Real ranks under mpirun.  4 ranks on fewer cores are oversubscribed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from legw_hpc import runlog
from tests.parallel.ranks import ROOT, launch, needs_mpi, on_ranks
from tests.parallel.runs import TRAIN, crashed, newest, trained

pytestmark = needs_mpi
BACKENDS = ["horovod", "mpi"]
BACKEND = pytest.mark.parametrize("backend", [pytest.param(name, id=name) for name in BACKENDS])


@pytest.fixture(autouse=True)
def _backend_is_installed(request: pytest.FixtureRequest) -> None:
    wanted = request.node.callspec.params.get("backend", "horovod") if hasattr(request.node, "callspec") else "horovod"
    pytest.importorskip("horovod" if wanted == "horovod" else "mpi4py")


@BACKEND
@pytest.mark.parametrize("ranks", [1, 3])
def test_collectives(backend: str, ranks: int) -> None:
    answers = on_ranks(ranks, "programs:collectives", backend=backend)
    total = ranks * (ranks + 1) / 2
    for rank, answer in enumerate(answers):
        assert (answer["rank"], answer["size"], answer["local"]) == (rank, ranks, [rank, ranks])
        assert answer["ramp"] == [total, 999 * total]
        assert answer["exact"] == ranks * 2.0**40 + ranks * (ranks - 1) / 2
        assert answer["broadcast"] == [0.0] * 5
        assert answer["gathered"] == [{"rank": r, "text": "é" * r} for r in range(ranks)]
        assert answer["nothing"] == 0
    assert len({answer["bytes"] for answer in answers}) == 1


def test_sums_that_go_on_at_once_are_the_same_whenever_they_began() -> None:
    """On 3 ranks: there Open MPI's sum of 12 kB differs by where an element lies, so one of two that were put together would."""
    assert on_ranks(3, "programs:pieces") == [1, 1, 1]


@BACKEND
def test_an_error_on_one_rank_is_everybodys(backend: str) -> None:
    answers = on_ranks(3, "programs:error_on_one_rank", backend=backend, rank=1)
    assert len(set(answers)) == 1
    assert re.search(r"shard-3\.h5.*rank 1 on ", answers[0])


def test_nothing_serial_by_accident() -> None:
    serial, horovod, mpi = on_ranks(2, "programs:serial_by_accident")[0]
    assert re.search(r"comm=serial.*started 2 ranks", serial)
    for said in (horovod, mpi):
        assert re.search(r"started 5 ranks, .*(Horovod|MPI) 2", said)


def test_missing_horovod_stops_the_ranks(tmp_path: Path, arguments: list[str]) -> None:
    """A launcher says 2, and Horovod is not there: no lonely copies."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['horovod'] = None\n")
    words = ["env", f"PYTHONPATH={tmp_path}:{ROOT}", *TRAIN, *arguments, f"out={tmp_path / 'r'}"]
    code, said = launch(2, words)
    assert code == 2
    assert len(re.findall(r"^legw-hpc: .*started 2 ranks, but Horovod cannot be imported.*comm=mpi", said, re.M)) == 1
    assert "Traceback" not in said
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """20 steps on one rank: five epochs of 96, 96, 96 and 12 samples."""
    out = tmp_path_factory.mktemp("alone") / "r"
    words = [f"data.dir={shards}", "data.train_samples=300", "batch=96", "epochs=5", "threads=1", f"out={out}"]
    subprocess.run([*TRAIN, "mnist-lstm", *words], check=True, timeout=120, cwd=ROOT, stdout=subprocess.DEVNULL)
    return out


IN_PIECES = ["epochs=5", "exchange_pieces=2"]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, arguments: list[str]) -> Path:
    """The same on two, with all 20 checkpoints."""
    out = tmp_path_factory.mktemp("together") / "r"
    often = ["checkpoint.every_minutes=1e-6", "checkpoint.keep=99"]  # by rank 0's clock, of which all hear
    trained(2, [*arguments, *IN_PIECES, *often], out)
    assert len(list((out / "checkpoints").glob("*.pt"))) == 20
    return out


def close(mine: dict[str, Any], run: Path) -> None:
    """The weights of a state are those of a run, to rounding."""
    for name, expected in newest(run)["model"].items():
        torch.testing.assert_close(mine["model"][name], expected, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize(("backend", "ranks", "pieces"), [("horovod", 2, 1), ("horovod", 4, 3), ("mpi", 2, 3), ("mpi", 4, 1)])
def test_ranks_change_time_not_maths(
    backend: str, ranks: int, pieces: int, alone: Path, arguments: list[str], tmp_path: Path
) -> None:
    """Invariant 1, with a batch that divides neither the data nor (the last one) the ranks evenly."""
    words = [*arguments, "epochs=5", f"comm={backend}", f"exchange_pieces={pieces}"]
    close(trained(ranks, words, tmp_path / "r"), alone)
    lines, expected_lines = runlog.read(tmp_path / "r"), runlog.read(alone)
    assert lines[0]["ranks"] == ranks
    accuracies = [[line["accuracy"] for line in log if line["event"] == "eval"] for log in (lines, expected_lines)]
    assert accuracies[0] == accuracies[1]  # invariant 4: exact on any rank count


def test_resumed_on_the_same_ranks_to_the_bit_and_on_others_to_rounding(
    alone: Path, together: Path, arguments: list[str], tmp_path: Path
) -> None:
    same = trained(2, [*arguments, *IN_PIECES], crashed(together, 7, tmp_path / "same"))
    whole = newest(together)["model"]
    assert all(torch.equal(whole[name], same["model"][name]) for name in whole)
    close(trained(3, [*arguments, *IN_PIECES], crashed(together, 7, tmp_path / "moved")), alone)


def test_more_ranks_than_the_last_batch_has_samples(arguments: list[str], tmp_path: Path, alone: Path) -> None:
    """Every rank takes the same number of collective calls, also one without samples (invariant 5)."""
    words = [word for word in arguments if not word.startswith("batch")]
    trained(3, [*words, "batch=149", "epochs=2", "max_steps=5", "exchange_pieces=2"], tmp_path / "r")  # 149, 149, 2
    assert runlog.read(tmp_path / "r")[-1]["steps"] == 5


def test_ranks_agree_on_a_measured_micro_batch(
    alone: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEGW_CACHE", str(tmp_path / "cache"))
    words = [*arguments, "epochs=5", "micro_batch=0"]
    first, second = on_ranks(2, "programs:tuned", words=words)
    assert first == second
    (measured, anew), (found, kept) = first
    assert (measured, anew, kept) == (found, False, True)
    close(trained(2, words, tmp_path / "r"), alone)


def test_a_twin_without_exchange_trains_each_rank_alone(together: Path, arguments: list[str], tmp_path: Path) -> None:
    """Rank 0's weights are those of its half of each batch, with the loss divided by the whole; see twins.py."""
    apart = trained(2, [*arguments, *IN_PIECES, "twin=no-exchange", "max_steps=3"], tmp_path / "apart")
    whole = crashed(together, 3, tmp_path / "together")
    with pytest.raises(AssertionError):
        close(apart, whole)


def test_a_twin_without_exchange_waits_for_its_slowest_rank() -> None:
    """What it takes less than the run is then the exchange alone."""
    for rank, (seconds, *own) in enumerate(on_ranks(2, "programs:twin_meets", late=0.5)):
        assert own == [rank] * 3
        assert (seconds > 0.4) == (rank == 0)


def test_all_ranks_take_as_many_threads() -> None:
    """LARS sums a norm in as many pieces as there are threads."""
    assert on_ranks(3, "programs:threads") == [1, 1, 1]


DISAGREE = {
    "recipe": "recipe than rank 0: seed 2 against 1",
    "recipe, but no result": "recipe than rank 0: max_steps 7 against 8",
    "recipe, as to who waits": "recipe than rank 0: stall_minutes 0.0 against 5.0",
    "code": "code than rank 0: digest other against",
    "versions": "versions than rank 0: python None against 3.",
    "data": "data than rank 0: digest other against",
    "initial weights": "initial weights than rank 0: digest",
}


def test_ranks_that_disagree_are_named(arguments: list[str], tmp_path: Path) -> None:
    first, second = on_ranks(2, "programs:disagree", arguments=[*arguments, f"out={tmp_path / 'r'}"])
    assert first == second
    assert first.keys() == DISAGREE.keys()
    for about, words in DISAGREE.items():
        assert f"rank 1 has other {words}" in first[about]
    assert not (tmp_path / "r").exists()


def test_what_a_rank_learns_alone_is_never_kept(arguments: list[str], tmp_path: Path) -> None:
    """Evaluation and resume would be by rank 0's part of the samples."""
    answers = on_ranks(3, "programs:learns_alone", arguments=[*arguments, "checkpoint.every_steps=5", f"out={tmp_path / 'r'}"])
    assert len(set(answers)) == 1
    assert answers[0].startswith("after step 5 seen of ranks 1, 2 is not that of rank 0"), answers[0]
    assert not (tmp_path / "r" / "checkpoints").exists()


@pytest.mark.parametrize(("twin", "said"), [("none", "trained"), ("no-exchange", "twin=no-exchange, but the model has layers")])
def test_ranks_that_meet_in_a_layer_of_ones_own_model(twin: str, said: str, arguments: list[str], tmp_path: Path) -> None:
    """With 17 and 16 samples, two micro-batches and one."""
    words = [*arguments, "batch=33", "micro_batch=16", "max_steps=4", f"twin={twin}", f"out={tmp_path / 'r'}"]
    answers = on_ranks(2, "programs:meets_in_a_layer", arguments=words)
    assert all(answer.startswith(said) for answer in answers), answers


def test_a_loss_that_is_no_number_on_one_rank_stops_all_at_that_step(arguments: list[str], tmp_path: Path) -> None:
    answers = on_ranks(3, "programs:nan_on_one_rank", arguments=[*arguments, f"out={tmp_path / 'r'}"], rank=1, step=5)
    assert len(set(answers)) == 1
    assert re.match(r"diverged at step 6 \(epoch 1\.500, lr .*\): loss nan", answers[0])
    end = runlog.read(tmp_path / "r")[-1]
    assert (end["event"], end["status"]) == ("end", "diverged")


@pytest.mark.parametrize(
    ("word", "named"),
    [("data.dir=nowhere", "nowhere"), ("batch=1", "2 ranks"), ("bach=1", "batch"), ("out=/proc/x/y", "/proc/x/y")],
)
def test_bad_input_is_one_line_from_rank_0(arguments: list[str], tmp_path: Path, word: str, named: str) -> None:
    code, said = launch(2, [*TRAIN, *arguments, word], cwd=tmp_path)
    assert code == 2, said
    ours = [line for line in said.splitlines() if line.startswith("legw-hpc: ")]
    assert len(ours) == 1
    assert named in ours[0]
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["raises", "dies", "hangs"])
def test_the_rank_that_fails_is_named(how: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="2 ranks did not end" if how == "hangs" else "rank 1 of 2"):
        on_ranks(2, "programs:misbehave", timeout=8 if how == "hangs" else 60, how=how)


def test_lars_and_legw_in_horovods_own_loop() -> None:
    assert max(on_ranks(2, "programs:horovods_own_loop")) < 1e-4
