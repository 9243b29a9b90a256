"""What a rank's memory is taken for, beside what the models keep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from legw_hpc import sizes
from legw_hpc.apps import application
from legw_hpc.errors import InputError
from legw_hpc.recipe import load
from legw_hpc.submit import memory
from legw_hpc.submit.job import Options, make
from legw_hpc.submit.machine import load as machine

# recipe -> words of more, and the tensors of n samples
SAMPLES: dict[str, tuple[list[str], Callable[[int], tuple[torch.Tensor, ...]]]] = {
    "mnist-lstm": ([], lambda n: (torch.rand(n, 28, 28), torch.zeros(n, dtype=torch.int64))),
    "ptb-lstm": ([], lambda n: (torch.zeros(n, 21, dtype=torch.int64), torch.arange(n))),
    "ptb-lstm-large": (
        ["options.layers=3", "options.hidden=300"],
        lambda n: (torch.zeros(n, 36, dtype=torch.int64), torch.arange(n)),
    ),
    "cifar10-resnet20": ([], lambda n: (torch.zeros(n, 32, 32, 3, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))),
    "imagenet-resnet50": (
        ["options.size=64", "options.resize=74"],
        lambda n: (torch.zeros(n, 64, 64, 3, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)),
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_memory_of_a_sample_is_what_it_leaves_for_the_backward_pass(name: str) -> None:
    words, samples = SAMPLES[name]
    recipe = load(name, words)
    app = application(recipe.application, **recipe.options, **({"window": recipe.data.window} if recipe.data.window else {}))

    def saved(count: int) -> int:
        model, kept = app.model().train(), dict[int, int]()

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            app.loss(model, None, *samples(count))
        return sum(kept.values())

    assert 0.95 < sizes.sample_bytes(recipe) / ((saved(8) - saved(4)) / 4) < 1.15


def test_memory_counts_options_and_solver() -> None:
    """The large PTB model has 66 million parameters, and an image of twice the size four times the pixels."""
    rank = memory.rank_gb
    assert rank(load("ptb-lstm-large"), 20) == pytest.approx(0.6 + 3 * 4 * 0.06602 + 20 * 0.0082, rel=0.01)
    images = [load("imagenet-resnet50", [f"options.size={size}"]) for size in (224, 448)]
    small, large = (rank(recipe, 32, gpu=True) - sizes.kept_bytes(recipe) / 1e9 for recipe in images)
    assert large == pytest.approx(4 * small)
    adam, sgd = (sizes.kept_bytes(load("mnist-lstm", [f"solver={name}"])) for name in ("adam", "sgd"))
    assert adam / sgd == pytest.approx(5 / 3)
    with pytest.raises(InputError, match="more than the 4 GB of machine localhost"):
        make("ptb-lstm-large", ["batch=640", "micro_batch=640"], machine("localhost", ["memory_gb=4"]), Options(nodes=1))
