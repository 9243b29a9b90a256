"""LARS: momentum SGD whose step is scaled, tensor by tensor, by a trust ratio (You et al. 2017).

For a weight w with gradient g, weight decay wd and momentum m:

    q = eta * ||w|| / (||g|| + wd * ||w|| + eps)        the trust ratio
    d = g + wd * w

Public code calls three different algorithms LARS; they differ in what the momentum buffer v holds,
and are equal only while q and the learning rate stay constant:

    "paper"   v = m v + lr q d      w -= v             MLPerf's reference, optax, Intel Caffe
    "timm"    v = m v + q d         w -= lr v          timm, apex LARC, torchlars, VISSL
    "nus"     v = m v + d           w -= lr q v        NUS LARS-ImageNet-PyTorch, ColossalAI

All three are `v = m v + a d; w -= b v` with an (a, b) for each tensor, which is SGD with a dampening
of 1 - a and a learning rate of b.  So on a CPU the step is torch's fused SGD kernel, one call a
tensor with its own two numbers, right after its two norms.
`reference.py` holds the equations as they stand above.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

VARIANTS = ("paper", "timm", "nus")
WIDE = (torch.float32, torch.float64)
DENOMINATORS = ("sum", "norm")


def trust_ratio(weight_norm: Tensor, denominator: Tensor, eta: float) -> Tensor:
    """eta * ||w|| / denominator, and 1 where the weight or the denominator is zero.

    A zero weight has no scale to relate a step to, and a zero gradient no step: both fall back to
    plain SGD, as every public LARS does.

    Args:
        weight_norm: ||w||, any shape; one entry a tensor.
        denominator: the same shape.
        eta: the trust coefficient.

    Returns:
        q, the same shape.
    """
    usable = (weight_norm > 0) & (denominator > 0)
    return torch.where(usable, eta * weight_norm / denominator, torch.ones_like(weight_norm))


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling, an ordinary `torch.optim.Optimizer`.

    Args:
        params: tensors or groups of them.  A group with `adapt=False` takes q = 1, which is plain
            momentum SGD; `parameter_groups` makes such a group, without decay, of the biases and
            normalisation parameters.
        lr: the global learning rate; there is a default, as torch's optimizers have it, because Horovod's DistributedOptimizer
            makes one of the groups alone.
        momentum: m.
        weight_decay: wd.
        eta: the trust coefficient (0.001 in You et al. and in MLPerf).
        eps: added to the denominator (0 in the paper).
        variant: "paper", "timm" or "nus"; see above.
        denominator: "sum" for ||g|| + wd ||w|| (the paper), "norm" for ||g + wd w|| (optax, VISSL).
        clip: as apex's LARC clips by default: the factor is min(q / lr, 1) in place of q, so that a
            tensor's own rate is q, and at most lr.

    Raises:
        ValueError: a negative or not finite number, or an unknown variant or denominator.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        eps: float = 0.0,
        variant: str = "paper",
        denominator: str = "sum",
        clip: bool = False,
    ):
        numbers = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "eps": eps}
        super().__init__(params, numbers | {"variant": variant, "denominator": denominator, "clip": clip, "adapt": True})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; a group's own options are checked like the optimizer's."""
        options = self.defaults | param_group
        for name in ("lr", "momentum", "weight_decay", "eta", "eps"):
            if not (math.isfinite(options[name]) and options[name] >= 0):
                raise ValueError(f"{name} must be a number of at least 0, not {options[name]}")
        for name, known in (("variant", VARIANTS), ("denominator", DENOMINATORS)):
            if options[name] not in known:
                raise ValueError(f"unknown LARS {name} {options[name]!r}: one of {', '.join(known)}")
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As in torch; an option that the state lacks, as that of another optimizer does, stays as it is."""
        own = getattr(self, "param_groups", [])
        super().__setstate__(state)
        for index, group in enumerate(self.param_groups):
            for name, value in (self.defaults | (own[index] if index < len(own) else {})).items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; `closure`, as in torch.optim, evaluates the loss again and is optional."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if not weights:
                continue
            gradients = [_gradient(w) for w in weights]
            buffers = [self._buffer(w) for w in weights]
            update = _update_cpu if weights[0].device.type == "cpu" else _update_foreach
            update(weights, gradients, buffers, group)
        return loss

    def _buffer(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state["momentum_buffer"]


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    if weight.grad.is_sparse:
        raise ValueError("LARS takes dense gradients; build the embedding with sparse=False")
    if weight.is_complex():
        raise ValueError("LARS takes real weights; keep complex ones as torch.view_as_real has them")
    return weight.grad


def _ratio(weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> float:
    """q of one tensor, as a number of the host; `_ratios` is the same where that would make a device wait."""
    wd, weight_norm = group["weight_decay"], _norm(weight)
    if group["denominator"] == "norm" and wd:
        below = _norm_of_sum(gradient, weight, wd).item()
    else:
        gradient_norm = _norm(gradient)
        below = gradient_norm + wd * weight_norm if gradient_norm > 0 else 0.0
    q = group["eta"] * weight_norm / (below + group["eps"]) if weight_norm > 0 and below > 0 else 1.0
    if group["clip"]:  # at lr 0 there is nothing that q / lr could fall short of
        return min(q / group["lr"], 1.0) if group["lr"] > 0 else 1.0
    return q


def _norm(tensor: Tensor) -> float:
    """||tensor||, as the root of a BLAS dot product, whose sum of squares is a third faster than torch's norm (measured)."""
    flat = _in_memory_order(tensor)
    if flat.dtype not in WIDE:  # whose sum of squares may be larger than the type holds
        return torch.linalg.vector_norm(flat, dtype=torch.float32).item()
    return math.sqrt(torch.dot(flat, flat).item())


