"""The MNIST LSTM: the paper's shapes, and the fast path against the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from legw_hpc.apps import application
from legw_hpc.errors import InputError
from legw_hpc.models.mnist_lstm import HIDDEN, MnistLSTM
from legw_hpc.models.stateless import dropout


def test_the_shapes_of_the_paper() -> None:
    """28 -> 128 transform; cell kernel 256 x 512 (input and state to four gates); 10 classes."""
    model = MnistLSTM()
    assert tuple(model.transform.weight.shape) == (128, 28)
    assert tuple(torch.cat([model.input_kernel, model.state_kernel], 1).T.shape) == (256, 512)
    assert model(torch.rand(3, 28, 28)).shape == (3, 10)
    assert sum(p.numel() for p in model.parameters()) == 28 * 128 + 128 + 256 * 512 + 512 + 128 * 10 + 10


def test_the_fast_path_is_the_plain_one() -> None:
    torch.manual_seed(0)
    model = MnistLSTM().double()
    images, labels = torch.rand(9, 28, 28, dtype=torch.float64), torch.arange(9)
    gradients = []
    for forward in (model.forward, model.plain):
        model.zero_grad()
        logits = forward(images)
        F.cross_entropy(logits, labels).backward()
        gradients.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])  # type: ignore[union-attr]
    for fast, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-12)


def test_it_is_the_lstm_of_torch() -> None:
    """`plain` against nn.LSTM with the same weights: gate order, and the last state is what counts."""
    torch.manual_seed(0)
    model = MnistLSTM()
    images = torch.rand(5, 28, 28)
    states, _ = torchs(model)(model.transform(images.transpose(0, 1)))
    torch.testing.assert_close(model(images), model.head(states[-1]))


def torchs(model: MnistLSTM) -> nn.LSTM:
    """With the weights of the model's cell."""
    lstm = nn.LSTM(HIDDEN, HIDDEN)
    lstm.load_state_dict(
        {
            "weight_ih_l0": model.input_kernel.data,
            "weight_hh_l0": model.state_kernel.data,
            "bias_ih_l0": model.bias.data,
            "bias_hh_l0": torch.zeros(4 * HIDDEN),
        }
    )
    return lstm


def test_dropout_is_of_the_row_and_of_training_alone() -> None:
    """Of what enters the cell and of the last state: a share `rate` of each is 0, the others are scaled up."""
    torch.manual_seed(0)
    rate, images, keys = 0.4, torch.rand(6, 28, 28), torch.arange(6) * 7919
    model, usual = (application("mnist-lstm", **options).model() for options in ({"dropout": rate}, {}))
    usual.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(images), usual(images))
    dropped = model(images, keys)
    torch.testing.assert_close(dropped[2:5], model(images[2:5], keys[2:5]))
    assert not torch.isclose(dropped, model(images, keys + 1)).any()
    entering, leaving = (dropout(torch.ones(steps, 6, HIDDEN), rate, keys, layer) for steps, layer in ((28, 0), (1, 1)))
    states, _ = torchs(model)(model.transform(images.transpose(0, 1)) * entering)
    torch.testing.assert_close(dropped, model.head(states[-1] * leaving[0]))


def test_initialisation_has_open_forget_gates() -> None:
    model = MnistLSTM()
    gates = model.bias.detach().chunk(4)
    assert [gate.unique().tolist() for gate in gates] == [[0.0], [1.0], [0.0], [0.0]]
    assert 0.08 < model.state_kernel.abs().max() <= (6 / 768) ** 0.5


def test_the_initialisation_of_the_transform_and_the_head_is_an_option() -> None:
    torch.manual_seed(0)
    plain, wide = (application("mnist-lstm", **options).model() for options in ({}, {"init": "normal"}))
    assert plain.transform.weight.abs().max() <= (6 / (28 + HIDDEN)) ** 0.5
    assert wide.transform.weight.std().item() == pytest.approx(1, abs=0.05)
    assert wide.head.weight.std().item() == pytest.approx(1, abs=0.1)
    assert wide.head.bias.unique().tolist() == pytest.approx([0.1])
    assert wide.state_kernel.abs().max() <= (6 / 768) ** 0.5  # the cell's stays
    with pytest.raises(InputError, match="init must be one of xavier, normal, not 'norml'"):
        application("mnist-lstm", init="norml")
