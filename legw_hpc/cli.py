"""The command line: legw-hpc train | plan | data | sweep | figures | keep | curvature | submit | status | doctor.

Parsing imports nothing heavy, so `--help` and `plan` answer at once on a login node.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import faulthandler
import importlib
import os
import signal
import sys
import time
import traceback
from typing import NoReturn

from legw_hpc import errors, startup
from legw_hpc.data import command as data_command
from legw_hpc.data.command import positive
from legw_hpc.data.files import keep_from_others
from legw_hpc.launcher import alone, launched
from legw_hpc.paper import command as paper_command
from legw_hpc.plan import command as plan_command
from legw_hpc.strict import named
from legw_hpc.submit import command as submit_command

# How long other ranks leave the word to rank 0 before they are connected (assumed: ranks start within this).
GRACE_SECONDS = 10.0
# MPI_Finalize, which comes after Python's end, waits for every rank, and no watchdog is left by then: the kernel's alarm
# ends this process if it takes longer (assumed: all ranks have taken leave of each other before).
LEAVE_SECONDS = 300
EXIT_PIPE = 128 + signal.SIGPIPE  # as a shell has it

EXAMPLES = """examples:
  legw-hpc data mnist --source DIR                       IDX files -> HDF5 shards in data/mnist
  legw-hpc plan mnist-lstm batch=8192                    what LEGW makes of a batch; no torch needed
  mpirun -np 2 legw-hpc train mnist-lstm batch=8192      train on two ranks
  legw-hpc sweep mnist-lstm-sample batch=32,1024 scheme=legw,linear --ranks 2
  legw-hpc figures figure1 --quick                       a figure of the paper, on the packaged sample
  legw-hpc curvature mnist-lstm-sample batch=128         where L(x, g) peaks, and what warmup covers it
  legw-hpc submit mnist-lstm batch=8192 --machine skylake --nodes 4 --dry-run
  legw-hpc status runs/*                                 step, rate, time to go, jobs, last error
  legw-hpc doctor --ranks 2                              is everything in order?

exit codes: 0 done, 1 a bug, 2 something to mend, 3 diverged, 4 a rank has stopped, 85 stopped by a signal: run again to resume
"""


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    plain = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="legw-hpc", description="Large-batch training with LEGW and LARS on Horovod over MPI.",
        epilog=EXAMPLES, formatter_class=plain, allow_abbrev=False,
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=summary, description=summary, epilog=f"examples:\n{example}", formatter_class=plain, allow_abbrev=False
        )

    train = command(
        "train", "train a recipe on the ranks that the launcher started",
        "  mpirun -np 2 legw-hpc train mnist-lstm batch=8192\n"
        "  srun --mpi=pmix --wait=20 legw-hpc train mnist-lstm batch=8192 out=runs/first\n"
        "  legw-hpc train mnist-lstm-sample epochs=2              one rank\n"
        "Keys used most: batch, epochs, scheme, baseline.lr, baseline.warmup_epochs, lr, warmup_epochs, precision, micro_batch,\n"
        "threads, seed, eval_every, checkpoint.every_minutes, out, max_steps; all of them, with defaults: docs/recipe.md.\n"
        "The same command again goes on from the last checkpoint.",
    )  # fmt: skip
    _recipe_arguments(train)

    plan = command(
        "plan",
        "print what a recipe comes to for a batch, and what it costs on a machine, without training",
        plan_command.EXAMPLES,
    )
    _recipe_arguments(plan)
    plan_command.arguments(plan)

    sweep = command(
        "sweep", "run a grid of a recipe, cell by cell; finished cells are skipped",
        "  legw-hpc sweep mnist-lstm-sample batch=32,256,1024 scheme=legw,linear --ranks 2\n"
        "  legw-hpc sweep mnist-lstm batch=128,1024,8192 seeds=3 --jobs 2        two runs side by side\n"
        "  legw-hpc sweep mnist-lstm batch=128,1024,8192 seeds=3 --draw          what is finished by now\n"
        "  legw-hpc sweep mnist-lstm batch=2048,4096 seeds=3 --machine skylake --nodes 4\n"
        "A value with commas is a dimension of the grid; seeds=N is the recipe's seed and the N-1 after it.\n"
        "Written beside the runs: results.jsonl (a line a run), table.md and quality.png (mean, sample standard deviation, n).",
    )  # fmt: skip
    _recipe_arguments(sweep)
    _local_arguments(sweep)
    sweep.add_argument("--to", type=named, help="folder of the runs, table and plot (default: runs/sweep/RECIPE)")
    sweep.add_argument("--draw", action="store_true", help="run nothing: table and plot of what is finished")
    array = sweep.add_argument_group("job array", "what is missing as an array on a machine")
    array.add_argument("--machine", help="name of a machine (jobs/machines/), or path of a .toml file")
    array.add_argument("--nodes", type=int, help="of each task of the array")
    submit_command.array_arguments(array)

    figures = command(
        "figures", "the paper's figures and Table 1: train what is missing, draw, write pages", paper_command.EXAMPLES
    )
    paper_command.arguments(figures)
    _local_arguments(figures)

    keep = command("keep", "copy the logs of finished runs to where figures find them", paper_command.KEEP_EXAMPLES)
    paper_command.keep_arguments(keep)

    curvature = command(
        "curvature", "train with L(x, g) measured: where its peak lies, and what warmup covers it (paper, section 4)",
        "  legw-hpc curvature mnist-lstm batch=1024 epochs=5 --ranks 2\n"
        "  legw-hpc curvature mnist-lstm batch=128 --every 2             half the cost, over half as many steps\n"
        "  mpirun -np 2 legw-hpc curvature ptb-lstm batch=640 epochs=2\n"
        "  legw-hpc curvature mnist-lstm batch=1024 epochs=5 --draw      of what has been measured\n"
        "The run is the same to the bit as without. Its log has a line a measurement; RUN/curvature.png is drawn.",
    )  # fmt: skip
    _recipe_arguments(curvature)
    curvature.add_argument("--every", type=int, default=1, metavar="N", help="measure at every N-th step (default: 1)")
    curvature.add_argument("--ranks", type=int, default=1, help="ranks, launched on this machine (default: 1)")
    curvature.add_argument("--draw", action="store_true", help="run nothing: print and draw what has been measured")

    data = command(
        "data", "make or check HDF5 shards",
        "  legw-hpc data mnist --source DIR --out data/mnist\n  legw-hpc data mnist --download\n"
        "  legw-hpc data ptb --source DIR\n  legw-hpc data imagenet --source DIR --workers 32\n"
        "  legw-hpc data cifar10 --source cifar-10-binary.tar.gz\n"
        "  legw-hpc data synthetic --shape 28,28 --classes 10 --train 60000 --test 10000 --out data/synthetic\n"
        "  legw-hpc data verify data/mnist [--repair-index]",
    )  # fmt: skip
    data_command.arguments(data)

    submit = command("submit", "make a SLURM or PBS script for a recipe on a machine, and submit it", submit_command.EXAMPLES)
    _recipe_arguments(submit)
    submit_command.arguments(submit)

    status = command(
        "status", "where runs are: state, step, samples/s, time to go, jobs, last error",
        "  legw-hpc status runs/first\n  legw-hpc status runs/sweep/mnist-lstm/*/\n"
        "  legw-hpc status --json runs/* | jq -r 'select(.state == \"stopped\").folder'",
    )  # fmt: skip
    status.add_argument("--json", action="store_true", help="JSON instead of text, a line a run")
    status.add_argument("runs", nargs="+", type=named, metavar="RUN", help="run folder, or one of a sweep's or an array's runs")

    doctor = command(
        "doctor", "check MPI, Horovod, ranks, threads, HDF5 and disk; each fault with a remedy",
        "  legw-hpc doctor --ranks 2\n  srun --mpi=pmix legw-hpc doctor",
    )  # fmt: skip
    doctor.add_argument("--ranks", type=positive, default=0, help="also launch so many ranks here and let them agree")
    return top


