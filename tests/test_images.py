"""The image applications on shards: decoding by sample, batch norm in the exchange, resume, broken samples."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import cast

import cv2
import h5py
import numpy as np
import pytest
import torch

from legw_hpc.apps import application
from legw_hpc.apps.images import normalised
from legw_hpc.data.format import INDEX
from legw_hpc.data.shards import Shards
from legw_hpc.data.sources import images, small_images
from legw_hpc.errors import InputError
from legw_hpc.runlog import read
from tests.conftest import Cli
from tests.parallel.ranks import launch, needs_mpi

CLASSES = 3


def pictures(folder: Path, suffix: str, size: tuple[int, int]) -> Path:
    """Noise around a colour of the class: 24 training and 9 validation images."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for label in range(CLASSES):
            (folder / split / f"c{label}").mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 120, (*size, 3), dtype=np.uint8)
                image[..., label] += 120
                cv2.imwrite(str(folder / split / f"c{label}" / f"{i}{suffix}"), image)
    return folder


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jpegs")
    images.convert(pictures(folder / "source", ".jpg", (48, 64)), folder / "out", workers=1)
    return folder / "out"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    small_images.convert(pictures(folder / "source", ".png", (32, 32)), folder / "out", (32, 32))
    return folder / "out"


def training(recipe: str, folder: Path, **changed: object) -> list[str]:
    """A command of 3 steps an epoch: 10, 10 and 4 images."""
    words = {
        "data.dir": folder, "data.train_samples": 8 * CLASSES, "options.classes": CLASSES,
        "batch": 10, "baseline.batch": 10, "micro_batch": 4, "epochs": 2, "threads": 1,
    } | changed  # fmt: skip
    return [recipe, *(f"{key}={value}" for key, value in words.items())]


