"""Hard distillation: the distillation head learns the teacher's label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pipeline.columns import SHARE_STEPS
from pipeline.errors import StoreError
from pipeline.growth import grown, require
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
    min_confidence: float = grown(founding=0.0, since="0.1.0")
    """Hard: learn only labels that have at least this probability; the others count as 0 in the
    mean of the teacher's loss. The store must keep the teacher's confidence."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alpha", 0 <= self.alpha <= 1, "use 0..1")
        require(self, "min_confidence", 0 <= self.min_confidence <= 1, "use 0..1")

    def require_store(self, store: LabelStore) -> None:
        """Raise ``StoreError`` if it must know how sure the teacher was, and does not."""
        super().require_store(store)
        if self.min_confidence and not store.identity.columns.confidence:
            raise StoreError(
                f"`min_confidence` is {self.min_confidence:g}, and {store.root} does not keep how "
                "sure its teacher was; label again and keep confidence, or leave it out"
            )

    def __call__(self, heads: Heads, truth: MixedTarget, teacher: TeacherSignal) -> LossTerms:
        """Return the loss of B rows."""
        from torch.nn.functional import cross_entropy

        class_loss = mixed_cross_entropy(heads[0], truth)
        if self.min_confidence:
            teachers = self._of_the_sure(heads[1], teacher)
        else:
            teachers = cross_entropy(heads[1].float(), teacher.label)
        return LossTerms(
            (1 - self.alpha) * class_loss + self.alpha * teachers, class_loss, teachers
        )

    def _of_the_sure(self, logits: Tensor, teacher: TeacherSignal) -> Tensor:
        """Return the cross-entropy of rows whose labels are sure, over the number of all rows.

        Over the sure ones' number, rows would weigh by the batch, rank and piece that they are in.
        """
        from torch.nn.functional import cross_entropy

        if teacher.confidence is None:
            raise StoreError("`min_confidence` needs the teacher's confidence, which is not kept")
        losses = cross_entropy(logits.float(), teacher.label, reduction="none")
        # A store keeps steps of 1/255: three votes of four are 191 of them, a little below .75.
        least = self.min_confidence - 0.5 / SHARE_STEPS
        return (losses * (teacher.confidence >= least)).mean()
