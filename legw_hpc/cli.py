"""The command line: legw-hpc train | plan | data | sweep | doctor.

Parsing imports nothing heavy, so `--help` and `plan` answer at once on a login node.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from legw_hpc import errors
from legw_hpc.launcher import launched

# How long other ranks leave the word to rank 0 before they are connected (assumed: ranks start within this).
GRACE_SECONDS = 10.0

EXAMPLES = """examples:
  legw-hpc data mnist --source DIR                       IDX files -> HDF5 shards in data/mnist
  legw-hpc plan mnist-lstm batch=8192                    what LEGW makes of a batch; no torch needed
  mpirun -np 2 legw-hpc train mnist-lstm batch=8192      train on two ranks
  legw-hpc sweep mnist-lstm-sample batch=32,1024 scheme=legw,linear --ranks 2
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
        "  srun --mpi=pmix legw-hpc train mnist-lstm batch=8192 out=runs/first\n"
        "  legw-hpc train mnist-lstm-sample epochs=2              one rank\n"
        "The same command again goes on from the last checkpoint.",
    )  # fmt: skip
    _recipe_arguments(train)

    plan = command(
        "plan", "print what a recipe comes to for a batch, without training",
        "  legw-hpc plan mnist-lstm batch=8192\n  legw-hpc plan mnist-lstm batch=8192 scheme=linear --json",
    )  # fmt: skip
    _recipe_arguments(plan)
    plan.add_argument("--json", action="store_true", help="one JSON object instead of text")

    sweep = command(
        "sweep", "run a grid of a recipe, cell by cell; finished cells are skipped",
        "  legw-hpc sweep mnist-lstm-sample batch=32,256,1024 scheme=legw,linear --ranks 2\n"
        "A value with commas is a dimension of the grid.",
    )  # fmt: skip
    _recipe_arguments(sweep)
    sweep.add_argument("--ranks", type=int, default=1, help="ranks of each run, on this machine (default: 1)")
    sweep.add_argument(
        "--to", type=Path, default=Path("runs/sweep"), help="folder of the runs, table and plot (default: runs/sweep)"
    )

    data = command(
        "data", "make or check HDF5 shards",
        "  legw-hpc data mnist --source DIR --out data/mnist\n  legw-hpc data mnist --download\n"
        "  legw-hpc data ptb --source DIR\n  legw-hpc data imagenet --source DIR --workers 32\n"
        "  legw-hpc data cifar10 --source cifar-10-binary.tar.gz\n"
        "  legw-hpc data synthetic --shape 28,28 --classes 10 --train 60000 --test 10000 --out data/synthetic\n"
        "  legw-hpc data verify data/mnist",
    )  # fmt: skip
    _data_arguments(data)

    doctor = command(
        "doctor", "check MPI, Horovod, ranks, threads, HDF5 and disk; each fault with a remedy",
        "  legw-hpc doctor --ranks 2\n  srun --mpi=pmix legw-hpc doctor",
    )  # fmt: skip
    doctor.add_argument("--ranks", type=int, default=0, help="also launch so many ranks here and let them agree")
    return top


def _recipe_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", help="name of a packaged recipe, or path of a .toml file")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="such as batch=8192, scheme=linear, baseline.lr=0.1")