@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 32, 32), (0, 8, 8)])
def test_pixels_are_normalised_by_channel(shape: tuple[int, int, int]) -> None:
    mean, deviation = (10.0, 100.0, 200.0), (50.0, 20.0, 70.0)
    pixels = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
    expected = (pixels.double() - torch.tensor(mean)) / torch.tensor(deviation)
    found = normalised(pixels, mean, deviation)
    torch.testing.assert_close(found, expected.permute(0, 3, 1, 2).float(), rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def state(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    return dict(torch.load(max((run / "checkpoints").glob("*.pt")), weights_only=True))


@pytest.mark.parametrize(
    ("recipe", "precision"), [("imagenet-resnet50", "fp32"), ("cifar10-resnet20", "fp32"), ("cifar10-resnet20", "fp16")]
)
def test_a_run_resumes_in_the_middle_of_an_epoch_to_the_bit(
    recipe: str, precision: str, jpegs: Path, small: Path, cli: Cli, tmp_path: Path
) -> None:
    """With augmentation on; running statistics and momentum included."""
    folder, extra = (jpegs, {"options.size": 32, "options.resize": 36}) if recipe.startswith("imagenet") else (small, {})
    words = training(recipe, folder, precision=precision, **extra)
    assert cli("train", *words, "out=whole").returncode == 0
    assert cli("train", *words, "out=cut", "max_steps=4").returncode == 0
    assert cli("train", *words, "out=cut").returncode == 0
    whole, cut = state(tmp_path / "whole"), state(tmp_path / "cut")
    for name, value in whole["model"].items():
        assert torch.equal(value, cut["model"][name]), name
    assert whole["model"]["bn1.num_batches_tracked"] == 6
    assert read(tmp_path / "whole")[-1]["metrics"] == read(tmp_path / "cut")[-1]["metrics"]
    assert {"top1", "top5", "loss"} == set(read(tmp_path / "whole")[-1]["metrics"])


@needs_mpi
def test_ranks_with_less_than_a_micro_batch_say_over_what_they_normalise(small: Path, cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("horovod")
    words = [*training("cifar10-resnet20", small), f"out={tmp_path / 'run'}"]
    assert "; 10 samples a rank in micro-batches of 4\n" in cli("train", *words, "max_steps=1").stdout
    code, said = launch(4, [sys.executable, "-m", "legw_hpc", "train", *words], timeout=120)
    assert code == 0, said
    assert "; 2.5 samples a rank in micro-batches of 3\n" in said
    assert "note     batch_norm until step 1: over 4 samples\n" in said


def test_it_learns_and_counts_exactly(small: Path, cli: Cli, tmp_path: Path) -> None:
    words = training("cifar10-resnet20", small, epochs=20, batch=24, **{"baseline.batch": 24})
    assert cli("train", *words, "out=run").returncode == 0
    metrics = read(tmp_path / "run")[-1]["metrics"]
    assert metrics["top1"] == 100
    assert metrics["top5"] == 100


@pytest.mark.parametrize(
    ("name", "classes", "smoothing"), [("resnet20", 10, 0.0), ("resnet20", 10, 0.2), ("resnet50", 1000, 0.1)]
)
def test_loss_and_metrics_are_those_of_the_formulas(name: str, classes: int, smoothing: float) -> None:
    """Label smoothing a: (1 - a) of the label's log-likelihood and a of the mean over classes; top-5 by sorting."""
    app = application(name, classes=classes, label_smoothing=smoothing)
    logits = torch.randn(37, classes, generator=torch.Generator().manual_seed(0))
    labels = logits.argsort(1, descending=True)[torch.arange(37), torch.arange(37) % 8].clone()  # ranks 0 ... 7, over and over
    model, pixels = cast(torch.nn.Module, lambda images: logits), torch.zeros(37, 4, 4, 3, dtype=torch.uint8)
    log = logits.double().log_softmax(1)
    label, mean = log[torch.arange(37), labels], log.mean(1)
    loss, _ = app.loss(model, None, pixels, labels)
    assert loss.item() == pytest.approx(-((1 - smoothing) * label + smoothing * mean).sum().item(), rel=1e-5)
    found = app.metrics({key: float(value) for key, value in app.evaluate(model, pixels, labels).items()})
    assert found == {"top1": 100 * 5 / 37, "top5": 100 * 25 / 37, "loss": pytest.approx(-label.mean().item())}


def test_augmentation_belongs_to_the_sample_and_the_epoch(jpegs: Path) -> None:
    app, data = application("resnet50", classes=CLASSES, size=32, resize=36), Shards(jpegs, "train")
    order = np.array([5, 1, 20])
    whole, labels = app.decode(data, order, (1, 0))
    alone, _ = app.decode(data, order[2:], (1, 0))
    assert torch.equal(whole[2:], alone)
    assert labels.tolist() == data.take("label", order).tolist()
    for other in ((1, 1), (2, 0)):
        assert not torch.equal(whole, app.decode(data, order, other)[0])
    assert torch.equal(app.decode(data, order, None)[0], app.decode(data, order, None)[0])


def test_a_sample_that_does_not_decode_is_named(jpegs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "jpegs"
    shutil.copytree(jpegs, folder)
    with h5py.File(folder / "train-00000.h5", "r+") as file:
        start = int(file["image/offsets"][7])
        file["image/bytes"][start : start + 4] = 0
    data = Shards(folder, "train")
    name = data.take("name", np.array([7]))[0].decode()
    with pytest.raises(InputError, match=rf"train sample 7 \({name}\) in train-00000\.h5: "):
        application("resnet50", size=32, resize=36).decode(data, np.arange(10), (1, 0))


def test_no_images_for_a_rank_is_an_empty_batch(jpegs: Path) -> None:
    images, labels = application("resnet50", size=32, resize=36).decode(Shards(jpegs, "train"), np.empty(0, np.int64), (1, 0))
    assert images.shape == (0, 32, 32, 3)
    assert labels.shape == (0,)


REFUSED = {
    "more classes than the recipe has": ({"options.classes": 2}, "label"),
    "a mode that is not there": ({"options.batch_norm": "group"}, "unknown batch_norm 'group'"),
    "rank mode in several micro-batches": ({"options.batch_norm": "rank"}, "10 samples of batch 10"),
    "a precision that is not there": ({"precision": "fp8"}, "fp8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused(name: str, small: Path, cli: Cli, tmp_path: Path) -> None:
    changed, said = REFUSED[name]
    done = cli("train", *training("cifar10-resnet20", small, **changed), "device=cpu", "out=run")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


def test_labels_without_a_bound_are_refused(small: Path, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(small, folder)
    index = json.loads((folder / INDEX).read_text())
    index["splits"]["test"]["fields"]["label"]["classes"] = None
    (folder / INDEX).write_text(json.dumps(index))
    done = cli("train", *training("cifar10-resnet20", folder), "device=cpu", "out=run")
    assert done.returncode == 2
    assert f"{folder}: test field 'label' declares no number of classes, resnet20 wants {CLASSES}" in done.stderr
    assert not (tmp_path / "run").exists()
