"""From a replayed batch to what the loss takes: images, truth and teacher, on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.identity import AugmentConfig, StoreIdentity
from pipeline.records import FIXED_ONE, TeacherLabels
from pipeline.views.mixing import mix_images, normalize, to_device
from student.config import TrainConfig
from student.losses import MixedTarget, TeacherSignal
from student.replay import StudentBatch

__all__ = ["TeacherInLoop", "mixed_images", "mixed_target", "resize_images", "stored_signal"]


def mixed_images(batch: StudentBatch, views: AugmentConfig, device: torch.device) -> Tensor:
    """Return the (B, 3, S, S) normalized and mixed images, which the teacher saw.

    Guests of a subset are in the pixels, and not in the result.
    """
    pixels = to_device(batch.pixels, device)
    return mix_images(normalize(pixels, views.mean, views.std), batch.mix)


def resize_images(images: Tensor, side: int) -> Tensor:
    """Return (B, 3, side, side) images, bicubic and antialiased; the same ones if they fit."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(
        images, size=(side, side), mode="bicubic", antialias=True, align_corners=False
    )


def mixed_target(batch: StudentBatch, device: torch.device, smoothing: float = 0.0) -> MixedTarget:
    """Return the true classes of the mixed images, smoothed by a share."""
    lam = torch.from_numpy(batch.mix.lam).float() / FIXED_ONE
    return MixedTarget(
        target=to_device(batch.target, device),
        partner_target=to_device(batch.partner_target, device),
        lam=lam.to(device),
        smoothing=smoothing,
    )


def stored_signal(batch: StudentBatch, images: Tensor) -> TeacherSignal:
    """Return what the store says that the teacher said of the images."""
    label, probability = batch.topk_label, batch.topk_prob
    return TeacherSignal(
        label=to_device(batch.label, images.device),
        topk_label=None if label is None else to_device(label, images.device),
        topk_prob=None if probability is None else to_device(probability, images.device),
    )


class TeacherInLoop:
    """The store's own teacher, which labels the student's images instead of the store.

    Raises ``TeacherError`` if it is not the one that labelled the store.
    """

    def __init__(self, config: TrainConfig, identity: StoreIdentity, device: torch.device) -> None:
        from pipeline.labelling.teacher import load_stored_teacher  # nothing else needs a teacher

        self._device = device
        self._teacher = load_stored_teacher(
            identity,
            device,
            checkpoint=config.teacher.teacher_checkpoint,
            random_weights=config.teacher.teacher_random_weights,
        )

    def __call__(self, _batch: StudentBatch, images: Tensor) -> TeacherSignal:
        """Label (B, 3, S, S) mixed images, as the store keeps labels."""
        labels: TeacherLabels = self._teacher.label_images(images.detach())
        label, columns = self._moved(labels.label), labels.columns
        if "topk_label" not in columns:
            return TeacherSignal(label=label)
        topk, probability = (self._moved(columns[name]) for name in ("topk_label", "topk_prob"))
        return TeacherSignal(label=label, topk_label=topk, topk_prob=probability.float() / 255)

    def _moved(self, values: NDArray[Any]) -> Tensor:
        return to_device(torch.from_numpy(values.astype(np.int64)), self._device)
