"""Decodes images and applies drawn parameters to pixels. Draws nothing.

Whoever makes a view comes here (see ``make.py``); that, and integer arithmetic, is why a stored
label belongs to the pixels that the student sees.
"""

from __future__ import annotations

import binascii
import io
import math
import warnings
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.errors import DecodeError
from pipeline.identity import AugmentConfig, canonical_json
from pipeline.records import (
    AppliedOp,
    Box,
    ImageSize,
    MixParams,
    Pixels,
    ViewParams,
)
from pipeline.views import kernels
from pipeline.views.ops import OPERATIONS
from pipeline.views.rng import fixed, noise_bytes

__all__ = ["apply_op", "apply_view", "decode", "image_size", "resize", "view_digest", "warm_up"]

FORMATS = ("JPEG", "PNG", "WEBP")

MAX_PIXELS = 178_956_970
"""Images beyond this are rejected as decompression bombs (Pillow's own error limit)."""


def decode(data: bytes | memoryview, name: str) -> Pixels:
    """Decode JPEG, PNG or WebP bytes to RGB, (H, W, 3). EXIF orientation is ignored.

    JPEGs are decoded by libjpeg-turbo with its exact integer transform. Whatever that
    refuses (CMYK, a harmless warning, another format under a .jpg name) goes to Pillow,
    which raises on truncation. Raises ``DecodeError`` with ``name`` if both refuse.
    """
    if bytes(data[:2]) == b"\xff\xd8":
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            if space in ("YCbCr", "Gray", "RGB") and height * width <= MAX_PIXELS:
                rgb: Pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
                return rgb
        except ValueError:
            pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bomb between warning and error still decodes
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                converted = _without_alpha(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(f"{name}: {type(error).__name__}: {error}") from error
    return np.array(converted)  # a copy that is writable, as the kernels were compiled for


def _without_alpha(image: Image.Image) -> Image.Image:
    # Dropping an alpha channel is what timm and torchvision do; a palette must keep its
    # colors on the way.
    return image.convert("RGBA") if image.mode in ("P", "PA") else image


def image_size(image: Pixels) -> ImageSize:
    """Return the size of a decoded image."""
    return ImageSize(height=image.shape[0], width=image.shape[1])


def apply_view(image: Pixels, params: ViewParams, config: AugmentConfig) -> Pixels:
    """Return the view that ``params`` describe, (S, S, 3)."""
    pixels = resize(image, params.crop, config.image_size, hflip=params.hflip)
    for applied in params.ops:
        pixels = apply_op(pixels, applied, config)
    if params.erase is not None:
        pixels = _erase(pixels, params.erase, params.erase_noise, config)
    return pixels


def view_digest(pixels: Pixels, partner: str | None, mix: MixParams) -> int:
    """Return the CRC-32 of a view's pixels followed by its mix parameters.

    ``partner`` is the partner's key, None for an unmixed view. The parameters enter as the
    canonical JSON of ``[partner, kind, lam, top, left, height, width]``.
    """
    box = mix.box or Box(top=0, left=0, height=0, width=0)
    values = [partner, mix.kind.code, mix.lam, box.top, box.left, box.height, box.width]
    return binascii.crc32(canonical_json(values), binascii.crc32(pixels.tobytes()))


def warm_up() -> None:
    """Compile every kernel, so that processes forked later need not."""
    config = AugmentConfig(image_size=8)
    image = np.zeros((9, 7, 3), np.uint8)
    pixels = resize(image, Box(top=0, left=0, height=9, width=7), 8, hflip=True)
    for operation in OPERATIONS.values():
        pixels = apply_op(pixels, operation.probed, config)


def resize(image: Pixels, crop: Box, size: int, *, hflip: bool = False) -> Pixels:
    """Return the crop as a (size, size, 3) image: antialiased bicubic, maybe flipped."""
    cut = np.ascontiguousarray(
        image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    )
    if cut.shape[:2] != (crop.height, crop.width):
        raise ValueError(f"{crop} does not lie in an image of {image.shape[:2]} pixels")
    rows = kernels.resize_weights(crop.height, size)
    columns = rows if crop.width == crop.height else kernels.resize_weights(crop.width, size)
    result: Pixels = kernels.resample(cut, *rows, *columns, hflip)
    return result


def apply_op(image: Pixels, applied: AppliedOp, config: AugmentConfig) -> Pixels:
    """Return the image after one operation."""
    return OPERATIONS[applied.op].apply(image, applied.argument, _fill_color(config.mean))


@lru_cache(maxsize=8)
def _fill_color(mean: tuple[float, float, float]) -> Pixels:
    """Return the color that geometric operations leave outside the image, (3,)."""
    return np.array([math.floor(255 * value + 0.5) for value in mean], np.uint8)


def _erase(pixels: Pixels, box: Box, seed: int, config: AugmentConfig) -> Pixels:
    """Return the view with ``box`` filled with noise that is standard normal once normalized."""
    words = noise_bytes(seed, box.area * 3).reshape(box.height, box.width, 3)
    table = _noise_table(config.mean, config.std)
    result = pixels.copy()
    inside = result[box.top : box.top + box.height, box.left : box.left + box.width]
    for channel in range(3):
        inside[..., channel] = table[channel][words[..., channel]]
    return result


@lru_cache(maxsize=8)
def _noise_table(mean: tuple[float, float, float], std: tuple[float, float, float]) -> Pixels:
    """Return, for each 16-bit word, a normal pixel value of each channel, (3, 65536).

    Pixels end at 0 and 255, so the noise ends at about -2.1 and +2.6 sigma for ImageNet's
    mean and std, where timm's, made after normalization, does not end.
    """
    table = np.empty((3, 1 << 16), np.uint8)
    for channel in range(3):
        normal = NormalDist(255 * mean[channel], 255 * std[channel])
        ends = [fixed(normal.cdf(value + 0.5)) for value in range(255)]
        table[channel] = np.searchsorted(np.array(ends), np.arange(1 << 16), side="right")
    return table
