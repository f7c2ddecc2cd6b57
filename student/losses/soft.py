"""Soft distillation: the distillation head learns the teacher's top-k probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

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

__all__ = ["SoftLoss", "divergence"]


@dataclass(frozen=True, kw_only=True)
class SoftLoss(Loss):
    """(1 - lambda) * CE(class head, truth) + lambda * tau^2 * KL(teacher || distillation head).

    DeiT, equation 2; the teacher's probabilities are its top k.
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

    def __call__(self, heads: Heads, truth: MixedTarget, teacher: TeacherSignal) -> LossTerms:
        """Return the loss of B rows; raises ``StoreError`` if the signal has no top k."""
        if teacher.topk_label is None or teacher.topk_prob is None:
            raise StoreError(
                "a soft loss needs the teacher's top-k probabilities, which this store lacks; "
                "label again with topk=10, or train with the hard loss"
            )
        class_loss = mixed_cross_entropy(heads[0], truth)
        soft = divergence(heads[1], teacher.topk_label, teacher.topk_prob, self.tau)
        loss = (1 - self.soft_lambda) * class_loss + self.soft_lambda * soft
        return LossTerms(loss, class_loss, soft)


def divergence(logits: Tensor, topk_label: Tensor, topk_prob: Tensor, tau: float) -> Tensor:
    """Return tau^2 * KL(teacher || student) at temperature tau, averaged over the batch.

    ``logits`` are the student's, (B, C); labels and probabilities, at temperature 1, are
    (B, k). The teacher is its top k, renormalized: classes that are not stored count for
    nothing. A row whose k probabilities were all rounded to zero is taken as uniform over
    them. DeiT's code divides the sum by B * C where its equation, and this, has B.
    """
    student = (logits.float() / tau).log_softmax(-1).gather(1, topk_label)
    # p ** (1 / tau), renormalized, is the softmax of the teacher's logits / tau over the k.
    flat = (topk_prob.sum(-1, keepdim=True) == 0).to(topk_prob.dtype)
    weight = (topk_prob + flat) ** (1 / tau)
    teacher = weight / weight.sum(-1, keepdim=True)
    terms = (teacher.xlogy(teacher) - teacher * student).sum(-1)
    # tau^2 keeps the gradient's scale independent of tau (Hinton et al., 2015).
    return tau * tau * terms.mean()