def _data_arguments(data: argparse.ArgumentParser) -> None:
    sources = data.add_subparsers(dest="source_name", metavar="SOURCE", required=True)

    def source(name: str, summary: str) -> argparse.ArgumentParser:
        made = sources.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        made.add_argument("--out", type=Path, default=Path("data") / name, help=f"data folder to make (default: data/{name})")
        return made

    def samples_per_shard(command: argparse.ArgumentParser) -> None:
        command.add_argument("--samples-per-shard", type=_positive, help="default: about 1 GiB a shard")

    mnist = source("mnist", "MNIST from its four IDX files")
    where = mnist.add_mutually_exclusive_group(required=True)
    where.add_argument("--source", type=Path, help="folder with the IDX files, plain or .gz")
    where.add_argument("--download", action="store_true", help="fetch them from a public mirror, checked, into OUT/idx")
    samples_per_shard(mnist)
    ptb = source("ptb", "Penn Treebank words from ptb.train.txt, ptb.valid.txt and ptb.test.txt, checked")
    ptb.add_argument("--source", type=Path, required=True, help="folder with the three files")
    text = source("text", "any text in the layout of PTB: NAME.train.txt, NAME.valid.txt and NAME.test.txt")
    text.add_argument("--source", type=Path, required=True, help="folder with the three files")
    text.add_argument("--name", default="ptb", help="what the files' names begin with (default: ptb)")
    for name, summary in (
        ("imagenet", "ImageNet from class folders or its tar files, as JPEGs"),
        ("images", "any train/CLASS/ and val/CLASS/ folders, as JPEGs"),
    ):
        images = source(name, summary)
        images.add_argument("--source", type=Path, required=True, help="folder with train and val")
        images.add_argument(
            "--workers", type=_positive, default=len(os.sched_getaffinity(0)), help="processes (default: all cores)"
        )
        images.add_argument("--shard-bytes", type=_positive, default=1 << 30, help="default: 1 GiB")
        images.add_argument("--skip-broken", action="store_true", help="leave out images that do not decode, and name them")
        if name == "imagenet":
            images.add_argument(
                "--val-labels", type=Path, help="lines of FILE CLASS, for validation images without class folders"
            )
    cifar10 = source("cifar10", "CIFAR-10 from the binary archive or from class folders (or a tar of them), decoded")
    cifar10.add_argument("--source", type=Path, required=True, help="folder or archive")
    samples_per_shard(cifar10)
    small = source("small-images", "class folders of images of one small size, decoded")
    small.add_argument("--source", type=Path, required=True, help="folder, or a tar of it")
    small.add_argument("--size", type=_shape, required=True, metavar="H,W", help="pixels")
    samples_per_shard(small)
    synthetic = source("synthetic", "random samples of any shape")
    synthetic.add_argument("--shape", type=_shape, default=(28, 28), help="of a sample (default: 28,28)")
    synthetic.add_argument("--classes", type=_positive, default=10, help="default: 10")
    synthetic.add_argument("--train", type=_positive, default=60000, help="samples (default: 60000)")
    synthetic.add_argument("--test", type=_positive, default=10000, help="samples (default: 10000)")
    synthetic.add_argument("--seed", type=int, default=0, help="default: 0")
    samples_per_shard(synthetic)
    verify = sources.add_parser("verify", help="read every sample and compare all checksums", allow_abbrev=False)
    verify.add_argument("folder", type=Path)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {text!r}")
    return int(text)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its code; errors that the user can mend are one line, from rank 0."""
    options = parser().parse_args(arguments)
    first = launched().rank == 0
    code = errors.EXIT_DONE
    try:
        _COMMANDS[options.command](options)
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
        _tell(first, f"legw-hpc: {error}")
    except KeyboardInterrupt:
        code = 130
        _tell(first, "legw-hpc: interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as end:
        raise end
    except BaseException:
        _bug()
    sys.exit(code)


def _tell(first: bool, text: str) -> None:
    if first:
        print(text, file=sys.stderr, flush=True)


def _bug() -> NoReturn:
    """A traceback, and the end of all ranks: the others may wait in a collective for this one."""
    launch = launched()
    print(f"rank {launch.rank} of {launch.size}:", file=sys.stderr)
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(errors.EXIT_BUG)


def _train(options: argparse.Namespace) -> None:
    from legw_hpc.recipe import derive, load

    recipe = load(options.recipe, options.overrides)
    derive(recipe)  # what is wrong with the numbers is said before torch and MPI start

    from legw_hpc.single_run import run

    result = run(recipe)
    if launched().rank == 0:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in result["metrics"].items())
        print(f"done: {metrics}; {result['steps']} steps, {result['samples_per_s']:,.0f} samples/s", flush=True)


def _plan(options: argparse.Namespace) -> None:
    from legw_hpc.recipe import derive, load

    derived = derive(load(options.recipe, options.overrides))
    print(json.dumps(derived.as_dict()) if options.json else "\n".join(derived.lines()))


def _sweep(options: argparse.Namespace) -> None:
    from legw_hpc import sweep

    sweep.sweep(options.recipe, options.overrides, options.ranks, options.to)


def _data(options: argparse.Namespace) -> None:
    from legw_hpc.data.format import read_index
    from legw_hpc.data.shards import verify

    if launched().size > 1:
        raise errors.InputError(f"legw-hpc data is one process's work; the launcher started {launched().size}")
    if options.source_name == "verify":
        counts = verify(options.folder)
        print(f"{options.folder}: whole: " + ", ".join(f"{split} {count:,}" for split, count in counts.items()))
        return
    _convert(options)
    splits = read_index(options.out)["splits"]
    print(f"{options.out}: " + ", ".join(f"{s} {e['count']:,} in {len(e['shards'])}" for s, e in splits.items()))


def _convert(options: argparse.Namespace) -> None:
    from legw_hpc.data.sources import cifar10, imagenet, images, mnist, small_images, synthetic, text

    name, out = options.source_name, options.out
    if name == "mnist":
        if options.download:
            mnist.download(out / "idx")
        mnist.convert(out / "idx" if options.download else options.source, out, options.samples_per_shard)
    elif name == "ptb":
        text.convert_ptb(options.source, out)
    elif name == "text":
        text.convert(options.source, out, options.name)
    elif name in ("imagenet", "images"):
        how = {"workers": options.workers, "shard_bytes": options.shard_bytes, "skip_broken": options.skip_broken}
        if name == "imagenet":
            imagenet.convert(options.source, out, val_labels=options.val_labels, **how)
        else:
            images.convert(options.source, out, **how)
    elif name == "cifar10":
        cifar10.convert(options.source, out, options.samples_per_shard)
    elif name == "small-images":
        if len(options.size) != 2:
            raise errors.InputError(f"--size is H,W, not {','.join(map(str, options.size))}")
        small_images.convert(options.source, out, options.size, options.samples_per_shard)
    else:
        synthetic.write(out, options.shape, options.classes, options.train, options.test, options.seed, options.samples_per_shard)


def _doctor(options: argparse.Namespace) -> None:
    from legw_hpc import doctor

    doctor.doctor(options.ranks)


_COMMANDS = {"train": _train, "plan": _plan, "data": _data, "sweep": _sweep, "doctor": _doctor}
