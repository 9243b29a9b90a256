"""What a recipe comes to for its batch: learning rate, warmup, steps; derived last, from the values after all overrides.

So `batch=8192` alone rescales the learning rate and warmup.  No torch and no numpy here: `plan` runs on a login node.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict, dataclass
from typing import Any

from legw_hpc.errors import InputError
from legw_hpc.legw import Scaled, scale, split_scheme
from legw_hpc.recipe import Recipe
from legw_hpc.schedule import Decay, Schedule, build, decay_from
from legw_hpc.steps import Course, Stage, course

MOST_ADDED = 300_000  # steps whose rates are added up for a line of text: about a second (measured, AMD EPYC)


@dataclass(frozen=True)
class Derived:
    """What a recipe comes to for its batch.

    Attributes:
        scaled: k, peak learning rate and warmup.
        explicit: which of them the user gave instead ("lr", "warmup_epochs").
        schedule: fractional epoch -> learning rate.
        course: which step of which epoch each step is.
        steps: of the whole run.
        last: the step after which this run stops: `steps`, or the recipe's `max_steps`.
    """

    recipe: Recipe
    scaled: Scaled
    explicit: tuple[str, ...]
    schedule: Schedule
    course: Course
    steps: int
    last: int

    @property
    def last_batch(self) -> int:
        """Samples of the last step of an epoch, of the first batch of a run that grows."""
        return self._last_of_epoch(self.course.stages[0])

    @property
    def steps_per_epoch(self) -> int:
        """Of the first batch of a run that grows; the last of them has fewer samples where the batch does not divide the data."""
        return self.course.stages[0].per_epoch

    def lr(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.schedule(self.course.epoch(step))

    def lr_sum(self, steps: int | None = None) -> float:
        """The learning rates of so many steps, or of all, added up: how far SGD gets, as long as gradients stay alike."""
        return sum(self.lr(step) for step in range(self.last if steps is None else steps))

    def where(self, done: int) -> str:
        """Epoch and learning rate after so many steps, for a message."""
        return f"epoch {self.course.epoch(done):.3f}, lr {self.lr(max(0, done - 1)):.6g}"

    def steps_by_batch(self) -> list[tuple[int, int]]:
        """(steps, batch) of each stage, up to `last`; the smaller steps that end its epochs apart."""
        stages = self.course.stages
        ends = [min(self.last, step) for step in (*(stage.step for stage in stages[1:]), self.last)]
        made = []
        for stage, begin, end in zip(stages, [0, *ends[:-1]], ends, strict=True):
            rest = self._last_of_epoch(stage)
            smaller = (end - begin) // stage.per_epoch if rest < stage.batch else 0
            made += [(end - begin - smaller, stage.batch), (smaller, rest)]
        return [(steps, batch) for steps, batch in made if steps]

    def _last_of_epoch(self, stage: Stage) -> int:
        data = self.recipe.data
        return stage.batch if data.window else data.train_samples - (stage.per_epoch - 1) * stage.batch

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `plan --json` and the run log."""
        return {
            "recipe": self.recipe.name,
            "batch": self.scaled.batch,
            "k": self.scaled.k,
            "scheme": self.recipe.scheme,
            "lr": self.scaled.lr,
            "warmup": self.scaled.warmup,
            "warmup_epochs": self.scaled.warmup_epochs,
            "warmup_steps": self.course.until(self.scaled.warmup_epochs),
            "explicit": list(self.explicit),
            "decay": self.recipe.decay,
            "epochs": self.recipe.epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "steps": self.steps,
            "last_batch": self.last_batch,
            "train_samples": self.recipe.data.train_samples,
        } | ({"stages": [asdict(stage) for stage in self.course.stages]} if len(self.course.stages) > 1 else {})

    def lines(self) -> list[str]:
        """The derivation, for people."""
        recipe, base, now = self.recipe, self.recipe.baseline, self.scaled
        lr = "explicit" if "lr" in self.explicit else f"{recipe.scheme} of {base.lr:g} at batch {base.batch}"
        if "warmup_epochs" in self.explicit:
            warmup = "explicit"
        elif split_scheme(recipe.scheme)[1] == "legw":
            warmup = f"{recipe.scheme}; {base.warmup_epochs:g} at batch {base.batch}"
        else:
            warmup = f"{recipe.scheme}, at every batch"
        steps = self.course.until(now.warmup_epochs)
        tail = "" if self.last_batch == now.batch else f", the last of {self.last_batch:,} samples"
        ends = "" if self.last == self.steps else f", max_steps={self.last:,} of them"
        grows = [f"{stage.batch:,} from epoch {stage.epoch}, {stage.per_epoch:,} steps each" for stage in self.course.stages[1:]]
        return [
            f"recipe   {recipe.name}: {recipe.application}, {recipe.solver}, {recipe.epochs:g} epochs, seed {recipe.seed}",
            f"batch    {now.batch:,} = {base.batch:,} x k, k = {now.k:g}",
            f"lr       {now.lr:.6g}   ({lr})",
            f"warmup   {now.warmup_epochs:.6g} epochs = {steps:.1f} steps, {now.warmup}   ({warmup})",
            f"decay    {recipe.decay} {_options(decay_of(recipe))}".rstrip(),
            *([f"growth   {'; '.join(grows)}"] if grows else []),
            f"steps    {self.steps_per_epoch:,} an epoch{tail}; {self.steps:,} in all{ends}",
            *self._distance(),
        ]

    def _distance(self) -> list[str]:
        """How far this run gets beside the baseline's, where both are runs of one batch."""
        base = self.recipe.baseline.batch
        if self.recipe.batch == base or len(self.course.stages) > 1:
            return []
        try:
            whole = derive(dataclasses.replace(self.recipe, batch=base, lr=None, warmup_epochs=None))
        except InputError:  # the data are too small for it
            return []
        if self.steps + whole.steps > MOST_ADDED:
            return []
        total = whole.lr_sum(whole.steps)
        share = self.lr_sum(self.steps) / total if total else math.nan
        return [f"distance {share:.3g} of batch {base:,}'s: the learning rates of all steps, added up"]


