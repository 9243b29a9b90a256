"""legw-hpc submit: its options, and what it does with them.  Parsing imports nothing heavy."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from legw_hpc.errors import InputError
from legw_hpc.strict import named

if TYPE_CHECKING:
    from legw_hpc.recipe import Recipe
    from legw_hpc.submit.machine import Machine

EXAMPLES = (
    "  legw-hpc submit imagenet-resnet50 batch=32768 --machine skylake --nodes 64 --time 04:00:00 --dry-run\n"
    "  legw-hpc submit imagenet-resnet50 batch=32768 --machine skylake --nodes 64 --time 04:00:00 --chain 3 --stage\n"
    "  legw-hpc submit mnist-lstm batch=1024,2048,4096 --array --at-once 2 --to runs/grid --machine knl --nodes 4\n"
    "  legw-hpc submit mnist-lstm batch=4096 --machine my-site.toml --nodes 8 --scheduler pbs --set pbs.launcher=hydra\n"
    "The machines are in jobs/machines/; the script stays in RUN/jobs, with the output of the job."
)


def arguments(submit: argparse.ArgumentParser) -> None:
    """The options besides recipe and overrides."""
    submit.add_argument("--machine", required=True, help="name of a machine (jobs/machines/), or path of a .toml file")
    submit.add_argument("--nodes", type=int, required=True, help="of the job, or of each task of an array")
    submit.add_argument("--array", action="store_true", help="values with commas are a grid: a job array")
    submit.add_argument("--to", type=named, help="folder of an array's runs (default: runs/sweep/RECIPE)")
    array_arguments(submit)


def array_arguments(submit: argparse._ActionsContainer) -> None:
    """The options of a job that are those of a sweep's array too."""
    submit.add_argument("--time", default="", metavar="HH:MM:SS", help="walltime (default: the machine's longest)")
    submit.add_argument("--dry-run", action="store_true", help="print the script and submit nothing")
    submit.add_argument(
        "--chain", type=int, default=1, metavar="K", help="run up to K times, each going on from the last checkpoint (default: 1)"
    )
    submit.add_argument(
        "--at-once",
        type=int,
        default=0,
        metavar="N",
        help="tasks of the array that run at the same time (default: what there is room for)",
    )
    job_arguments(submit)


def array_words(options: argparse.Namespace) -> list[str]:
    """The options of `array_arguments` as they were given."""
    usual = {"time": "", "chain": 1, "at_once": 0}
    given = {name: value for name, usually in usual.items() if (value := getattr(options, name)) != usually}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    return [*words, *job_words(options), *(["--dry-run"] if options.dry_run else [])]


def job_arguments(submit: argparse._ActionsContainer) -> None:
    """The options of any job: what is charged, where it queues, and how it starts."""
    submit.add_argument("--stage", action="store_true", help="copy the shards to node-local storage first, checked")
    submit.add_argument(
        "--unpack", default="", metavar="FILE", help="unpack this environment of jobs/pack.sh on every node first"
    )
    submit.add_argument("--account", default="", help="to charge")
    submit.add_argument("--partition", default="", help="partition or queue (default: the machine's)")
    submit.add_argument("--scheduler", choices=("slurm", "pbs"), help="instead of the machine's")
    submit.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="a field of the machine, such as slurm.mpi=pmi2"
    )


def job_words(options: argparse.Namespace) -> list[str]:
    """The options of `job_arguments` as they were given."""
    given = ((name, getattr(options, name)) for name in ("unpack", "account", "partition", "scheduler"))
    named = [f"--{name}={value}" for name, value in given if value]
    return [*named, *(f"--set={word}" for word in options.set), *(["--stage"] if options.stage else [])]


def machine_of(options: argparse.Namespace) -> Machine:
    """With the fields that were set.

    Raises:
        InputError: no such machine, or a field that it has not.
    """
    from legw_hpc.submit.machine import load

    return load(options.machine, [*options.set, *([f"scheduler={options.scheduler}"] if options.scheduler else [])])


def run(options: argparse.Namespace) -> None:
    """Check, then print or submit.

    Raises:
        InputError: what cannot work; nothing is written or submitted.
    """
    from legw_hpc.recipe import load
    from legw_hpc.submit import send
    from legw_hpc.submit.job import Options, make

    machine = machine_of(options)
    wanted = Options(
        nodes=options.nodes, time=options.time, chain=options.chain, array=options.array,
        at_once=options.at_once, to=options.to,
        account=options.account, partition=options.partition, stage=options.stage, unpack=options.unpack,
        bin="" if machine.container else str(_bin()),
    )  # fmt: skip
    job = make(options.recipe, options.overrides, machine, wanted)
    _check_choices([load(name, overrides) for name, *overrides in job.tasks])
    if options.dry_run:
        print(send.text(job), end="")
        return
    if options.unpack and not Path(options.unpack).is_file():
        raise InputError(f"--unpack {options.unpack}: no such file; jobs/pack.sh makes it")
    if not job.array:  # of an array's cells those that are held have been left out
        send.check_free(load(options.recipe, options.overrides))
    for name, *overrides in job.tasks:
        recipe = load(name, overrides)
        send.check_folder(recipe)
        send.check_start(recipe)
        send.check_data(recipe, machine if options.stage else None)
    ids, file = send.send(job)
    units = f" = {job.node_hours * machine.charge:,.1f} units" if machine.charge not in (0, 1) else ""
    print(f"job {' '.join(ids)}: {job.nodes} nodes, {job.ranks} ranks, at most {job.node_hours:,.1f} node-hours{units}; {file}")


def _bin() -> Path:
    """The folder of `legw-hpc`: of the one that runs, else of this Python's environment, else on the PATH (`pip --user`).

    Raises:
        InputError: there is none.
    """
    name = "legw-hpc"
    running = sys.argv[0] if Path(sys.argv[0]).name == name else ""
    for path in (running, f"{sys.prefix}/bin/{name}", shutil.which(name) or ""):
        if os.access(path, os.X_OK):
            return Path(path).absolute().parent
    raise InputError(f"no {name} in {sys.prefix}/bin or on the PATH for the job to start: install this package")


def _check_choices(recipes: Sequence[Recipe]) -> None:
    """What the ranks would refuse hours later."""
    try:
        from legw_hpc.work import check_choices  # torch
    except (ImportError, OSError) as error:  # a login node without a library that nodes have
        print(f"note: options of solver and application are not checked here: {error}", file=sys.stderr)
        return
    for recipe in recipes:
        check_choices(recipe)
