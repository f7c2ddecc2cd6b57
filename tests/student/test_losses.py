"""The loss, against its formula and two implementations of timm's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.task import TokenDistillationTask
from torch import Tensor, nn

from student.losses import MixedTarget, hard_distillation_loss

ROWS, CLASSES = 8, 7
# Sums of a few float32 terms in two orders: a few units in the last place.
CLOSE = {"rtol": 2e-6, "atol": 2e-6}


def logits(seed: int, rows: int = ROWS) -> Tensor:
    values = np.random.default_rng(seed).normal(size=(rows, CLASSES)) * 3
    return torch.tensor(values, dtype=torch.float32)


def labels(seed: int, rows: int = ROWS) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, CLASSES, rows))


def plain_loss(class_logits, distillation_logits, truth, teacher, smoothing, alpha) -> float:
    """The definition, one row and one class at a time."""
    total = 0.0
    for row in range(len(teacher)):
        terms = []
        for values in (class_logits[row].tolist(), distillation_logits[row].tolist()):
            norm = math.log(sum(math.exp(value) for value in values))
            terms.append([norm - value for value in values])
        lam = float(truth.lam[row])
        dense = [smoothing / CLASSES] * CLASSES
        dense[int(truth.target[row])] += (1 - smoothing) * lam
        dense[int(truth.partner_target[row])] += (1 - smoothing) * (1 - lam)
        hard = sum(share * term for share, term in zip(dense, terms[0], strict=True))
        total += (1 - alpha) * hard + alpha * terms[1][int(teacher[row])]
    return total / len(teacher)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_loss_is_its_formula(smoothing: float, alpha: float) -> None:
    truth = MixedTarget(target=labels(1), partner_target=labels(2), lam=torch.linspace(0, 1, ROWS))
    arguments = (logits(3), logits(4), truth, labels(5))
    found = hard_distillation_loss(*arguments, smoothing=smoothing, alpha=alpha).loss
    expected = plain_loss(*arguments, smoothing, alpha)
    assert found.item() == pytest.approx(expected, rel=2e-6)


def test_the_class_term_is_timms_soft_target_cross_entropy() -> None:
    target, lam = labels(1), 0.3125
    truth = MixedTarget(target=target, partner_target=target.flip(0), lam=torch.full((ROWS,), lam))
    dense = mixup_target(target, CLASSES, lam, smoothing=0.1)
    found = hard_distillation_loss(
        logits(3), logits(4), truth, labels(5), smoothing=0.1, alpha=0.5
    ).class_loss
    torch.testing.assert_close(found, SoftTargetCrossEntropy()(logits(3), dense), **CLOSE)


class FixedHeads(nn.Module):
    """Gives the same logits for any image, as a student of two heads or a teacher of one."""

    def __init__(self, *heads: Tensor) -> None:
        super().__init__()
        self.heads = heads
        self.num_classes, self.in_chans = CLASSES, 3
        self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

    def set_distilled_training(self, enable: bool = True) -> None:
        pass

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.heads[0] if len(self.heads) == 1 else self.heads


@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_the_loss_is_that_of_timms_token_distillation_task(alpha: float) -> None:
    target, teacher_logits = labels(1), logits(6)
    task = TokenDistillationTask(
        student_model=FixedHeads(logits(3), logits(4)),
        teacher_model=FixedHeads(teacher_logits),
        criterion=SoftTargetCrossEntropy(),
        distill_type="hard",
        task_loss_weight=1 - alpha,
        verbose=False,
    )
    expected = task(torch.zeros(ROWS, 3, 4, 4), mixup_target(target, CLASSES, 0.75, smoothing=0.1))
    truth = MixedTarget(target=target, partner_target=target.flip(0), lam=torch.full((ROWS,), 0.75))
    found = hard_distillation_loss(
        logits(3), logits(4), truth, teacher_logits.argmax(1), smoothing=0.1, alpha=alpha
    )
    torch.testing.assert_close(found.loss, expected["loss"], **CLOSE)
    torch.testing.assert_close(found.class_loss, expected["task_loss"], **CLOSE)
    torch.testing.assert_close(found.distillation_loss, expected["distill_loss"], **CLOSE)
