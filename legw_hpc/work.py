"""All that a run needs but its folder: built once, in the order in which things can be found wrong."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from legw_hpc import apps, checkpoint, runlog, tuning, twins
from legw_hpc.agreement import learn_alike, stay_alike
from legw_hpc.allowed import check_ranks, check_samples
from legw_hpc.apps import contract
from legw_hpc.comm import Comm
from legw_hpc.curvature import Probe
from legw_hpc.data import augment
from legw_hpc.data.format import digest
from legw_hpc.data.loader import evaluation_batches, train_steps
from legw_hpc.data.order import Growing, Order, Shuffled, Windows, micro_batches, part
from legw_hpc.data.reading import make_room
from legw_hpc.data.shardfile import OPEN_FILES
from legw_hpc.data.shards import Shards, verify_together
from legw_hpc.derived import Derived, derive
from legw_hpc.device import check_distinct, choose_device, keep_memory, set_threads
from legw_hpc.errors import Diverged, InputError
from legw_hpc.models.batch_norm import synchronise
from legw_hpc.optim import parameter_groups, solver
from legw_hpc.precision import Precision
from legw_hpc.recipe import Recipe
from legw_hpc.strict import named
from legw_hpc.trainer import Done, Timing, evaluate, train


@dataclass(frozen=True)
class Work:
    """A recipe's model, data and ranks, ready to train.

    Attributes:
        recipe: with the micro-batch that was measured, if it asks for that.
        tuned: how it was found.
        meets: the ranks meet in layers of the model, so that each has as many micro-batches in a step as any other.
        infinite: buffers of the model that are not finite by design, such as a mask of -inf.
        evaluated: the splits that `score` reads; the metrics of the first are the run's.
        threads: of this rank.
    """

    recipe: Recipe
    comm: Comm
    app: apps.Application
    training: Shards
    evaluated: tuple[Shards, ...]
    derived: Derived
    device: torch.device
    threads: int
    model: nn.Module
    optimizer: Optimizer
    precision: Precision
    order: Order
    tuned: tuning.Tuned | None
    meets: bool
    infinite: frozenset[str]

    @property
    def parts(self) -> dict[str, Any]:
        """What has a state_dict, by its name in a checkpoint."""
        return {"model": self.model, "optimizer": self.optimizer, "precision": self.precision}

    @property
    def data(self) -> str:
        """A digest of the data's checksums: two runs on the same data agree on it."""
        return digest(self.training.index)

    def check(self, step: int) -> None:
        """Before a checkpoint, which takes the place of a good one: is all of this worth keeping; a collective.

        Args:
            step: optimizer steps done.

        Raises:
            InputError: a shard is another than at the start, or the ranks' states differ; on every rank.
            Diverged: a weight, a statistic or the optimizer's memory of them is not finite; on every rank.
        """
        with self.comm.together():
            files = [file for data in (self.training, *self.evaluated) for file in data.files]
            # A node may have a copy of its own.
            touched = sum(file.check_unchanged() for file in files[self.comm.local_rank :: self.comm.local_size])
        if touched := sum(self.comm.gather(touched)):
            verify_together((self.training, *self.evaluated), self.comm, self.recipe.data.verify)
            if self.comm.rank == 0:
                print(
                    f"{self.training.folder}: {touched} shards were touched, and are the same; going on",
                    file=sys.stderr,
                    flush=True,
                )
        # Batch norm's running variance may be infinite while all outputs are finite.
        mine = [name for name in _not_finite(_tensors(self.model, self.optimizer)) if name not in self.infinite]
        for names in self.comm.gather(mine[:1]):  # a model's buffers, other than its weights, may differ between ranks
            if names:
                raise Diverged(f"diverged: {names[0]} is not finite after step {step} ({self.derived.where(step)})")
        if self.recipe.twin != "no-exchange":  # whose ranks train alone
            stay_alike(self.comm, _tensors(self.model, self.optimizer), step)

    def train(
        self,
        first: int,
        timing: Timing,
        carried: list[Tensor],
        asks: Callable[[], tuple[bool, bool]] = lambda: (False, False),
        told: Callable[[int], None] = lambda done: None,
    ) -> Generator[Done, None, None]:
        """The steps from `first` on, one at a time; see `trainer.train`.

        `carried` is as `RunFolder.restore` has filled it; from the first step on it is this rank's, as the trainer has it.
        """
        recipe = self.recipe
        if carried:
            rows = torch.cat(carried)
            parts = micro_batches(np.arange(len(rows)), recipe.micro_batch, self.comm.rank, self.comm.size, self.meets)
            carried[:] = [rows[torch.from_numpy(part)] for part in parts]
            del rows  # of the whole batch, on every rank; this function's names live as long as the run
        steps = train_steps(
            self.training, self.app.decode, order=self.order, micro_batch=recipe.micro_batch,
            even=self.meets, first=first, last=self.derived.last, rank=self.comm.rank, size=self.comm.size, device=self.device,
        )  # fmt: skip
        probe = Probe(self.app, self.model, recipe, self.comm, carried) if recipe.curvature_every else None
        watched = steps if probe is None else probe.watch(steps)
        watched = twins.repeated(watched, self.derived) if recipe.twin == "synthetic" else watched
        comm = self.comm
        if recipe.twin == "no-exchange":
            comm, asks = twins.Apart(comm), lambda: (False, False)
        try:
            yield from train(
                self.app, self.model, self.optimizer, watched, self.derived, comm, timing=timing, carried=carried,
                precision=self.precision, clip_norm=recipe.clip_norm, asks=asks, told=told, probe=probe,
            )  # fmt: skip
        finally:
            steps.close()

    def score(self) -> dict[str, float]:
        """The metrics of every evaluated split; those of the first have no prefix."""
        metrics: dict[str, float] = {}
        for data in self.evaluated:
            batches = evaluation_batches(
                data, self.app.decode, items=self.app.items(len(data)), micro_batch=self.recipe.micro_batch,
                rank=self.comm.rank, size=self.comm.size, device=self.device,
            )  # fmt: skip
            found = evaluate(self.app, self.model, batches, self.comm, self.precision)
            metrics |= {name if data is self.evaluated[0] else f"{data.split}_{name}": value for name, value in found.items()}
        return metrics


