"""Images such as crawls hold: odd, broken, and made to harm. Each is a few lines of bytes."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from tests.factories import encode, synthetic_image


def jpeg_of_size(height: int, width: int, *, progressive: bool = False) -> bytes:
    """Return a JPEG of 8 x 8 pixels whose header says another size."""
    data = bytearray(encode(synthetic_image(8, 8), progressive=progressive))
    frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def with_sampling(jpeg: bytes, horizontal: int, vertical: int) -> bytes:
    """Return a JPEG whose header gives luma other sampling factors; 1, 4 is 4:4:1.

    The scan then holds other blocks than were written, so the picture is another one, and may
    end early; all decoders agree about it.
    """
    data = bytearray(jpeg)
    data[data.index(b"\xff\xc0") + 11] = horizontal << 4 | vertical
    return bytes(data)


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of these chunks."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def png_of_size(height: int, width: int) -> bytes:
    """Return a PNG that claims a size, with hardly any data behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png_chunks((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))


def png_of_16_bits(words: NDArray[np.uint16]) -> bytes:
    """Return a PNG of (H, W, channels): gray, gray and alpha, RGB, or RGBA."""
    height, width, channels = words.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in words)
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    return png_chunks((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def webp_of_size(height: int, width: int) -> bytes:
    """Return a lossless WebP of 34 bytes that claims a size."""
    bits = (width - 1) | (height - 1) << 14
    return _riff(b"VP8L" + struct.pack("<I", 14) + b"\x2f" + struct.pack("<I", bits) + bytes(9))


def webp_canvas(height: int, width: int, frame: bytes = b"") -> bytes:
    """Return a WebP with a canvas of this size, and chunks behind it."""
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return _riff(b"VP8X" + struct.pack("<I", 10) + bytes(4) + sides + frame)


def _riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def odd_files() -> dict[str, bytes]:
    """Return 22 files as a crawl leaves them, by key: those that decode begin with "good"."""
    photograph = synthetic_image(40, 48)
    jpeg, png, webp = (encode(photograph, kind) for kind in ("JPEG", "PNG", "WEBP"))
    words = photograph.astype(np.uint16) * 256
    return {
        "empty": b"",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "gif": encode(photograph, "GIF"),
        "bmp": encode(photograph, "BMP"),
        "tiff": encode(photograph, "TIFF"),
        "zeros": bytes(100),
        "mark": b"\xff\xd8",
        "torn-jpeg": jpeg[: len(jpeg) // 2],
        "torn-png": png[: len(png) // 2],
        "torn-webp": webp[: len(webp) // 2],
        "zero-png": png_of_size(0, 0),
        "zero-jpeg": jpeg_of_size(0, 0),
        "bomb-jpeg": jpeg_of_size(13_000, 13_000),
        "bomb-png": png_of_size(20_000, 20_000),
        "bomb-webp": webp_of_size(16_384, 16_384),
        "good-jpeg": jpeg,
        "good-cmyk": encode(photograph, mode="CMYK"),
        "good-441": with_sampling(jpeg, 1, 4),
        "good-16-bit": png_of_16_bits(words[..., :1]),
        "good-gray-alpha": png_of_16_bits(words[..., :2]),
        "good-palette": encode(photograph, "PNG", mode="P", transparency=3),
        "good-webp": webp,
    }
