"""Is it a whole image, and as which JPEG is it stored?

The rule: the bytes of an ordinary JPEG (RGB, YCbCr or grey, decoded by libjpeg without a warning)
are stored as they are.  Everything else that is a whole image becomes an RGB JPEG of quality 95
without chroma subsampling: CMYK and YCCK JPEGs, JPEGs that libjpeg-turbo decodes with a harmless
warning or that only Pillow decodes, and other formats, whatever the file's name (of an animation
the first frame; transparency is dropped).  An EXIF orientation is ignored, as training on ImageNet
does.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

RULE = "1"  # goes into the digest of a shard: another rule makes other bytes
QUALITY = 95
MIN_SIDE = 8  # pixels (assumed: nothing is to be learnt from less)
MAX_PIXELS = 178_956_970  # decoded at once, 0.5 GB (derived: Pillow's own bound against decompression bombs)
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # of Pillow's others, some run programs
JPEG = b"\xff\xd8"
ORDINARY = ("Gray", "YCbCr", "RGB")
# Modes with more than 8 bits a channel: Pillow would clip them.
DEEP = ("I", "F")


class Broken(Exception):
    """Why these bytes are not a whole image of a usable size."""


def as_jpeg(data: bytes) -> tuple[bytes, str | None]:
    """The JPEG to store for an image file, which is decoded once to know that it is whole.

    Returns:
        The JPEG, and what it was converted from; None if its bytes are those of the file.

    Raises:
        Broken: empty, truncated, not an image, or too small or too large.
    """
    kind = _jpeg_kind(data)
    if kind in ORDINARY:
        try:
            simplejpeg.decode_jpeg(data, colorspace="RGB")
            return data, None
        except ValueError as error:
            kind = _harmless(str(error))
    image = _pillow(data)
    packed = io.BytesIO()
    image.convert("RGB").save(packed, "JPEG", quality=QUALITY, subsampling=0)
    return packed.getvalue(), f"JPEG, {kind}" if kind else str(image.format)


def as_rgb(data: bytes) -> NDArray[np.uint8]:
    """The pixels of an image file, [height, width, 3].

    Raises:
        Broken: as `as_jpeg`, but any size from one pixel on.
    """
    kind = _jpeg_kind(data, smallest=1)
    if kind in ORDINARY:
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        except ValueError as error:
            _harmless(str(error))
    return np.asarray(_pillow(data, smallest=1).convert("RGB"))


def _jpeg_kind(data: bytes, smallest: int = MIN_SIDE) -> str | None:
    """The colour space of a JPEG, "unusual" for one that only Pillow reads, None for anything else."""
    if not data:
        raise Broken("empty: 0 bytes")
    if not data.startswith(JPEG):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return "unusual"
    _check_size(width, height, smallest)
    return str(space)


def _harmless(warning: str) -> str:
    """What libjpeg said of a JPEG if all pixels are there nevertheless.

    Bytes too many before the end marker come after the last pixel; bytes too few, or elsewhere too
    many, are damage.
    """
    if warning.startswith("Premature end"):
        raise Broken(f"truncated: {warning}")
    if warning.startswith("Corrupt JPEG data") and not warning.endswith("extraneous bytes before marker 0xd9"):
        raise Broken(f"damaged: {warning}")
    return warning


def _pillow(data: bytes, smallest: int = MIN_SIDE) -> Image.Image:
    try:
        with warnings.catch_warnings():  # of odd metadata, and of sizes that MAX_PIXELS allows
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(*image.size, smallest)
            image.load()
    except Broken:
        raise
    except UnidentifiedImageError:
        what = "a JPEG damaged or truncated in its header" if data.startswith(JPEG) else "not an image"
        raise Broken(f"{what}: {len(data)} bytes, the first are {data[:4].hex()}") from None
    except Exception as error:  # Pillow's many words for damage
        raise Broken(f"truncated or damaged: {error}") from None
    if image.mode.split(";")[0] in DEEP:
        raise Broken(f"{image.format} of mode {image.mode}: more than 8 bits a channel do not fit a JPEG")
    return image


def _check_size(width: int, height: int, smallest: int) -> None:
    if min(width, height) < smallest:
        raise Broken(f"{width}x{height} pixels, at least {smallest} on each side are needed")
    if width * height > MAX_PIXELS:
        raise Broken(f"{width}x{height} pixels, at most {MAX_PIXELS:,} are decoded")
