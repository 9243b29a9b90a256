"""What the ranks do in the parallel tests."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from contextlib import nullcontext
from random import Random
from typing import Any

import torch

from legw_hpc.comm import connect
from legw_hpc.errors import InputError
from legw_hpc.recipe import load
from legw_hpc.trainer import Timing
from legw_hpc.twins import Apart
from legw_hpc.work import prepare


def collectives(backend: str) -> dict[str, Any]:
    """Each collective once, with answers that a wrong one cannot give."""
    comm = connect(backend)
    try:
        ramp = torch.arange(1000, dtype=torch.float32) * (comm.rank + 1)
        comm.sum_(ramp)
        exact = torch.tensor([2.0**40 + comm.rank], dtype=torch.float64)
        comm.sum_(exact)
        buffer = torch.full((5,), float(comm.rank))
        comm.broadcast_(buffer)
        gathered = comm.gather({"rank": comm.rank, "text": "é" * comm.rank})
        data = comm.broadcast_bytes(bytes(range(256)) * 3 if comm.rank == 0 else b"ignored")
        nothing = comm.broadcast_bytes(b"")
        comm.barrier()
        return {
            "rank": comm.rank,
            "size": comm.size,
            "local": [comm.local_rank, comm.local_size],
            "ramp": ramp[[1, 999]].tolist(),
            "exact": exact.item(),
            "broadcast": buffer.tolist(),
            "gathered": gathered,
            "bytes": hashlib.sha256(data).hexdigest(),
            "nothing": len(nothing),
        }
    finally:
        comm.close()


def pieces() -> int:
    """How many different sums of the same pieces there are, when they are begun in any order and after any time."""
    comm = connect("horovod")
    own = Random(comm.rank)  # each rank its own order and times
    generator = torch.Generator().manual_seed(comm.rank)
    values = torch.randn(5, 3000, generator=generator)
    found = set()
    try:
        for _ in range(30):
            buffer, ends = values.clone(), {}
            for number in own.sample(range(5), 5):
                time.sleep(0.002 * own.random())
                ends[number] = comm.start_sum_(buffer[number])
            for number in range(5):
                ends[number]()
            found.add(hashlib.sha256(buffer.numpy().tobytes()).hexdigest())
        return len(found)
    finally:
        comm.close()


def error_on_one_rank(backend: str, rank: int) -> str:
    """One rank cannot open its files: all must hear of it."""
    comm = connect(backend)
    try:
        with comm.together():
            if comm.rank == rank:
                raise InputError("shard-3.h5: this shard is missing")
    except InputError as error:
        return str(error)
    finally:
        comm.close()
    return "no error"


def threads() -> int:
    """Of this rank, where each would take another number."""
    from legw_hpc.device import set_threads

    comm = connect("auto")
    try:
        return set_threads(3 - comm.rank, comm)
    finally:
        comm.close()


def twin_meets(late: float) -> list[float]:
    """Seconds in a sum of a twin without exchange, where the last rank comes late, and what it has then."""
    comm = connect("auto")
    try:
        own = torch.full((3,), float(comm.rank))
        comm.barrier()
        time.sleep(late if comm.rank == comm.size - 1 else 0.0)
        start = time.perf_counter()
        Apart(comm).start_sum_(own)()
        return [time.perf_counter() - start, *own.tolist()]
    finally:
        comm.close()


def serial_by_accident() -> list[str]:
    """What `connect` says where it must not train alone, or among other ranks than the launcher's."""
    from dataclasses import replace

    from legw_hpc.launcher import launched

    said = []
    for backend, change in (("serial", {}), ("horovod", {"size": 5}), ("mpi", {"size": 5})):
        try:
            connect(backend, replace(launched(), **change))  # type: ignore[arg-type]
            said.append("connected")
        except InputError as error:
            said.append(str(error))
    return said


def disagree(arguments: list[str]) -> dict[str, str]:
    """What a run says where rank 1 has something of its own, by what that is."""
    from unittest.mock import patch

    from legw_hpc import agreement, runlog
    from legw_hpc.launcher import launched
    from legw_hpc.single_run import run

    other = launched().rank == 1
    seed = torch.manual_seed
    changed: dict[str, Any] = {
        "code": patch.object(runlog, "code", lambda *more: "other"),
        "versions": patch.object(runlog, "versions", lambda: {"torch": "1.0"}),
        "data": patch.object(agreement.format, "digest", lambda index: "other"),
        "initial weights": patch.object(torch, "manual_seed", lambda number: seed(number + 1)),
        "recipe": ["seed=2"],
        "recipe, but no result": ["max_steps=7"],
        "recipe, as to who waits": ["stall_minutes=0"],
    }
    said = {}
    for about, change in changed.items():
        words = change if other and isinstance(change, list) else []
        with change if other and not isinstance(change, list) else nullcontext():
            try:
                run(load(arguments[0], [*arguments[1:], "max_steps=8", *words]))
            except InputError as error:
                said[about] = str(error)
    return said


def misbehave(how: str) -> None:
    """Rank 1 fails in one of the ways that a rank can."""
    import os
    import signal

    from legw_hpc.launcher import launched

    if launched().rank == 1:
        if how == "raises":
            raise RuntimeError("on purpose")
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)


