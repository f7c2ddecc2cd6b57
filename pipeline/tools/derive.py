"""Makes stores whose labels no teacher gave to their views: of other views, or by a vote."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import SHARE_STEPS, ColumnConfig, Columns
from pipeline.errors import ConfigError, IdentityError, IncompleteStoreError, ShardError
from pipeline.files.local import Location
from pipeline.growth import to_plain
from pipeline.identity import StoreIdentity, canonical_json, different_fields
from pipeline.records import PartRows, ShardInfo
from pipeline.store import LabelStore, commit_part, open_store
from pipeline.store.card import markdown_table, share
from pipeline.tools.target import (
    ShowProgress,
    agreed_classes,
    check_sources,
    check_target,
    copy_companions,
    finish_target,
)

__all__ = ["Vote", "relabelled_store", "voted_store"]

VOTED_COLUMNS = ColumnConfig(confidence=True)
"""A vote keeps the share of teachers that gave the label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What a vote of ``teachers`` came to, in views."""

    teachers: int
    views: int
    unanimous: int
    majority: int  # more than half of the teachers gave the label, all included
    tied: int  # another label has as many votes, and the earlier store's was taken
    changed: int  # the first store has another label

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return the vote as Markdown."""
        named = (
            ("all teachers agree", self.unanimous),
            ("more than half agree", self.majority),
            ("tied: the earlier store's label", self.tied),
            ("other labels than the first store's", self.changed),
        )
        rows = [(name, f"{share(count, self.views)} ({count})") for name, count in named]
        title = f"# Vote of {self.teachers} teachers on {self.views} views\n\n"
        return title + markdown_table(("", ""), rows)


def voted_store(
    stores: Sequence[LabelStore],
    out: Location,
    show: ShowProgress = lambda done, total: None,
) -> Vote:
    """Write a store with the label that most of several stores have for each view.

    The views must be the same in all, those of the first store; views that others have besides are
    left out. Of labels with as many votes the one that the earliest store has is taken. The share
    of teachers that gave the label is kept as its confidence. Identity and card say that it was a
    vote, by which all that would run a teacher refuses the store. An interrupted run can be run
    again.

    Raises ``ConfigError`` for fewer than three stores or other classes (``ClassesError`` for other
    names of them), ``IdentityError`` for stores of other views, ``ShardError`` for other shards,
    ``IncompleteStoreError`` for samples or views that a store lacks.
    """
    first, *others = stores
    identity = _voted_identity(stores)
    numbers = [_same_shards(first, other) for other in others]
    parts = first.manifest.parts
    keys = {entry.part for entry in parts}
    check_sources(stores)
    target = check_target(out, identity, first.manifest.fingerprints, keys)
    for store in stores:
        copy_companions(target, store)
    counts = np.zeros(5, np.int64)
    for done, entry in enumerate(parts, start=1):
        rows = first.read_part(entry)
        ballots = [rows.label]
        for other, number in zip(others, numbers, strict=True):
            ballots.append(_labels_of(other, number[entry.part.shard], rows))
        label, votes, tied = _counted(np.stack(ballots))
        confidence = np.rint(votes / len(stores) * SHARE_STEPS).astype(np.uint8)
        commit_part(
            target,
            replace(
                rows,
                identity=identity.digest,
                label=label,
                columns=Columns({"confidence": confidence}),
            ),
        )
        several = (votes == len(stores), 2 * votes > len(stores), tied, label != rows.label)
        counts += [label.size, *(int(one.sum()) for one in several)]
        show(done, len(parts))
    run = {"command": "voted_store", "stores": [store.root.name for store in stores]}
    names = agreed_classes(*stores)
    finish_target(target, [first], identity, first.manifest.shards, keys, run, classes=names)
    views, unanimous, majority, ties, changed = counts.tolist()
    return Vote(
        teachers=len(stores),
        views=views,
        unanimous=unanimous,
        majority=majority,
        tied=ties,
        changed=changed,
    )


def _voted_identity(stores: Sequence[LabelStore]) -> StoreIdentity:
    if len(stores) < 3:
        raise ConfigError(
            f"`stores` has {len(stores)}; a vote takes three or more, since of two that differ "
            "none has a majority"
        )
    first, *others = (store.identity for store in stores)
    views = ("root_seed", "augment", "mix")
    for store, other in zip(stores[1:], others, strict=True):
        ours, theirs = ({name: one.to_json()[name] for name in views} for one in (first, other))
        different = different_fields(ours, theirs)
        if different:
            raise IdentityError(
                f"{stores[0].root} and {store.root} label other views (first / second):\n  "
                + "\n  ".join(different)
                + "\n  cure: vote with stores of one root seed, augmentation and mixing"
            )
        _require_same_classes(stores[0], store)
    teachers = [to_plain(one.teacher) for one in (first, *others)]
    if len({canonical_json(one) for one in teachers}) < len(teachers):
        raise ConfigError(
            "`stores` has two of one teacher, which would have two votes; give each teacher once"
        )
    named = " and ".join(one.teacher.architecture for one in others)
    derived = first.teacher.derived(f"by a majority vote with {named}")
    # Whose vote it is: other teachers, or in another order, are another store.
    weights = hashlib.sha256(canonical_json(teachers)).hexdigest()
    return replace(first, teacher=replace(derived, weights=weights), columns=VOTED_COLUMNS)


def _labels_of(store: LabelStore, number: int, rows: PartRows) -> NDArray[np.uint16]:
    """Return what a store says of a part's samples and views, (N, V)."""
    part = rows.part
    found = []
    for view in range(part.first_view, part.end_view):
        one = store.read_view(number, view)
        seeds = one.seed[rows.accepted]
        if not np.array_equal(seeds, rows.seed):
            raise IdentityError(
                f"{store.root} has other seeds for shard {number} at view {view}, though the same "
                "settings; verify it, and label again what does not pass"
            )
        found.append(one.label[rows.accepted])
    return np.stack(found, axis=1)


def _counted(
    ballots: NDArray[np.uint16],
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the labels with most of (T, N, V) votes, their votes, and whether others have as many.

    Of several the earliest teacher's is taken. There are few teachers and many views, so each
    teacher's label is compared with all the others'.
    """
    votes = np.stack([(ballots == one).sum(axis=0) for one in ballots])
    most = votes.max(axis=0)
    taken = votes.argmax(axis=0)  # the first of the greatest
    label = np.take_along_axis(ballots, taken[None], axis=0)[0]
    tied = ((votes == most) & (ballots != label)).any(axis=0)
    return label, most, tied


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
    numbers = _same_shards(source, labels_of)
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
    _require_same_classes(source, labels_of)
    derived = labels_of.identity.teacher.derived(note)
    return replace(source.identity, teacher=derived, columns=ColumnConfig())


def _require_same_classes(source: LabelStore, labels_of: LabelStore) -> None:
    ours, theirs = source.identity.teacher, labels_of.identity.teacher
    if ours.classes != theirs.classes:
        raise ConfigError(
            f"{source.root} has labels of {ours.classes} classes, {labels_of.root} of "
            f"{theirs.classes}; derive from stores of the same classes"
        )
    agreed_classes(source, labels_of)


def _same_shards(source: LabelStore, labels_of: LabelStore) -> dict[int, int]:
    """Return the number that ``labels_of`` has for each shard of ``source``."""
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
