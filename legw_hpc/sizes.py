"""How much an application exchanges, updates and keeps at every step, from its options, without torch."""

from __future__ import annotations

from typing import Any

from legw_hpc.allowed import APPLICATIONS
from legw_hpc.errors import InputError
from legw_hpc.recipe import Recipe

# Passes of the update over the parameters: reading the gradient once for its norm and once to step, reading and
# writing the weights, and each buffer that the solver keeps (derived; a fused kernel, as optim/ has them).
_BUFFERS = {
    "sgd": 0, "momentum": 1, "nesterov": 1, "adagrad": 1, "rmsprop": 1, "adam": 2, "adadelta": 2, "lars": 1, "rmsprop-warmup": 2,
}  # fmt: skip
MOST = 1_000_000_000  # words, classes or units of a network (assumed)
_IMAGES = ("classes", "label_smoothing", "batch_norm", "batch_norm_momentum")
# What an application takes; a test holds it to what the applications do.
OPTIONS = {
    "mnist-lstm": ("init", "dropout"),
    "ptb-lstm": ("vocabulary", "hidden", "layers", "init", "dropout"),
    "resnet20": _IMAGES,
    "resnet50": (*_IMAGES, "size", "resize", "crops"),
}
_SIZE = 224  # of resnet50's images: their work, and what they leave, goes with its square
# Bytes that a sample leaves for the backward pass in fp32 (measured by torch.autograd.graph.saved_tensors_hooks; a test holds
# them to that): of an image, and of a word for each unit of a layer and for each unit besides.
_IMAGE_BYTES = {"mnist-lstm": 0.241e6, "resnet20": 1.52e6, "resnet50": 86e6}
_WORD_BYTES = 72, 12
_KEPT = 3  # weights, gradients, and the buffer that an exchange makes (derived), beside what the solver keeps
_NORMS = {"lars": 2}  # of weights and of gradients, before the step


def parameters(recipe: Recipe) -> int:
    """Trainable ones of the recipe's network; tests hold them equal to the models'."""
    if recipe.application not in APPLICATIONS:
        raise InputError(f"recipe {recipe.name}: plan does not know how much an application of another package exchanges")
    if unknown := [key for key in recipe.options if key not in OPTIONS[recipe.application]]:
        takes = ", ".join(OPTIONS[recipe.application])
        raise InputError(f"application {recipe.application} has no option {unknown[0]!r}: it takes {takes}")
    if recipe.application == "ptb-lstm":
        words, hidden, layers = (_count(recipe, k, v) for k, v in (("vocabulary", 10000), ("hidden", 200), ("layers", 2)))
        return words * hidden + layers * (8 * hidden**2 + 4 * hidden) + (hidden + 1) * words
    usual, classes, row = {
        "mnist-lstm": (136_586, 10, 0),
        "resnet50": (25_557_032, 1000, 2049),  # a row of the last layer: 2,048 weights and a bias
        "resnet20": (269_722, 10, 65),
    }[recipe.application]
    return usual + (_count(recipe, "classes", classes) - classes) * row


def _count(recipe: Recipe, key: str, usual: int) -> int:
    value = recipe.options.get(key, usual)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
        raise InputError(f"recipe {recipe.name}: options.{key} must be a whole number from 1 to {MOST:,}, not {value!r}")
    return value


def network(recipe: Recipe) -> tuple[Any, ...]:
    """What a sample's time depends on: two recipes of which it is the same have one rate."""
    return recipe.application, parameters(recipe), recipe.data.window, recipe.options.get("size", _SIZE)


def gradient_bytes(recipe: Recipe) -> float:
    """Of the exchange of a step, in fp32 whatever the precision; batch norm's sums, 0.2 % of it, left out."""
    return 4.0 * parameters(recipe)


def sample_bytes(recipe: Recipe) -> float:
    """That a sample of the micro-batch (PTB: a row of a window of words) leaves for the backward pass, in fp32."""
    if recipe.application == "ptb-lstm":
        hidden, layers = _count(recipe, "hidden", 200), _count(recipe, "layers", 2)
        return float(recipe.data.window * hidden * (_WORD_BYTES[0] * layers + _WORD_BYTES[1]))
    scale = (_count(recipe, "size", _SIZE) / _SIZE) ** 2 if recipe.application == "resnet50" else 1.0
    return scale * _IMAGE_BYTES[recipe.application]


def kept_bytes(recipe: Recipe) -> float:
    """Of weights, gradients, the exchange's buffer, and the solver's."""
    return (_KEPT + _BUFFERS[recipe.solver]) * gradient_bytes(recipe)


def update_passes(recipe: Recipe) -> int:
    """Of the update, each over as many bytes as the gradient has."""
    return 4 + 2 * _BUFFERS[recipe.solver] + _NORMS.get(recipe.solver, 0)
