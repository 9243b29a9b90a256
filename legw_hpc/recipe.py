"""A recipe: what was tuned, and the batch that is wanted now.

A recipe is a TOML file; its name (of one in recipes/) or path and `key=value` overrides come from
the command line.  Keys are those of `Recipe`, dotted for tables (`baseline.lr=0.1`); an unknown one
is refused.  What depends on the batch is derived last (derived.py), from the values after all overrides.

No torch and no numpy here: `plan` runs on a login node.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from legw_hpc import steps, strict
from legw_hpc.allowed import APPLICATIONS, NORMALISED, check
from legw_hpc.errors import InputError
from legw_hpc.legw import FIXED_WARMUP_EPOCHS, Baseline

# Above this a measured micro-batch (tuning.py) only costs memory (assumed).
MOST_MEASURED = 1024

RECIPES = Path(__file__).parent / "recipes"
SAMPLES = Path(__file__).parent / "data" / "sample"


@dataclass(frozen=True)
class Data:
    """Where the shards are, and how many training samples the recipe counts on.

    Attributes:
        dir: a data folder; "package:NAME" is a sample that ships with this package.
        train_samples: declared, so that `plan` needs no data; a run refuses shards with another count.
            Words, for a text.
        window: words of each row that a step reads; 0 is samples drawn one by one, in random order.
        verify: read all shards at the start, each rank its part, and compare the checksums.
    """

    dir: str
    train_samples: int
    window: int = 0
    verify: bool = True

    def folder(self) -> Path:
        """The data folder as a path."""
        kind, _, name = self.dir.partition(":")
        return SAMPLES / name if kind == "package" and name else strict.named(self.dir)

    def steps_per_epoch(self, batch: int) -> int:
        """Of batches of so many samples, or rows of a text."""
        if self.window:
            return steps.windows(self.train_samples, batch, self.window)
        return steps.shuffled(self.train_samples, batch)


@dataclass(frozen=True)
class Checkpoint:
    """When to write a checkpoint, besides at the end and on a signal; 0 is never.

    Attributes:
        every_steps, every_minutes: since the last one.
        keep: how many stay.
    """

    every_steps: int = 0
    every_minutes: float = 10.0
    keep: int = 2


@dataclass(frozen=True)
class Growth:
    """A global batch that grows during the run, beside a decaying learning rate or in its place.

    Smith et al. 2018 (arXiv:1711.00489) take a factor of 5 where the rate would fall to a fifth, Devarakonda et al. 2017
    (arXiv:1712.02029) doublings.

    Attributes:
        epochs: before which the batch grows; rising, from 1 on.
        factor: by which, at each of them.
    """

    epochs: tuple[int, ...] = ()
    factor: int = 2


@dataclass(frozen=True)
class Recipe:
    """One run.

    Attributes:
        application: what is trained (a name in apps/, or of another package: installed.py).
        epochs: the length of the run.
        baseline: the tuned point.
        data: where the samples are.
        options: of the application (apps/), such as the width of a network.
        batch: global batch, samples (rows of a text) per step over all ranks; the baseline's by default.
        scheme: how learning rate and warmup follow the batch ("legw", "linear" ..., or "sqrt+none").
        fixed_warmup_epochs: the length of warmups that do not follow the batch.
        lr, warmup_epochs: explicit values; they win over the derived ones and are reported so.
        decay: what follows the warmup; its values are in the table decays.NAME.
        growth: of the batch during the run; learning rate and warmup are those of the first batch.
        solver: the optimizer; its options are in the table solvers.NAME.
        exempt: biases and normalisation parameters take no weight decay and no trust ratio.
        clip_norm: largest norm of the averaged gradient; 0 is no clipping.
        precision: "fp32", or "bf16" or "fp16" by autocast.
        micro_batch: samples through the model at once, on one rank; changes time, not the result, but
            where there is batch norm.  0 is the fastest on this machine, measured at the start (tuning.py).
        seed: of initialisation and order.
        eval_every: epochs between evaluations.
        evaluate: false leaves evaluations out, also the last: for measurements of speed.
        twin: a run that is a measurement alone, without the exchange or without reading samples (twins.py).
        curvature_every: steps between two measurements of L(x, g) (curvature.py); 0 is never.
        max_steps: stop after so many steps of the run's own schedule; 0 is all.
        start: the folder of a run whose last weights, and what goes with them, this one begins with; the optimizer begins anew.
        out: the run folder; {name}, {batch}, {scheme}, {solver} and {seed} are filled in.
        comm: "auto", "serial", "horovod" or "mpi".
        device: "auto", "cpu" or "cuda".
        threads: per rank; 0 shares the cores of the node among its ranks, and no rank takes more than any other.
        input_threads: per rank, to decode images; 0 is as many as `threads`.
        log_every: seconds between lines of the run log.
        exchange_pieces: the gradient is summed over ranks in so many pieces, each while the last micro-batch's backward pass
            goes on to the next; 1 is one sum after it (gradients.py).
        noise_scale: log the gradient noise scale (noise.py), on 2 ranks or more; a pass over the gradient a step.
        stall_minutes: that a rank waits for the others in one exchange before the run is ended; three times as many at one
            place without a micro-batch, twelve times before the first; 0 is for ever.
    """

    name: str
    application: str
    epochs: float
    baseline: Baseline
    data: Data
    options: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 0
    scheme: str = "legw"
    fixed_warmup_epochs: float = FIXED_WARMUP_EPOCHS
    lr: float | None = None
    warmup_epochs: float | None = None
    decay: str = "constant"
    decays: Mapping[str, Any] = field(default_factory=dict)
    growth: Growth = Growth()
    solver: str = "momentum"
    solvers: Mapping[str, Any] = field(default_factory=dict)
    exempt: bool = True
    clip_norm: float = 0.0
    precision: str = "fp32"
    micro_batch: int = 128
    seed: int = 1
    eval_every: float = 1.0
    evaluate: bool = True
    twin: str = "none"
    curvature_every: int = 0
    max_steps: int = 0
    start: str = ""
    checkpoint: Checkpoint = Checkpoint()
    out: str = "runs/{name}-{solver}-{scheme}-b{batch}-s{seed}"
    comm: str = "auto"
    device: str = "auto"
    threads: int = 0
    input_threads: int = 0
    log_every: float = 5.0
    exchange_pieces: int = 1
    noise_scale: bool = False
    stall_minutes: float = 5.0  # assumed: longer than rank 0 takes to write a checkpoint

    def out_folder(self) -> Path:
        """The run folder with its blanks filled in; bash leaves the tilde of out=~/run as it is."""
        values = {key: getattr(self, key) for key in ("name", "batch", "scheme", "solver", "seed")}
        try:
            return strict.named(self.out.format(**values))
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise InputError(f"out={self.out}: knows {', '.join('{' + key + '}' for key in values)} only ({error!r})") from None

    @property
    def normalised(self) -> bool:
        """Does the micro-batch decide what is normalised together; taken to be so for applications of other packages."""
        return self.application in NORMALISED or self.application not in APPLICATIONS

    @property
    def most_at_once(self) -> int:
        """The largest micro-batch: `micro_batch`, or what a measured one may come to."""
        return self.micro_batch or MOST_MEASURED

    @property
    def batches(self) -> list[int]:
        """Of the run, in their order; one, unless the batch grows."""
        return [self.batch * self.growth.factor**times for times in range(len(self.growth.epochs) + 1)]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the run log."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """What decides the result and its log, flat, dotted: two runs in one folder must agree on it."""
        told = {
            "out",
            "comm",
            "device",
            "threads",
            "input_threads",
            "log_every",
            "exchange_pieces",
            "noise_scale",
            "stall_minutes",
            "max_steps",
            "checkpoint",
            "data.dir",
            "data.verify",
        }
        told |= set() if self.normalised else {"micro_batch"}
        told |= {key for key in ("curvature_every", "evaluate", "start", "twin") if getattr(self, key) == DEFAULTS[key]}
        told |= set() if self.growth.epochs else {"growth"}
        told |= {f"decays.{name}" for name in self.decays if name != self.decay}
        told |= {f"solvers.{name}" for name in self.solvers if name != self.solver}
        flat = strict.flatten(self.as_dict() | {"start": os.path.normpath(self.start) if self.start else ""})
        return {key: value for key, value in flat.items() if not told & set(_prefixes(key))}

    def spelled(self) -> dict[str, Any]:
        """`identity` without what has its default: runs of an older version, which lacked a key, have the same."""
        return {key: value for key, value in self.identity().items() if key not in DEFAULTS or value != DEFAULTS[key]}

    def run_name(self) -> str:
        """A name for a folder of this run alone: what it is, and a digest of all that decides it."""
        digest = hashlib.sha256(json.dumps(self.spelled(), sort_keys=True).encode()).hexdigest()[:8]
        about = f"{self.name}-{self.solver}-{self.scheme}-b{self.batch}-s{self.seed}-{digest}"
        return re.sub(r"[^\w.+-]", "_", about)


DEFAULTS = strict.defaults(Recipe)


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or path, with `key=value` overrides.

    Args:
        name: of a file in recipes/, or a path that ends in .toml.
        overrides: see `strict.read`.

    Raises:
        InputError: an unknown recipe or key, a value of the wrong type or out of range.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    try:
        values = strict.read(path, overrides)
    except FileNotFoundError:
        if name.endswith(".toml"):
            raise InputError(f"{name}: no such recipe file") from None
        known = available()
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}, or give the path of a .toml file"
        raise InputError(f"unknown recipe {name!r}: {hint}") from None
    values.setdefault("name", path.stem)
    where = f"recipe {path if name.endswith('.toml') else name}"
    if strict.depth(values) > strict.DEEPEST:
        raise InputError(f"{where}: more than {strict.DEEPEST} tables within each other")
    recipe: Recipe = strict.build(Recipe, values, where)
    if "batch" not in values:
        recipe = dataclasses.replace(recipe, batch=recipe.baseline.batch)
    check(recipe)
    return recipe


def available() -> list[str]:
    """The names of the packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def _prefixes(key: str) -> Iterator[str]:
    """ "a", "a.b" and "a.b.c" of "a.b.c"."""
    return itertools.accumulate(key.split("."), "{}.{}".format)
