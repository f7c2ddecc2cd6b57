"""Images inside a page, as data: URLs."""

from __future__ import annotations

import io
from base64 import b64encode

from pipeline.records import Pixels

__all__ = ["SMALL", "image_url"]

SMALL = 64
"""Side in pixels up to which an image is kept to the bit; the page enlarges it."""

_QUALITY = 85  # of JPEG


def image_url(pixels: Pixels) -> str:
    """Return an image, (H, W, 3), as a data: URL: a small one as PNG, others as JPEG."""
    from PIL import Image

    small, file = max(pixels.shape) <= SMALL, io.BytesIO()
    kind, options = ("png", {}) if small else ("jpeg", {"quality": _QUALITY})
    Image.fromarray(pixels).save(file, kind, **options)
    return f"data:image/{kind};base64,{b64encode(file.getvalue()).decode()}"
