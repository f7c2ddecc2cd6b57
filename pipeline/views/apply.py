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

from pipeline.errors import REJECTION_WORDS, DecodeError, PipelineError, RejectionReason
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
from pipeline.views.colors import fill_box
from pipeline.views.ops import OPERATIONS
from pipeline.views.restarts import PiecesHeader, join_pieces
from pipeline.views.rng import fixed, noise_bytes

__all__ = [
    "apply_op",
    "apply_view",
    "decode",
    "image_format",
    "image_size",
    "read_size",
    "resize",
    "view_digest",
    "warm_up",
]

_SPARE = 1 << 24  # bytes that decoders need for themselves
_DECODING = 32  # bytes for a pixel, while it is decoded: libwebp takes the most
_SCAN = b"\xff\xda"  # begins a scan of a JPEG
_LEAST_SCAN = 10  # bytes of a scan without any of its own
_MOST_WORK = 1 << 33  # pixels times scans: a minute
_JPEG_SPACES = ("YCbCr", "Gray", "RGB")  # that simplejpeg turns into RGB


def decode(data: bytes | memoryview, name: str, max_pixels: int) -> Pixels:
    """Decode JPEG, PNG or WebP bytes to RGB, (H, W, 3). EXIF orientation is ignored.

    Every image of a job, a proof and a training comes through here. JPEGs are decoded by
    libjpeg-turbo with its exact integer transform. Whatever that refuses (CMYK, 4:4:1, a harmless
    warning) goes to Pillow, which raises on truncation. Alpha is dropped; of channels with 16 bits
    the upper 8 stay; of an animation the first frame counts.

    Raises ``DecodeError`` with ``name`` and the reason if the image is empty, of another format,
    damaged, or if its header says more than ``max_pixels``, which is seen before memory is given;
    ``PipelineError`` if it is this machine that cannot decode it now.
    """
    reason: RejectionReason = "undecodable"
    cause: Exception | None = None
    kind = image_format(data)
    if not kind:
        reason = "unknown-format" if len(data) else "empty"
    else:
        try:
            return _DECODERS[kind](data, max_pixels)
        except (_TooManyPixelsError, Image.DecompressionBombError) as error:
            reason, cause = "too-many-pixels", error
        except Exception as error:
            _require_machine(data, name, error)
            cause = error
    raise DecodeError(f"{name}: {reason}: {REJECTION_WORDS[reason]}", reason) from cause


def image_format(data: bytes | memoryview) -> str:
    """Return how an image is encoded, whatever its name says; nothing if no decoder reads it."""
    start = bytes(data[:12])
    if start[:2] == b"\xff\xd8":
        return "jpeg"
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    return "webp" if (start[:4], start[8:]) == (b"RIFF", b"WEBP") else ""


def _require_machine(data: bytes | memoryview, name: str, error: Exception) -> None:
    """Raise ``PipelineError`` where decoding may have failed for want of memory or of a file.

    Stores would hold it against the image for ever.
    """
    if isinstance(error, OSError) and error.errno is not None:  # damage has no number
        raise PipelineError(
            f"{name} cannot be decoded here now ({error.strerror}); mend that, and run again"
        ) from error
    try:
        if isinstance(error, MemoryError):
            raise error
        # libjpeg and libwebp call it damage when they get no memory.
        size = _size_in_header(data)
        np.empty(_SPARE + _DECODING * size.width * size.height, np.uint8)
    except MemoryError:
        raise PipelineError(
            f"{name}: there is not enough memory to decode it, or to tell whether it is damaged; "
            "give the process more, or run fewer at a time"
        ) from error
    except Exception:  # the header is damaged already
        return


class _TooManyPixelsError(Exception):
    pass


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _TooManyPixelsError


def _check_scans(data: bytes | memoryview, pixels: int) -> None:
    """Raise ``ValueError`` for a JPEG that goes over its pixels for minutes, by thousands of scans.

    Photographs have one, or ten if they are progressive. Those that have no room for so many are
    not looked at.
    """
    room = len(data) // _LEAST_SCAN
    if room * pixels > _MOST_WORK and bytes(data).count(_SCAN) * pixels > _MOST_WORK:
        raise ValueError("the image has too many scans")


def _decode_jpeg(data: bytes | memoryview, max_pixels: int) -> Pixels:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, max_pixels)
        _check_scans(data, width * height)
        if space in _JPEG_SPACES:
            rgb: Pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
            return rgb
    except (ValueError, KeyError):  # KeyError: of a sampling that simplejpeg has no name for
        pass
    return _decode_by_pillow(data, "JPEG", max_pixels)


def _decode_png(data: bytes | memoryview, max_pixels: int) -> Pixels:
    return _decode_by_pillow(data, "PNG", max_pixels)


def _decode_webp(data: bytes | memoryview, max_pixels: int) -> Pixels:
    # Pillow takes memory for the whole canvas as it opens a WebP, before it tells the size.
    _check_size(*_webp_canvas(bytes(data[:30])), max_pixels)
    return _decode_by_pillow(data, "WEBP", max_pixels)


_DECODERS = {"jpeg": _decode_jpeg, "png": _decode_png, "webp": _decode_webp}


def _webp_canvas(start: bytes) -> tuple[int, int]:
    """Return width and height by the first chunk of a WebP file, of which 30 bytes suffice."""
    kind, body = start[12:16], start[20:]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = (int.from_bytes(body[at : at + 2], "little") for at in (6, 8))
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError(f"no WebP begins with a chunk {kind!r}")