def derive(recipe: Recipe) -> Derived:
    """Learning rate, warmup and steps for the recipe's batch.

    Args:
        recipe: after all overrides.

    Raises:
        InputError: what cannot be trained, with both numbers.
    """
    samples = recipe.data.train_samples
    where = f"recipe {recipe.name}"
    batches = recipe.batches
    if batches[-1] > samples:
        grown = f", grown {len(batches) - 1} times by {recipe.growth.factor}," if len(batches) > 1 else ""
        raise InputError(f"{where}: batch {batches[-1]}{grown} is larger than the training data, {samples} samples")
    # With both given, a batch needs no rule.
    scheme = "none+legw" if recipe.scheme == "fixed" and None not in (recipe.lr, recipe.warmup_epochs) else recipe.scheme
    try:
        scaled = scale(recipe.baseline, recipe.batch, scheme, recipe.fixed_warmup_epochs)
        explicit = tuple(key for key in ("lr", "warmup_epochs") if getattr(recipe, key) is not None)
        if recipe.lr is not None:
            scaled = dataclasses.replace(scaled, lr=recipe.lr)
        if recipe.warmup_epochs is not None:
            shape = "gradual" if scaled.warmup == "none" else scaled.warmup
            scaled = dataclasses.replace(scaled, warmup=shape, warmup_epochs=recipe.warmup_epochs)
        schedule = build(
            scaled.lr, recipe.epochs, scaled.warmup, scaled.warmup_epochs, decay_of(recipe), warmup_lr=recipe.baseline.lr
        )
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    whole = course(batches, (0, *recipe.growth.epochs), recipe.data.steps_per_epoch)
    steps_per_epoch = whole.stages[0].per_epoch
    if whole.stages[-1].per_epoch < 1:
        raise InputError(f"{where}: {samples} words in {batches[-1]} rows are less than a window of {recipe.data.window} a row")
    steps = whole.steps(recipe.epochs)
    if steps < 1:
        raise InputError(f"{where}: {recipe.epochs:g} epochs of {steps_per_epoch} steps are no step at all")
    last = min(steps, recipe.max_steps or steps)
    return Derived(recipe, scaled, explicit, schedule, whole, steps, last)


def decay_of(recipe: Recipe) -> Decay:
    """The recipe's decay, with its defaults.

    Raises:
        ValueError: an unknown decay, or value of it.
    """
    given = recipe.decays.get(recipe.decay, {})
    return decay_from(recipe.decay, **{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})


def _options(decay: Decay) -> str:
    told = {key: value for key, value in asdict(decay).items() if value != ()}
    if "factors" in told:  # in place of the one
        del told["factor"]
    return ", ".join(f"{key} {list(value) if isinstance(value, tuple) else value}" for key, value in told.items())
