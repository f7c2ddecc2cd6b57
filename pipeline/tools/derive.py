"""Makes stores whose labels no teacher gave to their views, but to other ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import ColumnConfig, Columns
from pipeline.errors import ConfigError, IncompleteStoreError, ShardError
from pipeline.files.local import Location
from pipeline.identity import StoreIdentity
from pipeline.records import PartRows, ShardInfo
from pipeline.store import LabelStore, commit_part, open_store
from pipeline.tools.target import (
    ShowProgress,
    agreed_classes,
    check_sources,
    check_target,
    copy_companions,
    finish_target,
)

__all__ = ["relabelled_store", "require_same_classes", "same_shards"]


def relabelled_store(
    source: LabelStore,
    labels_of: LabelStore,
    out: Location,
    *,
    note: str,
    view: int | None = None,
    show: ShowProgress = lambda done, total: None,
) -> LabelStore:
    """Write the views of ``source`` with each sample's label at one view of ``labels_of``.

    It is for comparisons, such as with labels of plain images. Views, seeds and digests are the
    source's, so replay audits as ever. ``note`` becomes part of the teacher's name in identity
    and card ("labels of the plain image"), by which all that would run the teacher refuses the
    store. Optional columns are left out. ``view`` is the first one of ``labels_of`` by default.
    An interrupted run can be run again.

    Raises ``ShardError`` for stores of other shards, ``ConfigError`` for other classes
    (``ClassesError`` for other names of them), a note that is no name or a view that is not there,
    ``IncompleteStoreError`` for samples that ``labels_of`` rejects or omits.
    """
    identity = _derived_identity(source, labels_of, note)
    numbers = same_shards(source, labels_of)
    view = _require_view(labels_of, view)
    parts = source.manifest.parts
    keys = {entry.part for entry in parts}
    check_sources([source, labels_of])
    target = check_target(out, identity, source.manifest.fingerprints, keys)
    copy_companions(target, source)
    copy_companions(target, labels_of)
    for done, entry in enumerate(parts, start=1):
        labels = labels_of.read_view(numbers[entry.part.shard], view).label
        commit_part(target, _relabelled(source.read_part(entry), labels, identity))
        show(done, len(parts))
    run = {
        "command": "relabelled_store",
        "stores": [source.root.name, labels_of.root.name],
        "view": view,
        "note": note,
    }
    names = agreed_classes(source, labels_of)
    finish_target(target, [source], identity, source.manifest.shards, keys, run, classes=names)
    return open_store(out)


def _derived_identity(source: LabelStore, labels_of: LabelStore, note: str) -> StoreIdentity:
    require_same_classes(source, labels_of)
    derived = labels_of.identity.teacher.derived(note)
    return replace(source.identity, teacher=derived, columns=ColumnConfig())


def require_same_classes(source: LabelStore, labels_of: LabelStore) -> None:
    """Raise ``ConfigError`` unless both have labels of the same classes."""
    ours, theirs = source.identity.teacher, labels_of.identity.teacher
    if ours.classes != theirs.classes:
        raise ConfigError(
            f"{source.root} has labels of {ours.classes} classes, {labels_of.root} of "
            f"{theirs.classes}; derive from stores of the same classes"
        )
    agreed_classes(source, labels_of)


def same_shards(source: LabelStore, labels_of: LabelStore) -> dict[int, int]:
    """Return the number that ``labels_of`` has for each shard of ``source``.

    Raises ``ShardError`` for shards it does not know, ``IncompleteStoreError`` for samples that it
    lacks.
    """
    theirs = {shard.key_hash: shard for shard in labels_of.manifest.shards}
    numbers: dict[int, int] = {}
    for shard in source.manifest.shards:
        other = theirs.get(shard.key_hash)
        same = other is not None and (
            (shard.content_hash, source.manifest.image_hashes.get(shard.number))
            == (other.content_hash, labels_of.manifest.image_hashes.get(other.number))
        )
        if other is None or not same:
            raise ShardError(
                f"{labels_of.root} has no labels of {shard.name} as {source.root} knows it "
                f"({'other contents' if other else 'no shard of these keys'}); label the very "
                "same shards twice"
            )
        _require_labelled(source, shard, labels_of, other.number)
        numbers[shard.number] = other.number
    return numbers


def _require_labelled(
    source: LabelStore, shard: ShardInfo, labels_of: LabelStore, theirs: int
) -> None:
    there = labels_of.manifest.accepted(theirs)
    missing = np.flatnonzero(source.manifest.accepted(shard.number) & ~there)
    if len(missing):
        keys = {one.index: one.key for one in labels_of.manifest.rejections.get(theirs, ())}
        first = missing[0]
        what = f"rejects {keys[first]!r}" if first in keys else f"omits sample {first}"
        raise IncompleteStoreError(
            f"{labels_of.root} {what} of {shard.name} (and {len(missing) - 1} more), which "
            f"{source.root} labels; label both on one machine, or thin both alike"
        )


def _require_view(labels_of: LabelStore, view: int | None) -> int:
    views = labels_of.manifest.view_range
    if not views:
        raise IncompleteStoreError(f"{labels_of.root} has no view that all its shards have")
    if view is not None and view not in views:
        raise ConfigError(
            f"view is {view}; {labels_of.root} has the views {views.start}..{views.stop - 1}"
        )
    return views.start if view is None else view


def _relabelled(rows: PartRows, labels: NDArray[np.uint16], identity: StoreIdentity) -> PartRows:
    """Return a part with the same label at all its views; ``labels`` (N,) are the shard's."""
    own = labels[rows.accepted]
    label = np.repeat(own[:, None], rows.part.views, axis=1)
    return replace(rows, identity=identity.digest, label=label, columns=Columns())