def noise(words: list[str], steps: int) -> list[list[float] | None]:
    """The estimates of a run's first steps."""
    comm = connect("auto")
    try:
        work = prepare(load("mnist-lstm", [*words, "noise_scale=true", "threads=1", "exchange_pieces=2"]), comm)
        found = [at.noise for at in itertools.islice(work.train(0, Timing(), []), steps)]
        return [[one.variance, one.square] if one else None for one in found]
    finally:
        comm.close()


def tuned(words: list[str]) -> list[tuple[int, bool]]:
    """The micro-batch that this rank measures, and that it finds kept: each with whether it was kept."""
    comm = connect("auto")
    try:
        found = [prepare(load(words[0], words[1:]), comm).tuned for _ in range(2)]
        return [(one.micro_batch, one.kept) for one in found if one is not None]
    finally:
        comm.close()


def nan_on_one_rank(arguments: list[str], rank: int, step: int) -> str:
    """What a run says whose loss is no number on one rank, from a step on."""
    from legw_hpc import apps
    from legw_hpc.errors import Diverged
    from legw_hpc.launcher import launched
    from legw_hpc.single_run import run

    app, calls = apps.application("mnist-lstm"), itertools.count()

    def loss(model: torch.nn.Module, carried: None, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, None]:
        value, _ = app.loss(model, carried, images, labels)
        return value * (float("nan") if next(calls) >= step else 1.0), None

    if launched().rank == rank:
        broken = dataclasses.replace(app, loss=loss)
        apps.APPLICATIONS["mnist-lstm"] = lambda: broken
    try:
        run(load(arguments[0], arguments[1:]))
    except Diverged as error:
        return str(error)
    return "trained"


def learns_alone(arguments: list[str]) -> str:
    """What a run says whose model remembers what its own rank has seen, as torch's batch norm does."""
    from legw_hpc import apps
    from legw_hpc.errors import InputError
    from legw_hpc.single_run import run

    app = apps.application("mnist-lstm")

    def model() -> torch.nn.Module:
        made = app.model()
        made.register_buffer("seen", torch.zeros(()))
        return made

    def loss(model: torch.nn.Module, carried: None, images: torch.Tensor, labels: torch.Tensor) -> Any:
        model.seen += images.mean()
        return app.loss(model, carried, images, labels)

    apps.APPLICATIONS["mnist-lstm"] = lambda: dataclasses.replace(app, model=model, loss=loss)
    try:
        run(load(arguments[0], arguments[1:]))
    except InputError as error:
        return str(error)
    return "trained"


def meets_in_a_layer(arguments: list[str]) -> str:
    """What a run says whose model, not its recipe, has a layer in which the ranks exchange."""
    from legw_hpc import apps
    from legw_hpc.errors import InputError
    from legw_hpc.models.batch_norm import BatchNorm
    from legw_hpc.single_run import run

    app = apps.application("mnist-lstm")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.net = BatchNorm(1, "sync"), app.model()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.net(self.norm(images[:, None])[:, 0])

    apps.APPLICATIONS["mnist-lstm"] = lambda: dataclasses.replace(app, model=Model)
    try:
        run(load(arguments[0], arguments[1:]))
    except InputError as error:
        return str(error)
    return "trained"


def goes_on_after_all(folder: str, seconds: float, late: float, works: bool) -> list[list[str]]:
    """Marks of the watchdog while rank 1 comes late to an exchange, micro-batches behind or not, and after it has come."""
    from pathlib import Path

    from legw_hpc.runlog import STALLED
    from legw_hpc.watchdog import not_for_ever, watching

    comm, marks = connect("auto"), Path(folder) / STALLED

    def seen() -> list[str]:
        try:
            return sorted(path.name for path in marks.glob("*/*.*"))
        except FileNotFoundError:  # the last of them has just gone, and its folder with it
            return []

    try:
        with not_for_ever(comm, 3 * seconds), watching(Path(folder), comm, seconds):
            during: list[str] = []
            if comm.rank == 1:
                for _ in range(round(late / 0.1)):
                    time.sleep(0.1)
                    comm.beats += works
                during = seen()
            comm.barrier()
            time.sleep(seconds / 2)  # four looks of the watchdog
            return [during, seen()]
    finally:
        comm.close()


def horovods_own_loop() -> float:
    """LARS and LEGW in Horovod's DistributedOptimizer: how far its weights end from those of the whole batch on one rank."""
    import horovod.torch as hvd
    from torch import nn

    from legw_hpc.optim import LARS, LEGW, parameter_groups

    def trained(x: torch.Tensor, wrap: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
        optimizer = LARS(parameter_groups(model), lr=1.0, weight_decay=1e-4, eta=0.02)
        scheduler = LEGW(optimizer, base_batch=4, batch=16, warmup_epochs=0.25, epochs=3, steps_per_epoch=2)
        optimizer = wrap(optimizer, model)
        for _ in range(6):
            optimizer.zero_grad()
            model(x).pow(2).mean().backward()
            optimizer.step()
            scheduler.step()
        return [weight.detach() for weight in model.parameters()]

    comm = connect("horovod")
    try:
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
        ours = trained(x.chunk(comm.size)[comm.rank], lambda o, model: hvd.DistributedOptimizer(o, model.named_parameters()))
        alone = trained(x, lambda o, model: o)
        return max(float((a - b).abs().max()) for a, b in zip(ours, alone, strict=True))
    finally:
        comm.close()
