"""Labels one part: groups are augmented, labelled and gathered, in any order.

``augment_group`` runs anywhere and needs no PyTorch; ``Teacher.label_group`` runs on the
teacher's device; ``PartBuilder`` gathers what comes back. The result depends on none of the
order, the number of processes, or what else is labelled.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.columns import COLUMNS, Columns
from pipeline.errors import DecodeError, IdentityError, TeacherError
from pipeline.files.cache import ShardFile
from pipeline.identity import AugmentConfig, MixConfig, StoreIdentity
from pipeline.labelling.probe import Fate, fates
from pipeline.records import (
    AugmentedGroup,
    MixKind,
    PartKey,
    PartRows,
    Pixels,
    Rejection,
    ShardInfo,
    TeacherLabels,
    ViewMix,
    accepted_mask,
)
from pipeline.shards.index import Shard, ShardContents, open_known_shard
from pipeline.views.apply import decode
from pipeline.views.draw import has_digest, has_mixed_digest
from pipeline.views.fingerprints import different_fingerprints, fingerprints, what_they_watch
from pipeline.views.make import ShardViews
from pipeline.views.pairing import Pairing, block_of, draw_groups
from pipeline.views.rng import sample_seed

__all__ = [
    "GroupTask",
    "PartBuilder",
    "augment_group",
    "file_of",
    "group_tasks",
    "label_part",
    "probe_task",
    "read_contents",
    "run_task",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTask:
    """One group of a shard at the views of one block that a part covers."""

    path: ShardFile
    shard: ShardInfo
    group: int
    members: tuple[int, ...]  # sample indices in the shard
    first_view: int
    views: int
    root_seed: int
    augment: AugmentConfig
    mix: MixConfig
    crashing: frozenset[int] = frozenset()  # members that are not decoded, see ``probe_task``
    fingerprints: Mapping[str, int] = field(default_factory=dict)  # the store's, as far as known


def group_tasks(
    path: ShardFile,
    shard: ShardInfo,
    part: PartKey,
    identity: StoreIdentity,
    fingerprints: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[GroupTask]:
    """Yield the tasks of one part, block by block; whoever runs them compares the fingerprints."""
    mix = identity.mix
    for block in range(block_of(part.first_view, mix), block_of(part.end_view - 1, mix) + 1):
        first = max(part.first_view, block * mix.block_views)
        end = min(part.end_view, (block + 1) * mix.block_views)
        # Over all indexed samples: an image that is found broken must not move others to new
        # groups.
        drawn = draw_groups(identity.root_seed, shard.key_hash, shard.samples, block, mix)
        for group, members in enumerate(drawn.groups):
            yield GroupTask(
                path=path,
                shard=shard,
                group=group,
                members=members,
                first_view=first,
                views=end - first,
                root_seed=identity.root_seed,
                augment=identity.augment,
                mix=mix,
                fingerprints=dict(fingerprints),
            )


def run_task(task: GroupTask) -> AugmentedGroup:
    """Open the task's shard, check that it is the one that was planned, and augment.

    Raises ``IdentityError`` on a machine that makes other pixels than the store has.
    """
    _require_same_pixels(_Views(task.augment, task.mix), task.fingerprints)
    return augment_group(_opened(task.path, task.shard), task)


class _Views(NamedTuple):
    augment: AugmentConfig
    mix: MixConfig


_fingerprints_here = lru_cache(maxsize=8)(fingerprints)


def _require_same_pixels(views: _Views, stored: Mapping[str, int]) -> None:
    different = different_fingerprints(_fingerprints_here(views), stored) if stored else ()
    if different:
        raise IdentityError(
            f"{platform.node()} makes other pixels than the machine that began the store, in "
            f"{what_they_watch(views, different)}; install the same versions on all nodes, or "
            "take it out of the cluster"
        )


def read_contents(path: ShardFile, shard: ShardInfo) -> ShardContents:
    """Return what a part keeps of its shard; reads all of it.

    Once in a process for all parts of the shard that come one after the other.
    """
    return _opened(path, shard).contents


def probe_task(task: GroupTask) -> dict[int, Fate]:
    """Return what becomes of processes that decode a task's images, where they do not live.

    By member. Decodes in child processes; for a task whose process crashes.
    """
    shard = _opened(task.path, task.shard)
    members = [one for one in task.members if one not in task.crashing]
    found = fates([bytes(shard.image_bytes(one)) for one in members], task.augment.max_pixels)
    return {members[index]: fate for index, fate in found.items()}


def _opened(path: ShardFile, shard: ShardInfo) -> Shard:
    return _opened_once(path, shard, file_of(path))


# Tasks come from all teachers of a machine: eight GPUs' have sixteen parts under way. To open a
# shard takes a quarter as long as to augment a group.
@lru_cache(maxsize=16)
def _opened_once(path: ShardFile, shard: ShardInfo, file: tuple[int, ...]) -> Shard:
    return open_known_shard(path, shard)


def file_of(path: ShardFile) -> tuple[int, ...]:
    """Return what tells a file from one that is deleted, cut, replaced or written to.

    A mapped one would be read on: what was cut off it kills the process, or reads as zeros.
    """
    try:
        found = path.stat() if isinstance(path, Path) else None
    except OSError:
        return (-1,)  # whoever opens it says why
    if found is None:
        return ()  # the cache keeps a shard of object storage as it was when the run began
    # Whoever writes to a file may set its time back, but not that of its last change.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def augment_group(shard: Shard, task: GroupTask) -> AugmentedGroup:
    """Decode a group's images once, and make all their views of the task."""
    started = time.perf_counter()
    images, rejections = _decode_members(shard, task)
    decoded = time.perf_counter()
    size, views, side = task.mix.group_size, task.views, task.augment.image_size
    pixels = np.zeros((size, views, side, side, 3), np.uint8)
    valid = np.zeros((size, views), np.bool_)
    digest = np.zeros((size, views), np.uint32)
    digested = np.zeros((size, views), np.bool_)
    mixed_digested = np.zeros((size, views), np.bool_)
    mix = ViewMix.unmixed(size * views)
    # The rejections of this group are enough: a pair never leaves its group.
    pairing = Pairing(
        root_seed=task.root_seed,
        shard=task.shard,
        rejected=frozenset(rejection.index for rejection in rejections),
        config=task.mix,
    )
    shard_views = ShardViews(pairing=pairing, samples=shard.samples, augment=task.augment)
    index_of = {sample: index for index, sample in enumerate(task.members)}
    seeds = {sample: sample_seed(task.root_seed, shard.samples[sample].key) for sample in images}
    for column in range(views):
        view = task.first_view + column
        for pair in pairing.of_group(view, task.group, task.members).items():
            sample, partner = pair
            index, seed = index_of[sample], seeds[sample]
            made = shard_views.make(
                images[sample],
                seed,
                view,
                pair,
                digest=has_digest(seed, view),
                result=pixels[index, column],
            )
            valid[index, column] = True
            if made.mix.kind is not MixKind.NONE:
                mix.set_row(index * views + column, index_of[partner] * views + column, made.mix)
            if made.digest is not None:
                digest[index, column] = made.digest
                digested[index, column] = True
                mixed_digested[index, column] = has_mixed_digest(True, seed, view)
    return AugmentedGroup(
        shard=task.shard.number,
        members=task.members,
        first_view=task.first_view,
        pixels=pixels,
        valid=valid,
        mix=mix,
        digest=digest,
        has_digest=digested,
        has_mixed_digest=mixed_digested,
        rejections=tuple(rejections),
        decode_seconds=decoded - started,
        augment_seconds=time.perf_counter() - decoded,
    )


