"""Hard distillation: the distillation head learns the teacher's label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.growth import require
from student.losses.base import (
    Heads,
    Loss,
    LossTerms,
    MixedTarget,
    TeacherSignal,
    mixed_cross_entropy,
)

__all__ = ["HardLoss"]


@dataclass(frozen=True, kw_only=True)
class HardLoss(Loss):
    """(1 - alpha) * CE(class head, truth) + alpha * CE(distillation head, teacher's label).

    DeiT, equation 3, where alpha is one half. The mixed truth is smoothed; the teacher's label is
    neither mixed, as the teacher saw the mixed image, nor smoothed.
    """

    name: ClassVar[str] = "hard"

    alpha: float = 0.5
    """Hard: weight of the teacher's loss; the truth's is 1 - alpha."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alpha", 0 <= self.alpha <= 1, "use 0..1")

    def __call__(self, heads: Heads, truth: MixedTarget, teacher: TeacherSignal) -> LossTerms:
        """Return the loss of B rows."""
        from torch.nn.functional import cross_entropy

        class_loss = mixed_cross_entropy(heads[0], truth)
        teachers = cross_entropy(heads[1].float(), teacher.label)
        return LossTerms(
            (1 - self.alpha) * class_loss + self.alpha * teachers, class_loss, teachers
        )
