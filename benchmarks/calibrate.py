"""A machine's numbers for `legw-hpc plan`, measured on the ranks at hand and written to a file as in jobs/machines/performance/.

    python -m benchmarks.calibrate mnist-lstm --to FILE            ranks of this host
    srun -N 2 -n 4 -c 48 --cpu-bind=cores python -m benchmarks.calibrate imagenet-resnet50 --machine my-site/mine.toml

With --machine the ranks must be laid out as its jobs are: ranks a node, threads and processors each (-c counts hardware
threads); the numbers go to the file that `plan` reads for it.  Without, they are those of the ranks as they are.  The file's
other recipes stay.  The data are made up unless data.dir=... names some.  What the ranks at hand cannot show, such as a
network from one node, is taken from the file, or else marked as assumed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import made, measure, speeds
from benchmarks.measure import Bench
from benchmarks.speeds import Reading
from legw_hpc.comm import connect
from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.errors import InputError
from legw_hpc.launcher import launched
from legw_hpc.local_runs import attended
from legw_hpc.plan import calibration
from legw_hpc.plan.calibration import Compute, Memory, Network, Number, Performance
from legw_hpc.recipe import load
from legw_hpc.sizes import network
from legw_hpc.submit.machine import MACHINES, available
from legw_hpc.submit.machine import load as load_machine

MAKERS = {"mnist-lstm": made.mnist, "ptb-lstm": made.text, "resnet20": made.cifar, "resnet50": made.jpegs}


def positive(word: str) -> int:
    """For argparse: a whole number of at least 1."""
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {word!r}")
    return int(word)


def age() -> float:
    """Seconds since this process was started."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text().split()[0]) - started


def measured(bench: Bench, recipe: str, words: list[str], note: str, before: Performance | None, ready: float) -> Performance:
    """All numbers of the machine, for one recipe more than before; on every rank, rank 0's count.

    Args:
        recipe, words: as for `legw-hpc train`.
        note: for the source of every number.
        before: what the file says so far.
        ready: seconds from this rank's start until all were connected.
    """
    comm, rounds, local = bench.comm, 3 if bench.quick else 7, bench.comm.local_size
    about = measure.row("calibrate", measure.Case("", lambda: None), [1.0], bench, torch.get_num_threads())
    what = f"{comm.size} ranks x {about['threads']} threads, torch {about['versions']['torch']}"
    where = f"{about['hardware']}; {what}; {about['time'][:10]}"
    source = ", ".join(filter(None, ["measured", note]))

    def number(values: Sequence[float], more: bool) -> Number:
        ends = sorted(values, reverse=more)
        return Number(ends[0], statistics.median(ends), ends[-1], source, where)

    def supply(found: Reading) -> Number:
        """Of a node: from storage, or from memory where the data fit there, as from the second epoch of a run on."""
        stored = number([local * r for r in found.storage], True)
        if not found.fits:
            return dataclasses.replace(stored, source=f"{source}, from storage")
        kept = number([local * r for r in found.memory], True)
        return dataclasses.replace(kept, source=f"{source}, from memory, where the data fit ({stored.likely:,.0f} from storage)")

    inputs = speeds.reading(bench, recipe, words, rounds)
    rates, halves, deviations = speeds.compute(bench, recipe, words, rounds)
    buffers = speeds.memory(bench, rounds)
    found = speeds.links(comm, statistics.median(buffers["add"]), rounds)
    links = {name: (number(alphas, False), number(rates, True)) for name, (alphas, rates) in found.items()}
    for name, other in (("network", "memory"), ("memory", "network")):
        if name not in links and before is not None:
            links[name] = getattr(before, name).alpha_us, getattr(before, name).gb_per_s
        elif name not in links:
            alpha, rate = (dataclasses.replace(one, source=f"assumed: as {other}", measured_on="") for one in links[other])
            links[name] = alpha, rate
    cycle = float(os.environ.get("HOROVOD_CYCLE_TIME", 1.0))
    compute = Compute(
        number([local * r for r in rates], True),
        number([local * h for h in halves], False),
        supply(inputs),
    )
    tables = {name: dict(by) for name, by in before.compute.items()} if before else {}
    wanted = load(recipe, words)
    tables.setdefault(wanted.name, {})[wanted.precision] = dataclasses.asdict(compute)
    return Performance(
        network=Network(*links["network"]),
        memory=Memory(*links["memory"], number(buffers["add"], True), number(buffers["copy"], True)),
        jitter=number(deviations, False),
        cycle_ms=Number(cycle, cycle, cycle, "HOROVOD_CYCLE_TIME, or Horovod's default"),
        start_s=dataclasses.replace(number(comm.gather(ready), False), source=f"{source}, until all ranks were connected"),
        compute=tables,
        **({"overlap": before.overlap, "start_s_per_node": before.start_s_per_node} if before else {}),
    )


