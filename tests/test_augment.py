"""Decoding and augmentation: properties of crops, and slow references."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from legw_hpc.data import augment
from legw_hpc.data.augment import BOX_UNIFORMS, CROPS32_UNIFORMS, TRAIN_UNIFORMS, crop_box, crops32, uniforms
from legw_hpc.errors import InputError

REAL = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample"
SAMPLES = np.arange(20_000)


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """Smooth, and another colour everywhere."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 127 + 100 * np.sin(x / 40)], 2).astype(np.uint8)


def jpeg(height: int, width: int) -> bytes:
    return simplejpeg.encode_jpeg(picture(height, width), quality=95)


# --- crops ---

sides = st.integers(1, 3000)
numbers = st.lists(st.floats(0, 1, exclude_max=True), min_size=BOX_UNIFORMS, max_size=BOX_UNIFORMS)


@settings(deadline=None, max_examples=300)
@given(sides, sides, numbers)
@example(1, 1, [0.0] * BOX_UNIFORMS)
@example(1, 3000, [1 - 2**-53] * BOX_UNIFORMS)
@example(3000, 1, [1 - 2**-53] * BOX_UNIFORMS)
@example(500, 375, [1 - 2**-53] * BOX_UNIFORMS)
def test_crops_are_inside(height: int, width: int, u: list[float]) -> None:
    top, left, h, w = crop_box(height, width, np.array(u))
    assert 0 <= top < top + h <= height
    assert 0 <= left < left + w <= width
    assert all(type(n) is int for n in (top, left, h, w))
    # Each side is rounded by up to half a pixel.
    assert (w - 0.5) / (h + 0.5) <= 4 / 3
    assert (w + 0.5) / (h - 0.5) >= 3 / 4
    # The centre of an image far from square, where no attempt fits, may be less.
    if 0.5 < width / height < 2:
        assert (h + 0.5) * (w + 0.5) >= 0.08 * height * width


def test_crops_are_distributed_as_drawn() -> None:
    """A square image, where few attempts fail: area of mean near 0.54, as many wide as tall, anywhere."""
    boxes = np.array([crop_box(1000, 1000, u) for u in uniforms(0, 0, SAMPLES[:4000], BOX_UNIFORMS)])
    top, left, h, w = boxes.T
    assert (h * w / 1e6).min() < 0.085
    assert (w > h).mean() == pytest.approx(0.5, abs=0.04)
    assert np.log(w / h).std() == pytest.approx(2 * np.log(4 / 3) / 12**0.5, rel=0.05)
    assert (top / np.maximum(1000 - h, 1)).mean() == pytest.approx(0.5, abs=0.03)
    assert (left / np.maximum(1000 - w, 1)).mean() == pytest.approx(0.5, abs=0.03)
    # First attempts that fit are uniform in area: below a half, all of them fit (0.5 * 4/3 < 1).
    small = (h * w / 1e6)[h * w < 5e5]
    assert np.histogram(small, 4, (0.08, 0.5))[0] / len(small) == pytest.approx([0.25] * 4, abs=0.04)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(100, 100, (0, 0, 100, 100)), (100, 300, (0, 83, 100, 133)), (300, 100, (83, 0, 133, 100)), (120, 100, (0, 0, 120, 100))],
)
def test_the_centre_where_no_attempt_fits(height: int, width: int, box: tuple[int, int, int, int]) -> None:
    u = np.full(BOX_UNIFORMS, 1 - 2**-53)
    if height > width:
        u[10:20] = 0  # tallest
    assert crop_box(height, width, u) == box


# --- training images ---


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (1500, 2000), (224, 224), (40, 30), (1, 1), (3, 200)])
def test_a_training_image_is_its_box(height: int, width: int) -> None:
    """Against the whole image, cropped and resized: the scaled decoding keeps the place."""
    file, whole = jpeg(height, width), simplejpeg.decode_jpeg(jpeg(height, width))
    for u in uniforms(0, 0, SAMPLES[:6], TRAIN_UNIFORMS):
        image = augment.train_image(file, u)
        assert (image.shape, image.dtype) == ((224, 224, 3), np.uint8)
        assert image.flags.c_contiguous
        top, left, h, w = crop_box(height, width, u)
        box = Image.fromarray(whole[top : top + h, left : left + w]).resize((224, 224), Image.Resampling.BILINEAR)
        expected = np.asarray(box)[:, ::-1] if u[-1] < 0.5 else np.asarray(box)
        # Half a decoded pixel of the crop's place is 1.2 grey levels at most, and JPEG has its own error.
        assert np.abs(image.astype(int) - expected).mean() < 2.5, u


