"""Makes one store of several teachers' labels of the same views: by majority, or by their mean."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import COLUMNS, SHARE_STEPS, ColumnConfig, Columns, Ranked, keep_columns
from pipeline.errors import ConfigError, IdentityError
from pipeline.files.local import Location
from pipeline.growth import to_plain
from pipeline.identity import StoreIdentity, canonical_json, different_fields
from pipeline.records import PartRows, TeacherLabels
from pipeline.store import LabelStore, commit_part
from pipeline.store.card import markdown_table, share
from pipeline.tools.derive import require_same_classes, same_shards
from pipeline.tools.target import (
    ShowProgress,
    agreed_classes,
    check_sources,
    check_target,
    copy_companions,
    finish_target,
)

__all__ = ["Vote", "VoteBy", "voted_store"]

VoteBy: TypeAlias = Literal["majority", "mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What a vote of ``teachers`` came to, in views."""

    by: VoteBy
    teachers: int
    views: int
    unanimous: int
    majority: int  # more than half of the teachers gave the label, all included
    tied: int  # another label has as many votes, or the same mean, and a rule chose
    changed: int  # the first store has another label

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return the vote as Markdown."""
        taken = "the earlier store's label" if self.by == "majority" else "the lower class"
        named = (
            ("all teachers agree", self.unanimous),
            ("more than half agree", self.majority),
            (f"tied: {taken}", self.tied),
            ("other labels than the first store's", self.changed),
        )
        rows = [(name, f"{share(count, self.views)} ({count})") for name, count in named]
        title = f"# Vote of {self.teachers} teachers on {self.views} views, by {self.by}\n\n"
        return title + markdown_table(("", ""), rows)


def voted_store(
    stores: Sequence[LabelStore],
    out: Location,
    show: ShowProgress = lambda done, total: None,
    *,
    by: VoteBy = "majority",
) -> Vote:
    """Write a store with the labels of several teachers together, of the same views.

    The views must be the same in all, those of the first store; views that others have besides are
    left out. By ``majority`` the label is the one that most stores have, of several the one that
    the earliest has, and its confidence the share of teachers that gave it. By ``mean`` the
    teachers' probabilities are averaged, and as many of the likeliest classes kept as the first
    store has: each teacher's `topk`, and what it kept no class of, divided evenly over its other
    classes, as the soft loss does. Identity and card say that it was a vote, by which all that
    would run a teacher refuses the store. An interrupted run can be run again.

    Raises ``ConfigError`` for too few stores, for a mean of stores without `topk`, or other classes
    (``ClassesError`` for other names of them), ``IdentityError`` for stores of other views,
    ``ShardError`` for other shards, ``IncompleteStoreError`` for samples or views that a store
    lacks.
    """
    first, *others = stores
    identity = _voted_identity(stores, by)
    numbers = [same_shards(first, other) for other in others]
    parts = first.manifest.parts
    keys = {entry.part for entry in parts}
    check_sources(stores)
    target = check_target(out, identity, first.manifest.fingerprints, keys)
    for store in stores:
        copy_companions(target, store)
    counts = np.zeros(5, np.int64)
    for done, entry in enumerate(parts, start=1):
        rows = first.read_part(entry)
        ballots = [TeacherLabels(label=rows.label, columns=rows.columns)]
        for other, number in zip(others, numbers, strict=True):
            ballots.append(_labels_of(other, number[entry.part.shard], rows))
        if by == "majority":
            voted, tied = _majority([one.label for one in ballots])
        else:
            voted, tied = _mean([one.columns for one in ballots], identity)
        part = replace(rows, identity=identity.digest, label=voted.label, columns=voted.columns)
        commit_part(target, part)
        votes = np.sum([one.label == part.label for one in ballots], axis=0)
        several = (votes == len(stores), 2 * votes > len(stores), tied, part.label != rows.label)
        counts += [part.label.size, *(int(one.sum()) for one in several)]
        show(done, len(parts))
    run = {"command": "voted_store", "by": by, "stores": [store.root.name for store in stores]}
    names = agreed_classes(*stores)
    finish_target(target, [first], identity, first.manifest.shards, keys, run, classes=names)
    views, unanimous, majority, ties, changed = counts.tolist()
    return Vote(
        by=by,
        teachers=len(stores),
        views=views,
        unanimous=unanimous,
        majority=majority,
        tied=ties,
        changed=changed,
    )


def _voted_identity(stores: Sequence[LabelStore], by: VoteBy) -> StoreIdentity:
    least, reason = (
        (3, "three or more, since of two that differ none has a majority")
        if by == "majority"
        else (2, "two or more")
    )
    if len(stores) < least:
        raise ConfigError(f"`stores` has {len(stores)}; a vote by {by} takes {reason}")
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
        require_same_classes(stores[0], store)
    teachers = [to_plain(one.teacher) for one in (first, *others)]
    if len({canonical_json(one) for one in teachers}) < len(teachers):
        raise ConfigError(
            "`stores` has two of one teacher, which would have two votes; give each teacher once"
        )
    named = " and ".join(one.teacher.architecture for one in others)
    if by == "majority":
        derived = first.teacher.derived(f"by a majority vote with {named}")
        columns = ColumnConfig(confidence=True)
    else:
        derived = first.teacher.derived(f"by the mean of probabilities with {named}")
        columns = ColumnConfig(confidence=True, topk=first.columns.topk)
        # How many of a teacher's classes are known changes the mean, too.
        for voter, store in zip(teachers, stores, strict=True):
            voter["topk"] = _require_topk(store)
    # Whose vote it is: other teachers, or in another order, are another store.
    weights = hashlib.sha256(canonical_json(teachers)).hexdigest()
    return replace(first, teacher=replace(derived, weights=weights), columns=columns)


def _require_topk(store: LabelStore) -> int:
    if not store.identity.columns.topk:
        raise ConfigError(
            f"{store.root} keeps no probabilities, of which `by` mean is made; label again and "
            "keep topk=5 or so, or vote by majority"
        )
    return store.identity.columns.topk


def _labels_of(store: LabelStore, number: int, rows: PartRows) -> TeacherLabels:
    """Return what a store says of a part's samples and views, (N, V) and (N, V, k)."""
    part = rows.part
    found = []
    for view in range(part.first_view, part.end_view):
        one = store.read_view(number, view)
        if not np.array_equal(one.seed[rows.accepted], rows.seed):
            raise IdentityError(
                f"{store.root} has other seeds for shard {number} at view {view}, though the same "
                "settings; verify it, and label again what does not pass"
            )
        whole = TeacherLabels(label=one.label, columns=one.columns)
        found.append(whole.map(lambda values: values[rows.accepted][:, None]))
    return TeacherLabels.joined(found, axis=1)


