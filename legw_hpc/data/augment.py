"""Images as a model takes them: decoding, random crops and flips.

What happens to a sample is a pure function of (seed, epoch, sample): the same on any number of
ranks and in any micro-batch, and resume needs no state.  No PyTorch here; images are uint8 arrays
[height, width, 3], RGB.

Threads, never processes: an image spends its time in simplejpeg and OpenCV, which let go of the
interpreter, and a fork of a process that holds MPI or CUDA is not safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar, cast

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from legw_hpc.errors import InputError

cv2.setNumThreads(0)  # the threads of `map_images` have the cores already

Image = NDArray[np.uint8]
Numbers = NDArray[np.float64]
Item = TypeVar("Item")
Result = TypeVar("Result")

# The random-resized crop of Szegedy et al. 2014 (arXiv:1409.4842, § 6), as torchvision has it.
AREA = (0.08, 1.0)  # of the image
RATIO = (3 / 4, 4 / 3)  # width to height
ATTEMPTS = 10

# What an image takes of `uniforms`: area and ratio of each attempt, the place, the flip.
BOX_UNIFORMS = 2 * ATTEMPTS + 2
TRAIN_UNIFORMS = BOX_UNIFORMS + 1
CROPS32_UNIFORMS = 3

# Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators": the increment (2**64 over
# the golden ratio) and the finalizer of SplitMix64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def uniforms(seed: int, epoch: int, samples: NDArray[np.int64], count: int) -> Numbers:
    """Random numbers of each sample, float64 [B, count] in 0 <= u < 1, multiples of 2**-53.

    Args:
        seed, epoch: of the run; seeds that differ by a multiple of 2**64 are one.
        samples: int64 [B], in any order.
        count: numbers a sample takes; a larger one gives the same numbers and more.
    """
    state = np.zeros(1, np.uint64)
    for word in (seed, epoch):
        state = _mixed((state + _GOLDEN) ^ np.uint64(word % 2**64))
    # Each sample has a stream of its own, SplitMix64 from a mixed state: one-to-one in the sample.
    state = _mixed((state + _GOLDEN) ^ samples.astype(np.uint64))
    bits = _mixed(state[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit out depends on every bit in; one-to-one."""
    for shift, factor in _MIX:
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return bits ^ (bits >> np.uint64(31))


