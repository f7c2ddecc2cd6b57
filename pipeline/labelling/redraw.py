"""Redraws views that have a stored digest from their shard: the proof that nothing drifted.

The label job comes here before it adds to a store, and ``verify`` for all that it redraws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.identity import StoreIdentity
from pipeline.records import NO_PARTNER, MixKind, PartRows, Pixels, ViewMix
from pipeline.shards.index import Shard
from pipeline.telling import told
from pipeline.views.apply import decode
from pipeline.views.draw import has_mixed_digest
from pipeline.views.make import ShardViews, View
from pipeline.views.pairing import Pairing
from pipeline.views.rng import sample_seed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Mismatch", "PartViews", "mixed_mask", "redraw", "sample_cells"]

_DECODED = 8  # images that are kept: a row's own, and partners that come again
_MIXED_SHARE = 4  # one second digest for so many first ones, where some are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A view that is not what the teacher labelled, and the column that shows it."""

    shard: str
    key: str
    view: int
    column: str  # digest, mixed_digest, label; or rejection
    stored: str
    found: str


def mixed_mask(rows: PartRows) -> NDArray[np.bool_]:
    """Return which views of a part have a second digest, (N, V)."""
    views = np.arange(rows.part.first_view, rows.part.end_view)
    return has_mixed_digest(rows.has_digest, rows.seed[:, None], views)


def sample_cells(rows: PartRows, most: int) -> NDArray[np.int64]:
    """Return row and column of some views of a part, (N, 2), spread over all that have digests.

    ``most`` are of the first kind, and a quarter as many have both.
    """
    chosen = [
        cells[np.linspace(0, len(cells) - 1, min(count, len(cells))).astype(int)]
        for cells, count in (
            (np.argwhere(rows.has_digest), most),
            (np.argwhere(mixed_mask(rows)), -(-most // _MIXED_SHARE)),
        )
    ]
    return np.unique(np.concatenate(chosen), axis=0)


def redraw(
    identity: StoreIdentity,
    shard: Shard,
    rows: PartRows,
    cells: NDArray[np.int64],
    *,
    floats: bool = True,
) -> Iterator[Mismatch]:
    """Redraw views of one part, sample by sample, and yield those that differ.

    ``cells`` is the row and column of each, (N, 2). With ``floats``, second digests are redone
    too where there are some: on the CPU, by the code that the teacher's device ran.
    """
    part = PartViews(identity, shard, rows)
    mixed = mixed_mask(rows) & floats
    for row, column in told(cells.tolist(), f"redrawing {shard.info.name}", "views", len(cells)):
        stored = {"digest": int(rows.digest[row, column])}
        if mixed[row, column]:
            stored["mixed_digest"] = int(rows.mixed_digest[row, column])
        try:
            found = part.digests(row, rows.part.first_view + column, mixed=len(stored) > 1)
        except DecodeError as error:
            found = {"digest": str(error)}
        for name, word in found.items():
            if word != f"{stored[name]:08x}":
                yield Mismatch(
                    shard=shard.info.name,
                    key=rows.keys[row],
                    view=rows.part.first_view + column,
                    column=name,
                    stored=f"{stored[name]:08x}",
                    found=word,
                )


class PartViews:
    """The views of one part's rows, and of samples of its shard that have none.

    Raises ``ShardError`` if a row's key or true class is not the shard's.
    """

    def __init__(self, identity: StoreIdentity, shard: Shard, rows: PartRows) -> None:
        self._augment, self._root_seed = identity.augment, identity.root_seed
        self._shard, self._first_view = shard, rows.part.first_view
        self._index = np.flatnonzero(rows.accepted).tolist()
        shard.require_labelled(self._index, rows.keys, rows.target.tolist())
        self._seed = dict(zip(self._index, rows.seed.tolist(), strict=True))
        pairing = Pairing(
            root_seed=identity.root_seed,
            shard=shard.info,
            rejected=frozenset(rejection.index for rejection in rows.rejections),
            config=identity.mix,
        )
        self._views = ShardViews(pairing=pairing, samples=shard.samples, augment=identity.augment)
        self._partners_at = cache(pairing.of_shard)
        self.decoded = lru_cache(maxsize=_DECODED)(self._decode)

    def digests(self, row: int, view: int, *, mixed: bool) -> dict[str, str]:
        """Return the digest of a row's view, and that of the mixed image if it is asked for."""
        pair = self.pair(self._index[row], view)
        made = self.make(pair, view, digest=True)
        found = {"digest": f"{made.digest:08x}"}
        if mixed:
            from pipeline.views.mixing import mixed_digests

            (word,) = mixed_digests(self.mixed(pair, view, made), np.ones(1, np.bool_))
            found["mixed_digest"] = f"{word:08x}"
        return found

    def pair(self, index: int, view: int) -> tuple[int, int]:
        """Return a sample and its partner at a view, or ``NO_PARTNER``, as indices in the shard."""
        return index, self._partners_at(view).get(index, NO_PARTNER)

    def mixed(self, pair: tuple[int, int], view: int, made: View) -> Tensor:
        """Return a view as teacher and student get it: normalized and mixed, (1, 3, S, S)."""
        import torch  # a second to load, and most of what comes here has no need of it

        from pipeline.views.mixing import mix_images, normalize

        pixels, mix = made.pixels[None], ViewMix.unmixed(1)
        if made.mix.kind is not MixKind.NONE:
            other = self.make(pair[::-1], view, digest=False)
            pixels, mix = np.stack([made.pixels, other.pixels]), ViewMix.unmixed(2)
            mix.set_row(0, 1, made.mix)
        images = normalize(torch.from_numpy(pixels), self._augment.mean, self._augment.std)
        return mix_images(images, mix)[:1]

    def mixed_of(self, row: int, column: int) -> Tensor:
        """Return a row's view as teacher and student get it, (1, 3, S, S)."""
        view = self._first_view + column
        pair = self.pair(self._index[row], view)
        return self.mixed(pair, view, self.make(pair, view, digest=False))

    def make(self, pair: tuple[int, int], view: int, *, digest: bool) -> View:
        """Return a view of the first of a pair, before mixing."""
        index = pair[0]
        image, seed = self.decoded(index), self.seed(index)
        return self._views.make(image, seed, view, pair, digest=digest)

    def seed(self, index: int) -> int:
        """Return the seed of a sample's views."""
        seed = self._seed.get(index)
        if seed is None:  # one that a subset omits
            seed = sample_seed(self._root_seed, self._shard.samples[index].key)
        return seed

    def _decode(self, index: int) -> Pixels:
        name, most = self._shard.samples[index].image_name, self._augment.max_pixels
        return decode(self._shard.image_bytes(index), name, most)
