"""The loop: accumulate over micro-batches, exchange over ranks, clip, step.

Each rank sums the loss of its part of the global batch, divided by the size of the whole, so the
sum over ranks is the gradient of the mean loss: the same on any number of ranks, but for rounding
(invariant 1).  The learning rate is asked of the schedule at every step (invariant 3).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from legw_hpc import noise
from legw_hpc.apps import Application
from legw_hpc.comm import Comm
from legw_hpc.data.loader import Step
from legw_hpc.data.order import part
from legw_hpc.derived import Derived
from legw_hpc.errors import Diverged
from legw_hpc.gradients import Exchange, FlatGradients
from legw_hpc.precision import Precision


@dataclass
class Timing:
    """Seconds of training so far, by what they went to, the samples trained on, and the steps without an update (`Done.skipped`).

    Evaluations and checkpoints, which happen between steps, and probes are not in it.

    Attributes:
        loss_sum, loss_samples: since the last evaluation, the sum of the training samples' losses, and their number.
    """

    samples: int = 0
    skipped: int = 0
    input: float = 0.0
    compute: float = 0.0
    exchange: float = 0.0
    update: float = 0.0
    loss_sum: float = 0.0
    loss_samples: int = 0

    def train_loss(self) -> float | None:
        """Mean since it was asked last, which begins anew; None if nothing has been trained."""
        mean = self.loss_sum / self.loss_samples if self.loss_samples else None
        self.loss_sum, self.loss_samples = 0.0, 0
        return mean

    def line(self, since: Timing) -> dict[str, Any]:
        """Samples/s since an earlier state, and each part as a share of the time."""
        parts = {name: getattr(self, name) - getattr(since, name) for name in ("input", "compute", "exchange", "update")}
        seconds = sum(parts.values()) or math.inf
        rate = (self.samples - since.samples) / seconds
        return {"samples_per_s": float(f"{rate:.6g}"), **{name: round(value / seconds, 4) for name, value in parts.items()}}


@dataclass(frozen=True)
class Done:
    """One optimizer step, as the caller of `train` sees it.

    Attributes:
        step: steps done in the whole run.
        loss: mean over the global batch, before the step.
        gradient_norm: of the averaged gradient, before clipping.
        skipped: no update: fp16 overflowed, and the loss scale has been halved.
        stop, save: some rank asked for it, at this step, whatever that rank's clock.
        noise: of the gradient, if the recipe asks for it and several ranks have samples.
        curvature: L(x, g) before the step, where it was measured.
    """

    step: int
    lr: float
    loss: float
    gradient_norm: float
    skipped: bool
    stop: bool
    save: bool
    noise: noise.Noise | None = None
    curvature: float | None = None


def train(
    app: Application,
    model: nn.Module,
    optimizer: Optimizer,
    steps: Iterator[Step],
    derived: Derived,
    comm: Comm,
    *,
    timing: Timing,
    carried: list[Tensor],
    precision: Precision,
    clip_norm: float = 0.0,
    asks: Callable[[], tuple[bool, bool]] = lambda: (False, False),
    told: Callable[[int], None] = lambda done: None,
    probe: Callable[[FlatGradients], float | None] | None = None,
) -> Iterator[Done]:
    """Train, yielding after every optimizer step; the caller evaluates, checkpoints and logs.

    Args:
        app: gives the loss.
        model, optimizer: changed in place.
        steps: this rank's part of each global batch.
        derived: gives the learning rate of each step.
        comm: sums over ranks.
        timing: added to.
        carried: what each of this rank's micro-batches takes to the next step; changed in place.
        precision: of forward and backward; changed in place.
        clip_norm: largest norm of the averaged gradient; 0 is no clipping.
        asks: does this rank want to (stop, save); travels with the gradients, so that all ranks know
            of it at the same step.
        told: called with the micro-batches of the step that are done: a step may take an hour.
        probe: measures something of the averaged gradient, at the weights that it belongs to; leaves
            both as they are (curvature.py).

    Raises:
        Diverged: the loss or gradient is not finite, on every rank at the same step.
    """
    flat, recipe = FlatGradients(model), derived.recipe
    with Exchange(flat, comm, recipe.exchange_pieces, measures=recipe.noise_scale) as exchange:
        model.train()
        clock = time.perf_counter
        asked = start = clock()
        for step in steps:
            waited = clock() - asked
            lr = derived.lr(step.number)
            for group in optimizer.param_groups:
                group["lr"] = lr
                if "epoch" in group:
                    group["epoch"] = derived.course.epoch(step.number)
            # For a model that draws from torch (PtbLSTM's dropout draws by row instead): resume needs no state.
            seed(flat.buffer.device, recipe.seed, step.number, comm.rank)
            exchange.begin()
            if step.first:
                carried.clear()
            scale = precision.scale
            asked = clock()
            for number, tensors in enumerate(step.micro_batches):
                waited += clock() - asked
                with precision.autocast():
                    loss, after = app.loss(model, carried[number] if number < len(carried) else None, *tensors)
                loss = loss / step.samples
                if number + 1 == step.parts:
                    exchange.arm()
                (loss * scale if scale != 1 else loss).backward()
                flat.loss += loss.detach()
                if after is not None:
                    carried[number : number + 1] = [after]
                comm.beats += 1
                told(number + 1)
                asked = clock()
            exchange.start()
            flat.asked.copy_(torch.tensor(asks()))
            items = step.samples // (recipe.data.window or 1)
            if recipe.noise_scale:
                weight = noise.weight(items, len(part(items, comm.rank, comm.size)))
                flat.spread.copy_(exchange.squares / scale**2 * weight)
            computed = clock()
            exchange.finish()
            exchanged = clock()
            if scale != 1:
                flat.gradients.div_(scale)
            norm = torch.linalg.vector_norm(flat.gradients)
            loss_now, stop, save, spread, norm_now = torch.cat([flat.tail, norm[None]]).tolist()
            finite = math.isfinite(loss_now) and math.isfinite(norm_now)
            # fp16's scale is not in the loss, so a loss that is no number is not its fault.
            update = precision.keep(finite) or not math.isfinite(loss_now)
            if update and not finite:
                number = step.number + 1  # as logs count: the first step is 1
                raise Diverged(
                    f"diverged at step {number} ({derived.where(number)}): loss {loss_now:.6g}, gradient norm {norm_now:.6g}"
                )
            before = clock()
            curvature = probe(flat) if probe is not None and update else None
            probed = clock() - before
            if update:
                if clip_norm and norm_now > clip_norm:
                    flat.gradients.mul_(clip_norm / norm_now)
                optimizer.step()
                for module in flat.learners:
                    module.fold(step.samples)
            end = clock()
            timing.samples += step.samples
            timing.loss_sum += loss_now * step.samples
            timing.loss_samples += step.samples
            timing.skipped += not update
            timing.input += waited
            timing.compute += computed - start - waited
            timing.exchange += exchanged - computed
            timing.update += end - exchanged - probed
            estimate = None
            if recipe.noise_scale and update:
                estimate = noise.estimate(spread, norm_now**2, items, min(comm.size, items))
            yield Done(step.number + 1, lr, loss_now, norm_now, not update, stop > 0, save > 0, estimate, curvature)
            asked = start = clock()


def seed(device: torch.device, *numbers: int) -> None:
    """Seed torch's generator of a device; `torch.manual_seed` goes through all kinds of device, 0.4 ms a step."""
    mixed = 0
    for number in numbers:  # multiplied as in FNV-1a; the generator mixes what it is given
        mixed = ((mixed ^ number) * 0x100000001B3 + number) % 2**63
    torch.default_generator.manual_seed(mixed)
    if device.type == "cuda":
        torch.cuda.manual_seed(mixed)


def evaluate(
    app: Application, model: nn.Module, batches: Iterator[tuple[Tensor, ...]], comm: Comm, precision: Precision
) -> dict[str, float]:
    """The metrics over every sample once: sums are reduced, not means; no padding (invariant 4).

    Args:
        app: gives the sums and what they make.
        model: left in training mode.
        batches: this rank's part of the split; may be empty.
        comm: sums over ranks.
        precision: of forward.
    """
    model.eval()
    sums: dict[str, float] = {}
    with torch.inference_mode():
        for tensors in batches:
            with precision.autocast():
                found = app.evaluate(model, *tensors)
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            comm.beats += 1
    model.train()
    names = sorted({name for names in comm.gather(sorted(sums)) for name in names})
    # float64: exact for counts, and the order of ranks does not show in the digits that are printed.
    total = torch.tensor([sums.get(name, 0.0) for name in names], dtype=torch.float64)
    comm.sum_(total)
    return app.metrics(dict(zip(names, total.tolist(), strict=True)))