def test_decoding_is_as_large_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crop of 1/4 of 2000 x 2000 decodes at half the size; the whole at an eighth would be too small."""
    shapes = []
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: shapes.append(decode(*a, **k).shape) or decode(*a, **k))
    file = jpeg(2000, 2000)
    for h in (224, 447, 448, 600, 1000, 2000):
        monkeypatch.setattr(augment, "crop_box", lambda height, width, u, h=h: (0, 0, h, h))
        augment.train_image(file, np.zeros(TRAIN_UNIFORMS))
    assert [shape[0] for shape in shapes] == [2000, 2000, 1000, 750, 500, 250]


def test_flips_are_half_and_mirror() -> None:
    file = jpeg(300, 300)
    u = uniforms(0, 0, SAMPLES[:1], TRAIN_UNIFORMS)[0]
    images = []
    for flip in (0.0, 0.49, 0.5, 0.99):
        u[BOX_UNIFORMS] = flip
        images.append(augment.train_image(file, u))
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[2], images[3])
    np.testing.assert_array_equal(images[0], images[2][:, ::-1])
    assert (uniforms(0, 0, SAMPLES, TRAIN_UNIFORMS)[:, BOX_UNIFORMS] < 0.5).mean() == pytest.approx(0.5, abs=0.02)


def test_colours_are_rgb() -> None:
    red = simplejpeg.encode_jpeg(np.full((50, 60, 3), (250, 10, 20), np.uint8))
    for image in (augment.train_image(red, np.zeros(TRAIN_UNIFORMS)), augment.eval_image(red)):
        assert np.abs(image.astype(int) - (250, 10, 20)).max() <= 3


@pytest.mark.parametrize("progressive", [False, True])
def test_grey_gives_rgb(progressive: bool) -> None:
    file = io.BytesIO()
    Image.fromarray(picture(300, 400)).convert("L").save(file, "JPEG", progressive=progressive)
    for image in (augment.train_image(file.getvalue(), np.zeros(TRAIN_UNIFORMS)), augment.eval_image(file.getvalue())):
        assert image.shape == (224, 224, 3)
        assert (image == image[..., :1]).all()
        assert image.std() > 5


def broken() -> list[bytes]:
    whole = jpeg(300, 400)
    return [b"", b"\xff\xd8", b"no image at all" * 100, whole[:100], whole[: len(whole) // 2], whole[:-2]]


@pytest.mark.parametrize("data", broken(), ids=["empty", "start", "text", "head", "half", "no end"])
def test_what_does_not_decode_says_why(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        augment.train_image(data, np.zeros(TRAIN_UNIFORMS))
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        augment.eval_image(data)


# --- evaluation images ---


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (1500, 2000), (256, 256), (40, 30), (1, 1), (3, 200)])
def test_evaluation_is_the_centre(height: int, width: int) -> None:
    """As torchvision's Resize(256) and CenterCrop(224), which are these lines of Pillow."""
    file = jpeg(height, width)
    short = min(height, width)
    h, w = int(256 * height / short), int(256 * width / short)
    resized = Image.fromarray(simplejpeg.decode_jpeg(file)).resize((w, h), Image.Resampling.BILINEAR)
    top, left = round((h - 224) / 2), round((w - 224) / 2)
    image = augment.eval_image(file)
    assert (image.shape, image.dtype, image.flags.c_contiguous) == ((224, 224, 3), np.uint8, True)
    difference = np.abs(image.astype(int) - np.asarray(resized)[top : top + 224, left : left + 224])
    assert difference.mean() < 1


def test_shrinking_averages() -> None:
    """Stripes of one pixel, 1.75 times too fine for the result: no false pattern as bright as the stripes."""
    stripes = np.zeros((448, 448, 3), np.uint8)
    stripes[:, ::2] = 255
    image = augment.eval_image(simplejpeg.encode_jpeg(stripes, quality=100))
    assert image.std() < 0.4 * stripes.std()


def test_evaluation_of_other_sizes() -> None:
    assert augment.eval_image(jpeg(90, 70), 64, 64).shape == (64, 64, 3)
    assert augment.eval_image(jpeg(90, 70), 72, 65).shape == (65, 65, 3)
    with pytest.raises(InputError, match="resized to 200 have no part of 224"):
        augment.eval_image(jpeg(90, 70), 200)


