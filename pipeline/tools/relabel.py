"""Labels a sample of a store's groups again, with the store's own teacher.

Digests prove that the pixels are the same. This proves that the labels are what the teacher
says of them: the third level of verification.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, ReplayError
from pipeline.files.cache import CacheConfig
from pipeline.files.local import Location, expand_shards
from pipeline.growth import settle
from pipeline.identity import StoreIdentity
from pipeline.labelling.devices import choose_device, set_threads
from pipeline.labelling.part import GroupTask, augment_group, group_tasks
from pipeline.labelling.redraw import Mismatch
from pipeline.labelling.teacher import load_stored_teacher
from pipeline.records import AugmentedGroup, PartRows, TeacherLabels, accepted_mask, spread
from pipeline.shards.index import Shard, match_shards, open_known_shard
from pipeline.store import Manifest, PartEntry, open_store
from pipeline.telling import told
from pipeline.tools.verify import check_fingerprints
from pipeline.views.rng import stream

__all__ = ["RelabelConfig", "RelabelReport", "relabel_store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelabelConfig:
    """How many groups are labelled again, by which weights, and what is forgiven."""

    groups: int
    checkpoint: Path | None = None  # None: timm's pretrained weights, or random ones
    random_weights: int | None = None  # seed of untrained weights
    device: str = "auto"
    allow_flips: float = 0.0  # share of other labels, on hardware of another kind

    def __post_init__(self) -> None:
        settle(self)
        if self.groups < 1:
            raise ConfigError(f"`groups` is {self.groups}; use 1 group or more")
        if not 0 <= self.allow_flips <= 1:
            raise ConfigError(f"`allow_flips` is {self.allow_flips}; a share is in 0..1")
        if self.checkpoint is not None and self.random_weights is not None:
            raise ConfigError("give `checkpoint` or `random_weights`, not both")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelabelReport:
    """What labelling again found; it passed if no more labels flipped than are forgiven."""

    groups: int
    rows: int  # labels compared
    digests: int  # of them, rows whose pixels were compared too
    flips: tuple[Mismatch, ...]  # other labels
    changed: int  # rows with the same label and other stored probabilities
    allow_flips: float

    @property
    def flip_share(self) -> float:
        """Flips per label compared."""
        return len(self.flips) / max(1, self.rows)

    @property
    def passed(self) -> bool:
        """Whether the store's labels are its teacher's."""
        return self.flip_share <= self.allow_flips


def relabel_store(
    row: Location,
    shards: Sequence[str],
    config: RelabelConfig,
    *,
    subset: bool = False,
    cache: CacheConfig | None = None,
) -> RelabelReport:
    """Label groups from all over a store again, in its batch shape and precision.

    With ``subset``, groups of those shards alone that are given. ``cache`` is where shards from
    object storage are kept.

    Raises ``TeacherError`` naming what differs if the teacher is not the store's,
    ``ReplayError`` if a view is not what was labelled, and what ``check_fingerprints``,
    ``match_shards`` and reading a part raise. Flips are reported, not raised.
    """
    store = open_store(row)
    device = choose_device(config.device)
    same_floats = check_fingerprints(store, device)
    paths = match_shards(store.manifest.shards, expand_shards(shards, cache), subset=subset)
    set_threads()
    teacher = load_stored_teacher(
        store.identity,
        device,
        checkpoint=config.checkpoint,
        random_weights=config.random_weights,
    )
    groups = rows = digests = changed = 0
    flips: list[Mismatch] = []
    sampled = list(_sampled_parts(store.manifest.of_shards(paths), config.groups))
    for entry, count in told(sampled, "labelling again", "parts", len(sampled)):
        stored = store.read_part(entry)
        info = store.manifest.by_shard[entry.part.shard]
        shard = open_known_shard(paths[info.number], info)
        tasks = _sampled_groups(store.identity, shard, entry, count)
        for task in told(tasks, f"labelling {shard.info.name} again", "groups", len(tasks)):
            group = augment_group(shard, task)
            one = _compare(group, teacher.label_group(group), stored, shard, floats=same_floats)
            groups += 1
            rows += one.rows
            digests += one.digests
            changed += one.changed
            flips += one.flips
    return RelabelReport(
        groups=groups,
        rows=rows,
        digests=digests,
        flips=tuple(flips),
        changed=changed,
        allow_flips=config.allow_flips,
    )


def _sampled_parts(manifest: Manifest, groups: int) -> Iterator[tuple[PartEntry, int]]:
    """Yield parts from all over the shards, each with the number of its groups to label."""
    parts = manifest.parts
    quotas = Counter(number * len(parts) // groups for number in range(groups) if parts)
    for row, count in sorted(quotas.items()):
        yield parts[row], count


def _sampled_groups(
    identity: StoreIdentity, shard: Shard, entry: PartEntry, count: int
) -> list[GroupTask]:
    """Return that many of a part's groups, or all: the same ones each time."""
    tasks = list(group_tasks(shard.path, shard.info, entry.part, identity))
    order = stream("relabel", identity.root_seed, entry.sha256).permutation(len(tasks))
    return [tasks[row] for row in sorted(order[:count])]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    rows: int
    digests: int
    changed: int
    flips: list[Mismatch]