def toml(performance: Performance) -> str:
    """The file's text."""
    made = (
        "# What `legw-hpc plan` takes of a machine, by python -m benchmarks.calibrate.  Fields: legw_hpc/plan/calibration.py.\n"
    )
    tables: dict[str, dict[str, Any]] = {"": {}}
    for key, value in dataclasses.asdict(performance).items():
        if key == "compute":
            tables |= {f"compute.{name}.{precision}": table for name, by in value.items() for precision, table in by.items()}
        elif "likely" in value:
            tables[""][key] = value
        else:
            tables[key] = value
    for name, table in tables.items():
        made += f"\n[{name}]\n" if name else "\n"
        made += "".join(f"{key} = {_inline(value)}\n" for key, value in table.items())
    return made


def _inline(number: dict[str, Any]) -> str:
    words = (
        f"{key} = {json.dumps(value) if isinstance(value, str) else f'{value:.4g}'}"
        for key, value in number.items()
        if value != ""
    )
    return f"{{ {', '.join(words)} }}"


def known(recipe: str, overrides: Sequence[str]) -> None:
    """Refuse options under whose rate `plan` would not find the recipe: a rate goes by its recipe's name."""
    if network(load(recipe, overrides)) != network(load(recipe)):
        raise InputError(f"{' '.join(overrides)}: another network than {recipe}'s; give it a recipe file, whose name is its own")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("recipe", help="name of a packaged recipe, or path of a .toml file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as precision=bf16 or data.dir=data/imagenet")
    parser.add_argument("--to", type=Path, help="performance file (default: print it)")
    parser.add_argument("--ranks", type=positive, default=2, help="on this host, where no launcher has started any (default: 2)")
    parser.add_argument("--machine", help="name of a machine, or path of its .toml file: whose jobs these ranks are like")
    parser.add_argument("--threads", type=positive, help="a rank (default: the machine's, or 1)")
    parser.add_argument("--note", default="", help='for the sources, such as "on a busy machine"')
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    options = parser.parse_intermixed_args()
    try:
        known(options.recipe, options.overrides)  # before ranks are launched
        if options.machine in available() and not options.to:
            raise InputError(
                f"--machine {options.machine}: its numbers are the package's; name your copy of "
                f"{MACHINES / options.machine}.toml, or --to FILE"
            )
        if options.ranks > 1 and launched().size == 1:
            command, environment = measure.on_ranks(options.ranks)
            words = [sys.executable, "-m", "benchmarks.calibrate", *sys.argv[1:]]
            sys.exit(attended([*command, *words], environment, signal.SIGTERM))
        run(options)
    except InputError as error:
        sys.exit(f"calibrate: {error}")


def run(options: argparse.Namespace) -> None:
    """On every rank; rank 0 writes."""
    machine = load_machine(options.machine) if options.machine else None
    if machine and options.threads not in (None, machine.threads):
        raise InputError(f"--threads {options.threads}: machine {machine.name} has {machine.threads} a rank")
    torch.set_num_threads(machine.threads if machine else options.threads or 1)
    options.to = options.to or (calibration.path_of(options.machine) if machine else None)
    recipe = load(options.recipe, options.overrides)
    before = calibration.read(options.to) if options.to and options.to.exists() else None
    comm = connect()
    try:
        if comm.size == 1:
            raise InputError("one rank has no link and no jitter: --ranks 2")
        layout = sorted(set(comm.gather(comm.local_size)))
        if machine and layout != [machine.ranks]:
            raise InputError(f"{' and '.join(map(str, layout))} ranks a node: machine {machine.name} has {machine.ranks}")
        bound = min(comm.gather(len(os.sched_getaffinity(0))))
        if machine and machine.bind and bound < machine.cpus_per_rank:
            raise InputError(f"{bound} processors a rank: machine {machine.name} binds each to {machine.cpus_per_rank}")
        bench, ready = Bench(comm, options.quick), age()
        own = any(word.startswith("data.dir=") for word in options.overrides)
        if not own and recipe.application not in MAKERS:
            raise InputError(f"no data can be made up for {recipe.application}: data.dir=...")
        data = [] if own else MAKERS[recipe.application](bench)
        performance = measured(bench, options.recipe, [*options.overrides, *data], options.note, before, ready)
        if comm.rank == 0:
            text = toml(performance)
            if options.to:
                make_folder(options.to.parent)
                with written_whole(options.to) as path:
                    path.write_text(text)
            print(text, end="", flush=True)
    finally:
        comm.close()


if __name__ == "__main__":
    main()
