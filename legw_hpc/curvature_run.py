"""legw-hpc curvature: a run with L(x, g) measured, and what the measurement says of the warmup."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from legw_hpc import runlog
from legw_hpc.data.files import written_whole
from legw_hpc.derived import derive
from legw_hpc.errors import InputError
from legw_hpc.launcher import launched, local_ranks
from legw_hpc.legw import scale
from legw_hpc.local_runs import attended
from legw_hpc.peak import FEWEST, denser, peak
from legw_hpc.recipe import Recipe, load
from legw_hpc.records import Record, read

PLOT = "curvature.png"
# A warmup found that is so much longer or shorter than the one of the run, as a share of it, is worth another run (assumed).
APART = 0.25
OUT = "runs/curvature-{name}-{solver}-{scheme}-b{batch}-s{seed}"


def curvature(name: str, overrides: Sequence[str], every: int, *, ranks: int = 1, run: bool = True) -> None:
    """Train with the probe, on these ranks or on some that are launched here; then print and draw the peak.

    Args:
        name: of a recipe, or a path.
        overrides: key=value.
        every: steps between measurements.
        ranks: to launch on this machine.
        run: False prints what there is.

    Raises:
        InputError: what cannot be trained; no measurement in the folder.
    """
    for option, number in (("every", every), ("ranks", ranks)):
        if number < 1:
            raise InputError(f"--{option} {number}: at least 1")
    if given := [word for word in overrides if word.partition("=")[0].strip() == "curvature_every"]:
        raise InputError(f"{given[0]}: here it is --every STEPS")
    words = [f"out={OUT}", *overrides, f"curvature_every={every}"]
    recipe = load(name, words)
    derive(recipe)
    if run and ranks > 1:
        if launched().size > 1:
            raise InputError(f"--ranks {ranks} launches ranks; the launcher started {launched().size} already")
        command, environment = local_ranks(ranks)
        command += [sys.executable, "-m", "legw_hpc", "train", name, *words]
        if code := attended(command, environment):
            sys.exit(code)
    elif run:
        from legw_hpc.single_run import run as train  # torch

        train(recipe)
    if launched().rank == 0:
        folder = recipe.out_folder()
        record = read(folder / runlog.LOG)
        if record is None or not record.curvature()[0]:
            raise InputError(f"{folder}: no run here that measured L(x, g)")
        if other := differing(record.recipe, recipe):
            raise InputError(f"{folder}: the run there has other values of {', '.join(other)}")
        from legw_hpc.figures import curvature as drawing  # matplotlib

        with written_whole(folder / PLOT) as path:
            drawing.draw_run(drawing.curve(record), path, f"{recipe.name}, batch {recipe.batch:,}, {recipe.scheme}")
        print("\n".join([*lines(record), f"plot     {folder / PLOT}"]))


def differing(trained: Recipe, asked: Recipe) -> list[str]:
    """The keys in which a run is not the one asked for; how often L was measured is no matter."""
    was, wanted = trained.spelled(), asked.spelled()
    return [key for key in sorted(was.keys() | wanted.keys()) if key != "curvature_every" and was.get(key) != wanted.get(key)]


def lines(record: Record) -> list[str]:
    """Where the peak is, for people.

    Args:
        record: of a run that measured L(x, g).
    """
    derived, (steps, values) = derive(record.recipe), record.curvature()
    per_epoch, legw = derived.steps_per_epoch, scale(record.recipe.baseline, record.recipe.batch).warmup_epochs
    found = peak(steps, values)
    about = [f"L(x, g)  measured at {len(steps):,} of {steps[-1]:,} steps, {steps[-1] / per_epoch:.3g} epochs"]
    if found is None:
        return [*about, "peak     none within them: L rises to their end, falls from their beginning, or has hardly risen"]
    before = found.step - 1  # L is that before the step
    about.append(
        f"peak     {found.value:.3g} at step {found.step:,}, epoch {before / per_epoch:.3g} (running median of {found.of}); "
        f"1 / L is {1 / found.value:.3g}, the learning rate there {derived.lr(before):.3g}, the sum of rates until then "
        f"{derived.lr_sum(before):.3g}"
    )
    if found.until is None:
        about.append(f"warmup   no end of the peak within them, L may rise again: measure longer; LEGW's is {legw:.3g} epochs")
    else:
        covered = found.until - 1
        covers = f"{covered / per_epoch:.3g} epochs ({covered:,} steps) cover it: L is down to half there"
        about.append(f"warmup   {covers}; LEGW's is {legw:.3g} epochs")
        ours, own = derived.scaled.warmup_epochs, covered / per_epoch
        if ours and abs(own - ours) > APART * ours:  # without any warmup, that is what was asked
            about.append(
                f"note     measured under a warmup of {ours:.3g} epochs, which moves the peak: measure again under {own:.3g}"
            )
    if found.of < FEWEST:
        closer = denser(found.step)
        more = f"--every {closer} out=..." if closer < record.recipe.curvature_every else "other seeds"
        about.append(
            f"note     a median of {found.of} is hardly smoothed, and L of one batch jumps tenfold: {more} would tell more"
        )
    return about
