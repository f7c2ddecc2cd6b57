"""A training task in timm's manner that takes stored labels instead of a teacher."""

from __future__ import annotations

from typing import Any

import torch
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.identity import AugmentConfig
from student.batches import mixed_images, mixed_target, resize_images, stored_signal
from student.losses import Loss
from student.losses.hard import HardLoss
from student.model import split_heads
from student.replay import StudentBatch

__all__ = ["StoredLabelTask"]


class StoredLabelTask(TrainingTask):  # type: ignore[misc]
    """The forward pass and loss of a student on replayed batches.

    A drop-in for ``timm.task.TokenDistillationTask`` in a loop over a ``ReplayDataset``: the
    teacher's part comes with the batch. ``views`` are the store's (``identity.augment``),
    ``smoothing`` is that of the truth, which is learned by binary cross-entropy with ``bce_loss``
    (where smoothing must be 0), ``image_size`` the student's side in pixels if it is another. A
    model with two heads is set to give both in training::

        task = StoredLabelTask(model, dataset.store.identity.augment, SoftLoss(tau=2.0))
    """

    def __init__(
        self,
        student_model: nn.Module,
        views: AugmentConfig,
        loss: Loss = HardLoss(),  # noqa: B008 - frozen
        *,
        smoothing: float = 0.1,
        bce_loss: bool = False,
        image_size: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(device=device, verbose=False)
        if hasattr(student_model, "set_distilled_training"):
            student_model.set_distilled_training(True)  # type: ignore[operator]
        self.trainable_module = student_model
        self._views, self._loss = views, loss
        self._learned = {"smoothing": smoothing, "binary": "present" if bce_loss else None}
        self._side = image_size or views.image_size

    def prepare_distributed(
        self, device_ids: list[int] | None = None, **arguments: Any
    ) -> StoredLabelTask:
        """Average gradients over ranks, as timm's tasks do; returns the task."""
        self.trainable_module = DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **arguments
        )
        return self

    def compile(
        self, backend: str = "inductor", mode: str | None = None, **arguments: Any
    ) -> nn.Module:
        """Compile the student in place; returns it."""
        module: nn.Module = self.trainable_module
        module.compile(backend=backend, mode=mode, **arguments)
        return module

    def forward(self, batch: StudentBatch) -> dict[str, Tensor]:
        """Return ``loss``, the class head's logits as ``output``, and both terms."""
        # Where the weights are: a loop may have moved the student without telling the task.
        device = next(self.trainable_module.parameters()).device
        batch = batch.to(device, non_blocking=True)
        images = mixed_images(batch, self._views, device)
        teacher = stored_signal(batch, images)
        heads = split_heads(self.trainable_module(resize_images(images, self._side)))
        truth = mixed_target(batch, device, **self._learned)
        terms = self._loss(heads, truth, teacher)
        return {
            "loss": terms.loss,
            "output": heads[0],
            "task_loss": terms.class_loss,
            "distill_loss": terms.distillation_loss,
        }
