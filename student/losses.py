"""Hard distillation: the class head learns the truth, the distillation head the teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

__all__ = ["HardDistillation", "MixedTarget", "hard_distillation_loss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedTarget:
    """The true classes of B mixed images."""

    target: Tensor  # (B,) int64, the own image's class
    partner_target: Tensor  # (B,) int64, the partner's; the own one where unmixed
    lam: Tensor  # (B,) float32, share of the own image


@dataclass(frozen=True, slots=True)
class HardDistillation:
    """The loss and its two terms, scalars."""

    loss: Tensor
    class_loss: Tensor
    distillation_loss: Tensor


def hard_distillation_loss(
    class_logits: Tensor,
    distillation_logits: Tensor,
    truth: MixedTarget,
    teacher_label: Tensor,
    *,
    smoothing: float,
    alpha: float,
) -> HardDistillation:
    """Return (1 - alpha) * CE(class head, truth) + alpha * CE(distillation head, teacher).

    DeiT, equation 3, where alpha is one half. Logits are (B, C), ``teacher_label`` is (B,)
    int64; terms are averaged over the batch, in float32. The mixed truth is smoothed, the
    teacher's label is neither mixed (the teacher saw the mixed image) nor smoothed.
    """
    class_loss = _mixed_cross_entropy(class_logits.float(), truth, smoothing)
    distillation_loss = F.cross_entropy(distillation_logits.float(), teacher_label)
    loss = (1 - alpha) * class_loss + alpha * distillation_loss
    return HardDistillation(loss, class_loss, distillation_loss)


def _mixed_cross_entropy(logits: Tensor, truth: MixedTarget, smoothing: float) -> Tensor:
    """Return the cross-entropy against lam * own + (1 - lam) * partner, both smoothed.

    Smoothing spreads ``smoothing`` evenly over all classes, the true one included, as timm.
    """
    log_probability = F.log_softmax(logits, dim=-1)
    own = log_probability.gather(1, truth.target[:, None])[:, 0]
    partner = log_probability.gather(1, truth.partner_target[:, None])[:, 0]
    true = truth.lam * own + (1 - truth.lam) * partner
    return -((1 - smoothing) * true + smoothing * log_probability.mean(dim=-1)).mean()