def _ratios(weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> Tensor:
    """q of every tensor as one vector [tensors], on their device."""
    wd = group["weight_decay"]
    # One vector of norms each: no number crosses to the host, whatever the count of tensors.
    weight_norm = torch.stack(torch._foreach_norm(weights))
    if group["denominator"] == "norm" and wd:
        below = torch.stack([_norm_of_sum(g, w, wd) for g, w in zip(gradients, weights, strict=True)])
    else:
        gradient_norm = torch.stack(torch._foreach_norm(gradients))
        below = torch.where(gradient_norm > 0, gradient_norm + wd * weight_norm, 0.0)
    q = trust_ratio(weight_norm, torch.where(below > 0, below + group["eps"], 0.0), group["eta"])
    if group["clip"]:
        return (q / group["lr"]).clamp(max=1.0) if group["lr"] > 0 else torch.ones_like(q)
    return q


def _norm_of_sum(gradient: Tensor, weight: Tensor, wd: float) -> Tensor:
    """||g + wd w||, in pieces, so that the temporary stays in the cache whatever the tensor's size."""
    piece = 1 << 16
    if gradient.stride() != weight.stride() or gradient.device.type != "cpu":
        return torch.linalg.vector_norm(gradient.add(weight, alpha=wd))
    g, w = _in_memory_order(gradient), _in_memory_order(weight)
    parts = [torch.linalg.vector_norm(g[i : i + piece].add(w[i : i + piece], alpha=wd)) for i in range(0, len(g), piece)]
    return torch.linalg.vector_norm(torch.stack(parts))


def _in_memory_order(tensor: Tensor) -> Tensor:
    """[elements] without a copy for any dense layout (channels_last too)."""
    order = sorted(range(tensor.dim()), key=lambda i: tensor.stride(i), reverse=True)
    return tensor.permute(order).reshape(-1)


def _factors(variant: str, lr: Any, q: Any) -> tuple[Any, Any]:
    """(a, b) of `v = m v + a d; w -= b v`; the table in this module's docstring."""
    return {"paper": (lr * q, 1.0), "timm": (q, lr), "nus": (1.0, lr * q)}[variant]


def _update_cpu(weights: list[Tensor], gradients: list[Tensor], buffers: list[Tensor], group: dict[str, Any]) -> None:
    """Tensor by tensor, each right after its norms, while the cache still holds it.

    Measured on ResNet-50, one core beside other load: 1.33 to 1.46 times the time of fused SGD; 1.47 to 1.66 with the
    norms of all tensors first, 1.41 to 1.80 with q made of tensors of one element.
    """
    m, wd, lr, adapt = group["momentum"], group["weight_decay"], float(group["lr"]), group["adapt"]
    triples = list(zip(weights, gradients, buffers, strict=True))
    # The kernel takes no buffer where there is no momentum, and tensors in one memory order only.  Of half precision it updates
    # a few elements alone (torch 2.12 and 2.13, pytorch issue 191763).
    fused = bool(m) and all(w.stride() == g.stride() == v.stride() and w.dtype in WIDE for w, g, v in triples)
    # Those that share q = 1 go in one call: biases and the like are many and small.
    for part in [[triple] for triple in triples] if adapt or not fused else [triples]:
        w, g, v = part[0]
        a, b = _factors(group["variant"], lr, _ratio(w, g, group) if adapt else 1.0)
        if fused:
            ws, gs, vs = map(list, zip(*part, strict=True))
            torch._fused_sgd_(
                ws, gs, vs, weight_decay=wd, momentum=m, lr=b, dampening=1.0 - a,
                nesterov=False, maximize=False, is_first_step=False,
            )  # fmt: skip
        else:
            v.mul_(m).add_(g, alpha=a).add_(w, alpha=a * wd)
            w.add_(v, alpha=-b)


def _update_foreach(weights: list[Tensor], gradients: list[Tensor], buffers: list[Tensor], group: dict[str, Any]) -> None:
    m, wd, lr = group["momentum"], group["weight_decay"], group["lr"]
    q: Any = _ratios(weights, gradients, group) if group["adapt"] else 1.0
    a, b = _factors(group["variant"], lr, q)
    d = torch._foreach_add(gradients, weights, alpha=wd) if wd else torch._foreach_mul(gradients, 1.0)
    torch._foreach_mul_(buffers, m)
    torch._foreach_mul_(d, _per_tensor(a, len(weights)))
    torch._foreach_add_(buffers, d)
    step = torch._foreach_mul(buffers, _per_tensor(b, len(weights)))
    torch._foreach_sub_(weights, step)


def _per_tensor(factor: Any, count: int) -> Any:
    """A number stays one for all; a vector of factors becomes one 0-dim tensor for each."""
    if isinstance(factor, Tensor):
        return list(factor.expand(count).unbind())
    return factor
