"""From a replayed batch to what the loss takes: images, truth and teacher, on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.columns import COLUMNS
from pipeline.identity import AugmentConfig, StoreIdentity
from pipeline.records import TeacherLabels
from pipeline.views.mixing import MixRows, mixed_views, to_device
from student.config import TrainConfig
from student.losses import MixedTarget, TeacherSignal
from student.replay import StudentBatch

__all__ = ["TeacherInLoop", "mixed_images", "mixed_target", "resize_images", "stored_signal"]


def mixed_images(batch: StudentBatch, views: AugmentConfig, device: torch.device) -> Tensor:
    """Return the (B, 3, S, S) normalized and mixed images, which the teacher saw.

    Guests of a subset are in the pixels, and not in the result.
    """
    batch = batch.to(device, non_blocking=True)
    return mixed_views(batch.pixels, _rows(batch), views.mean, views.std)


def _rows(batch: StudentBatch) -> MixRows:
    return MixRows.of(batch.mix) if batch.mix_rows is None else batch.mix_rows


def resize_images(images: Tensor, side: int) -> Tensor:
    """Return (B, 3, side, side) images, bicubic and antialiased; the same ones if they fit."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(
        images, size=(side, side), mode="bicubic", antialias=True, align_corners=False
    )


def mixed_target(batch: StudentBatch, device: torch.device, **learned: Any) -> MixedTarget:
    """Return the true classes of the mixed images; ``learned`` are the other fields."""
    batch = batch.to(device, non_blocking=True)
    return MixedTarget(
        target=batch.target,
        partner_target=batch.partner_target,
        lam=_rows(batch).lam,
        **learned,
    )


def stored_signal(batch: StudentBatch, images: Tensor) -> TeacherSignal:
    """Return what the store says that the teacher said of the images."""
    batch = batch.to(images.device, non_blocking=True)
    return TeacherSignal(
        label=batch.label,
        confidence=batch.confidence,
        topk_label=batch.topk_label,
        topk_logprob=batch.topk_logprob,
        topk_rest=batch.topk_rest,
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
        names = ("confidence", "topk_label", "topk_logprob", "topk_rest")
        kept = {name: labels.columns[name] for name in names if name in labels.columns}
        return TeacherSignal(
            label=self._moved(labels.label.astype(np.int64)),
            **{name: self._moved(COLUMNS[name].read(values)) for name, values in kept.items()},
        )

    def _moved(self, values: NDArray[Any]) -> Tensor:
        return to_device(torch.from_numpy(values), self._device)
