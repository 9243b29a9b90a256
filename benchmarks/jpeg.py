"""The training pipeline of ImageNet on one core: ours beside Pillow with torchvision's transforms in a DataLoader.

`--source` names a folder with train/CLASS/*; without it the images are made up.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import made
from benchmarks.measure import Bench, Case, Goal, Outcome, run
from legw_hpc.apps import application
from legw_hpc.apps.images import IMAGENET, normalised
from legw_hpc.data import augment
from legw_hpc.data.loader import train_steps
from legw_hpc.data.order import Shuffled
from legw_hpc.data.shards import Shards
from legw_hpc.data.sources import images

SIZE, BATCH = 224, 32
IMAGES, QUICK_IMAGES = 256, 64  # at most so many a round, and so many where they are made up
OURS, PILLOW = "ours", "Pillow, DataLoader"
Batches = Iterator[tuple[Tensor, Tensor]]


def cases(bench: Bench) -> Outcome:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # ours reads in a thread of its own
    augment.set_threads(1)
    limit = QUICK_IMAGES if bench.quick else IMAGES
    if bench.source:
        source, shards = bench.source, made.temporary(bench) / "data"
        images.convert(source, shards, splits=("train",), workers=1)
        note = "real images"
    else:
        shards = Path(made.jpegs(bench, QUICK_IMAGES)[0].removeprefix("data.dir="))
        source, note = shards.parent / "jpegs", "images made up, smooth with noise, 500 x 375"
    data = Shards(shards, "train")
    files = sorted(path for path in (source / "train").rglob("*") if path.is_file())
    count = min(limit, len(data))
    mean = sum(len(jpeg) for jpeg in data.take("image", np.arange(len(data)))) / len(data)

    def case(name: str, read: Callable[[], Batches]) -> Case:
        def go() -> None:
            found = 0
            for pixels, labels in read():
                assert (pixels.shape, pixels.dtype) == ((len(labels), 3, SIZE, SIZE), torch.float32)
                found += len(labels)
            assert found == count, f"{name}: {found} images instead of {count}"

        return Case(name, go, count, "images")

    measured = [case(OURS, ours(data, count)), case(PILLOW, pillow(files, count))]
    notes = [f"{len(data)} {note}; {mean / 1000:.0f} KB each.", "One core; JPEG to normalised fp32 [3, 224, 224]."]
    return Outcome(measured, [Goal(OURS, PILLOW, 1.8)], notes)


def ours(data: Shards, count: int) -> Callable[[], Batches]:
    """What a training run reads, and the normalisation that its model begins with."""
    app = application("resnet50")
    order = Shuffled(len(data), count, seed=1)
    epochs = itertools.count()

    def read() -> Batches:
        first = next(epochs) * order.steps_per_epoch
        steps = train_steps(
            data, app.decode, order=order, micro_batch=BATCH, first=first, last=first + 1, rank=0, size=1,
            device=torch.device("cpu"),
        )  # fmt: skip
        for step in steps:
            for pixels, labels in step.micro_batches:
                yield normalised(pixels, *IMAGENET), labels

    return read


class Files(Dataset[tuple[Tensor, int]]):
    """torchvision's ImageFolder with its RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize, step by step."""

    def __init__(self, paths: list[Path]):
        self.paths = paths
        classes = sorted({path.parent.name for path in paths})
        self.labels = [classes.index(path.parent.name) for path in paths]
        self.mean, self.deviation = (torch.tensor(values).view(3, 1, 1) / 255 for values in IMAGENET)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[item]) as file:
            image = file.convert("RGB")
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=crop(image.width, image.height))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return pixels.sub_(self.mean).div_(self.deviation), self.labels[item]


def crop(width: int, height: int) -> tuple[int, int, int, int]:
    """A random part, left, top, right, bottom, as torchvision draws it."""
    for _ in range(augment.ATTEMPTS):
        area = width * height * torch.empty(1).uniform_(*augment.AREA).item()
        ratio = math.exp(torch.empty(1).uniform_(*map(math.log, augment.RATIO)).item())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(torch.randint(0, width - w + 1, (1,))), int(torch.randint(0, height - h + 1, (1,)))
            return left, top, left + w, top + h
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    return left, top, left + short, top + short


def pillow(files: list[Path], count: int) -> Callable[[], Batches]:
    """In this process, so that one core does all."""
    data = Files(files)
    sampler = torch.utils.data.RandomSampler(data, num_samples=count)
    loader = DataLoader(data, BATCH, sampler=sampler)
    return lambda: ((pixels, labels) for pixels, labels in loader)


if __name__ == "__main__":
    run("jpeg", "the training pipeline of ImageNet on one core: decode, crop 224, flip, normalise", cases)
