"""legw-hpc plan: its options, and what it does with them.  Parsing imports nothing heavy."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legw_hpc.errors import InputError
from legw_hpc.recipe import Recipe

if TYPE_CHECKING:
    from legw_hpc.noise import Noise

EXAMPLES = (
    "  legw-hpc plan mnist-lstm batch=8192\n"
    "  legw-hpc plan mnist-lstm batch=8192 scheme=linear --json\n"
    "  legw-hpc plan imagenet-resnet50 batch=32768 --machine skylake --nodes 64,128,256,512\n"
    "  legw-hpc plan imagenet-resnet50 batch=8192,32768 --machine knl       also the two beside one another\n"
    "  legw-hpc plan imagenet-resnet50 batch=32768 --machine knl --plot knl.png --set performance.jitter.likely=0.05\n"
    "  legw-hpc plan ptb-lstm batch=640 --noise runs/first      of a run with noise_scale=true\n"
    "With a machine: seconds a step, time, node-hours and what speaks against it, for every number of nodes; the\n"
    "numbers are in jobs/machines/performance/, how good they are in results/plan.md."
)


def arguments(plan: argparse.ArgumentParser) -> None:
    """The options besides recipe and overrides."""
    plan.add_argument("--json", action="store_true", help="JSON instead of text, a line each of several batches")
    plan.add_argument("--machine", help="also what it costs there: name of a machine (jobs/machines/), or path of a .toml file")
    plan.add_argument(
        "--nodes", metavar="N,N,...", help="numbers of nodes (default: powers of two, and others that share the batch)"
    )
    plan.add_argument(
        "--noise", type=Path, metavar="RUN", help="also whether a larger batch pays, by the noise scale that RUN logged"
    )
    plan.add_argument("--plot", type=Path, metavar="FILE", help="draw it (PNG)")
    plan.add_argument(
        "--set", action="append", default=[], metavar="key=value",
        help="a field of the machine, such as ranks=4, or of its numbers, such as performance.jitter.likely=0.05",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Print what a recipe comes to, and on a machine what it costs.

    Raises:
        InputError: what cannot be trained, or is not known.
    """
    from legw_hpc import grid

    # Values with commas are a grid, as in `sweep`; where the run goes does not matter here.
    cells = grid.cells(options.recipe, [word for word in options.overrides if not word.startswith("out=")], runs=False)
    noise = _noise(options.noise, [cell.derived.recipe for cell in cells]) if options.noise else None
    if options.machine is None:
        if given := [name for name in ("nodes", "plot", "set") if getattr(options, name)]:
            raise InputError(f"--{given[0]}: of which machine?  --machine NAME")
        for cell in cells:
            lines = cell.derived.lines()
            _print(options, cell.derived.as_dict(), lines if cell is cells[0] else ["", *lines], cell.derived.recipe, noise)
        return

    from legw_hpc.plan import calibration, text
    from legw_hpc.plan.forecast import forecast
    from legw_hpc.sizes import parameters
    from legw_hpc.submit.machine import load as load_machine

    prefix = f"{calibration.FOLDER}."
    numbers = [word.removeprefix(prefix) for word in options.set if word.startswith(prefix)]
    machine = load_machine(options.machine, [word for word in options.set if not word.startswith(prefix)])
    for cell in cells:
        parameters(cell.derived.recipe)  # of an application of another package nobody has numbers
    performance = calibration.load(options.machine, numbers, machine.like)
    if options.plot and options.plot.suffix.lower() != ".png":
        raise InputError(f"--plot {options.plot}: a PNG is written; name it .png")
    path, usual = calibration.path_of(options.machine, machine.like), load_machine(options.machine)
    notes = []
    if machine.ranks * machine.threads != usual.ranks * usual.threads:
        notes.append(f"note     the rates are those of {usual.ranks} x {usual.threads} threads a node")
    forecasts = {}
    for label, cell in zip(grid.labels(cells), cells, strict=True):
        forecasts[label] = made = forecast(cell.derived, machine, performance, _counts(options.nodes))
        rate = performance.rate_of(cell.derived.recipe)
        of = "" if rate == cell.derived.recipe.name else f", the rate of {rate}, the same network"
        assumed = text.assumed(performance.assumed(cell.derived.recipe))
        lines = [*cell.derived.lines(), *text.lines(made, f"numbers of {path}{of}", [*notes, *assumed])]
        _print(options, made.as_dict(), lines if cell is cells[0] else ["", *lines], cell.derived.recipe, noise)
    if len(cells) > 1 and not options.json:
        print("\n".join(["", *text.compared(forecasts, noise)]))
    if options.plot:
        from legw_hpc.plan.plot import draw

        draw(forecasts, options.plot)
        if not options.json:
            print(f"plot     {options.plot}")


def _noise(run: Path, recipes: Sequence[Recipe]) -> Noise:
    """What a run of the same network logged of its gradients."""
    from legw_hpc import noise, records, runlog

    record = records.read(run / runlog.LOG)
    if record is None:
        raise InputError(f"--noise {run}: no run there, {run / runlog.LOG} is missing, or is not the log of a run")
    for recipe in recipes:
        if _trained(record.recipe) != _trained(recipe):
            raise InputError(f"--noise {run}: a run of {record.recipe.name}, which trains another network than {recipe.name}")
    try:
        found = noise.from_log(record.lines)
    except InputError as error:
        raise InputError(f"--noise {run}: {error}") from None
    if found is None:
        raise InputError(f"--noise {run}: no noise scale in its log: train with noise_scale=true, on 2 ranks or more")
    return found


def _trained(recipe: Recipe) -> object:
    from legw_hpc.sizes import network

    try:
        return network(recipe)
    except InputError:  # an application of another package
        return recipe.application, recipe.options, recipe.data.window


def _print(options: argparse.Namespace, values: dict[str, Any], lines: list[str], recipe: Recipe, found: Noise | None) -> None:
    """With what the noise scale says, if a run is named."""
    if found is not None:
        from legw_hpc import noise
        from legw_hpc.plan.text import noise_lines

        values, lines = values | noise.as_line(found), [*lines, *noise_lines(recipe, found, str(options.noise))]
    print(json.dumps(values) if options.json else "\n".join(lines))


def _counts(given: str | None) -> list[int]:
    if given is None:
        return []
    words = given.split(",")
    if not all(word.strip().isdecimal() and len(word) < 10 for word in words):
        raise InputError(f"--nodes {given}: expected whole numbers with commas, such as 64,128,256")
    return [int(word) for word in words]
