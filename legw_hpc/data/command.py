"""`legw-hpc data SOURCE`: its options, and what each source is given."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

from legw_hpc.errors import InputError
from legw_hpc.launcher import alone
from legw_hpc.strict import named

IMAGENET = (
    "folder with, for train, train/CLASS/, train/CLASS.tar or ILSVRC2012_img_train.tar, "
    "and for val, val/CLASS/, val/* or ILSVRC2012_img_val.tar"
)


def arguments(data: argparse.ArgumentParser) -> None:
    """The options of every source."""
    sources = data.add_subparsers(dest="source_name", metavar="SOURCE", required=True)

    def source(name: str, summary: str) -> argparse.ArgumentParser:
        made = sources.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        made.add_argument("--out", type=named, default=Path("data") / name, help=f"data folder to make (default: data/{name})")
        return made

    def samples_per_shard(command: argparse.ArgumentParser) -> None:
        command.add_argument("--samples-per-shard", type=positive, help="default: about 1 GiB a shard")

    mnist = source("mnist", "MNIST from its four IDX files")
    where = mnist.add_mutually_exclusive_group(required=True)
    where.add_argument("--source", type=named, help="folder with the IDX files, plain or .gz")
    where.add_argument("--download", action="store_true", help="fetch them from a public mirror, checked, into OUT/idx")
    samples_per_shard(mnist)
    ptb = source("ptb", "Penn Treebank words from ptb.train.txt, ptb.valid.txt and ptb.test.txt, checked")
    ptb.add_argument("--source", type=named, required=True, help="folder with the three files")
    text = source("text", "any text in the layout of PTB: NAME.train.txt, NAME.valid.txt and NAME.test.txt")
    text.add_argument("--source", type=named, required=True, help="folder with the three files")
    text.add_argument("--name", default="ptb", help="what the files' names begin with (default: ptb)")
    for name, layout, summary in (
        ("imagenet", IMAGENET, "ImageNet from class folders or its tar files, as JPEGs"),
        ("images", "folder with train/CLASS/ and val/CLASS/", "any train/CLASS/ and val/CLASS/ folders, as JPEGs"),
    ):
        images = source(name, summary)
        images.add_argument("--source", type=named, required=True, help=layout)
        images.add_argument(
            "--workers", type=positive, default=len(os.sched_getaffinity(0)), help="processes (default: all cores)"
        )
        images.add_argument("--shard-bytes", type=positive, help="default: 1 GiB")
        images.add_argument("--skip-broken", action="store_true", help="leave out images that do not decode, and name them")
        if name == "imagenet":
            images.add_argument(
                "--val-labels",
                type=named,
                help="the file of val's classes where val has no class folders: lines of FILE CLASS, or LOC_val_solution.csv",
            )
    cifar10 = source("cifar10", "CIFAR-10 from the binary archive or from class folders (or a tar of them), decoded")
    cifar10.add_argument("--source", type=named, required=True, help="folder or archive")
    samples_per_shard(cifar10)
    small = source("small-images", "class folders of images of one small size, decoded")
    small.add_argument("--source", type=named, required=True, help="folder, or a tar of it")
    small.add_argument("--size", type=_shape, required=True, metavar="H,W", help="pixels")
    samples_per_shard(small)
    synthetic = source("synthetic", "random samples of any shape")
    synthetic.add_argument("--shape", type=_shape, default=(28, 28), help="of a sample (default: 28,28)")
    synthetic.add_argument("--classes", type=positive, default=10, help="default: 10")
    synthetic.add_argument("--train", type=positive, default=60000, help="samples (default: 60000)")
    synthetic.add_argument("--test", type=positive, default=10000, help="samples (default: 10000)")
    synthetic.add_argument("--seed", type=int, default=0, help="default: 0")
    samples_per_shard(synthetic)
    stage = sources.add_parser(
        "stage", help="copy a data folder to node-local storage, checked; one process of each node copies", allow_abbrev=False
    )
    stage.add_argument("folder", type=named)
    stage.add_argument("to", type=named, help="must not exist")
    verify = sources.add_parser("verify", help="read every sample and compare all checksums", allow_abbrev=False)
    verify.add_argument("folder", type=named)
    verify.add_argument("--repair-index", action="store_true", help="make a lost or damaged index again, if all shards are whole")


def positive(text: str) -> int:
    """A whole number of at least 1, of a command line."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {text!r}")
    return int(text)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


def run(options: argparse.Namespace) -> None:
    """What the command does.

    Raises:
        InputError: see the source.
    """
    from legw_hpc.data.format import read_index
    from legw_hpc.data.repair import repair_index
    from legw_hpc.data.shards import verify

    if options.source_name == "stage":
        from legw_hpc.data.staging import stage

        if stage(options.folder, options.to):
            print(f"{options.folder}: copied to {os.uname().nodename}:{options.to}, whole")
        return
    alone("data")
    if options.source_name == "verify":
        counts = (repair_index if options.repair_index else verify)(options.folder)
        print(
            f"{options.folder}: {'index written anew; ' if options.repair_index else ''}whole: "
            + ", ".join(f"{split} {count:,}" for split, count in counts.items())
        )
        return
    # Of a batch system: as Ctrl-C, so that the folder's mark and what is half written do not stay.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _convert(options)
    splits = read_index(options.out)["splits"]
    print(f"{options.out}: " + ", ".join(f"{s} {e['count']:,} in {len(e['shards'])}" for s, e in splits.items()))


def _convert(options: argparse.Namespace) -> None:
    from legw_hpc.data.sources import cifar10, imagenet, images, mnist, small_images, synthetic, text
    from legw_hpc.data.writer import refuse_finished

    name, out = options.source_name, options.out
    if name == "mnist":
        if options.download:
            refuse_finished(out)
            mnist.download(out / "idx")
        mnist.convert(out / "idx" if options.download else options.source, out, options.samples_per_shard)
    elif name == "ptb":
        text.convert_ptb(options.source, out)
    elif name == "text":
        text.convert(options.source, out, options.name)
    elif name in ("imagenet", "images"):
        how: dict[str, Any] = {"workers": options.workers, "skip_broken": options.skip_broken}
        if options.shard_bytes:
            how["shard_bytes"] = options.shard_bytes
        if name == "imagenet":
            imagenet.convert(options.source, out, val_labels=options.val_labels, **how)
        else:
            images.convert(options.source, out, **how)
    elif name == "cifar10":
        cifar10.convert(options.source, out, options.samples_per_shard)
    elif name == "small-images":
        if len(options.size) != 2:
            raise InputError(f"--size is H,W, not {','.join(map(str, options.size))}")
        small_images.convert(options.source, out, options.size, options.samples_per_shard)
    else:
        synthetic.write(out, options.shape, options.classes, options.train, options.test, options.seed, options.samples_per_shard)
