"""Small samples in random order, from disk to fp32 micro-batches: ours beside other readers of data sets."""

from __future__ import annotations

import importlib
import itertools
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks import made
from benchmarks.measure import Bench, Case, Goal, Outcome, run
from legw_hpc.apps import application
from legw_hpc.data.loader import train_steps
from legw_hpc.data.order import Shuffled, pieces
from legw_hpc.data.shards import Shards

BATCH, MICRO_BATCH = 1024, 128
SAMPLES, QUICK_SAMPLES = 60000, 20000
# What a slow reader reads in a round, a second or so; the fast ones read whole epochs, several.
FEW, QUICK_FEW, EPOCHS = 16384, 4096, 10
TARS, TAR_BUFFER = 10, 1000
Batches = Iterator[tuple[Tensor, ...]]  # images fp32 [B, 28, 28] and labels int64 [B]


@dataclass(frozen=True)
class Files:
    """The data set: as our shards in `shards`, in memory, and room beside it for the peers' own files.

    Attributes:
        few: samples that a slow reader reads in a round.
    """

    shards: Path
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    few: int

    @property
    def hdf5(self) -> Path:
        """The file of all samples."""
        return self.shards / "train-00000.h5"

    def room(self, name: str) -> Path:
        """A folder for a peer's files."""
        folder = self.shards.parent / name
        folder.mkdir()
        return folder


@dataclass(frozen=True)
class Reader:
    """One way to read them.

    Attributes:
        make: gives what reads a round: all samples, or `few`.
        goal: how many times as fast ours should be.
        needs: a package from PyPI.
        whole: it reads all samples.
    """

    name: str
    make: Callable[[Files], Callable[[], Batches]]
    goal: float = 0.0
    needs: str = "torch"
    whole: bool = False


def cases(bench: Bench) -> Outcome:
    samples = QUICK_SAMPLES if bench.quick else SAMPLES
    shards = Path(made.mnist(bench, samples)[0].removeprefix("data.dir="))
    with h5py.File(shards / "train-00000.h5") as file:
        files = Files(shards, file["image"][...], file["label"][...], QUICK_FEW if bench.quick else FEW)
    there = [reader for reader in READERS if find_spec(reader.needs)]
    missing = [reader for reader in READERS if reader not in there]
    notes = [
        f"{samples:,} samples of 28 x 28 uint8 in random order, to fp32 in 0 ... 1, by {MICRO_BATCH}; the files are in memory.",
        f"webdataset's order is random within {TAR_BUFFER:,} samples, the others' within all.",
        *(f"{reader.name}: left out, {reader.needs} is not installed." for reader in missing),
    ]
    goals = [Goal(OURS.name, reader.name, reader.goal) for reader in there if reader.goal]
    return Outcome([case(reader, files) for reader in there], goals, notes)


def case(reader: Reader, files: Files) -> Case:
    """Rounds of a reader, each of which must bring as many samples as it counts."""
    read = reader.make(files)
    rounds, wanted = (EPOCHS, len(files.labels)) if reader.whole else (1, files.few)

    def go() -> None:
        for _ in range(rounds):
            count = 0
            for images, labels in read():
                assert (images.shape, images.dtype) == ((len(labels), 28, 28), torch.float32)
                assert labels.dtype == torch.int64
                count += len(labels)
            assert count == wanted, f"{reader.name}: {count} samples instead of {wanted}"

    return Case(reader.name, go, rounds * wanted, "samples")


def scaled(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 to fp32 in 0 ... 1."""
    return images.to(torch.float32).div_(255), labels


def ours(files: Files) -> Callable[[], Batches]:
    """What a training run reads, by the loader's thread."""
    data = Shards(files.shards, "train")
    order = Shuffled(len(data), BATCH, seed=1)
    epochs = itertools.count()

    def read() -> Batches:
        first = next(epochs) * order.steps_per_epoch
        steps = train_steps(
            data, application("mnist-lstm").decode, order=order, micro_batch=MICRO_BATCH, first=first,
            last=first + order.steps_per_epoch, rank=0, size=1, device=torch.device("cpu"),
        )  # fmt: skip
        for step in steps:
            yield from step.micro_batches

    return read


def ours_alone(files: Files) -> Callable[[], Batches]:
    """The same without the thread."""
    data = Shards(files.shards, "train")
    order = Shuffled(len(data), BATCH, seed=1)
    epochs = itertools.count()
    decode = application("mnist-lstm").decode

    def read() -> Batches:
        epoch = next(epochs)
        for step in range(order.steps_per_epoch):
            for items in pieces(order.items(epoch, step), MICRO_BATCH):
                yield decode(data, items, (order.seed, epoch))

    return read


def memory_map(files: Files) -> Callable[[], Batches]:
    """One array of all images and one of all labels, by numpy.take: the least that can be done."""
    folder = files.room("arrays")
    np.save(folder / "images.npy", files.images)
    np.save(folder / "labels.npy", files.labels)
    images, labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "labels"))
    rng = np.random.default_rng(1)

    def read() -> Batches:
        for items in pieces(rng.permutation(len(labels)), MICRO_BATCH):
            yield scaled(torch.from_numpy(np.take(images, items, axis=0)), torch.from_numpy(np.take(labels, items)))

    return read