def _decode_by_pillow(data: bytes | memoryview, kind: str, max_pixels: int) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of decompression bombs: the limit here is `max_pixels`
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            _check_size(*image.size, max_pixels)
            if kind == "JPEG":
                _check_scans(data, math.prod(image.size))
            pixels = _to_rgb(image)
    if not pixels.size:
        raise ValueError("the image has no pixels")
    return pixels


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # gray of 16 bits: Pillow would make all above 255 white
        gray = (np.asarray(image).astype(np.int32) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    # Dropping an alpha channel is what timm and torchvision do; a palette must keep its
    # colors on the way.
    colors = image.convert("RGBA") if image.mode in ("P", "PA") else image
    # A copy that is writable, as the kernels were compiled for.
    return np.array(colors if colors.mode == "RGB" else colors.convert("RGB"))


def read_size(data: bytes | memoryview, name: str) -> ImageSize:
    """Return the size of the image that ``decode`` would give, from its header alone.

    Raises ``DecodeError`` with ``name`` if there is no header.
    """
    try:
        return _size_in_header(data)
    except Exception as error:  # decoders raise a dozen kinds
        _require_machine(b"", name, error)
        raise DecodeError(f"{name}: undecodable: {error}", "undecodable") from error


def _size_in_header(data: bytes | memoryview) -> ImageSize:
    kind = image_format(data)
    if kind == "webp":
        width, height = _webp_canvas(bytes(data[:30]))
    elif kind:
        with Image.open(io.BytesIO(data), formats=(kind.upper(),)) as image:
            width, height = image.size
    else:
        raise ValueError("no JPEG, PNG or WebP")
    return ImageSize(height=height, width=width)


def image_size(image: Pixels) -> ImageSize:
    """Return the size of a decoded image."""
    return ImageSize(height=image.shape[0], width=image.shape[1])


def apply_view(
    image: Pixels, params: ViewParams, config: AugmentConfig, result: Pixels | None = None
) -> Pixels:
    """Return the view that ``params`` describe, (S, S, 3), in ``result`` where that is given."""
    view = _new_view(config.image_size) if result is None else result
    # Each step writes from one into the other, and the last into the view: nothing is copied.
    pixels, other = view, _new_view(config.image_size) if params.ops else view
    if len(params.ops) % 2:
        pixels, other = other, pixels
    _resample(image, params.crop, params.hflip, pixels)
    for applied in params.ops:
        _operate(pixels, applied, config, other)
        pixels, other = other, pixels
    if params.erase is not None:
        _erase(view, params.erase, params.erase_noise, config)
    return view


def _new_view(size: int) -> Pixels:
    return np.empty((size, size, 3), np.uint8)


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
    box = Box(top=0, left=0, height=8, width=8)
    _erase(pixels, box, 0, config)
    size = ImageSize(height=8, width=8)
    header = PiecesHeader(size=size, size_offset=0, first=0, sampling=(1, 1), blocks=1)
    join_pieces(bytes(8), header, box, 0)


def resize(image: Pixels, crop: Box, size: int, *, hflip: bool = False) -> Pixels:
    """Return the crop as a (size, size, 3) image: antialiased bicubic, maybe flipped."""
    result = _new_view(size)
    _resample(image, crop, hflip, result)
    return result


def _resample(image: Pixels, crop: Box, hflip: bool, result: Pixels) -> None:
    height, width = image.shape[:2]
    inside = crop.top + crop.height <= height and crop.left + crop.width <= width
    if not inside or min(crop.top, crop.left) < 0 or min(crop.height, crop.width) < 1:
        raise ValueError(f"{crop} does not lie in an image of {image.shape[:2]} pixels")
    rows = _resize_weights(crop.height, result.shape[0])
    columns = _resize_weights(crop.width, result.shape[1])
    box = (crop.top, crop.left, crop.height, crop.width)
    # Kernels are compiled for arrays as decoding gives them: whole, and not read-only.
    plain = image if image.flags.carray else image.copy()
    kernels.resample(plain, box, *rows, *columns, hflip, result)


_resize_weights = lru_cache(maxsize=1024)(kernels.resize_weights)  # 2 to 4 KB each, for 224 pixels


def apply_op(image: Pixels, applied: AppliedOp, config: AugmentConfig) -> Pixels:
    """Return the image after one operation."""
    result = np.empty_like(image)
    _operate(image, applied, config, result)
    return result


def _operate(image: Pixels, applied: AppliedOp, config: AugmentConfig, result: Pixels) -> None:
    OPERATIONS[applied.op].apply(image, applied.argument, _fill_color(config.mean), result)


@lru_cache(maxsize=8)
def _fill_color(mean: tuple[float, float, float]) -> Pixels:
    """Return the color that geometric operations leave outside the image, (3,)."""
    return np.array([math.floor(255 * value + 0.5) for value in mean], np.uint8)


def _erase(view: Pixels, box: Box, seed: int, config: AugmentConfig) -> None:
    """Fill ``box`` of a view with noise that is standard normal once normalized."""
    noise, table = noise_bytes(seed, box.area * 3), _noise_table(config.mean, config.std)
    fill_box(view, (box.top, box.left, box.height, box.width), noise, table)


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