def prepare(recipe: Recipe, comm: Comm) -> Work:
    """Everything that can be wrong with the input is found here, before anything is written.

    Args:
        recipe: after overrides; the same on every rank.
        comm: all ranks call this.

    Raises:
        InputError: what to mend; on every rank.
    """
    keep_memory()
    with comm.together():
        app = _application(recipe)
        training, evaluated = _open(recipe, app, comm.size)
    verify_together((training, *evaluated), comm, recipe.data.verify)
    with comm.together():
        derived = derive(recipe)
        device = choose_device(recipe.device, comm)
        torch.manual_seed(recipe.seed)
        model = app.model().to(device)
        if recipe.application not in apps.APPLICATIONS:
            contract.check_model(app, model)
            if recipe.evaluate:
                contract.try_evaluation(app, model, evaluated, device)
        optimizer = _optimizer(recipe, model)
    if recipe.start:
        _begin(recipe, comm, model)
    learn_alike(comm, training, model)
    check_distinct(device, comm)
    meets = synchronise(model, comm.sum_) > 0
    if meets and recipe.twin == "no-exchange":
        raise InputError("twin=no-exchange, but the model has layers in which the ranks exchange", agreed=True)
    threads = set_threads(recipe.threads, comm)
    augment.set_threads(recipe.input_threads or threads)
    precision, order = Precision(recipe.precision, device), _order(recipe, derived)
    largest = derived.course.stages[-1].epoch  # an epoch whose batch is
    tuned = None if recipe.micro_batch else _tuned(recipe, comm, app, training, order, largest, model, precision, device)
    if tuned is not None:
        recipe = replace(recipe, micro_batch=tuned.micro_batch)
        derived = replace(derived, recipe=recipe)
    infinite = frozenset(_not_finite(_tensors(model))) - dict(model.named_parameters()).keys()
    return Work(
        recipe, comm, app, training, evaluated, derived, device, threads, model, optimizer, precision, order,
        tuned, meets, infinite,
    )  # fmt: skip


def _begin(recipe: Recipe, comm: Comm, model: nn.Module) -> None:
    """The last weights of the run `recipe.start`, unless this run has a checkpoint of its own to go on from."""
    where, start = f"start={recipe.start}", named(recipe.start)
    begun = False
    with comm.together():
        if comm.rank == 0 and not (begun := checkpoint.any_in(recipe.out_folder())):
            end = runlog.read(start)[-1:]
            if not end:
                raise InputError(f"{where}: no run there")
            if not isinstance(end[0], dict) or end[0].get("status") != "done":
                raise InputError(f"{where}: that run has not ended")
    if comm.broadcast(begun):
        return
    state = checkpoint.load_newest(start / checkpoint.FOLDER, comm, print, aside=False)
    with comm.together():
        if state is None:
            raise InputError(f"{where}: no checkpoint there")
        try:
            model.load_state_dict(state["model"])
        except (RuntimeError, KeyError) as error:
            raise InputError(f"{where}: its checkpoint is of another model: {' '.join(str(error).split())[:200]}") from None