@pytest.mark.parametrize(("down", "right", "place"), [(0.0, 0.0, (0, 0)), (0.999, 0.999, (32, 118)), (0.5, 0.25, (16, 29))])
def test_a_crop_of_one_scale_is_a_part_of_the_resized_image(down: float, right: float, place: tuple[int, int]) -> None:
    file = jpeg(256, 342)
    u = np.array([0.7] * (TRAIN_UNIFORMS - 3) + [down, right, 0.5])
    image = augment.fixed_scale_image(file, u)
    whole = simplejpeg.decode_jpeg(file)
    top, left = place
    assert np.array_equal(image, whole[top : top + 224, left : left + 224])
    u[-1] = 0.4
    assert np.array_equal(augment.fixed_scale_image(file, u), image[:, ::-1])
    small = augment.fixed_scale_image(jpeg(90, 70), u, 72, 65)
    assert (small.shape, small.flags.c_contiguous) == ((65, 65, 3), True)


@pytest.mark.skipif(not REAL.is_dir(), reason="no ImageNet sample here")
def test_real_images() -> None:
    """Every 5th file; evaluation within 8 grey levels of Pillow's antialiased one, root mean square."""
    files = [path.read_bytes() for path in sorted(REAL.rglob("*.JPEG"))[::5]]
    u = uniforms(0, 0, SAMPLES[: len(files)], TRAIN_UNIFORMS)
    for file, image in zip(files, augment.map_images(augment.eval_image, files), strict=True):
        whole = Image.open(io.BytesIO(file)).convert("RGB")
        short = min(whole.size)
        w, h = (256 * side // short for side in whole.size)
        top, left = round((h - 224) / 2), round((w - 224) / 2)
        expected = np.asarray(whole.resize((w, h), Image.Resampling.BILINEAR))[top : top + 224, left : left + 224]
        assert np.sqrt(np.mean((image.astype(float) - expected) ** 2)) < 8
    trained = augment.map_images(lambda i: augment.train_image(files[i], u[i]), range(len(files)))
    assert {image.shape for image in trained} == {(224, 224, 3)}


# --- 32 x 32 ---


@pytest.mark.parametrize(("size", "pad"), [((32, 32), 4), ((5, 7), 2), ((4, 4), 0)])
def test_crops32_are_the_slow_ones(size: tuple[int, int], pad: int) -> None:
    height, width = size
    images = np.random.default_rng(0).integers(1, 256, (200, height, width, 3), np.uint8)
    u = uniforms(0, 0, SAMPLES[:200], CROPS32_UNIFORMS)
    u[0], u[1] = 0, 1 - 2**-53
    cropped = crops32(images, u, pad)
    assert cropped.dtype == np.uint8
    assert cropped.flags.c_contiguous
    for image, (down, right, flip), mine in zip(images, u, cropped, strict=True):
        canvas = np.zeros((height + 2 * pad, width + 2 * pad, 3), np.uint8)
        canvas[pad : pad + height, pad : pad + width] = image
        top, left = int(down * (2 * pad + 1)), int(right * (2 * pad + 1))
        expected = canvas[top : top + height, left : left + width]
        np.testing.assert_array_equal(mine, expected[:, ::-1] if flip < 0.5 else expected)
    np.testing.assert_array_equal(crops32(images[7:8], u[7:8], pad)[0], cropped[7])
    assert crops32(images[:0], u[:0], pad).shape == (0, height, width, 3)


# --- threads ---


@pytest.fixture
def restored() -> Iterator[None]:
    """The count of threads belongs to the process."""
    yield
    augment.set_threads(1)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_map_keeps_order_and_errors(threads: int, restored: None) -> None:
    augment.set_threads(threads)
    assert augment.map_images(lambda i: i * i, range(50)) == [i * i for i in range(50)]
    assert augment.map_images(str, []) == []

    def work(i: int) -> int:
        if i >= 3:
            raise ValueError(f"sample {i}")
        return i

    with pytest.raises(ValueError, match="sample 3"):
        augment.map_images(work, range(9))
    assert augment.map_images(work, range(3)) == [0, 1, 2]


def test_a_map_works_at_once_with_threads_that_stay(restored: None) -> None:
    augment.set_threads(2)
    barrier = threading.Barrier(2, timeout=20)

    def work(_: int) -> str:
        barrier.wait()
        return threading.current_thread().name

    names = {*augment.map_images(work, range(2)), *augment.map_images(work, range(2))}
    assert len(names) == 2
    augment.set_threads(1)
    assert augment.map_images(lambda _: threading.current_thread(), [0]) == [threading.current_thread()]
    assert cv2.getNumThreads() == 1
