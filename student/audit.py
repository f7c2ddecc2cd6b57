"""The audit before the first step: stored digests of all shards, redrawn."""

from __future__ import annotations

import numpy as np
from torch.utils.data import Dataset

from pipeline.files.cache import RemoteShard
from pipeline.records import NO_PARTNER
from student.distributed import Ranks
from student.loading import LoaderOptions, load
from student.order import PlannedBatch
from student.replay import ReplayDataset

__all__ = ["audit_store"]

DIGESTS = 320
"""Digests that are looked at before training, spread over all shards."""

_FETCHED_SHARDS = 16
"""Shards in object storage that are looked at: each is fetched whole before training."""

_VIEWS_SPREAD = 8  # of a shard, over which its digests are spread if it has enough
_VIEWS_TRIED = 64  # of a shard, if few rows have a digest


def audit_store(dataset: ReplayDataset, options: LoaderOptions, ranks: Ranks) -> int:
    """Redraw views of every shard that have a digest; return how many were the same.

    About ``DIGESTS`` in all, a few of each shard, evenly spread shards of a store with more,
    or in object storage; ranks share them. Raises ``ReplayError`` at the first that differs.
    """
    numbers = sorted(dataset.plan.manifest.by_shard)
    remote = any(isinstance(dataset.path(number), RemoteShard) for number in numbers)
    most = _FETCHED_SHARDS if remote else DIGESTS
    if len(numbers) > most:
        chosen = np.linspace(0, len(numbers) - 1, most).astype(int)
        numbers = [numbers[index] for index in chosen]
    quota = -(-DIGESTS // max(1, len(numbers)))
    mine = _Audit(dataset, numbers[ranks.rank :: ranks.ranks], quota)
    return sum(load(mine, range(len(mine)), options))


class _Audit(Dataset[int]):
    """Item k audits some views of the k-th shard and gives their number."""

    def __init__(self, dataset: ReplayDataset, numbers: list[int], quota: int) -> None:
        self._dataset, self._numbers, self._quota = dataset, numbers, quota

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, item: int) -> int:
        number, store = self._numbers[item], self._dataset.store
        each = -(-self._quota // _VIEWS_SPREAD)
        audited = 0
        for view in _spread(self._dataset.plan.manifest.view_range)[:_VIEWS_TRIED]:
            if audited >= self._quota:
                break
            stored = store.read_view(number, view)
            digested = np.flatnonzero(stored.has_digest & stored.accepted)[:each].tolist()
            partners = self._dataset.pairing(number).of_shard(view) if digested else {}
            for sample in digested:
                partner = partners.get(sample, NO_PARTNER)
                shown = partner != NO_PARTNER and bool(stored.accepted[partner])
                rows = _rows(number, view, sample, partner, shown=shown)
                audited += self._dataset.replay(rows).audited
        return audited


def _spread(views: range) -> list[int]:
    """Return all views in an order whose beginnings are spread over them."""
    count = len(views)
    bits = max(1, (count - 1).bit_length())
    reversed_bits = (int(f"{index:0{bits}b}"[::-1], 2) for index in range(1 << bits))
    return [views[index] for index in reversed_bits if index < count]


def _rows(number: int, view: int, sample: int, partner: int, *, shown: bool) -> PlannedBatch:
    """Return one sample, and its partner if it has one: as a row too if it is ``shown``."""
    samples = [sample] if partner == NO_PARTNER else [sample, partner]
    count = len(samples)
    return PlannedBatch(
        shard=np.full(count, number),
        sample=np.array(samples, np.int64),
        view=np.full(count, view),
        partner=np.arange(count)[::-1][: count if shown else 1].copy(),
    )