def _compare(
    group: AugmentedGroup, labels: TeacherLabels, stored: PartRows, shard: Shard, *, floats: bool
) -> _Compared:
    """Compare a group's labels with a part's; raises ``ReplayError`` for other views."""
    members, shape = list(group.members), group.valid.shape
    first = group.first_view - stored.part.first_view
    columns = slice(first, first + shape[1])
    row_of = _rows_of_samples(stored)[members]
    accepted = row_of >= 0
    decoded = accepted_mask(stored.samples, stored.rejections)[members]
    if not (group.valid[: len(members)] == decoded[:, None]).all():
        row = int(np.argmax((group.valid[: len(members)] != decoded[:, None]).any(axis=1)))
        raise ReplayError(
            f"{shard.path}: {shard.samples[members[row]].key!r} "
            + ("does not decode here" if decoded[row] else "decodes here, but was rejected")
            + "; compare the versions of simplejpeg and Pillow with those in the store's "
            "_meta/runs"
        )
    kept, rows = np.flatnonzero(accepted), row_of[accepted]
    has_digest = stored.has_digest[rows, columns]
    other = has_digest & (stored.digest[rows, columns] != group.digest[kept])
    if floats and labels.mixed_digest is not None:
        mixed = labels.mixed_digest.reshape(shape)[kept]
        other |= has_digest & (stored.mixed_digest[rows, columns] != mixed)
    if other.any():
        row, column = np.argwhere(other)[0].tolist()
        raise ReplayError(
            f"{shard.path}: view {group.first_view + column} of {stored.keys[rows[row]]!r} is "
            "not the one that was labelled; to list all such views, verify every digest"
        )
    found = labels.map(lambda values: values.reshape(*shape, *values.shape[1:])[kept])
    ours = found.label
    theirs = stored.label[rows, columns]
    flipped = ours != theirs
    changed = np.zeros_like(flipped)
    for name, mine in found.columns.items():
        differs = mine != stored.columns[name][rows, columns]
        changed |= differs.reshape(*flipped.shape, -1).any(axis=2)
    return _Compared(
        rows=flipped.size,
        digests=int(has_digest.sum()),
        changed=int((changed & ~flipped).sum()),
        flips=[
            Mismatch(
                shard=shard.info.name,
                key=stored.keys[rows[row]],
                view=group.first_view + column,
                column="label",
                stored=str(theirs[row, column]),
                found=str(ours[row, column]),
            )
            for row, column in np.argwhere(flipped).tolist()
        ],
    )


def _rows_of_samples(stored: PartRows) -> NDArray[np.int64]:
    """Return each sample's row in the part, -1 for those without."""
    return spread(np.arange(len(stored.keys)), stored.accepted, -1)
