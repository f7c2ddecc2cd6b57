"""Soft distillation: the distillation head learns the teacher's probabilities.

The store has the logarithms of the k highest and that of all others' sum, which is spread evenly
over the classes that are not stored. Against the full softmax that is far truer than leaving them
out: at tau 3 a loss of .63 instead of 5.6 where it should be .64 (10 classes, k = 5; the table is
in docs/FORMAT.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import COLUMNS
from pipeline.errors import StoreError
from pipeline.growth import require
from student.losses.base import (
    Heads,
    Loss,
    LossTerms,
    MixedTarget,
    TeacherSignal,
    mixed_cross_entropy,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.store import LabelStore

__all__ = ["MAX_DISTANCE", "SoftLoss", "divergence", "possible_distance"]

MAX_DISTANCE = 0.4
"""Between the teacher that a loss uses and the true one, at most; half of their L1 distance."""
_SHARDS = 4
_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class SoftLoss(Loss):
    """(1 - lambda) * CE(class head, truth) + lambda * tau^2 * KL(teacher || distillation head).

    DeiT, equation 2. What the store does not keep of the teacher is spread evenly.
    """

    name: ClassVar[str] = "soft"
    columns: ClassVar[str] = "topk=10"

    soft_lambda: float = 0.1
    """Soft: weight of the teacher's loss; the truth's is 1 - this."""
    tau: float = 3.0
    """Soft: temperature."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "soft_lambda", 0 <= self.soft_lambda <= 1, "use 0..1")
        require(self, "tau", self.tau > 0, "use a positive number")

    def require_store(self, store: LabelStore) -> None:
        """Raise ``StoreError`` if it lacks the columns, or if tau is too high for their k.

        The classes that are not stored weigh more the higher tau is, and only their sum is known:
        the loss takes a tau if it makes the teacher wrong by ``MAX_DISTANCE`` at most, as measured
        on one view of some shards.
        """
        super().require_store(store)
        log, rest = _some_rows(store)
        classes = store.identity.teacher.classes
        distance = possible_distance(log, rest, classes, self.tau)
        if distance <= MAX_DISTANCE:
            return
        steps = [step / 10 for step in range(1, math.ceil(10 * self.tau))]
        good = [one for one in steps if possible_distance(log, rest, classes, one) <= MAX_DISTANCE]
        serves = f"use `tau` of at most {good[-1]:g}, or " if good else ""
        raise StoreError(
            f"`tau` is {self.tau:g}, at which the {log.shape[1]} of {classes} classes that "
            f"{store.root} keeps leave too much open: the teacher may be {distance:.2f} from the "
            f"true one, and {MAX_DISTANCE:g} is the most; {serves}label again and keep a larger "
            "topk"
        )

    def __call__(self, heads: Heads, truth: MixedTarget, teacher: TeacherSignal) -> LossTerms:
        """Return the loss of B rows; raises ``StoreError`` if the signal has no top k."""
        label, log, rest = teacher.topk_label, teacher.topk_logprob, teacher.topk_rest
        if label is None or log is None or rest is None:
            raise StoreError(
                "a soft loss needs the teacher's top-k probabilities, which this store lacks; "
                "label again with topk=10, or train with the hard loss"
            )
        class_loss = mixed_cross_entropy(heads[0], truth)
        soft = divergence(heads[1], label, log, rest, self.tau)
        loss = (1 - self.soft_lambda) * class_loss + self.soft_lambda * soft
        return LossTerms(loss, class_loss, soft)


def divergence(logits: Tensor, label: Tensor, log: Tensor, rest: Tensor, tau: float) -> Tensor:
    """Return tau^2 * KL(teacher || student) at temperature tau, averaged over the batch.

    ``logits`` are the student's, (B, C); the teacher's labels and their log-probabilities at
    temperature 1 are (B, k), ``rest`` (B,) is that of all other classes, each of which gets the
    same share. DeiT's code divides the sum by B * C where its equation, and this, has B.
    """
    from torch import cat

    student = (logits.float() / tau).log_softmax(-1)
    own = student.gather(1, label)
    others = logits.shape[1] - label.shape[1]
    # log p / tau, normalized, is the log-softmax of the teacher's logits / tau.
    scaled = log / tau
    if others:
        each = ((rest - math.log(others)) / tau)[:, None]
        scaled = cat([scaled, each + math.log(others)], dim=1)
    scaled = scaled.log_softmax(-1)
    teacher = scaled[:, : label.shape[1]]
    terms = (teacher.exp() * (teacher - own)).sum(-1)
    if others:
        unstored = scaled[:, -1]
        mean = (student.sum(-1) - own.sum(-1)) / others
        terms = terms + unstored.exp() * (unstored - math.log(others) - mean)
    # tau^2 keeps the gradient's scale independent of tau (Hinton et al., 2015).
    return tau * tau * terms.mean()


def possible_distance(
    log: NDArray[np.float32], rest: NDArray[np.float32], classes: int, tau: float
) -> float:
    """Return how far the true teacher at tau may be from the one that the loss uses, 0 to 1.

    ``log`` is (N, k), ``rest`` (N,); the result is a mean over rows of half the L1 distance. The
    loss divides the rest evenly. No class of it has more than the last one that is stored, so at
    the other end some have as much, one has what is left, and all others have nothing.
    """
    others = classes - log.shape[1]
    if others < 1 or not len(log):
        return 0.0
    log, rest = log.astype(np.float64), rest.astype(np.float64)
    # A teacher may be so sure that the last class, and the rest, have no probability in 64 bits.
    most = np.maximum(np.exp(log[:, -1]), np.finfo(np.float64).tiny)
    full = np.floor(np.minimum(np.exp(rest) / most, others))
    left = np.where(full < others, np.maximum(np.exp(rest) - full * most, 0), 0)
    even, high, low = np.exp((rest - math.log(others)) / tau), most ** (1 / tau), left ** (1 / tau)
    stored = np.exp(log / tau).sum(1)
    ours, theirs = stored + others * even, stored + full * high + low
    single = full < others
    apart = (
        stored * abs(1 / ours - 1 / theirs)
        + full * abs(even / ours - high / theirs)
        + single * abs(even / ours - low / theirs)
        + (others - full - single) * even / ours
    )
    return float(apart.mean() / 2)


def _some_rows(store: LabelStore) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return log-probabilities (N, k) and rests (N,), of a view each of some shards."""
    parts = store.manifest.parts
    indices = sorted({number * len(parts) // _SHARDS for number in range(_SHARDS)} if parts else ())
    found = []
    for index in indices:
        part = parts[index].part
        view = store.read_view(part.shard, part.first_view)
        found.append([view.columns[name][view.accepted] for name in ("topk_logprob", "topk_rest")])
    log, rest = (np.concatenate(one)[:_ROWS] for one in zip(*found, strict=True))
    return COLUMNS["topk_logprob"].read(log), COLUMNS["topk_rest"].read(rest)
