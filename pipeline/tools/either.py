"""How often the teacher names one of the two images that are mixed in a view."""

from __future__ import annotations

import numpy as np

from pipeline.records import MixKind
from pipeline.store import Agreement, LabelStore
from pipeline.tools.stats import ShardLabels
from pipeline.views.pairing import Pairing

__all__ = ["EitherCounter"]

_MOST = 20_000  # views that are looked at: enough for a share to a third of a per cent


class EitherCounter:
    """Counts views, while shards go by: all of a small store, or as many of each shard.

    Who is mixed into whom is drawn again from the seeds, so no shard is opened. ``known`` counts
    mixed views of two known classes, ``equal`` those of them whose label is one of the two.
    """

    def __init__(self, store: LabelStore) -> None:
        self._store = store
        self._most = max(1, _MOST // max(1, len(store.manifest.shards)))
        self.counts = Agreement(known=0, equal=0)

    def add(self, labels: ShardLabels) -> None:
        """Look at one shard."""
        samples, views = labels.label.shape
        if not samples or not self._store.identity.mix.probability:
            return
        # Few views of many samples: each view costs a draw of all pairs of the shard.
        wanted = min(views, max(1, self._most // samples))
        rows = _spread(samples, -(-self._most // wanted))
        known = equal = 0
        for column in _spread(views, wanted):
            found = self._of_view(labels, column, rows)
            known, equal = known + len(found), equal + sum(found)
        self.counts = Agreement.total([self.counts, Agreement(known=known, equal=equal)])

    def _of_view(self, labels: ShardLabels, column: int, rows: list[int]) -> list[bool]:
        """Return of the mixed ones among some rows whether the label is one of the two classes."""
        at = column
        for part in labels.parts:
            if at < part.part.views:
                break
            at -= part.part.views
        identity, manifest = self._store.identity, self._store.manifest
        pairing = Pairing(
            root_seed=identity.root_seed,
            shard=manifest.by_shard[part.part.shard],
            rejected=frozenset(one.index for one in part.rejections),
            config=identity.mix,
        )
        view, side = part.part.first_view + at, identity.augment.image_size
        partners = pairing.of_shard(view)
        samples = np.flatnonzero(part.accepted).tolist()
        targets = dict(zip(samples, part.target.tolist(), strict=True))
        found = []
        for row in rows:
            sample = samples[row]
            partner = partners[sample]
            classes = (targets[sample], targets.get(partner, -1))
            mix = pairing.draw_mix(view, (sample, partner), side)
            if mix.kind is not MixKind.NONE and min(classes) >= 0:
                found.append(int(part.label[row, at]) in classes)
        return found


def _spread(count: int, most: int) -> list[int]:
    """Return as many of ``count`` indices, from all over."""
    found: list[int] = np.linspace(0, count - 1, min(count, most)).astype(np.int64).tolist()
    return found
