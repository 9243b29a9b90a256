"""Batch normalisation whose running statistics are the same on every rank at every step.

In training, a layer normalises with the statistics of the samples at hand, and adds them up in a
small tensor, `sums`.  The trainer sums that over ranks together with the gradients, at no exchange
of its own, and then folds it into the running statistics: once a step, of the whole global batch.
So a checkpoint or an evaluation does not depend on which rank made it, nor resume on the number of
micro-batches.

Whose statistics a sample is normalised with is the layer's mode:

- "micro-batch": those of its micro-batch, the "ghost" batch norm of Hoffer et al. 2017
  (arXiv:1705.08741), § 4.  What is computed does not depend on the number of ranks, if their
  shares of the batch are cut into the same micro-batches.
- "rank": the same layer; the recipe then gives each rank its share in one micro-batch.
- "sync": those of the micro-batches that all ranks work on at the same time.  Written here because
  Horovod's SyncBatchNorm refuses tensors that are on a CPU, and PyTorch's wants torch.distributed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from legw_hpc.errors import InputError

MODES = ("micro-batch", "rank", "sync")

# Replaces a contiguous tensor by its sum over ranks, in place.
Sum = Callable[[Tensor], None]


class StepStatistics(nn.Module):
    """A layer that learns something from the global batch besides gradients.

    The trainer zeroes `sums` before a step, sums it over ranks after the step's micro-batches, and
    calls `fold`.

    Attributes:
        sums: float32, on the layer's device; not in the state dict.  The trainer may put a view of
            its own buffer here, so the layer writes in place.
    """

    sums: Tensor

    def fold(self, samples: int) -> None:
        """Take in `sums`, by now over all ranks.

        Args:
            samples: of the global batch.
        """
        raise TypeError("a layer defines fold")


class BatchNorm(nn.BatchNorm2d, StepStatistics):
    """Over [B, C, H, W], per channel; see the module's text.  Parameters and state dict are torch's.

    A share of the batch that has one value per channel (a single sample of 1x1) has no variance: it is
    normalised as in evaluation, and adds the running statistics, so that it leaves them as they are.

    Args:
        channels: C.
        mode: one of MODES.

    Attributes:
        sums: [2, C]; the mean and the unbiased variance of each micro-batch so far, times its samples.
        sum_over_ranks: set by `synchronise`; of "sync" alone.

    Raises:
        InputError: unknown mode.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, channels: int, mode: str = "micro-batch"):
        if mode not in MODES:
            raise InputError(f"unknown batch_norm {mode!r}: one of {', '.join(MODES)}")
        super().__init__(channels, eps=1e-5, momentum=0.1)
        self.mode = mode
        self.sum_over_ranks: Sum | None = None
        self.register_buffer("sums", torch.zeros(2, channels), persistent=False)

    def extra_repr(self) -> str:
        return f"{self.num_features}, mode={self.mode!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Normalised [B, C, H, W], in x's type and memory format."""
        if not self.training:
            return self._with_running(x)
        if self.mode == "sync":
            if self.sum_over_ranks is None:  # never a silent fallback to this rank's own statistics
                raise RuntimeError("batch_norm 'sync' trains after synchronise(model, sum_) alone")
            pooled = _pooled(x.detach(), self.sum_over_ranks)
            if pooled.values > 1:
                self._add(x.shape[0], pooled.mean, pooled.variance * (pooled.values / (pooled.values - 1)))
                return _Synchronised.apply(x, self.weight, self.bias, pooled, self.eps, self.sum_over_ranks)
        elif x.numel() > self.num_features:
            # The kernel leaves the batch's mean and unbiased variance here: momentum 1 is no memory.
            scratch = torch.zeros_like(self.sums)
            y = F.batch_norm(x, scratch[0], scratch[1], self.weight, self.bias, True, 1.0, self.eps)
            self._add(x.shape[0], scratch[0], scratch[1])
            return y
        self._add(x.shape[0], self.running_mean, self.running_var)
        return self._with_running(x)

    def fold(self, samples: int) -> None:
        """Move the running statistics towards the mean over the global batch; empties `sums`."""
        mean, variance = self.sums / samples
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1
        self.sums.zero_()

    def _with_running(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def _add(self, samples: int, mean: Tensor, variance: Tensor) -> None:
        with torch.no_grad():
            self.sums[0].add_(mean, alpha=samples)
            self.sums[1].add_(variance, alpha=samples)


def synchronise(model: nn.Module, sum_: Sum) -> int:
    """Give the layers of mode "sync" the sum over ranks.

    From then on every rank must call forward and backward equally often in training, with an empty
    micro-batch [0, C, H, W] where it has none.

    Args:
        model: changed in place.
        sum_: sums a contiguous tensor, float64 among them, over ranks in place.

    Returns:
        How many layers there are.
    """
    layers = [module for module in model.modules() if isinstance(module, BatchNorm) and module.mode == "sync"]
    for layer in layers:
        layer.sum_over_ranks = sum_
    return len(layers)


class _Pooled(NamedTuple):
    """Statistics over the micro-batches of all ranks: [C], variance biased, and the values in each channel."""

    mean: Tensor
    variance: Tensor
    values: int


def _pooled(x: Tensor, sum_: Sum) -> _Pooled:
    """One exchange, of 2C + 1 numbers.

    Within a rank the variance is taken in two passes.  Between ranks the squares of the means are
    exchanged in float64, where their cancellation is below float32's rounding up to a mean of about
    1e4 standard deviations (derived: 1e8 * 2**-53 < 2**-24).
    """
    rows = _float(x)
    count = rows.numel() // rows.shape[1]
    mean = rows.sum((0, 2, 3)) / max(count, 1)
    within = (rows - _wide(mean)).square_().sum((0, 2, 3)).double()
    own = mean.double()
    sums = torch.cat([own * count, within + own.square() * count, own.new_tensor([count])])
    sum_(sums)
    values = int(sums[-1])
    total_mean, mean_of_squares = (sums[:-1] / max(values, 1)).chunk(2)
    variance = (mean_of_squares - total_mean.square()).clamp_min_(0)
    return _Pooled(total_mean.to(rows.dtype), variance.to(rows.dtype), values)


class _Synchronised(torch.autograd.Function):
    """Normalise with statistics that depend on the samples of all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, pooled: _Pooled, eps: float, sum_: Sum) -> Tensor:
        ctx.save_for_backward(x, weight, pooled.mean, (pooled.variance + eps).rsqrt())
        ctx.values, ctx.sum_ = pooled.values, sum_
        return F.batch_norm(x, pooled.mean, pooled.variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The loss is a sum over ranks, so every rank's gradient reaches the samples of all."""
        x, weight, mean, scale = ctx.saved_tensors
        gradient = _float(gradient)
        normal = (_float(x) - _wide(mean)) * _wide(scale)
        sums = torch.stack([gradient.sum((0, 2, 3)), (gradient * normal).sum((0, 2, 3))])
        of_bias, of_weight = sums.clone()  # this rank's share, as of every other parameter
        ctx.sum_(sums)
        of_mean, of_scale = sums / ctx.values
        of_x = (gradient - _wide(of_mean)).sub_(normal.mul_(_wide(of_scale))).mul_(_wide(weight * scale))
        return of_x.to(x.dtype), of_weight, of_bias, None, None, None


def _float(x: Tensor) -> Tensor:
    """At least float32; x itself if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _wide(channels: Tensor) -> Tensor:
    """[C] as [1, C, 1, 1]."""
    return channels[None, :, None, None]