def crop_box(height: int, width: int, u: Numbers) -> tuple[int, int, int, int]:
    """A random part of an image: top, left, height, width, in pixels.

    Its area is uniform in AREA, the logarithm of its ratio uniform in that of RATIO.  After ATTEMPTS
    that do not fit, the largest central part whose ratio is within RATIO.

    Args:
        height, width: of the image, >= 1.
        u: the first BOX_UNIFORMS are taken.
    """
    numbers = u[:BOX_UNIFORMS].tolist()
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for area, ratio in zip(numbers[:ATTEMPTS], numbers[ATTEMPTS:], strict=False):
        area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * area)
        ratio = math.exp(low + (high - low) * ratio)
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            down, right = numbers[2 * ATTEMPTS :]
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    h, w = height, width
    if width < RATIO[0] * height:
        h = round(width / RATIO[0])
    elif width > RATIO[1] * height:
        w = round(height * RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def train_image(jpeg: bytes, u: Numbers, size: int = 224) -> Image:
    """A random crop, resized to [size, size, 3], and flipped left to right every other time.

    Args:
        jpeg: the file, one that `image_check` lets pass.
        u: TRAIN_UNIFORMS of the sample.
        size: pixels.

    Raises:
        ValueError: it does not decode; says why.
    """
    height, width = _size(jpeg)
    top, left, h, w = crop_box(height, width, u)
    # So large that the crop has at least `size` pixels each way, if the file has as many.
    image = _decoded(jpeg, math.ceil(height * size / h), math.ceil(width * size / w))
    down, right = image.shape[0] / height, image.shape[1] / width
    crop = image[round(top * down) : round((top + h) * down), round(left * right) : round((left + w) * right)]
    resized = _resized(crop, size, size)
    return cast(Image, cv2.flip(resized, 1)) if u[BOX_UNIFORMS] < 0.5 else resized


def fixed_scale_image(jpeg: bytes, u: Numbers, resize: int = 256, size: int = 224) -> Image:
    """A random square of the image with its shorter side resized to `resize`, flipped every other time.

    Args:
        u: the last three of TRAIN_UNIFORMS are taken.

    Raises:
        As `eval_image`.
    """
    image = _shorter_side(jpeg, resize, size)
    down, right, flip = u[-3:].tolist()
    top, left = (int(share * (length - size + 1)) for share, length in zip((down, right), image.shape, strict=False))
    crop = np.ascontiguousarray(image[top : top + size, left : left + size])
    return cast(Image, cv2.flip(crop, 1)) if flip < 0.5 else crop


def eval_image(jpeg: bytes, resize: int = 256, size: int = 224) -> Image:
    """The centre, [size, size, 3], of the image with its shorter side resized to `resize`.

    Raises:
        ValueError: it does not decode; says why.
        InputError: `resize` is less than `size`.
    """
    image = _shorter_side(jpeg, resize, size)
    top, left = (round((length - size) / 2) for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def _shorter_side(jpeg: bytes, resize: int, size: int) -> Image:
    if resize < size:
        raise InputError(f"images resized to {resize} have no part of {size}")
    height, width = _size(jpeg)
    short = min(height, width)
    h, w = resize * height // short, resize * width // short
    return _resized(_decoded(jpeg, h, w), h, w)


def crops32(images: Image, u: Numbers, pad: int = 4) -> Image:
    """A random crop of each small image with `pad` black pixels around it, flipped every other time.

    The augmentation of He et al. 2015 (arXiv:1512.03385, § 4.2) for 32x32; any size will do.

    Args:
        images: uint8 [B, H, W, 3].
        u: [B, CROPS32_UNIFORMS]: down, right, flip.
        pad: pixels.
    """
    count, height, width, _ = images.shape
    wide = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    top, left = (u[:, :2] * (2 * pad + 1)).astype(np.int64).T
    columns = np.where(u[:, 2:3] < 0.5, np.arange(width)[::-1], np.arange(width)) + left[:, None]
    rows = np.arange(height) + top[:, None]
    return wide[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def set_threads(threads: int) -> None:
    """How many threads `map_images` takes in this process; 1 is the calling thread alone."""
    _threads[0] = threads


def map_images(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The function of each item, in order, by threads that this process keeps.

    Args:
        function: most of its time in simplejpeg, OpenCV or NumPy, which let the other threads work.
        items: one image each.

    Raises:
        Exception: the function's first, in the order of the items.
    """
    return [*map(function, items)] if _threads[0] <= 1 else [*_pool(_threads[0]).map(function, items)]


_threads = [1]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="legw-image")


def _size(jpeg: bytes) -> tuple[int, int]:
    """Height and width that a file says it has."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    return int(height), int(width)


def _decoded(jpeg: bytes, height: int, width: int) -> Image:
    """RGB, also of a grey file: the whole image, or 1/2, 3/8, 1/4, 1/8 of it with at least height x width pixels.

    libjpeg scales while it decodes; by 7/8 ... 5/8 it does so slower than it decodes the whole, 15 %
    (measured), so those are left out.  Its faster DCT and upsampling together are 7 % more images/s for 2.7 dB (measured,
    250 files, against Pillow), and are left out as well.
    """
    return simplejpeg.decode_jpeg(jpeg, "RGB", min_height=height, min_width=width, min_factor=2)


def _resized(image: Image, height: int, width: int) -> Image:
    """Areas averaged where it shrinks both ways, else bilinear.

    Against Pillow's antialiased bilinear on ImageNet files: 47.6 dB where bilinear alone has 44.2, for
    17 % fewer images/s; at evaluation 45.6 and 40.0 dB (measured, 250 files).
    """
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return cast(Image, resized)