def _local_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--ranks", type=int, default=1, help="ranks of each run, on this machine (default: 1)")
    command.add_argument(
        "--jobs", type=int, default=1, help="runs side by side, of one rank on cores of its own each (default: 1)"
    )


def _recipe_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", help="name of a packaged recipe, or path of a .toml file")
    command.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="such as batch=8192, scheme=linear, baseline.lr=0.1"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of a command line; key=value, and figures' names, may stand before and after options, unlike in argparse."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    takes = next((name for name in ("overrides", "names") if hasattr(options, name)), None)
    if strange := [word for word in rest if word.startswith("-") or takes is None]:
        top.error(f"unrecognized arguments: {' '.join(strange)}")
    if takes is not None:
        setattr(options, takes, [*getattr(options, takes), *rest])
    return options


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its code; errors that the user can mend are one line, from rank 0."""
    options = parse(arguments)
    keep_from_others()
    first = launched().rank == 0
    code = errors.EXIT_DONE
    try:
        _run(options)
    except errors.InputError as error:
        code = errors.EXIT_INPUT
        if not first and not error.agreed:
            # Rank 0 most likely says the same, and its launcher then ends this rank.  If not, only this
            # rank has the fault, and the others wait for it: report it and end them.
            time.sleep(GRACE_SECONDS)
            error, first = errors.InputError(f"rank {launched().rank}: {error}"), True
        _tell(first, f"legw-hpc: {error}")
    except errors.Diverged as error:
        code = errors.EXIT_DIVERGED
        _tell(first, f"legw-hpc: {error}")
    except errors.Interrupted as error:
        code = errors.EXIT_RESUME
        for number in errors.STOP_SIGNALS:  # this process is on its way out, and another signal must not cut that short
            signal.signal(number, signal.SIG_IGN)
        _tell(first, f"legw-hpc: {error}")
    except KeyboardInterrupt:
        code = 130
        _tell(first, "legw-hpc: interrupted")
    except BrokenPipeError:  # as in `... | head`: what only tells is done then
        code = errors.EXIT_DONE if options.command in ("plan", "status", "doctor") else EXIT_PIPE
        _say_no_more()
    except SystemExit as end:
        raise end
    except BaseException:
        _bug()
    sys.exit(code)


def _run(options: argparse.Namespace) -> None:
    """A command, and all that it prints.

    Raises:
        InputError: the disk is full of what the output goes to.
    """
    try:
        _COMMANDS[options.command](options)
        if sys.stdout is not None:  # it is closed: nobody wants to know
            sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _say_no_more()
        raise errors.InputError(f"the output cannot be written: {error.strerror}") from None


def _say_no_more() -> None:
    """What is left of the output goes nowhere; else Python would fail to write it at its end, and tell another exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(first: bool, text: str) -> None:
    if first:
        print(text, file=sys.stderr, flush=True)


