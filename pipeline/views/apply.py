"""Decodes images and applies drawn parameters to pixels. Draws nothing.

Labelling and replay call the same ``apply_view``; that, and integer arithmetic, is why a
stored label belongs to the pixels that the student sees.
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
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import DecodeError
from pipeline.identity import AugmentConfig, canonical_json
from pipeline.records import (
    FIXED_ONE,
    AppliedOp,
    Box,
    ImageSize,
    MixParams,
    Op,
    Pixels,
    ViewParams,
)
from pipeline.views import kernels
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
    # colours on the way.
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
    for op in Op:
        pixels = apply_op(pixels, AppliedOp(op=op, argument=1), config)


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
    """Return the image after one operation; ``Op`` says what the argument means."""
    op, argument = applied.op, applied.argument
    result: Pixels
    match op:
        case Op.AUTO_CONTRAST:
            result = kernels.apply_table(image, _auto_contrast_table(kernels.histogram(image)))
        case Op.EQUALIZE:
            result = kernels.apply_table(image, _equalize_table(kernels.histogram(image)))
        case Op.INVERT:
            result = 255 - image
        case Op.POSTERIZE:
            result = image & np.uint8(0xFF & ~((1 << (8 - argument)) - 1))
        case Op.SOLARIZE:
            result = kernels.apply_table(image, _solarize_table(argument))
        case Op.SOLARIZE_ADD:
            result = kernels.apply_table(image, _solarize_add_table(argument))
        case Op.BRIGHTNESS:
            result = kernels.apply_table(image, _blend_table(0, argument))
        case Op.CONTRAST:
            area = image.shape[0] * image.shape[1]
            mean = (2 * int(kernels.gray_sum(image)) + area) // (2 * area)
            result = kernels.apply_table(image, _blend_table(mean, argument))
        case Op.COLOR:
            result = kernels.blend_with_gray(image, argument)
        case Op.SHARPNESS:
            result = kernels.blend_with_smooth(image, argument)
        case Op.GRAYSCALE:
            result = kernels.to_gray(image)
        case Op.GAUSSIAN_BLUR:
            result = _gaussian_blur(image, argument)
        case Op.ROTATE:
            matrix = _rotation(argument, image_size(image))
            result = kernels.apply_affine(image, matrix, _affine_weights(), _fill(config.mean))
        case Op.SHEAR_X | Op.TRANSLATE_X:
            slope, offset = (argument, 0) if op is Op.SHEAR_X else (0, argument * image.shape[1])
            fill = _fill(config.mean)
            result = kernels.shift_rows(image, slope, offset, _affine_weights(), fill)
        case Op.SHEAR_Y | Op.TRANSLATE_Y:
            slope, offset = (argument, 0) if op is Op.SHEAR_Y else (0, argument * image.shape[0])
            fill = _fill(config.mean)
            result = kernels.shift_columns(image, slope, offset, _affine_weights(), fill)
    return result


def _auto_contrast_table(counts: NDArray[np.int64]) -> Pixels:
    """Stretch each channel to 0..255; a channel of one value stays."""
    table = np.tile(np.arange(256), (3, 1))
    for channel in range(3):
        present = np.flatnonzero(counts[channel])
        low, high = int(present[0]), int(present[-1])
        if high > low:
            table[channel] = np.clip((table[channel] - low) * 255 // (high - low), 0, 255)
    return table.astype(np.uint8)


def _equalize_table(counts: NDArray[np.int64]) -> Pixels:
    """Flatten each channel's histogram, as Pillow's ``ImageOps.equalize``."""
    table = np.tile(np.arange(256), (3, 1))
    for channel in range(3):
        histogram = counts[channel]
        last = int(np.flatnonzero(histogram)[-1])
        step = (int(histogram.sum()) - int(histogram[last])) // 255
        if step > 0:
            below = np.cumsum(histogram) - histogram
            table[channel] = np.minimum((step // 2 + below) // step, 255)
    return table.astype(np.uint8)


def _solarize_table(threshold: int) -> Pixels:
    values = np.arange(256)
    return np.tile(np.where(values < threshold, values, 255 - values), (3, 1)).astype(np.uint8)


def _solarize_add_table(amount: int) -> Pixels:
    values = np.arange(256)
    row = np.where(values < 128, np.minimum(255, values + amount), values)
    return np.tile(row, (3, 1)).astype(np.uint8)


def _blend_table(base: int, factor: int) -> Pixels:
    values = np.arange(256, dtype=np.int64)
    row = np.clip((base * FIXED_ONE + factor * (values - base)) >> 16, 0, 255)
    return np.tile(row, (3, 1)).astype(np.uint8)


def _gaussian_blur(image: Pixels, sigma: int) -> Pixels:
    rows = _blur_weights(image.shape[0], sigma)
    columns = _blur_weights(image.shape[1], sigma)
    result: Pixels = kernels.resample(image, *rows, *columns, False)
    return result


def _blur_weights(length: int, sigma: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return resampling weights of a Gaussian; sums are renormalised at the borders."""
    spread = sigma / FIXED_ONE
    radius = max(1, math.ceil(3 * spread))
    bell = [fixed(math.exp(-0.5 * (step / spread) ** 2)) for step in range(length)]
    taps = min(length, 2 * radius + 1)
    starts = np.clip(np.arange(length) - radius, 0, length - taps).astype(np.int32)
    distance = np.abs(starts[:, None] + np.arange(taps) - np.arange(length)[:, None])
    values = np.where(distance <= radius, np.array(bell, np.int64)[distance], 0)
    total = values.sum(axis=1, keepdims=True)
    weights = ((values << (kernels.WEIGHT_BITS + 1)) + total) // (2 * total)
    centre = np.argmax(values, axis=1)
    weights[np.arange(length), centre] += (1 << kernels.WEIGHT_BITS) - weights.sum(axis=1)
    return starts, weights.astype(np.int32)


