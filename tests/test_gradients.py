"""The flat gradient, and its sum in pieces behind the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from legw_hpc.comm import Comm
from legw_hpc.gradients import Exchange, FlatGradients, cut


class Recorded(Comm):
    """Two ranks of which the other has the same gradient; tells what was begun and ended, and how large it was."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def start_sum_(self, tensor: Tensor) -> Callable[[], None]:
        self.said.append(f"start {tensor.numel()}")
        tensor.mul_(2)
        return lambda: self.said.append(f"end {tensor.numel()}")


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3), nn.Linear(3, 1))


def gradient(net: nn.Module, micro_batches: int) -> list[Tensor]:
    net.zero_grad()
    for _ in range(micro_batches):
        net(torch.ones(5, 2)).sum().backward()
    return [2 * p.grad for p in net.parameters() if p.grad is not None]


# Elements of the pieces: the parameters from the last to the first, and four numbers behind them.
PIECES = {"one": (1, [35]), "two": (2, [19, 16]), "more than there are parameters": (99, [1, 3, 3, 12, 4, 12])}
EACH = PIECES["more than there are parameters"][1]


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_is_summed_once_the_last_backward_pass_has_filled_it(name: str) -> None:
    count, sizes = PIECES[name]
    reference = gradient(model(), 2)
    net, comm = model(), Recorded()
    flat = FlatGradients(net)
    exchange = Exchange(flat, comm, count, measures=True)
    for _ in range(2):
        comm.said.clear()
        exchange.begin()
        net(torch.ones(5, 2)).sum().backward()
        assert comm.said == []
        exchange.arm()
        net(torch.ones(5, 2)).sum().backward()
        behind = [f"start {size}" for size in sizes[:-1]]
        assert sorted(comm.said) == sorted(behind)
        comm.said.clear()
        exchange.start()
        assert comm.said == []
        flat.loss.fill_(3)
        exchange.finish()
        assert comm.said == [f"start {sizes[-1]}", *(f"end {size}" for size in sizes)]
        for p, whole in zip(net.parameters(), reference, strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.grad, whole)
        assert flat.loss == 6
        assert exchange.squares == pytest.approx(sum(float((g / 2).square().sum()) for g in reference), rel=1e-5)


@pytest.mark.parametrize("used", [False, True], ids=["no samples", "parameters that are not used"])
def test_what_no_backward_pass_has_filled_is_summed_after_it(used: bool) -> None:
    net, comm = model(), Recorded()
    exchange = Exchange(FlatGradients(net), comm, 99)
    exchange.begin()
    if used:
        exchange.arm()
        net[3](torch.ones(1, 3)).sum().backward()
    assert sorted(comm.said) == (["start 1", "start 3"] if used else [])
    exchange.start()
    exchange.finish()
    assert sorted(comm.said) == sorted(f"{what} {size}" for what in ("start", "end") for size in EACH)


def test_a_second_gradient_of_one_pass_is_refused() -> None:
    net = model()
    exchange = Exchange(FlatGradients(net), Recorded(), 99)
    exchange.begin()
    exchange.arm()
    net[3](torch.ones(1, 3)).sum().backward()
    with pytest.raises(RuntimeError, match="exchange_pieces=1"):
        net[3](torch.ones(1, 3)).sum().backward()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 60))
def test_pieces_are_about_as_large(sizes: list[int], pieces: int) -> None:
    parameters = [torch.empty(size) for size in sizes]
    parts = cut(parameters, pieces)
    assert [p.numel() for part in parts for p in part] == sizes
    assert 1 <= len(parts) <= pieces
    assert all(parts)
    sums = [sum(p.numel() for p in part) for part in parts]
    assert all(size * pieces >= sum(sizes) for size in sums[:-1])  # no slivers
    assert all(size * pieces < sum(sizes) + pieces * part[-1].numel() for size, part in zip(sums, parts, strict=True))
