"""What a recipe may hold, and with what ranks and data.  Options of solvers and applications are checked in work.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from legw_hpc import installed, strict
from legw_hpc.errors import InputError
from legw_hpc.schedule import DECAYS

if TYPE_CHECKING:
    from legw_hpc.recipe import Recipe

# The names alone, so that `plan` refuses an unknown one without torch; tests hold them equal to the code's.
APPLICATIONS = ("mnist-lstm", "ptb-lstm", "resnet50", "resnet20")
SOLVERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adadelta", "lars", "rmsprop-warmup")
# Those with batch norm: the micro-batch decides what is normalised together, so it is part of the result.
NORMALISED = ("resnet50", "resnet20")
# Those that read a text in windows: rows of words, in order, instead of samples drawn one by one.
TEXTS = ("ptb-lstm",)
PRECISIONS = ("fp32", "bf16", "fp16")
TWINS = ("none", "no-exchange", "synthetic")
COMMS = ("auto", "serial", "horovod", "mpi")
DEVICES = ("auto", "cpu", "cuda")
MOST_EPOCHS = 1_000_000  # assumed: beyond any training


def check(recipe: Recipe) -> None:
    """Refuse what no run can be.

    Raises:
        InputError: an unknown name, a value out of range, or two that do not go together.
    """
    at_least = {
        "batch": 1, "micro_batch": 0, "max_steps": 0, "curvature_every": 0, "threads": 0, "clip_norm": 0, "seed": 0,
        "exchange_pieces": 1,
        "data.train_samples": 1, "data.window": 0, "input_threads": 0, "checkpoint.every_steps": 0,
        "checkpoint.every_minutes": 0, "stall_minutes": 0, "checkpoint.keep": 1,
        "fixed_warmup_epochs": 0, "warmup_epochs": 0, "growth.factor": 2,
    }  # fmt: skip
    if recipe.seed >= 2**63:
        raise InputError(f"recipe {recipe.name}: seed must be below 2**63, not {recipe.seed}")
    above = ("epochs", "eval_every", "lr", "log_every")
    flat = strict.flatten(recipe.as_dict())
    for key, least in at_least.items():
        value = flat[key]
        if value is not None and not (math.isfinite(value) and value >= least):
            raise InputError(f"recipe {recipe.name}: {key} must be at least {least}, not {value}")
    known = {"application": APPLICATIONS, "solver": SOLVERS, "precision": PRECISIONS, "twin": TWINS}
    known |= {"comm": COMMS, "device": DEVICES}
    if recipe.application not in APPLICATIONS:
        known["application"] += tuple(installed.applications())
    for key, names in known.items():
        if flat[key] not in names:
            raise InputError(f"recipe {recipe.name}: unknown {key} {flat[key]!r}: one of {', '.join(names)}")
    for table, names in (("solvers", SOLVERS), ("decays", tuple(DECAYS))):
        for name, options in getattr(recipe, table).items():
            if name not in names:
                raise InputError(f"recipe {recipe.name}: {table}.{name}: there is no such one, but {', '.join(names)}")
            if not isinstance(options, Mapping):
                raise InputError(f"recipe {recipe.name}: {table}.{name} must be a table of options, not {options!r}")
    if recipe.epochs > MOST_EPOCHS:
        raise InputError(f"recipe {recipe.name}: epochs must be at most {MOST_EPOCHS:,}, not {recipe.epochs:g}")
    for key in above:
        value = flat[key]
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"recipe {recipe.name}: {key} must be a positive number, not {value}")
    if recipe.application in APPLICATIONS and bool(recipe.data.window) != (recipe.application in TEXTS):
        reads = "windows of a text, of at least 1 word" if recipe.application in TEXTS else "samples one by one, data.window=0"
        raise InputError(f"recipe {recipe.name}: {recipe.application} reads {reads}, not data.window={recipe.data.window}")
    if not recipe.micro_batch and recipe.normalised:
        raise InputError(
            f"recipe {recipe.name}: micro_batch=0 (measured) is not for {recipe.application}: batch norm"
            f"{'' if recipe.application in NORMALISED else ', which it may have,'} is over a micro-batch, so its size is part of "
            "the result; name one"
        )
    if recipe.twin != "none" and (recipe.curvature_every or recipe.noise_scale):
        raise InputError(f"recipe {recipe.name}: twin={recipe.twin} measures time alone: not with curvature_every or noise_scale")
    if recipe.curvature_every and recipe.precision != "fp32":
        raise InputError(f"curvature_every={recipe.curvature_every}: a difference of gradients needs precision=fp32")
    if recipe.growth.epochs:
        _check_growth(recipe)
    if recipe.twin == "no-exchange" and recipe.options.get("batch_norm") == "sync":
        raise InputError(f"recipe {recipe.name}: twin=no-exchange, but batch_norm=sync exchanges in every layer")
    recipe.out_folder()


def check_ranks(recipe: Recipe, ranks: int) -> None:
    """Refuse what these ranks cannot train of the recipe.

    Raises:
        InputError: with the numbers.
    """
    if recipe.batch < ranks:
        raise InputError(f"batch {recipe.batch} is smaller than the {ranks} ranks: each needs a sample a step")
    if recipe.noise_scale and ranks == 1:
        raise InputError("noise_scale=true: one rank has no gradient beside the average; on 2 ranks or more")
    share = -(-recipe.batch // ranks)
    if recipe.options.get("batch_norm") == "rank" and share > recipe.micro_batch:
        raise InputError(
            f"batch_norm=rank: a rank's {share} samples of batch {recipe.batch} must be one micro-batch, "
            f"micro_batch is {recipe.micro_batch}: more ranks, or micro_batch={share}"
        )
    if recipe.growth.epochs and recipe.normalised and recipe.options.get("batch_norm") != "sync" and share < recipe.micro_batch:
        raise InputError(
            f"growth.epochs: a rank's {share} samples of batch {recipe.batch} are less than micro_batch {recipe.micro_batch}; "
            f"batch norm would be over more as the batch grows: fewer ranks, or micro_batch={share}"
        )


def check_samples(recipe: Recipe, found: int | None) -> None:
    """Refuse data of another size than the recipe's, from which its steps are derived.

    Args:
        found: samples of the split train, or words of a text; None if there is no such split.

    Raises:
        InputError: with both numbers.
    """
    declared = recipe.data.train_samples
    if found != declared:
        raise InputError(
            f"{recipe.data.folder()}: {found} training samples, recipe {recipe.name} declares data.train_samples {declared}"
        )


def _check_growth(recipe: Recipe) -> None:
    epochs = recipe.growth.epochs
    if list(epochs) != sorted(set(epochs)) or not 1 <= epochs[0] <= epochs[-1] < recipe.epochs:
        raise InputError(
            f"recipe {recipe.name}: growth.epochs must rise, from 1 on and below the run's {recipe.epochs:g}, not {list(epochs)}"
        )
    if recipe.batches[-1] >= 2**63:
        raise InputError(f"recipe {recipe.name}: growth.factor {recipe.growth.factor}, {len(epochs)} times, outgrows any data")
    if recipe.twin != "none" or recipe.curvature_every:
        raise InputError(f"recipe {recipe.name}: growth.epochs: a twin and curvature_every are measured at one batch")
    if recipe.options.get("batch_norm") == "rank":
        raise InputError(f"recipe {recipe.name}: growth.epochs with batch_norm=rank: what is normalised together would grow too")