def sorted_lists(files: Files, length: int) -> Callable[[], Batches]:
    """h5py's own selection of a list of samples, which must rise."""
    file = h5py.File(files.hdf5)
    images, labels = file["image"], file["label"]
    rng = np.random.default_rng(1)

    def read() -> Batches:
        for items in pieces(rng.permutation(len(labels))[: files.few], length):
            rising = np.sort(items)
            pixels, numbers = torch.from_numpy(images[rising]), torch.from_numpy(labels[rising])
            for one, other in zip(pixels.split(MICRO_BATCH), numbers.split(MICRO_BATCH), strict=True):
                yield scaled(one, other)

    return read


class Plain(Dataset[tuple[NDArray[np.uint8], int]]):
    """A data set on HDF5 as tutorials have it: each worker opens the file, and reads sample by sample."""

    def __init__(self, path: Path, count: int):
        self.path, self.count = path, count
        self.file: Any = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> tuple[NDArray[np.uint8], int]:
        self.file = self.file or h5py.File(self.path)
        return self.file["image"][item], int(self.file["label"][item])


def data_loader(files: Files, workers: int) -> Callable[[], Batches]:
    """torch's DataLoader on it; the workers stay from round to round."""
    data = Plain(files.hdf5, len(files.labels))
    sampler = RandomSampler(data, num_samples=files.few)
    loader = DataLoader(data, MICRO_BATCH, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    return lambda: (scaled(images, labels) for images, labels in loader)


def webdataset(files: Files) -> Callable[[], Batches]:
    """webdataset on tars of raw pixels, which take it the least to decode."""
    wds: Any = importlib.import_module("webdataset")
    folder = files.room("tars")
    for number, items in enumerate(np.array_split(np.arange(len(files.labels)), TARS)):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for item in items:
                for kind, data in (("bin", files.images[item].tobytes()), ("cls", str(files.labels[item]).encode())):
                    member = tarfile.TarInfo(f"{item:06d}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))

    def decoded(sample: dict[str, Any]) -> tuple[NDArray[np.uint8], int]:
        return np.frombuffer(sample["bin"], np.uint8).reshape(28, 28), int(sample["cls"])

    data = wds.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=TARS, detshuffle=True, seed=1)
    data = data.shuffle(TAR_BUFFER).map(decoded).batched(MICRO_BATCH)

    def read() -> Batches:
        for images, labels in itertools.islice(data, files.few // MICRO_BATCH):
            yield scaled(torch.as_tensor(images), torch.as_tensor(labels))

    return read


def mosaicml_streaming(files: Files) -> Callable[[], Batches]:
    """mosaicml-streaming on its own files, on this disk."""
    streaming = streaming_package()
    folder = files.room("mds")
    with streaming.MDSWriter(out=str(folder), columns={"image": "ndarray:uint8:28,28", "label": "int"}) as writer:
        for image, label in zip(files.images, files.labels, strict=True):
            writer.write({"image": image, "label": int(label)})
    data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=MICRO_BATCH, epoch_size=files.few)
    loader: Iterable[Any] = DataLoader(data, MICRO_BATCH)
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    return lambda: (scaled(sample["image"], sample["label"]) for sample in loader)


def streaming_package() -> Any:
    """`streaming.base`, without what else `streaming` imports.

    That is torchvision, whose wheel on PyPI does not load beside a CPU build of torch, and two classes of
    transformers, 120 MB, for a loader that is not used here.
    """
    spec = find_spec("streaming")
    assert spec is not None
    package, transformers = ModuleType("streaming"), ModuleType("transformers")
    package.__path__ = list(spec.submodule_search_locations or [])
    transformers.BatchEncoding = transformers.BatchFeature = dict  # type: ignore[attr-defined]
    sys.modules["streaming"] = package
    there = sys.modules.setdefault("transformers", transformers)
    try:
        return importlib.import_module("streaming.base")
    finally:
        if there is transformers:
            del sys.modules["transformers"]


OURS = Reader("ours", ours, whole=True)
READERS = (
    OURS,
    Reader("ours, without its thread", ours_alone, whole=True),
    Reader("numpy.take on a memory map", memory_map, 0.5, whole=True),
    Reader("h5py, sorted lists of 1,024", partial(sorted_lists, length=BATCH), 50),
    Reader("h5py, sorted lists of 128", partial(sorted_lists, length=MICRO_BATCH), 50),
    Reader("DataLoader on h5py", partial(data_loader, workers=0), 10),
    Reader("DataLoader on h5py, 2 workers", partial(data_loader, workers=2), 10),
    Reader("webdataset", webdataset, 10, needs="webdataset"),
    Reader("mosaicml-streaming", mosaicml_streaming, 10, needs="streaming"),
)

if __name__ == "__main__":
    run("shards", "28 x 28 samples in random order, from disk to fp32 micro-batches of 128", cases)
