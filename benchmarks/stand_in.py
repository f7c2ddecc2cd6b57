"""Stores made without a network: a stand-in teacher, for measuring all that is around one."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.identity import IMAGENET_MEAN, IMAGENET_STD, PRESETS, TeacherIdentity
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.job import begin_job, finish_job, index_shards, plan_job
from pipeline.labelling.part import label_part, run_task
from pipeline.records import AugmentedGroup, TeacherLabels, ViewMix
from pipeline.shards.index import open_known_shard
from pipeline.store import LabelStore, commit_part, open_store
from pipeline.views.floats import float_fingerprints
from pipeline.views.mixing import mix_images, mixed_digests, normalize

__all__ = ["CLASSES", "StandInTeacher", "stand_in_identity", "write_store"]

CLASSES = 1000


class StandInTeacher:
    """Gives the label 0 after a fixed time, as a device would that needs no cores."""

    def __init__(self, seconds_per_view: float = 0.0) -> None:
        self.busy_seconds = 0.0
        self._seconds_per_view = seconds_per_view

    def label_group(self, group: AugmentedGroup) -> TeacherLabels:
        """Label the group's views in the time that they take, and sleep for what is left of it."""
        started = time.perf_counter()
        label = np.zeros(group.valid.size, np.uint16)
        labels = TeacherLabels(label=label, mixed_digest=_mixed_digests(group))
        end = started + self._seconds_per_view * int(group.valid.sum())
        time.sleep(max(0.0, end - time.perf_counter()))
        self.busy_seconds += time.perf_counter() - started
        return labels


def _mixed_digests(group: AugmentedGroup) -> NDArray[np.uint32]:
    """Return what a teacher would, at the cost of the few rows that have a digest."""
    digests = np.zeros(group.valid.size, np.uint32)
    pixels, mix = group.pixels.reshape(-1, *group.pixels.shape[2:]), group.mix
    for row in np.flatnonzero(group.has_mixed_digest):
        pair = [row, mix.partner[row]]
        two = ViewMix(
            partner=np.array([1, 0]), kind=mix.kind[pair], lam=mix.lam[pair], box=mix.box[pair]
        )
        images = normalize(torch.from_numpy(pixels[pair]), IMAGENET_MEAN, IMAGENET_STD)
        digests[row] = mixed_digests(mix_images(images, two), np.array([True, False]))[0]
    return digests


def stand_in_identity(batch_views: int) -> TeacherIdentity:
    """Return the identity of the stand-in teacher."""
    return TeacherIdentity(
        architecture="stand-in",
        weights="0" * 64,
        classes=CLASSES,
        precision="fp32",
        batch_views=batch_views,
    )


def write_store(root: Path, shards: tuple[str, ...], *, views: int, image_size: int) -> LabelStore:
    """Label all shards with the stand-in teacher, and open the store."""
    config = LabelConfig(
        shards=shards,
        out=str(root),
        views=views,
        serial=True,
        augment=replace(PRESETS["deit"], image_size=image_size),
    )
    indexed = index_shards(shards)
    floats = float_fingerprints(config.augment, config.effective_mixing, "cpu")
    plan = plan_job(config, indexed, stand_in_identity(batch_views=3), floats)
    begin_job(plan)
    for part in plan.missing:
        order = plan.order(part)
        shard = open_known_shard(order.path, order.shard)
        groups = (run_task(task) for task in order.tasks())
        commit_part(order.out, label_part(shard, part, order.identity, groups, StandInTeacher()))
    finish_job(plan, {})
    return open_store(root)
