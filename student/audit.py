"""The audit before the first step: stored digests of all shards, redrawn.

Loaders redraw pixels; the floats are normalized and mixed here, on the device and by the code that
every step uses.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.errors import ReplayError
from pipeline.files.cache import RemoteShard
from pipeline.records import NO_PARTNER, ShardView
from pipeline.store.provenance import version_differences
from pipeline.telling import told
from pipeline.views.draw import has_mixed_digest
from pipeline.views.mixing import mixed_digests
from student.batches import mixed_images
from student.distributed import Ranks
from student.loading import LoaderOptions, load
from student.order import PlannedBatch
from student.replay import ReplayDataset, StudentBatch

__all__ = ["audit_store"]

DIGESTS = 320
"""Digests that are looked at before training, spread over all shards."""

_FETCHED_SHARDS = 16
"""Shards in object storage that are looked at: each is fetched whole before training."""

_VIEWS_SPREAD = 8  # of a shard, over which its digests are spread if it has enough
_VIEWS_TRIED = 64  # of a shard, if few rows have a digest


def audit_store(
    dataset: ReplayDataset,
    options: LoaderOptions,
    ranks: Ranks,
    device: torch.device | None,
) -> int:
    """Redraw views of every shard that have a digest; return how many were the same.

    About ``DIGESTS`` in all, a few of each shard, evenly spread shards of a store with more,
    or in object storage; ranks share them. Views that have a second digest come first, and
    are mixed on ``device``; None: its floats are known to be others. Raises ``ReplayError``
    at the first that differs.
    """
    numbers = sorted(dataset.plan.manifest.by_shard)
    remote = any(isinstance(dataset.path(number), RemoteShard) for number in numbers)
    most = _FETCHED_SHARDS if remote else DIGESTS
    if len(numbers) > most:
        chosen = np.linspace(0, len(numbers) - 1, most).astype(int)
        numbers = [numbers[index] for index in chosen]
    quota = -(-DIGESTS // max(1, len(numbers)))
    mine = _Audit(dataset, numbers[ranks.rank :: ranks.ranks], quota)
    audited = 0
    items = load(mine, range(len(mine)), options)
    for batches in told(items, "auditing the store", "shards", len(mine)):
        for batch in batches:
            audited += batch.audited
            if device is not None:
                _require_same_floats(dataset, batch, device)
    return audited


def _require_same_floats(dataset: ReplayDataset, batch: StudentBatch, device: torch.device) -> None:
    """Mix a batch, and raise ``ReplayError`` for a row whose second digest is another."""
    if not batch.has_mixed_digest.any():
        return
    images = mixed_images(batch, dataset.store.identity.augment, device)
    found = mixed_digests(images, batch.has_mixed_digest)
    for row in np.flatnonzero(found != np.where(batch.has_mixed_digest, batch.mixed_digest, 0)):
        raise ReplayError(
            f"{dataset.path(int(batch.shard[row]))}: view {batch.view[row]} of "
            f"{batch.keys[row]!r} has mixed_digest {found[row]:08x} on {device}, and "
            f"{batch.mixed_digest[row]:08x} in the store: normalized and mixed, it is not the "
            f"image that the teacher labelled ({version_differences(dataset.store.root)}); verify "
            "the store with its shards, every digest; if that passes here, train on another "
            "device; else install the store's versions"
        )


class _Audit(Dataset[list[StudentBatch]]):
    """Item k replays and audits some views of the k-th shard."""

    def __init__(self, dataset: ReplayDataset, numbers: list[int], quota: int) -> None:
        self._dataset, self._numbers, self._quota = dataset, numbers, quota

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, item: int) -> list[StudentBatch]:
        number, store = self._numbers[item], self._dataset.store
        each = -(-self._quota // _VIEWS_SPREAD)
        audited: list[StudentBatch] = []
        for view in _spread(self._dataset.plan.manifest.view_range)[:_VIEWS_TRIED]:
            if len(audited) >= self._quota:
                break
            stored = store.read_view(number, view)
            digested = _digested(stored)[:each]
            partners = self._dataset.pairing(number).of_shard(view) if digested else {}
            for sample in digested:
                partner = partners.get(sample, NO_PARTNER)
                shown = partner != NO_PARTNER and bool(stored.accepted[partner])
                rows = _rows(number, view, sample, partner, shown=shown)
                audited.append(self._dataset.replay(rows))
        return audited


def _digested(stored: ShardView) -> list[int]:
    """Return the samples that have a digest at a view, those with two first."""
    once = stored.has_digest & stored.accepted
    twice = has_mixed_digest(once, stored.seed, np.array(stored.view))
    return [*np.flatnonzero(twice).tolist(), *np.flatnonzero(once & ~twice).tolist()]


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
