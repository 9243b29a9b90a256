"""The solvers of § 5.2 by name, and LEGW as a scheduler over them."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from legw_hpc.legw import Baseline, scale
from legw_hpc.optim import LEGW, SOLVERS, parameter_groups, solver
from legw_hpc.optim.rmsprop_warmup import share_of_sgd
from legw_hpc.schedule import Poly, build

# A learning rate that suits each on the quadratic below.
LEARNING_RATES = {
    "sgd": 0.1,
    "momentum": 0.02,
    "nesterov": 0.02,
    "adagrad": 0.5,
    "rmsprop": 0.01,
    "adam": 0.05,
    "adadelta": 5.0,
    "lars": 0.02,
    "rmsprop-warmup": 0.02,
}
PAPER = ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adadelta"]


def test_the_seven_of_the_paper_and_others() -> None:
    assert list(SOLVERS) == [*PAPER, "lars", "rmsprop-warmup"]


@pytest.mark.parametrize(("name", "lr"), LEARNING_RATES.items())
def test_reduces_a_quadratic(name: str, lr: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    x = torch.randn(64, 8)
    y = x @ torch.arange(8.0)[:, None]
    optimizer = solver(name, parameter_groups(model), lr, **({"eta": 1.0} if name == "lars" else {}))
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


def test_momentum_is_the_equation_of_the_paper() -> None:
    """v = m v + g; w -= lr v."""
    w = torch.tensor([1.0], requires_grad=True)
    optimizer = solver("momentum", [w], 0.1)
    velocity, expected = 0.0, 1.0
    for gradient in (1.0, -2.0, 0.5):
        w.grad = torch.tensor([gradient])
        optimizer.step()
        velocity = 0.9 * velocity + gradient
        expected -= 0.1 * velocity
    assert w.item() == pytest.approx(expected)


TORCH: dict[str, Callable[[list[torch.Tensor], float], torch.optim.Optimizer]] = {
    "sgd": lambda w, lr: torch.optim.SGD(w, lr, fused=True),
    "momentum": lambda w, lr: torch.optim.SGD(w, lr, momentum=0.9, fused=True),
    "nesterov": lambda w, lr: torch.optim.SGD(w, lr, momentum=0.9, nesterov=True, fused=True),
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adam": lambda w, lr: torch.optim.Adam(w, lr, fused=True),
    "adadelta": torch.optim.Adadelta,
}


@pytest.mark.parametrize("name", PAPER)
def test_equals_the_one_of_torch(name: str) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(33), torch.randn(5, 33)
    ends = []
    for make in (lambda w, lr: solver(name, w, lr), TORCH[name]):
        w = start.clone().requires_grad_()
        optimizer = make([w], LEARNING_RATES[name])
        for gradient in gradients:
            w.grad = gradient.clone()
            optimizer.step()
        ends.append(w.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("epoch", "share"), [(0, 0.5 * math.exp(-4)), (5, 0.5 * math.exp(-2)), (10, 0.5), (11.25, 0.75), (12.5, 1), (90, 1)]
)
def test_the_share_of_sgd(epoch: float, share: float) -> None:
    assert share_of_sgd(epoch, 10, 5) == pytest.approx(share)


# The epoch, and the optimizer of torch's that is left of the two there.
ENDS: dict[str, tuple[float, Callable[[list[torch.Tensor]], torch.optim.Optimizer]]] = {
    "RMSprop": (-1e9, lambda w: torch.optim.RMSprop(w, 3e-4, alpha=0.99, eps=1e-8, momentum=0.9, weight_decay=0.01)),
    "SGD": (12.5, lambda w: torch.optim.SGD(w, 0.1, momentum=0.9, weight_decay=0.01)),
}


@pytest.mark.parametrize("name", ENDS)
def test_rmsprop_turns_into_sgd(name: str) -> None:
    epoch, make = ENDS[name]
    torch.manual_seed(0)
    start, gradients = torch.randn(33, dtype=torch.float64), torch.randn(6, 33, dtype=torch.float64)
    weights = [start.clone().requires_grad_() for _ in range(2)]
    ours, theirs = solver("rmsprop-warmup", [weights[0]], 0.1, weight_decay=0.01), make([weights[1]])
    ours.param_groups[0]["epoch"] = epoch
    for gradient in gradients:
        for w, optimizer in zip(weights, (ours, theirs), strict=True):
            w.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-9, atol=1e-12)
    assert not torch.equal(weights[0], start)


REFUSED = [
    ("adamw2", {}, "adamw2"),
    ("sgd", {"momentum": 0.9}, "sgd has no option 'momentum'"),
    ("adam", {"eta": 1}, "adam has no option 'eta'"),
    ("momentum", {"momentum": 1.5}, "momentum: momentum must be a number of at least 0 and below 1, not 1.5"),
    ("momentum", {"weight_decay": True}, "weight_decay must be a number of at least 0, not True"),
    ("adam", {"beta2": "x"}, "beta2 must be a number .* not 'x'"),
    ("lars", {"eta": math.nan}, "eta must be a number .* not nan"),
    ("momentum", {"weight_decay": 10**400}, "weight_decay must be a number of at least 0"),
    ("lars", {"variant": 3}, "variant must be a str, not 3"),
    ("lars", {"clip": 1}, "clip must be a bool, not 1"),
]


@pytest.mark.parametrize(("name", "options", "words"), REFUSED)
def test_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        solver(name, [torch.zeros(1, requires_grad=True)], 0.1, **options)


def scheduler(optimizer: torch.optim.Optimizer, **changed: object) -> LEGW:
    options = {"base_batch": 128, "batch": 8192, "warmup_epochs": 0.1, "epochs": 25, "steps_per_epoch": 8}
    return LEGW(optimizer, **(options | changed))  # type: ignore[arg-type]


def two_groups() -> torch.optim.Optimizer:
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    return torch.optim.SGD([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:], "lr": 0.01}])


def test_legw_scales_every_group_and_follows_the_closed_form() -> None:
    optimizer = two_groups()
    legw = scheduler(optimizer, decay=Poly())
    for step in range(200):
        for group, lr in zip(optimizer.param_groups, (0.1, 0.01), strict=True):
            scaled = scale(Baseline(128, lr, 0.1), 8192)
            expected = build(scaled.lr, 25, "gradual", scaled.warmup_epochs, Poly())(step / 8)
            assert group["lr"] == pytest.approx(expected)
        optimizer.step()
        legw.step()


def test_legw_resumes_from_its_state() -> None:
    straight, resumed = two_groups(), two_groups()
    a = scheduler(straight)
    for _ in range(30):
        straight.step()
        a.step()
    file = io.BytesIO()
    torch.save(a.state_dict(), file)
    file.seek(0)
    b = scheduler(resumed)
    b.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(30):
        for optimizer, legw in ((straight, a), (resumed, b)):
            optimizer.step()
            legw.step()
        assert [g["lr"] for g in straight.param_groups] == [g["lr"] for g in resumed.param_groups]
    assert a.get_last_lr() == b.get_last_lr()


def test_a_state_of_another_schedule_is_refused() -> None:
    state = scheduler(two_groups()).state_dict()
    with pytest.raises(
        ValueError, match="state is of batch=8192, steps_per_epoch=8, the scheduler of batch=4096, steps_per_epoch=15"
    ):
        scheduler(two_groups(), batch=4096, steps_per_epoch=15).load_state_dict(state)
    for change in ({"warmup_epochs": 0.2}, {"scheme": "linear"}, {"decay": Poly()}):
        with pytest.raises(ValueError, match=f"state is of {next(iter(change))}="):
            scheduler(two_groups(), **change).load_state_dict(state)
    scheduler(two_groups(), epochs=50, fixed_warmup_epochs=1.0).load_state_dict(state)  # of which no rate is made here
    larger = two_groups()
    larger.param_groups[0]["lr"] *= 2
    with pytest.raises(ValueError, match="state is of base_lrs="):
        scheduler(larger).load_state_dict(state)
    older = {key: state[key] for key in ("last_epoch", "base_lrs", "_last_lr")}
    scheduler(two_groups()).load_state_dict(older)


def test_a_tensor_stays_the_learning_rate_that_a_graph_has_captured() -> None:
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=rate, capturable=False, foreach=False)
    legw = scheduler(optimizer)
    optimizer.step()
    legw.step()
    state, held = legw.state_dict(), optimizer.param_groups[0]["lr"]
    assert all(isinstance(value, float) for key in ("base_lrs", "_last_lr") for value in state[key])
    now = float(held)
    held.fill_(7.0)
    legw.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] is held
    assert float(held) == pytest.approx(now)


def test_what_a_group_may_be() -> None:
    optimizer = two_groups()
    optimizer.param_groups[1]["lr"] = 0.0  # frozen
    legw = scheduler(optimizer)
    optimizer.step()
    legw.step()
    assert legw.get_last_lr()[0] > legw.get_last_lr()[1] == 0.0
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.1})
    with pytest.raises(ValueError, match=r"has 3 groups, and had 2 when LEGW was made.* last_epoch=scheduler.last_epoch - 1"):
        legw.step()
    legw, other = scheduler(first := two_groups()), scheduler(second := two_groups())
    for _ in range(5):
        for optimizer, each in ((first, legw), (second, other)):
            optimizer.step()
            each.step()
    second.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.1, "initial_lr": 0.1})
    again = scheduler(second, last_epoch=other.last_epoch - 1)
    assert again.get_last_lr()[:2] == legw.get_last_lr()
    assert again.get_last_lr()[2] == legw.get_last_lr()[0]


@pytest.mark.parametrize("decay", ["poly", Poly])
def test_a_decay_is_no_name_and_no_class(decay: object) -> None:
    with pytest.raises(ValueError, match=r"decay must be one of legw_hpc\.schedule, such as Poly\(power=2\), not "):
        scheduler(two_groups(), decay=decay)


def test_a_short_run_has_a_shorter_fixed_warmup() -> None:
    with pytest.raises(ValueError, match="warmup"):
        scheduler(two_groups(), scheme="linear", epochs=4)
    legw = scheduler(two_groups(), scheme="linear", epochs=4, fixed_warmup_epochs=1)
    for _ in range(8):
        legw.optimizer.step()
        legw.step()
    assert legw.get_last_lr() == pytest.approx([6.4, 0.64])


def test_legw_is_pickled_as_torchs_own() -> None:
    """torch.save of a scheduler, or another process that is handed one."""
    legw = scheduler(two_groups(), decay=Poly())
    legw.optimizer.step()
    legw.step()
    again = pickle.loads(pickle.dumps(legw))
    legw.step()
    again.step()
    assert again.get_last_lr() == legw.get_last_lr()


def test_legw_joins_a_restored_optimizer() -> None:
    """last_epoch as in every scheduler of torch: the groups then carry `initial_lr`."""
    first, second = two_groups(), two_groups()
    legw = scheduler(first)
    for _ in range(10):
        first.step()
        legw.step()
    second.load_state_dict(first.state_dict())
    scheduler(second, last_epoch=9)
    assert [g["lr"] for g in second.param_groups] == pytest.approx([g["lr"] for g in first.param_groups])


@pytest.mark.parametrize("changed", [{"warmup_epochs": 1.0}, {"batch": 0}, {"steps_per_epoch": 0}, {"scheme": "x"}])
def test_legw_refuses(changed: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        scheduler(two_groups(), **changed)