def _majority(
    labels: Sequence[NDArray[np.uint16]],
) -> tuple[TeacherLabels, NDArray[np.bool_]]:
    """Return the labels that most of T (N, V) arrays have, and where others have as many votes.

    Of several the earliest teacher's is taken. There are few teachers and many views, so each
    teacher's label is compared with all the others'.
    """
    ballots = np.stack(labels)
    votes = np.stack([(ballots == one).sum(axis=0) for one in ballots])
    most = votes.max(axis=0)
    taken = votes.argmax(axis=0)  # the first of the greatest
    label = np.take_along_axis(ballots, taken[None], axis=0)[0]
    tied = ((votes == most) & (ballots != label)).any(axis=0)
    confidence = np.rint(most / len(ballots) * SHARE_STEPS).astype(np.uint8)
    return TeacherLabels(label=label, columns=Columns({"confidence": confidence})), tied


def _mean(
    columns: Sequence[Columns], identity: StoreIdentity
) -> tuple[TeacherLabels, NDArray[np.bool_]]:
    """Return the labels of the mean of T teachers' top k (N, V), and where two classes tie."""
    found, ties, count = [], [], identity.teacher.classes
    # View by view: the comparisons of all teachers' classes take (T * k)**2 bytes a label.
    for view in range(columns[0]["topk_rest"].shape[1]):
        teachers = [_Teacher.read(one, view, count) for one in columns]
        classes, prob, rest = _mean_of(teachers, count)
        with np.errstate(divide="ignore"):  # no probability is a logarithm of -inf
            log, log_rest = np.log(prob), np.log(rest)
        ranked = Ranked(classes=classes, log_prob=log, log_rest=log_rest)
        kept = keep_columns(identity.columns, partial(_ranked, ranked))
        label = TeacherLabels(label=classes[:, 0].astype(np.uint16), columns=kept)
        found.append(label.map(lambda values: values[:, None]))
        ties.append(prob[:, 0] == prob[:, 1])
    return TeacherLabels.joined(found, axis=1), np.stack(ties, axis=1)


def _ranked(ranked: Ranked, _count: int) -> Ranked:
    return ranked


@dataclass(frozen=True, slots=True, kw_only=True)
class _Teacher:
    """A teacher's probabilities of N views, as they are stored."""

    classes: NDArray[np.int64]  # (N, k), those that it kept
    prob: NDArray[np.float64]  # (N, k), theirs
    even: NDArray[np.float64]  # (N,), of each class that it did not keep

    @staticmethod
    def read(columns: Columns, view: int, classes: int) -> _Teacher:
        kept, log, log_rest = (
            COLUMNS[name].read(columns[name][:, view])
            for name in ("topk_label", "topk_logprob", "topk_rest")
        )
        others = classes - kept.shape[1]
        prob = np.exp(log.astype(np.float64))
        even = np.exp(log_rest.astype(np.float64)) / others if others else np.zeros(len(prob))
        # Stored in steps, so they add up to 1 within a percent.
        total = prob.sum(axis=1) + others * even
        return _Teacher(classes=kept, prob=prob / total[:, None], even=even / total)


def _mean_of(
    teachers: Sequence[_Teacher], classes: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return classes of N views by falling mean, their mean probabilities, and all after each.

    All are (N, R), where R is the teachers' k together. A class that several teachers kept counts
    once: where it comes again it stands behind all others, with no probability.
    """
    kept = np.concatenate([one.classes for one in teachers], axis=1)
    above = np.concatenate([one.prob - one.even[:, None] for one in teachers], axis=1)
    even = np.mean([one.even for one in teachers], axis=0)
    same = kept[:, :, None] == kept[:, None, :]
    # A difference that rounds below nothing is nothing.
    mean = np.maximum(even[:, None] + np.einsum("nij,nj->ni", same, above) / len(teachers), 0)
    again = same.argmax(axis=2) < np.arange(kept.shape[1])
    order = np.lexsort((kept, np.where(again, np.inf, -mean)), axis=-1)
    kept = np.take_along_axis(kept, order, axis=1)
    prob = np.take_along_axis(np.where(again, 0, mean), order, axis=1)
    others = (classes - (~again).sum(axis=1)) * even
    # Summed from the smallest on: 1 less the others' sum would lose small ones.
    after = np.zeros_like(prob)
    after[:, :-1] = np.cumsum(prob[:, :0:-1], axis=1)[:, ::-1]
    return kept, prob, after + others[:, None]
