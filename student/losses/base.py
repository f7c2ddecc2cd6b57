"""What every loss takes, gives and says of itself. PyTorch is loaded only where one is computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from pipeline.columns import ColumnConfig
from pipeline.errors import StoreError
from pipeline.growth import settle

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.store import LabelStore

__all__ = ["Heads", "Loss", "LossTerms", "MixedTarget", "TeacherSignal", "mixed_cross_entropy"]

Heads: TypeAlias = "tuple[Tensor, Tensor]"
"""(B, C) logits of the class head and of the distillation head; the same twice for one head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedTarget:
    """The true classes of B mixed images."""

    target: Tensor  # (B,) int64, the own image's class
    partner_target: Tensor  # (B,) int64, the partner's; the own one where unmixed
    lam: Tensor  # (B,) float32, share of the own image
    smoothing: float = 0.0  # share that is spread evenly over all classes
    # Each class is learned for itself: those that are present are 1, or are their shares.
    binary: Literal["present", "shares"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSignal:
    """What the teacher said of B mixed images."""

    label: Tensor  # (B,) int64, argmax
    confidence: Tensor | None = None  # (B,) float32, probability of the label; None: not kept
    topk_label: Tensor | None = None  # (B, k) int64, by falling probability
    topk_logprob: Tensor | None = None  # (B, k) float32, their logarithms at temperature 1
    topk_rest: Tensor | None = None  # (B,) float32, that of all other classes together


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss and its two terms, scalars."""

    loss: Tensor
    class_loss: Tensor
    distillation_loss: Tensor  # 0 without distillation


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """What a student learns from the truth and its teacher, with the parameters of that.

    A loss is a class in a file of its own in this folder; its fields are flags, settings of run
    files and what a resumed run must share, if it is the one chosen. A field's name is its own
    among all settings. ``losses/hard.py`` is the one to begin from.
    """

    name: ClassVar[str]
    """What ``distillation`` calls it."""
    columns: ClassVar[str] = ""
    """The columns that a store must keep for it, in ``ColumnConfig``'s words: ``topk=10``."""
    taught: ClassVar[bool] = True
    """Whether a teacher has a part in it, and so a distillation head learns anything."""

    def __post_init__(self) -> None:
        settle(self)

    def require_store(self, store: LabelStore) -> None:
        """Raise ``StoreError`` if the loss needs more than a store keeps."""
        kept = asdict(store.identity.columns)
        for name, wanted in asdict(ColumnConfig.from_text(self.columns)).items():
            if wanted and not kept[name]:
                raise StoreError(
                    f"`distillation` is {self.name}, and {store.root} holds no {name}; label again "
                    f"and keep {self.columns}, or train with another loss"
                )

    @abstractmethod
    def __call__(self, heads: Heads, truth: MixedTarget, teacher: TeacherSignal) -> LossTerms:
        """Return the loss of B rows, its terms averaged over them in float32."""


def mixed_cross_entropy(logits: Tensor, truth: MixedTarget) -> Tensor:
    """Return the cross-entropy against lam * own + (1 - lam) * partner, both smoothed.

    Logits are (B, C); the mean over the batch is in float32. Smoothing counts the true class
    too, as timm's. Where the truth is binary, it is the mean over classes too.
    """
    if truth.binary is not None:
        return _binary_cross_entropy(logits.float(), truth)
    log_probability = logits.float().log_softmax(-1)
    own = log_probability.gather(1, truth.target[:, None])[:, 0]
    partner = log_probability.gather(1, truth.partner_target[:, None])[:, 0]
    true = truth.lam * own + (1 - truth.lam) * partner
    smoothing = truth.smoothing
    return -((1 - smoothing) * true + smoothing * log_probability.mean(dim=-1)).mean()


def _binary_cross_entropy(logits: Tensor, truth: MixedTarget) -> Tensor:
    from torch.nn.functional import binary_cross_entropy_with_logits

    rows, lam = logits.new_zeros(logits.shape), truth.lam[:, None]
    target = rows.scatter_add(1, truth.target[:, None], lam)
    target = target.scatter_add(1, truth.partner_target[:, None], 1 - lam)
    target = (1 - truth.smoothing) * target + truth.smoothing / logits.shape[1]
    if truth.binary == "present":
        target = target.gt(0).float()
    return binary_cross_entropy_with_logits(logits, target)
