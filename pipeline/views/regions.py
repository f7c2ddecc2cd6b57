"""Decodes no more of an image than one view needs, where its JPEG has restart markers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import simplejpeg

from pipeline.records import ImageSize, Pixels, ViewParams
from pipeline.views.apply import decode, image_size
from pipeline.views.restarts import join_pieces, read_header

__all__ = ["EncodedImage"]

_WORTH = 1 << 14
"""Decoding so many pixels takes as long as finding and joining pieces of a photograph's file."""


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
        found = self._decode_region(draw)
        if found is None:
            pixels = self.decode()
            found = pixels, draw(image_size(pixels))
        return found

    def _decode_region(
        self, draw: Callable[[ImageSize], ViewParams]
    ) -> tuple[Pixels, ViewParams] | None:
        """Return what ``decode_for`` does, None where all of the image has to be decoded."""
        header = read_header(self.data)
        if header is None or header.size.height * header.size.width > self.max_pixels:
            return None
        params = draw(header.size)
        joined = join_pieces(self.data, header, params.crop, self.worth)
        if joined is None:
            return None
        try:
            pixels = simplejpeg.decode_jpeg(joined.data, "RGB", fastdct=False, fastupsample=False)
        except ValueError:  # damage, or a warning; Pillow decodes some of these
            return None
        crop, box = params.crop, joined.box
        if pixels.shape != (box.height, box.width, 3):
            return None
        moved = replace(crop, top=crop.top - box.top, left=crop.left - box.left)
        return pixels, replace(params, crop=moved)
