"""Replays a store's views: item k of the data set is this rank's slice of global batch k.

Parameters are drawn from the stored seeds and applied by the labeller's own code; rows
that have a stored digest prove that the pixels are those that the teacher labelled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.columns import COLUMNS
from pipeline.errors import DecodeError, ReplayError
from pipeline.files.cache import ShardFile
from pipeline.identity import TRIPLE_VIEWS
from pipeline.records import NO_PARTNER, MixKind, MixParams, Pixels, ShardView, ViewMix
from pipeline.shards.index import Shard, open_indexed_shard
from pipeline.store import LabelStore
from pipeline.store.provenance import version_differences
from pipeline.views.draw import has_mixed_digest
from pipeline.views.make import ShardViews, View, make_view
from pipeline.views.mixing import MixRows
from pipeline.views.pairing import Pairing
from pipeline.views.regions import EncodedImage
from pipeline.views.rng import sample_seed
from student.lending import ALIGNMENT
from student.loading import LoaderOptions, batch_memory, load
from student.order import PlannedBatch, TrainingPlan

__all__ = ["ReplayDataset", "StudentBatch", "replay_loader"]

_TENSORS = (
    *("pixels", "target", "partner_target", "label"),
    *("confidence", "topk_label", "topk_logprob", "topk_rest"),
)
_MIX_FIELDS = dataclasses.fields(MixRows)
_ROW_BYTES = 3 * 8 + 2 * 4  # of a row: three classes, and two probabilities
_CLASS_BYTES = 8 + 4  # of a class that a row has a probability of
_OPEN_SHARDS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentBatch:
    """B rows of one step, before normalization and mixing.

    Of a subset, ``pixels`` has more rows than there are to train on, M: after them come views of
    omitted samples, which some rows are mixed with.
    """

    step: int
    keys: tuple[str, ...]  # (B,)
    shard: NDArray[np.int64]  # (B,), shard numbers
    sample: NDArray[np.int64]  # (B,), indices in the shard
    view: NDArray[np.int64]  # (B,)
    seed: NDArray[np.int64]  # (B,)
    pixels: Tensor  # (M, S, S, 3) uint8; M is B but for subsets
    target: Tensor  # (B,) int64, true class
    partner_target: Tensor  # (B,) int64, that of the image mixed in; the row's own if none is
    label: Tensor  # (B,) int64, the teacher's argmax on the mixed view
    mix: ViewMix  # of B rows; partners are rows of ``pixels``
    audited: int  # rows whose stored digest was compared
    mixed_digest: NDArray[np.uint32]  # (B,), 0 where the store has none
    has_mixed_digest: NDArray[np.bool_]  # (B,)
    confidence: Tensor | None = None  # (B,) float32, probability of the label; None: not stored
    topk_label: Tensor | None = None  # (B, k) int64, by falling probability; None: not stored
    topk_logprob: Tensor | None = None  # (B, k) float32, logarithms of probabilities
    topk_rest: Tensor | None = None  # (B,) float32, that of all other classes together
    mix_rows: MixRows | None = None  # ``mix`` beside the pixels, once they were packed
    memory: Tensor | None = None  # bytes that all tensors are views of, likewise

    def with_rows(self) -> StudentBatch:
        """Return the batch with ``mix_rows``, which all that mixes it then shares."""
        if self.mix_rows is not None:
            return self
        return dataclasses.replace(self, mix_rows=MixRows.of(self.mix))

    def pin_memory(self) -> StudentBatch:
        """Return the batch with tensors side by side in pinned memory; the loader calls this."""
        return self._packed(pinned_memory)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> StudentBatch:
        """Return the batch with tensors on a device, where they go in one copy.

        The engine and loops of other libraries call this.
        """
        here, there = self.pixels.device, torch.device(device)
        if here.type == there.type and there.index in (None, here.index):
            return self
        packed = self._packed(plain_memory) if self.memory is None else self
        assert packed.memory is not None
        return packed._seen_in(packed.memory.to(device, non_blocking=non_blocking))

    def _tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, those of ``mix_rows`` included."""
        found = {name: getattr(self, name) for name in _TENSORS}
        assert self.mix_rows is not None
        mixed = {one.name: getattr(self.mix_rows, one.name) for one in _MIX_FIELDS}
        found |= {f"mix_rows.{name}": one for name, one in mixed.items()}
        return {name: one for name, one in found.items() if one is not None}

    def _packed(self, allocate: Callable[[int], Tensor]) -> StudentBatch:
        """Return the batch in one run of memory."""
        whole = dataclasses.replace(self, mix_rows=MixRows.of(self.mix))
        tensors = whole._tensors()
        packed = whole._seen_in(allocate(sum(map(_room, tensors.values()))))
        for name, one in packed._tensors().items():
            one.copy_(tensors[name])
        return packed

    def _seen_in(self, memory: Tensor) -> StudentBatch:
        """Return the batch with tensors that are views of memory, which holds them in order."""
        views: dict[str, Any] = {}
        start = 0
        for name, one in self._tensors().items():
            size = one.numel() * one.element_size()
            views[name] = memory[start : start + size].view(one.dtype).view(one.shape)
            start += _room(one)
        mixed = {one.name: views.pop(f"mix_rows.{one.name}") for one in _MIX_FIELDS}
        return dataclasses.replace(self, **views, mix_rows=MixRows(**mixed), memory=memory)