def _tensors(model: nn.Module, optimizer: Optimizer | None = None) -> Iterator[tuple[str, Tensor]]:
    """All that a model's state holds, and what an optimizer keeps of its weights; named."""
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            yield name, value
    for name, weight in model.named_parameters():
        for what, value in (optimizer.state.get(weight, {}) if optimizer else {}).items():
            if isinstance(value, Tensor):
                yield f"{what} of {name}", value


def _not_finite(tensors: Iterator[tuple[str, Tensor]]) -> list[str]:
    """The names of those that hold a value which is no number."""
    return [name for name, value in tensors if value.is_floating_point() and not torch.isfinite(value).all()]


def _tuned(
    recipe: Recipe, comm: Comm, app: apps.Application, data: Shards, order: Order, epoch: int, model: nn.Module,
    precision: Precision, device: torch.device,
) -> tuning.Tuned:  # fmt: skip
    """The micro-batch of the run that is gone on with, so that it goes on to the bit; else the fastest."""
    with comm.together():
        before = runlog.micro_batch(recipe.out_folder()) if comm.rank == 0 else None
    if before := comm.broadcast(before):
        return tuning.Tuned(before, {}, kept=True)
    items = order.items(epoch, 0)
    mine = part(len(items), comm.rank, comm.size)

    def measure(size: int) -> float:
        tensors = app.decode(data, items[mine.start : mine.start + size], (recipe.seed, 0))
        tensors = tuple(tensor.to(device) for tensor in tensors)
        start = time.perf_counter()
        try:
            with precision.autocast():
                loss, _ = app.loss(model, None, *tensors)
            loss.backward()
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return math.inf
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    about = {
        "application": recipe.application, "options": dict(recipe.options), "window": recipe.data.window,
        "precision": recipe.precision, "device": gpu or "cpu", "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip
    model.train()
    found = tuning.fastest(-(-len(items) // comm.size), measure, comm, about)
    model.zero_grad(set_to_none=True)
    return found


def _order(recipe: Recipe, derived: Derived) -> Order:
    data = recipe.data

    def of(batch: int) -> Shuffled | Windows:
        if data.window:
            return Windows(data.train_samples, batch, data.window, recipe.seed)
        return Shuffled(data.train_samples, batch, recipe.seed)

    stages = derived.course.stages
    return of(recipe.batch) if len(stages) == 1 else Growing(derived.course, tuple(of(stage.batch) for stage in stages))


def _open(recipe: Recipe, app: apps.Application, ranks: int) -> tuple[Shards, tuple[Shards, ...]]:
    check_ranks(recipe, ranks)
    training = Shards(recipe.data.folder(), "train")
    evaluated = tuple(Shards(training.folder, split) for split in app.splits)
    make_room(OPEN_FILES * sum(len(data.files) for data in (training, *evaluated)), str(training.folder))  # opened later, all
    for data in (training, *evaluated):
        app.check(data)
    check_samples(recipe, len(training))
    return training, evaluated


def check_choices(recipe: Recipe) -> None:
    """What a rank would refuse of the application's and the solver's options, found without data and ranks.

    Raises:
        InputError: an unknown option, or a value that it does not take.
    """
    _application(recipe)
    _optimizer(recipe, nn.Linear(1, 1))


def _application(recipe: Recipe) -> apps.Application:
    options = dict(recipe.options) | ({"window": recipe.data.window} if recipe.data.window else {})
    return apps.application(recipe.application, **options)


def _optimizer(recipe: Recipe, model: nn.Module) -> Optimizer:
    """The learning rate is set before every step, from the schedule."""
    groups, options = parameter_groups(model, recipe.exempt), recipe.solvers.get(recipe.solver, {})
    if "lr" in options:
        raise InputError(f"recipe {recipe.name}: solvers.{recipe.solver}.lr: the learning rate is baseline.lr, or lr")
    try:
        return solver(recipe.solver, groups, recipe.baseline.lr, **options)
    except (ValueError, TypeError) as error:
        raise InputError(f"recipe {recipe.name}: {error}") from None
