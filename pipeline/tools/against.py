"""Compares a store's labels with what a student calls the same views, on some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.classes import ClassNames, agreed_names
from pipeline.errors import ClassesError
from pipeline.files.cache import ShardFile
from pipeline.labelling.redraw import PartViews
from pipeline.records import PartRows
from pipeline.shards.index import open_known_shard
from pipeline.store import LabelStore, PartEntry
from pipeline.telling import told
from pipeline.tools.diff import Disagreement

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Student", "StudentDiff", "compare_student"]

VIEWS = 1024
"""Views that the student is shown, spread over the store: a share is right to some 3 per cent."""

_BATCH = 64


class Student(Protocol):
    """Whoever calls views by the teacher's classes."""

    @property
    def name(self) -> str:
        """What it is called in a page."""

    @property
    def classes(self) -> int:
        """How many classes it tells apart."""

    @property
    def class_names(self) -> ClassNames | None:
        """What they are called, if that is known."""

    def labels(self, images: Tensor) -> Mapping[str, NDArray[np.int64]]:
        """Return the classes of (N, 3, S, S) normalized and mixed images by each head, (N,).

        The last one is what the student is judged by.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentDiff:
    """What truth, teacher and the heads of a student call some views of a store."""

    student: str
    views: int  # that were looked at
    of: int  # labels in the shards that were given
    names: tuple[str, ...]  # of whom the matrix compares: truth, the teacher, heads
    disagreement: tuple[tuple[float, ...], ...]  # share of views that two call differently
    classes: Mapping[int, Disagreement]  # of teacher and student, by true class
    class_names: tuple[str, ...] | None


def compare_student(
    store: LabelStore, files: Mapping[int, ShardFile], student: Student, most: int = VIEWS
) -> StudentDiff:
    """Show a student some views of a store as they are trained on, mixed, and compare its classes.

    ``files`` are shards of the store, all or some, by their numbers. Holds one part and a batch of
    views in memory. Raises ``ClassesError`` if the student has other classes than the store.
    """
    manifest, classes = store.manifest, store.identity.teacher.classes
    if student.classes != classes:
        raise ClassesError(
            f"`against` the student of {student.name} has {student.classes} classes, "
            f"{store.root} has {classes}; give a student of this store's classes"
        )
    agreed = agreed_names(ClassNames.of(manifest.classes, store.root), student.class_names)
    parts = manifest.of_shards(files).parts
    chosen = [parts[n] for n in _spread(len(parts), most)]
    said: list[Mapping[str, NDArray[np.int64]]] = []
    for entry in told(chosen, f"asking the student of {student.name}", "parts", len(chosen)):
        rows = store.read_part(entry)
        cells = _cells(rows, -(-most // len(chosen)))
        said += _of_part(store, files, student, entry, rows, cells)
    names = tuple(said[0]) if said else ()
    called = {name: np.concatenate([one[name] for one in said]) for name in names}
    return StudentDiff(
        student=student.name,
        views=len(called["truth"]) if called else 0,
        of=sum(entry.rows for entry in parts),
        names=names,
        disagreement=tuple(
            tuple(_share(called[row], called[column]) for column in names) for row in names
        ),
        classes=_by_class(called) if called else {},
        class_names=None if agreed is None else agreed.names,
    )


def _spread(count: int, most: int) -> list[int]:
    """Return which of ``count`` things to take, evenly spread."""
    found: list[int] = np.linspace(0, count - 1, min(count, most)).astype(int).tolist()
    return found


def _cells(rows: PartRows, most: int) -> list[tuple[int, int]]:
    """Return row and column of some views of a part, by turns of all its views."""
    samples, views = rows.label.shape
    flat = _spread(samples * views, most)
    return [divmod(one, views) for one in flat]


def _of_part(
    store: LabelStore,
    files: Mapping[int, ShardFile],
    student: Student,
    entry: PartEntry,
    rows: PartRows,
    cells: Sequence[tuple[int, int]],
) -> Iterator[Mapping[str, NDArray[np.int64]]]:
    """Yield what truth, teacher and student call views of a part, a batch at a time."""
    import torch

    number = entry.part.shard
    shard = open_known_shard(files[number], store.manifest.by_shard[number])
    views = PartViews(store.identity, shard, rows)
    for start in range(0, len(cells), _BATCH):
        batch = cells[start : start + _BATCH]
        images = torch.cat([views.mixed_of(row, column) for row, column in batch])
        row, column = np.array(batch).T
        yield {
            "truth": rows.target[row].astype(np.int64),
            "the teacher": rows.label[row, column].astype(np.int64),
            **student.labels(images),
        }


def _share(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> float:
    """Return the share of views that two call differently, of those of which both are known."""
    known = (ours >= 0) & (theirs >= 0)
    return float((ours != theirs)[known].mean()) if known.any() else 0.0


def _by_class(called: Mapping[str, NDArray[np.int64]]) -> dict[int, Disagreement]:
    *_, judged = called
    different = called[judged] != called["the teacher"]
    rows = Counter(called["truth"].tolist())
    other = Counter(called["truth"][different].tolist())
    return {
        number: Disagreement(rows=rows[number], different=other[number])
        for number in sorted(rows)
        if number >= 0
    }
