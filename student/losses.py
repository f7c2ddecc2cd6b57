"""Distillation losses: the class head learns the truth, the distillation head the teacher.

A student of one head gives its logits for both (classical distillation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import StoreError
from pipeline.growth import settle

__all__ = [
    "DistillationConfig",
    "LossTerms",
    "MixedTarget",
    "TeacherSignal",
    "distillation_loss",
    "hard_distillation_loss",
    "mixed_cross_entropy",
    "soft_distillation_loss",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedTarget:
    """The true classes of B mixed images."""

    target: Tensor  # (B,) int64, the own image's class
    partner_target: Tensor  # (B,) int64, the partner's; the own one where unmixed
    lam: Tensor  # (B,) float32, share of the own image


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSignal:
    """What the teacher said of B mixed images."""

    label: Tensor  # (B,) int64, argmax
    topk_label: Tensor | None = None  # (B, k) int64, by falling probability
    topk_prob: Tensor | None = None  # (B, k) float32 in 0..1, at temperature 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationConfig:
    """Which loss a student is trained with."""

    distillation: Literal["hard", "soft", "none"] = "hard"
    smoothing: float = 0.1  # of the truth alone
    alpha: float = 0.5  # hard: weight of the teacher's term
    soft_lambda: float = 0.1  # soft: weight of the teacher's term
    tau: float = 3.0  # soft: temperature

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss and its two terms, scalars."""

    loss: Tensor
    class_loss: Tensor
    distillation_loss: Tensor  # 0 without distillation


def distillation_loss(
    class_logits: Tensor,
    distillation_logits: Tensor,
    truth: MixedTarget,
    teacher: TeacherSignal,
    config: DistillationConfig,
) -> LossTerms:
    """Return the loss that ``config`` names; logits are (B, C), the same twice for one head.

    hard: (1 - alpha) CE(class head, truth) + alpha CE(distillation head, teacher's label);
    soft: (1 - lambda) CE(class head, truth) + lambda tau^2 KL(teacher || distillation head);
    none: CE(class head, truth). DeiT, equations 3 and 2. Raises ``StoreError`` if soft is
    asked of labels without top-k.
    """
    if config.distillation == "hard":
        return hard_distillation_loss(
            class_logits,
            distillation_logits,
            truth,
            teacher.label,
            smoothing=config.smoothing,
            alpha=config.alpha,
        )
    class_loss = mixed_cross_entropy(class_logits, truth, config.smoothing)
    if config.distillation == "none":
        return LossTerms(class_loss, class_loss, torch.zeros_like(class_loss))
    if teacher.topk_label is None or teacher.topk_prob is None:
        raise StoreError(
            "--distillation soft needs the teacher's top-k probabilities, which this store "
            "lacks; label again with --keep topk=10, or train with --distillation hard"
        )
    soft = soft_distillation_loss(
        distillation_logits, teacher.topk_label, teacher.topk_prob, config.tau
    )
    loss = (1 - config.soft_lambda) * class_loss + config.soft_lambda * soft
    return LossTerms(loss, class_loss, soft)


def hard_distillation_loss(
    class_logits: Tensor,
    distillation_logits: Tensor,
    truth: MixedTarget,
    teacher_label: Tensor,
    *,
    smoothing: float,
    alpha: float,
) -> LossTerms:
    """Return (1 - alpha) * CE(class head, truth) + alpha * CE(distillation head, teacher).

    DeiT, equation 3, where alpha is one half. Logits are (B, C), ``teacher_label`` is (B,)
    int64; terms are averaged over the batch, in float32. The mixed truth is smoothed, the
    teacher's label is neither mixed (the teacher saw the mixed image) nor smoothed.
    """
    class_loss = mixed_cross_entropy(class_logits, truth, smoothing)
    teachers = F.cross_entropy(distillation_logits.float(), teacher_label)
    return LossTerms((1 - alpha) * class_loss + alpha * teachers, class_loss, teachers)


def soft_distillation_loss(
    logits: Tensor, topk_label: Tensor, topk_prob: Tensor, tau: float
) -> Tensor:
    """Return tau^2 * KL(teacher || student) at temperature tau, averaged over the batch.

    ``logits`` are the student's, (B, C); labels and probabilities, at temperature 1, are
    (B, k). The teacher is its top k, renormalised: classes that are not stored count for
    nothing. A row whose k probabilities were all rounded to zero is taken as uniform over
    them. DeiT's code divides the sum by B * C where its equation, and this, has B.
    """
    student = F.log_softmax(logits.float() / tau, dim=-1).gather(1, topk_label)
    # p ** (1 / tau), renormalised, is the softmax of the teacher's logits / tau over the k.
    flat = (topk_prob.sum(-1, keepdim=True) == 0).to(topk_prob.dtype)
    weight = (topk_prob + flat) ** (1 / tau)
    teacher = weight / weight.sum(-1, keepdim=True)
    divergence = (torch.xlogy(teacher, teacher) - teacher * student).sum(-1)
    # tau^2 keeps the gradient's scale independent of tau (Hinton et al., 2015).
    return tau * tau * divergence.mean()


def mixed_cross_entropy(logits: Tensor, truth: MixedTarget, smoothing: float) -> Tensor:
    """Return the cross-entropy against lam * own + (1 - lam) * partner, both smoothed.

    Logits are (B, C); the mean over the batch is in float32. Smoothing spreads ``smoothing``
    evenly over all classes, the true one included, as timm.
    """
    log_probability = F.log_softmax(logits.float(), dim=-1)
    own = log_probability.gather(1, truth.target[:, None])[:, 0]
    partner = log_probability.gather(1, truth.partner_target[:, None])[:, 0]
    true = truth.lam * own + (1 - truth.lam) * partner
    return -((1 - smoothing) * true + smoothing * log_probability.mean(dim=-1)).mean()