def _room(tensor: Tensor) -> int:
    """Return the bytes that a tensor takes of packed memory."""
    size = tensor.numel() * tensor.element_size()
    return -(-size // ALIGNMENT) * ALIGNMENT


def plain_memory(size: int) -> Tensor:
    """Return so many bytes."""
    return torch.empty(size, dtype=torch.uint8)


def pinned_memory(size: int) -> Tensor:
    """Return so many bytes from which a GPU copies while the host goes on."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


class ReplayDataset(Dataset[StudentBatch]):
    """The batches of one rank, in the order of a plan; any item may be asked for at any time.

    ``shards`` gives the file of each of the plan's shards, by number. Item k does not
    depend on the items before it or on the process. With ``accumulate`` pieces, items
    k * accumulate, ... are the pieces of this rank's slice of batch k, in order.

    Raises ``ConfigError`` if the plan's batches cannot be shared out to ``ranks``. Items
    raise ``ShardError`` if a shard is not the one that was labelled, ``ReplayError`` if a
    view is not, ``StoreError`` if the store is damaged.
    """

    def __init__(
        self,
        store: LabelStore,
        shards: Mapping[int, ShardFile],
        plan: TrainingPlan,
        *,
        rank: int = 0,
        ranks: int = 1,
        accumulate: int = 1,
        audit: bool = True,
    ) -> None:
        plan.check_ranks(ranks, accumulate)
        self.store = store
        self.plan = plan
        self._paths = dict(shards)
        self.accumulate = accumulate
        self._rank, self._ranks = rank, ranks
        # Two windows of each share: a batch may reach from one into the next.
        windows = 2 * plan.shares_of(rank, ranks) * plan.config.window_shards
        self._open = max(_OPEN_SHARDS, windows)
        self._audit = audit
        self._forget()

    def _forget(self) -> None:
        self._shard = lru_cache(maxsize=self._open)(self._open_shard)
        self._labels = lru_cache(maxsize=self._open * 2 * TRIPLE_VIEWS)(self._read_view)

    def __getstate__(self) -> dict[str, Any]:
        # Mapped files and open stores stay in their process; a worker opens its own.
        return {k: v for k, v in vars(self).items() if k not in ("_shard", "_labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def __len__(self) -> int:
        return self.plan.steps * self.accumulate

    @property
    def item_bytes(self) -> int:
        """Return how many bytes the tensors of an item take at most."""
        rows = self.plan.config.batch_size // (self._ranks * self.accumulate)
        views = rows * (2 if self.store.manifest.omitted else 1)  # each may have a guest
        identity = self.store.identity
        labels = rows * (_ROW_BYTES + _CLASS_BYTES * identity.columns.topk)
        return views * identity.augment.image_size**2 * 3 + labels + len(_TENSORS) * ALIGNMENT

    def __getitem__(self, item: int) -> StudentBatch:
        step, piece = divmod(item, self.accumulate)
        rows = self.plan.slice(
            step, self._rank * self.accumulate + piece, self._ranks * self.accumulate
        )
        return self.replay(rows, step)

    def replay(self, rows: PlannedBatch, step: int = 0) -> StudentBatch:
        """Return any rows whose partners are among them, or guests, as item ``step`` would."""
        labels = [
            self._labels(shard, view)
            for shard, view in zip(rows.shard.tolist(), rows.view.tolist(), strict=True)
        ]
        entries = list(zip(labels, rows.sample.tolist(), strict=True))
        side, every = self.store.identity.augment.image_size, entries
        pixels = batch_memory(len(every), side, side, 3)
        views, mix, audited = pixels.numpy(), ViewMix.unmixed(rows.rows), 0
        target = torch.tensor(self._targets(rows, every))
        for row, made in enumerate(self._make_views(rows, every, views)):
            if made.mix.kind is not MixKind.NONE:
                mix.set_row(row, int(rows.partner[row]), made.mix)
            if made.digest is not None:
                self._check_digest(*entries[row], made.digest)
                audited += 1
        entries = every[: rows.rows]
        return StudentBatch(
            step=step,
            keys=tuple(one.keys[index] for one, index in entries),
            shard=rows.shard[: rows.rows],
            sample=rows.sample[: rows.rows],
            view=rows.view[: rows.rows],
            seed=np.array([one.seed[index] for one, index in entries], np.int64),
            pixels=pixels,
            target=target[: rows.rows],
            partner_target=target[torch.from_numpy(mix.partner)],
            label=torch.tensor([int(one.label[index]) for one, index in entries]),
            mix=mix,
            audited=audited,
            mixed_digest=np.array([one.mixed_digest[index] for one, index in entries], np.uint32),
            has_mixed_digest=np.array([_has_mixed_digest(*entry) for entry in entries], np.bool_),
            confidence=_rows_of(entries, "confidence"),
            topk_label=_rows_of(entries, "topk_label"),
            topk_logprob=_rows_of(entries, "topk_logprob"),
            topk_rest=_rows_of(entries, "topk_rest"),
        )

    def _targets(self, rows: PlannedBatch, entries: list[tuple[ShardView, int]]) -> list[int]:
        """Return the true class of each row and guest."""
        own = [int(one.target[index]) for one, index in entries[: rows.rows]]
        # The store knows nothing of guests, but that their shard is the one that was labelled.
        guests = [self._shard(one.shard).samples[at].target for one, at in entries[rows.rows :]]
        return own + guests

    def path(self, shard: int) -> ShardFile:
        """Return the file of a shard, by its number."""
        return self._paths[shard]

    def pairing(self, shard: int) -> Pairing:
        """Return who is paired with whom in a shard, by its number."""
        identity, manifest = self.store.identity, self.store.manifest
        return Pairing(
            root_seed=identity.root_seed,
            shard=manifest.by_shard[shard],
            rejected=frozenset(one.index for one in manifest.rejections.get(shard, ())),
            config=identity.mix,
        )

    def _open_shard(self, number: int) -> Shard:
        return open_indexed_shard(self._paths[number], self.store.manifest.by_shard[number])

    def _read_view(self, number: int, view: int) -> ShardView:
        """Return a shard's labels at a view, checked against the shard's own targets."""
        labels, shard = self.store.read_view(number, view), self._shard(number)
        indices = np.flatnonzero(labels.accepted).tolist()
        keys = [labels.keys[index] for index in indices]
        shard.require_labelled(indices, keys, labels.target[indices].tolist())
        return labels

    def _make_views(
        self, rows: PlannedBatch, entries: list[tuple[ShardView, int]], views: Pixels
    ) -> Iterator[View]:
        """Yield the view of each row and guest, digested if that is stored and to be compared.

        ``entries`` has each row's labels and its index there; pixels are written into ``views``.
        """
        views_of = cache(self._views_of)
        samples = [(labels.shard, index) for labels, index in entries]
        image: Pixels | EncodedImage
        for row, (labels, index) in enumerate(entries):
            with self._naming_damaged(*samples[row]):
                # Rows of one sample lie together: one image at a time, of more than one view whole.
                if samples[row - 1 : row] != [samples[row]]:
                    image = self._image(*samples[row])
                    if samples[row + 1 : row + 2] == [samples[row]]:
                        image = image.decode()
                if row >= rows.rows:
                    made = self._guest_view(labels, index, image, views[row])
                else:
                    partner = int(rows.partner[row])
                    made = views_of(labels.shard).make(
                        image,
                        int(labels.seed[index]),
                        labels.view,
                        (index, NO_PARTNER if partner == row else entries[partner][1]),
                        digest=self._audit and bool(labels.has_digest[index]),
                        result=views[row],
                    )
            yield made

    def _guest_view(
        self, labels: ShardView, index: int, image: Pixels | EncodedImage, result: Pixels
    ) -> View:
        """Return the view of a sample that has no row, and so no seed, in the store."""
        identity = self.store.identity
        # Elsewhere seeds come from the store, so that replay needs no rule that made them.
        seed = sample_seed(identity.root_seed, self._shard(labels.shard).samples[index].key)
        pixels = make_view(image, seed, labels.view, identity.augment, result)
        return View(pixels=pixels, mix=MixParams.none(), digest=None)

    def _views_of(self, shard: int) -> ShardViews:
        return ShardViews(
            pairing=self.pairing(shard),
            samples=self._shard(shard).samples,
            augment=self.store.identity.augment,
        )

    def _image(self, number: int, index: int) -> EncodedImage:
        shard = self._shard(number)
        return EncodedImage(
            data=shard.image_bytes(index),
            name=shard.samples[index].image_name,
            max_pixels=self.store.identity.augment.max_pixels,
        )

    @contextmanager
    def _naming_damaged(self, number: int, index: int) -> Iterator[None]:
        """Turn a ``DecodeError`` into a ``ReplayError`` that names the sample."""
        try:
            yield
        except DecodeError as error:
            shard = self._shard(number)
            raise ReplayError(
                f"{shard.path}: {shard.samples[index].key!r} does not decode ({error}), but did "
                "when it was labelled; fetch the shard again, and compare the versions of "
                "simplejpeg and Pillow with those in the store's _meta/runs"
            ) from error

    def _check_digest(self, labels: ShardView, index: int, actual: int) -> None:
        """Raise ``ReplayError`` if the digest of a view is not the one that is stored."""
        stored = int(labels.digest[index])
        if actual != stored:
            versions = version_differences(self.store.root)
            raise ReplayError(
                f"{self._paths[labels.shard]}: view {labels.view} of {labels.keys[index]!r} has "
                f"digest {actual:08x} here, and {stored:08x} in the store: these are not the "
                f"pixels that the teacher labelled ({versions}); verify the store with its "
                "shards: if that finds a shard's bytes changed, restore it; else install the "
                "store's versions"
            )


def _has_mixed_digest(labels: ShardView, index: int) -> bool:
    return has_mixed_digest(bool(labels.has_digest[index]), int(labels.seed[index]), labels.view)


def _rows_of(entries: list[tuple[ShardView, int]], name: str) -> Tensor | None:
    """Return what an optional column's rows stand for, None where the store has none."""
    if not entries or name not in entries[0][0].columns:
        return None
    stacked = np.stack([one.columns[name][index] for one, index in entries])
    return torch.from_numpy(COLUMNS[name].read(stacked))


def replay_loader(
    dataset: ReplayDataset, start: int, end: int, options: LoaderOptions
) -> Iterator[StudentBatch]:
    """Yield the batches of steps ``start`` to ``end``, in order, piece by piece.

    Errors of workers are raised here.
    """
    items = range(start * dataset.accumulate, end * dataset.accumulate)
    return load(dataset, items, options, dataset.item_bytes)