def _rotation(argument: int, size: ImageSize) -> NDArray[np.int64]:
    """Return the rotation about the centre as (a, b, c, d, e, f) in 2**-16 pixels.

    It leads from output to source coordinates; ``argument`` is in 2**-16 degrees.
    """
    one, height, width = FIXED_ONE, size.height, size.width
    angle = math.radians(argument / FIXED_ONE)
    cos, sin = fixed(math.cos(angle)), fixed(math.sin(angle))
    right = (width * (one - cos) + height * sin) // 2
    down = (height * (one - cos) - width * sin) // 2
    return np.array((cos, -sin, right, sin, cos, down), np.int64)


@lru_cache(maxsize=1)
def _affine_weights() -> NDArray[np.int32]:
    """Return Pillow's cubic (a = -1) for 1024 positions between two pixels, (1024, 4)."""
    steps = 1 << kernels.AFFINE_BITS
    rows = []
    for step in range(steps):
        d = step / steps  # a dyadic fraction: all that follows is exact
        cubic = (
            d * (-1 + d * (2 - d)),
            1 + d * d * (d - 2),
            d * (1 + d * (1 - d)),
            d * d * (d - 1),
        )
        row = [math.floor(value * 4096 + 0.5) for value in cubic]
        row[1 if d <= 0.5 else 2] += 4096 - sum(row)
        rows.append(row)
    return np.array(rows, np.int32)


@lru_cache(maxsize=8)
def _fill(mean: tuple[float, float, float]) -> Pixels:
    """Return the colour that geometric operations leave outside the image, (3,)."""
    return np.array([math.floor(255 * value + 0.5) for value in mean], np.uint8)


def _erase(pixels: Pixels, box: Box, seed: int, config: AugmentConfig) -> Pixels:
    """Return the view with ``box`` filled with noise that is standard normal once normalised."""
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
    mean and std, where timm's, made after normalisation, does not end.
    """
    table = np.empty((3, 1 << 16), np.uint8)
    for channel in range(3):
        normal = NormalDist(255 * mean[channel], 255 * std[channel])
        ends = [fixed(normal.cdf(value + 0.5)) for value in range(255)]
        table[channel] = np.searchsorted(np.array(ends), np.arange(1 << 16), side="right")
    return table
