"""The bytes of an image as they go into a shard: its own, or those of a JPEG made for reading.

A JPEG that is made here has restart markers, so that a reader decodes no more than a crop: see
``pipeline/views/restarts.py``.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, DecodeError, PipelineError
from pipeline.identity import PILLOWS_LIMIT

if TYPE_CHECKING:
    from pipeline.records import Pixels

__all__ = [
    "EXTENSIONS",
    "EncodedFile",
    "Encoding",
    "encode_image",
    "find_jpegtran",
    "jpeg_orientation",
]

EXTENSIONS = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
"""Of files that are images, and those of members in shards."""

_SHRUNK_QUALITY = 90  # where ``quality`` says nothing
_HALF = 16  # pixels of a block whose color has half the resolution
_BLOCKS = {"444": 8, "440": 8, "Gray": 8, "422": 16, "420": 16, "411": 32}  # their widths
_SECONDS = 60.0  # for one image, where tens of milliseconds are usual


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How images are encoded: the settings of ``PackConfig`` that change bytes."""

    max_side: int | None = None
    quality: int | None = None
    restart: int = 64
    lossless: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedFile:
    """The bytes of one image as they go into the shard."""

    extension: str
    data: bytes
    shrunk: bool = False
    reencoded: bool = False
    marked: bool = False  # a JPEG of the same pixels, with restart markers
    turned: bool = False  # its file asks viewers to turn it (EXIF), which is not done


def find_jpegtran() -> str:
    """Return the path of ``jpegtran``; raises ``ConfigError`` where it is not installed."""
    found = shutil.which("jpegtran")
    if found is None:
        raise ConfigError(
            "`lossless` needs the program jpegtran of libjpeg-turbo, which is not here: install "
            "it (Debian: libjpeg-turbo-progs; Fedora: libjpeg-turbo-utils; Homebrew: jpeg-turbo)"
        )
    return found


def encode_image(path: Path, data: bytes, encoding: Encoding) -> EncodedFile:
    """Return an image file's own bytes, or those of a JPEG as the settings ask for.

    What is encoded anew loses orientation and color profile, which ``decode`` ignores. Raises
    ``DecodeError`` for an image that cannot be decoded, if it has to be.
    """
    made = None
    if encoding.max_side is not None or encoding.quality is not None:
        made = _encode_anew(path, data, encoding)
    if made is None:
        made = EncodedFile(extension=EXTENSIONS[path.suffix.lower()], data=data)
        marked = _mark(path, data, encoding.restart) if encoding.lossless else None
        if marked is not None:
            made = EncodedFile(extension=made.extension, data=marked, marked=True)
    return replace(made, turned=jpeg_orientation(data) != 1)


def jpeg_orientation(data: bytes) -> int:
    """Return a JPEG's EXIF orientation, 1 to 8: 1, as it is stored, where nothing else is said."""
    from PIL import ExifTags, Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF, and of many pixels
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                found = image.getexif().get(ExifTags.Base.Orientation)
        except Exception:  # another kind of image, or damaged: Pillow raises a dozen kinds
            return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _encode_anew(path: Path, data: bytes, encoding: Encoding) -> EncodedFile | None:
    """Return a JPEG of other bytes, None where the image keeps its own."""
    from PIL import Image

    from pipeline.views.apply import decode, image_format

    rgb = Image.fromarray(decode(data, str(path), PILLOWS_LIMIT))
    shrunk = encoding.max_side is not None and max(rgb.size) > encoding.max_side
    if encoding.max_side is not None and shrunk:
        scale = encoding.max_side / max(rgb.size)
        width, height = (max(1, round(side * scale)) for side in rgb.size)
        rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    elif encoding.quality is None:
        return None
    file = io.BytesIO()
    rgb.save(
        file,
        "JPEG",
        quality=encoding.quality or _SHRUNK_QUALITY,
        subsampling="4:2:0",
        optimize=True,  # tables of Huffman codes of its own
        restart_marker_blocks=_blocks_of_a_piece(rgb.width, _HALF, encoding.restart),
    )
    anew = file.getvalue()
    if image_format(data) == "jpeg" and not shrunk and len(anew) >= len(data):
        return None
    return EncodedFile(extension="jpg", data=anew, shrunk=shrunk, reencoded=True)


def _blocks_of_a_piece(width: int, block: int, restart: int) -> int:
    """Return after how many blocks a restart marker stands, 0 for none.

    Pieces of about ``restart`` pixels, half as many to twice as many, that divide a row; where
    there are none, as in a row of 31 blocks, the row is a piece.
    """
    in_a_row = -(-width // block)
    fitting = [
        blocks
        for blocks in range(1, in_a_row + 1)
        if in_a_row % blocks == 0 and restart <= 2 * blocks * block <= 4 * restart
    ]
    if not restart:
        return 0
    # The nearest by ratio, either way; of two as near the larger, which costs fewer markers.
    return min(
        reversed(fitting),
        key=lambda blocks: max(blocks * block / restart, restart / (blocks * block)),
        default=in_a_row,
    )


def _mark(path: Path, data: bytes, restart: int) -> bytes | None:
    """Return a JPEG of the same pixels with restart markers, None where there is no such thing.

    Images of other formats are left alone, and JPEGs that are damaged or that readers do not take
    apart: whether they decode, and to what, does not change.
    """
    import numpy as np
    import simplejpeg

    from pipeline.views.apply import decode, image_format
    from pipeline.views.restarts import read_header

    if image_format(data) != "jpeg":
        return None
    try:
        pixels: Pixels = decode(data, str(path), PILLOWS_LIMIT)
        _, width, _, sampling = simplejpeg.decode_jpeg_header(data)
    except (DecodeError, ValueError, KeyError):
        return None
    blocks = _blocks_of_a_piece(width, _BLOCKS[sampling], restart) if sampling in _BLOCKS else 0
    marked = _run_jpegtran(path, data, blocks) if blocks else None
    header = read_header(marked) if marked is not None else None
    if marked is None or header is None or not header.blocks:
        return None
    # Proven for each image, whatever program and release were found.
    return marked if np.array_equal(decode(marked, str(path), PILLOWS_LIMIT), pixels) else None


def _run_jpegtran(path: Path, data: bytes, blocks: int) -> bytes | None:
    """Return what jpegtran makes of a JPEG, None if it has anything to complain of."""
    command = [find_jpegtran(), "-copy", "all", "-optimize", "-restart", f"{blocks}B"]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise PipelineError(
            f"{path}: jpegtran is not done with it after {_SECONDS:.0f} s; is the machine "
            "overloaded? Run again, remove the file, or pack without `lossless`"
        ) from error
    return done.stdout if done.returncode == 0 else None
