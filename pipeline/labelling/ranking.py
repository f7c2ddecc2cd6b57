"""Logits to labels, and to what a store keeps of the probabilities behind them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.identity import ColumnConfig
from pipeline.records import TeacherLabels

__all__ = ["rank_logits"]

_STEPS = 255  # of a stored probability


def rank_logits(logits: Tensor, columns: ColumnConfig) -> TeacherLabels:
    """Return the labels of (N, C) float32 logits, all finite, and the columns asked for.

    A label is the first of the highest logits, whatever the columns. Classes are ranked by
    logit, equal ones by number, so the first of the top k is the label. A probability ``p``
    of the softmax, in float64, is stored as the whole number next to ``255 * p``.
    """
    label = logits.cpu().numpy().argmax(axis=1).astype(np.uint16)
    if columns == ColumnConfig():
        return TeacherLabels(label=label)
    # Adding zero makes -0 and 0 one number, which some sorts tell apart.
    order = torch.sort(logits + 0.0, dim=1, descending=True, stable=True).indices
    order = order[:, : max(2, columns.topk)]
    prob = torch.softmax(logits.double(), dim=1).gather(1, order)
    stored = (prob * _STEPS).round().to(torch.uint8).cpu().numpy()
    margin = ((prob[:, 0] - prob[:, 1]) * _STEPS).round().to(torch.uint8).cpu().numpy()
    topk = columns.topk
    return TeacherLabels(
        label=label,
        confidence=stored[:, 0].copy() if columns.confidence else None,
        margin=margin if columns.margin else None,
        topk_label=order[:, :topk].cpu().numpy().astype(np.uint16) if topk else None,
        topk_prob=stored[:, :topk].copy() if topk else None,
    )
