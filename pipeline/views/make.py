"""The one way to a view: draw it, apply it, and digest it.

Labelling, verification and replay all come through ``ShardViews.make``. A second way would draw
or round otherwise one day, and labels would belong to other pixels than a student sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.identity import AugmentConfig
from pipeline.records import ImageSize, MixKind, MixParams, Pixels, Sample, ViewParams
from pipeline.views.apply import apply_view, image_size, view_digest
from pipeline.views.draw import draw_view
from pipeline.views.pairing import Pairing
from pipeline.views.regions import EncodedImage

__all__ = ["ShardViews", "View", "make_view"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A view of a sample, and how it is mixed with its partner's."""

    pixels: Pixels  # (S, S, 3), before mixing
    mix: MixParams  # ``MixParams.none()`` if unmixed
    digest: int | None  # None if it was not asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardViews:
    """The views of one shard, under the settings of one store."""

    pairing: Pairing
    samples: Sequence[Sample]  # of the shard, for the partners' keys
    augment: AugmentConfig

    def make(
        self,
        image: Pixels | EncodedImage,
        seed: int,
        view: int,
        pair: tuple[int, int],
        *,
        digest: bool,
        result: Pixels | None = None,
    ) -> View:
        """Return one view of an image, digested if that is asked for.

        An image of which this is the only view may be given encoded: no more of it is decoded than
        the view needs. Then this raises ``DecodeError`` where it does not decode.

        ``pair`` is the indices of the sample and of its partner, or ``NO_PARTNER``. The pixels are
        written into ``result`` where that is given.
        """
        pixels = make_view(image, seed, view, self.augment, result)
        mix = self.pairing.draw_mix(view, pair, self.augment.image_size)
        if not digest:
            return View(pixels=pixels, mix=mix, digest=None)
        partner = None if mix.kind is MixKind.NONE else self.samples[pair[1]].key
        return View(pixels=pixels, mix=mix, digest=view_digest(pixels, partner, mix))


def make_view(
    image: Pixels | EncodedImage,
    seed: int,
    view: int,
    config: AugmentConfig,
    result: Pixels | None = None,
) -> Pixels:
    """Return one view of an image, (S, S, 3), where there is no store and no partner.

    It is written into ``result`` where that is given: a row of a batch, say.
    """

    def draw(size: ImageSize) -> ViewParams:
        return draw_view(seed, view, size, config)

    if isinstance(image, EncodedImage):
        pixels, params = image.decode_for(draw)
    else:
        pixels, params = image, draw(image_size(image))
    return apply_view(pixels, params, config, result)
