"""From logits to labels: what is found on the device, and what the host makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.columns import ColumnConfig, Ranked, keep_columns
from pipeline.records import TeacherLabels

__all__ = ["Answers", "answers_of", "labels_of", "rank_logits"]

NOT_FINITE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a device says of N rows of C logits."""

    label: Tensor  # (N,) int32, the first of the highest; ``NOT_FINITE`` if any logit is not
    order: Tensor | None  # (N, C) int64, classes by falling logit; None: not asked for
    log: Tensor | None  # (N, C) float64, logarithms of their probabilities

    @staticmethod
    def room(rows: int, classes: int, ranked: bool, make: Callable[..., Tensor]) -> Answers:
        """Return memory for so many rows, from ``make(*shape, dtype=...)``."""
        shape = (rows, classes)
        return Answers(
            label=make(rows, dtype=torch.int32),
            order=make(*shape, dtype=torch.int64) if ranked else None,
            log=make(*shape, dtype=torch.float64) if ranked else None,
        )

    def fill(self, answers: Answers) -> None:
        """Take over all that others say; the copy does not block if this is pinned memory."""
        for name in ("label", "order", "log"):
            own = getattr(self, name)
            if own is not None:
                own.copy_(getattr(answers, name), non_blocking=True)

    def on_host(self) -> Answers:
        """Return the same answers on the host; waits for the device."""
        order, log = (None if one is None else one.cpu() for one in (self.order, self.log))
        return Answers(label=self.label.cpu(), order=order, log=log)

    @property
    def are_finite(self) -> bool:
        """Whether all logits of all rows were numbers."""
        return not bool((self.label == NOT_FINITE).any())


def answers_of(logits: Tensor, ranked: bool) -> Answers:
    """Return what (N, C) float32 logits say, on their device and without waiting for it."""
    classes = logits.shape[1]
    # What argmax takes of equal logits depends on the device; the first of them is NumPy's.
    index = torch.arange(classes, device=logits.device)
    highest = logits == logits.amax(dim=1, keepdim=True)
    first = torch.where(highest, index, classes).amin(dim=1)
    label = torch.where(logits.isfinite().all(dim=1), first, NOT_FINITE).int()
    if not ranked:
        return Answers(label=label, order=None, log=None)
    # Adding zero makes -0 and 0 one number, which some sorts tell apart.
    order = torch.sort(logits + 0.0, dim=1, descending=True, stable=True).indices
    log = torch.log_softmax(logits.double(), dim=1).gather(1, order)
    return Answers(label=label, order=order, log=log)


def labels_of(answers: Answers, columns: ColumnConfig) -> TeacherLabels:
    """Return the labels of answers on the host, all finite, and the columns asked for.

    Classes are ranked by logit, equal ones by number, so the first of the top k is the label.
    """

    def rank(classes: int) -> Ranked:
        assert answers.order is not None
        assert answers.log is not None
        return Ranked.of_sorted(answers.order.numpy(), answers.log.numpy(), classes)

    label = answers.label.numpy().astype(np.uint16)
    return TeacherLabels(label=label, columns=keep_columns(columns, rank))


def rank_logits(logits: Tensor, columns: ColumnConfig) -> TeacherLabels:
    """Return the labels of (N, C) float32 logits, all finite, and the columns asked for."""
    return labels_of(answers_of(logits, bool(columns.shapes())).on_host(), columns)