def _bug() -> NoReturn:
    """A traceback, and the end of all ranks: the others may wait in a collective for this one."""
    launch = launched()
    print(f"rank {launch.rank} of {launch.ranks}:", file=sys.stderr)
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(errors.EXIT_BUG)


def _train(options: argparse.Namespace) -> None:
    from legw_hpc.derived import derive
    from legw_hpc.recipe import load

    recipe = load(options.recipe, options.overrides)
    derive(recipe)  # what is wrong with the numbers is said before torch and MPI start
    if launched().size != 1:
        atexit.register(signal.alarm, LEAVE_SECONDS)
    faulthandler.enable(2)  # on stderr: where a crash was, and which shard could not be read (data/shardfile.py)
    limit = startup.TIMES * 60 * recipe.stall_minutes
    run = startup.within(limit, "imported torch", lambda: importlib.import_module("legw_hpc.single_run").run)
    result = run(recipe)
    if launched().rank == 0:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in result["metrics"].items())
        print(
            f"done: {metrics or 'not evaluated'}; {result['steps']} steps, {result['samples_per_s']:,.0f} samples/s", flush=True
        )


def _sweep(options: argparse.Namespace) -> None:
    from legw_hpc import grid, sweep

    to = options.to or grid.folder(options.recipe)
    told = submit_command.array_words(options)
    if options.machine is None:
        if given := [f"--nodes={options.nodes}"] * (options.nodes is not None) + told:
            raise errors.InputError(f"{given[0].partition('=')[0]}: on which machine?  --machine NAME")
        run = not options.draw
        sweep.sweep(options.recipe, options.overrides, to, ranks=options.ranks, jobs=options.jobs, run=run)
        return
    if options.draw:
        raise errors.InputError(
            f"--draw with --machine {options.machine}: --draw alone writes table and plot of what is finished"
        )
    if given := [name for name in ("ranks", "jobs") if getattr(options, name) != 1]:
        raise errors.InputError(f"--{given[0]} is of runs here; machine {options.machine} has its own: --set ranks=...")
    if options.nodes is None:
        raise errors.InputError(f"--machine {options.machine}: how many nodes does each task take? --nodes N")
    words = ["submit", options.recipe, *options.overrides, "--array", f"--to={to}"]
    _submit(parse([*words, f"--machine={options.machine}", f"--nodes={options.nodes}", *told]))


def _curvature(options: argparse.Namespace) -> None:
    from legw_hpc.curvature_run import curvature

    curvature(options.recipe, options.overrides, options.every, ranks=options.ranks, run=not options.draw)


def _submit(options: argparse.Namespace) -> None:
    alone("submit")
    submit_command.run(options)


def _status(options: argparse.Namespace) -> None:
    from legw_hpc.status import runs, statuses

    found = runs(options.runs)
    failed = 0
    for status in statuses(found):
        if not isinstance(status, errors.InputError):
            print(status.json() if options.json else "\n".join(status.lines()), flush=True)
        elif len(found) == 1:
            raise status
        else:
            failed += 1
            print(f"legw-hpc: {status}", file=sys.stderr, flush=True)
    if failed:
        raise errors.InputError(f"{failed} of {len(found)} are no run, or may not be read, as told above")


def _doctor(options: argparse.Namespace) -> None:
    from legw_hpc import doctor

    doctor.doctor(options.ranks)


_COMMANDS = {
    "train": _train, "plan": plan_command.run, "data": data_command.run, "sweep": _sweep, "figures": paper_command.run,
    "keep": paper_command.keep, "curvature": _curvature, "submit": _submit, "status": _status,
    "doctor": _doctor,
}  # fmt: skip
