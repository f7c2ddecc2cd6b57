"""No distillation: the class head learns the truth, and nobody learns from the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from student.losses.base import (
    Heads,
    Loss,
    LossTerms,
    MixedTarget,
    TeacherSignal,
    mixed_cross_entropy,
)

__all__ = ["NoDistillation"]


@dataclass(frozen=True, kw_only=True)
class NoDistillation(Loss):
    """CE(class head, truth)."""

    name: ClassVar[str] = "none"
    taught: ClassVar[bool] = False

    def __call__(self, heads: Heads, truth: MixedTarget, teacher: TeacherSignal) -> LossTerms:
        """Return the loss of B rows."""
        class_loss = mixed_cross_entropy(heads[0], truth)
        return LossTerms(class_loss, class_loss, class_loss.new_zeros(()))
