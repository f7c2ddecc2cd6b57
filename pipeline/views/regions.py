"""Decodes less of an image than all where one view needs no more: pieces, or the upper rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import simplejpeg

from pipeline.records import Box, ImageSize, Pixels, ViewParams
from pipeline.views.apply import decode, image_size
from pipeline.views.restarts import (
    PiecesHeader,
    SmallerJpeg,
    join_pieces,
    read_header,
    shorten,
)

__all__ = ["EncodedImage"]

_WORTH = 1 << 14
"""Decoding so many pixels takes as long as finding and joining pieces of a photograph's file."""

_THE_REST = "extraneous bytes before marker 0xd9"
"""What libjpeg says of bytes between the last row and the end of an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """An image of which one view is made, so that the rest of it need not be decoded.

    Pixels are those that ``decode`` gives, to the last bit. Damage outside the view's crop is not
    seen: whoever has to know whether an image decodes, decodes all of it.
    """

    data: bytes | memoryview
    name: str  # for messages
    max_pixels: int
    worth: int = _WORTH  # pixels that must be spared

    def decode(self) -> Pixels:
        """Return all pixels, (H, W, 3), as ``decode`` does."""
        return decode(self.data, self.name, self.max_pixels)

    def decode_for(self, draw: Callable[[ImageSize], ViewParams]) -> tuple[Pixels, ViewParams]:
        """Return pixels and the parameters of a view of them; ``draw`` is given the image's size.

        The crop lies in the pixels that are returned, which may be those of the whole image.
        Raises what ``decode`` raises.
        """
        header = read_header(self.data)
        if header is None or header.size.height * header.size.width > self.max_pixels:
            pixels = self.decode()
            return pixels, draw(image_size(pixels))
        params = draw(header.size)
        found = self._decode_around(header, params.crop)
        if found is None:
            pixels = self.decode()
            same = image_size(pixels) == header.size
            return pixels, params if same else draw(image_size(pixels))
        pixels, box = found
        crop = replace(params.crop, top=params.crop.top - box.top, left=params.crop.left - box.left)
        return pixels, replace(params, crop=crop)

    def _decode_around(self, header: PiecesHeader, crop: Box) -> tuple[Pixels, Box] | None:
        """Return the pixels of a box around a crop, None where all has to be decoded."""
        if header.blocks:
            smaller, decode_it = join_pieces(self.data, header, crop, self.worth), _decode_joined
        elif _passes_over_the_rest():
            smaller, decode_it = shorten(self.data, header, crop, self.worth), _decode_shortened
        else:
            return None
        if smaller is None:
            return None
        pixels = decode_it(smaller)
        return None if pixels is None else (pixels, smaller.box)


def _decode_joined(smaller: SmallerJpeg) -> Pixels | None:
    """Return the pixels of joined pieces, None if they are not all there or not sound."""
    try:
        pixels = simplejpeg.decode_jpeg(smaller.data, "RGB", fastdct=False, fastupsample=False)
    except ValueError:  # damage, or a warning; Pillow decodes some of these
        return None
    return pixels if pixels.shape == (smaller.box.height, smaller.box.width, 3) else None


def _decode_shortened(smaller: SmallerJpeg) -> Pixels | None:
    """Return the pixels of a file that goes on behind them, None if that is not its only fault.

    The decoder stops at the first warning. That of bytes before the end of the image comes when
    all rows are there: without restart markers nobody looks for a marker earlier.
    """
    pixels = np.empty((smaller.box.height, smaller.box.width, 3), np.uint8)
    try:
        simplejpeg.decode_jpeg(
            smaller.data, "RGB", fastdct=False, fastupsample=False, buffer=pixels
        )
    except ValueError as error:
        return pixels if str(error).endswith(_THE_REST) else None
    return None  # there were fewer rows than the header said


@cache
def _passes_over_the_rest() -> bool:
    """Return whether this decoder writes all rows before it warns of the bytes that are left.

    No document of it says so. Where it does not, images are decoded as a whole.
    """
    pixels = np.arange(64 * 48 * 3, dtype=np.uint8).reshape(64, 48, 3)
    data = simplejpeg.encode_jpeg(pixels, 90, "RGB", "420")
    header = read_header(data)
    if header is None:
        return False
    smaller = shorten(data, header, Box(top=0, left=0, height=30, width=48), 1)
    found = None if smaller is None else _decode_shortened(smaller)
    whole = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    return found is not None and bool((found[:31] == whole[:31]).all())