def _decode_members(shard: Shard, task: GroupTask) -> tuple[dict[int, Pixels], list[Rejection]]:
    """Return the images of those members that decode, by sample index, and the others."""
    images: dict[int, Pixels] = {}
    rejections = []
    for index in task.members:
        sample, data = shard.samples[index], shard.image_bytes(index)
        if index in task.crashing:
            rejections.append(Rejection(index=index, key=sample.key, reason="crashes-decoder"))
            continue
        try:
            images[index] = decode(data, sample.image_name, task.augment.max_pixels)
        except DecodeError as error:
            rejections.append(Rejection(index=index, key=sample.key, reason=error.reason))
    return images, rejections


class Labeller(Protocol):
    """Whatever labels a group: the teacher, or its process."""

    def label_group(self, group: AugmentedGroup) -> TeacherLabels:
        """Return a row for each of the group's P * V views, and the mixed images' digests."""


class PartBuilder:
    """Gathers the labelled groups of one part."""

    def __init__(self, shard: ShardInfo, part: PartKey, identity: StoreIdentity) -> None:
        self._part = part
        self._identity = identity
        shape = (shard.samples, part.views)
        self._label = np.zeros(shape, np.uint16)
        self._columns = Columns(
            {
                name: np.zeros((*shape, *width), COLUMNS[name].dtype)
                for name, width in identity.columns.shapes().items()
            }
        )
        self._labelled = np.zeros(shape, np.bool_)
        self._digest = np.zeros(shape, np.uint32)
        self._has_digest = np.zeros(shape, np.bool_)
        self._mixed_digest = np.zeros(shape, np.uint32)
        self._rejections: dict[int, Rejection] = {}

    def add(self, group: AugmentedGroup, labels: TeacherLabels) -> None:
        """Take in one group's labels; ``labels`` has a row for each of its P * V views."""
        first = group.first_view - self._part.first_view
        columns = slice(first, first + group.valid.shape[1])
        rows, size = list(group.members), len(group.members)
        label = labels.label.reshape(group.valid.shape)
        self._label[rows, columns] = np.where(group.valid, label, 0)[:size]
        if labels.mixed_digest is None:
            raise TeacherError("the teacher gives no digests of mixed images; let it digest them")
        if labels.columns.keys() != self._columns.keys():
            raise TeacherError(
                f"the teacher gives the columns {sorted(labels.columns)}, the store holds "
                f"{sorted(self._columns)}; load it with the columns of the store's identity"
            )
        for name, values in labels.columns.items():
            one_each = values.reshape(*group.valid.shape, *values.shape[1:])
            self._columns[name][rows, columns] = one_each[:size]
        self._labelled[rows, columns] = group.valid[:size]
        self._digest[rows, columns] = group.digest[:size]
        self._has_digest[rows, columns] = group.has_digest[:size]
        mixed = np.where(group.has_mixed_digest, labels.mixed_digest.reshape(group.valid.shape), 0)
        self._mixed_digest[rows, columns] = mixed[:size]
        for rejection in group.rejections:
            self._rejections.setdefault(rejection.index, rejection)

    def finish(self, shard: ShardContents) -> PartRows:
        """Return the part's rows; every sample is labelled at all views or rejected."""
        samples = shard.samples
        accepted = accepted_mask(len(samples), self._rejections.values())
        if not (self._labelled == accepted[:, None]).all():
            raise RuntimeError(f"{self._part}: some views were neither labelled nor rejected")
        kept = [sample for sample, keep in zip(samples, accepted, strict=True) if keep]
        root_seed = self._identity.root_seed
        info = shard.info
        return PartRows(
            part=self._part,
            identity=self._identity.digest,
            key_hash=info.key_hash,
            content_hash=info.content_hash,
            image_hash=shard.image_hash,
            formats=shard.formats,
            samples=info.samples,
            rejections=tuple(self._rejections[index] for index in sorted(self._rejections)),
            keys=tuple(sample.key for sample in kept),
            target=np.array([sample.target for sample in kept], np.int32),
            seed=np.array([sample_seed(root_seed, sample.key) for sample in kept], np.int64),
            label=self._label[accepted],
            digest=self._digest[accepted],
            has_digest=self._has_digest[accepted],
            mixed_digest=self._mixed_digest[accepted],
            columns=self._columns.map(itemgetter(accepted)),
        )


def label_part(
    shard: Shard,
    part: PartKey,
    identity: StoreIdentity,
    groups: Iterable[AugmentedGroup],
    teacher: Labeller,
) -> PartRows:
    """Label one part from its augmented groups, in whatever order they come."""
    builder = PartBuilder(shard.info, part, identity)
    for group in groups:
        builder.add(group, teacher.label_group(group))
    return builder.finish(shard.contents)
