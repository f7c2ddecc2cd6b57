"""Teachers and label jobs for tests: labels that any changed pixel would change."""

from __future__ import annotations

import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import one_hot

from pipeline.columns import COLUMNS, ColumnConfig, Ranked, keep_columns
from pipeline.identity import (
    AugmentConfig,
    MixConfig,
    StoreIdentity,
    TeacherIdentity,
)
from pipeline.labelling.part import augment_group, group_tasks, label_part
from pipeline.labelling.teacher import Teacher, TeacherSpec, load_teacher
from pipeline.records import (
    AugmentedGroup,
    PartKey,
    PartRows,
    Pixels,
    ShardInfo,
    TeacherLabels,
)
from pipeline.shards.index import Shard, open_shard
from pipeline.store import (
    Manifest,
    ParquetStore,
    claim_store,
    commit_part,
    finish_store,
    open_store,
)
from pipeline.views.floats import fingerprints_on
from pipeline.views.mixing import mix_images, normalize
from tests.factories import digit_samples, digits, write_shard

CLASSES = 10
SMALL = AugmentConfig(image_size=16)
TEACHER = TeacherIdentity(
    architecture="hash", weights="0" * 64, classes=65535, precision="fp32", batch_views=3
)


@dataclass(frozen=True, slots=True)
class HashTeacher:
    """Labels a mixed view by the CRC of its floats, so equal labels mean equal pixels."""

    augment: AugmentConfig = SMALL
    columns: ColumnConfig = field(default_factory=ColumnConfig)

    def label_group(self, group: AugmentedGroup) -> TeacherLabels:
        side = self.augment.image_size
        pixels = torch.from_numpy(group.pixels.reshape(-1, side, side, 3))
        images = mix_images(normalize(pixels, self.augment.mean, self.augment.std), group.mix)
        rows = images.permute(0, 2, 3, 1).contiguous().numpy()
        words = np.array([binascii.crc32(row.tobytes()) for row in rows], np.int64)
        digests = np.where(group.has_mixed_digest.reshape(-1), words, 0).astype(np.uint32)
        return replace(hash_labels(words, self.columns), mixed_digest=digests)


def every_column(k: int) -> ColumnConfig:
    """Return the configuration that keeps all columns of the table, k values in each list."""
    lists = {column.word for column in COLUMNS.values() if column.listed}  # their k
    return ColumnConfig(**{word: k if word in lists else True for word in ColumnConfig.words()})


def hash_labels(words: NDArray[np.int64], columns: ColumnConfig) -> TeacherLabels:
    """Make up labels, and probabilities that fit them, from a 32-bit word a row."""
    steps = np.arange(max(2, columns.topk))
    ranked = (words[:, None] + 7919 * steps) % TEACHER.classes
    first = 0.25 + (words >> 24)[:, None] / 512  # of what is left, from class to class
    prob = first * (1 - first) ** steps
    rest = (1 - first) ** (steps + 1)
    made = Ranked(classes=ranked, log_prob=np.log(prob), log_rest=np.log(rest))
    kept = keep_columns(columns, lambda _: made)
    return TeacherLabels(label=ranked[:, 0].astype(np.uint16), columns=kept)


def hash_identity(
    augment: AugmentConfig = SMALL,
    mix: MixConfig | None = None,
    columns: ColumnConfig = ColumnConfig(),  # noqa: B008 - frozen
) -> StoreIdentity:
    return StoreIdentity(
        root_seed=5, augment=augment, mix=mix or MixConfig(), teacher=TEACHER, columns=columns
    )


def part_of(first: int, views: int, shard: int = 0) -> PartKey:
    return PartKey(shard=shard, first_view=first, views=views)


def label_with_hashes(shard: Shard, part: PartKey, identity: StoreIdentity) -> PartRows:
    groups = (
        augment_group(shard, task) for task in group_tasks(shard.path, shard.info, part, identity)
    )
    teacher = HashTeacher(identity.augment, identity.columns)
    return label_part(shard, part, identity, groups, teacher)


def write_hash_store(
    root: Path,
    paths: list[Path],
    *,
    views: int,
    per_part: int,
    identity: StoreIdentity | None = None,
    card: Callable[[Manifest], str] = lambda _: "a card\n",
) -> ParquetStore:
    """Label shards with the hash teacher and finish the store."""
    identity = identity or hash_identity()
    prints = claim_store(root, identity, fingerprints_on(identity, "cpu"))
    infos: list[ShardInfo] = []
    for number, path in enumerate(paths):
        shard = open_shard(path, number)
        infos.append(shard.info)
        for first in range(0, views, per_part):
            part = part_of(first, min(per_part, views - first), number)
            commit_part(root, label_with_hashes(shard, part, identity))
    finish_store(root, identity, prints, infos, card)
    return open_store(root)


def _calibrated(
    architecture: str, images: Sequence[Pixels]
) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return a model whose BatchNorm has seen images, and what its classifier gets of them."""
    torch.manual_seed(3)
    model = timm.create_model(architecture, num_classes=CLASSES)
    batch = normalize(torch.from_numpy(np.stack(images)), SMALL.mean, SMALL.std)
    model.train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # average, not decay
        for _ in range(3):
            model(batch)
        model.eval()
        return model, model.forward_head(model.forward_features(batch), pre_logits=True)


@lru_cache(maxsize=1)
def _calibrated_state() -> dict[str, torch.Tensor]:
    """Return a small RegNetY whose labels on digits vary."""
    images = [np.kron(one, np.ones((4, 4, 1), np.uint8)) for one in digits()[0][:256]]
    model, features = _calibrated("regnety_002", images)
    fc = model.get_classifier()
    with torch.no_grad():
        # Center the features, so that no class always wins.
        fc.weight.normal_(std=1.0)
        fc.bias.copy_(-(fc.weight @ features.mean(dim=0)))
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def write_teacher(path: Path) -> Path:
    """Write a checkpoint of a small teacher whose labels differ from view to view."""
    save_file(_calibrated_state(), path)
    return path


DIGIT_READER = "test_byobnet"
"""The model of ``write_digit_reader``."""


@lru_cache(maxsize=1)
def _reading_state() -> dict[str, torch.Tensor]:
    """Return its weights: a classifier by least squares, on features of random weights."""
    images, targets = digits()
    box = (0, 0, 7, 7)  # of 8 pixels: what a trial looks at
    shown = [np.asarray(Image.fromarray(one).crop(box).resize((32, 32))) for one in images[:512]]
    model, features = _calibrated(DIGIT_READER, shown)
    mean = features.mean(dim=0)
    centered = features - mean
    wanted = one_hot(torch.from_numpy(targets[:512]), CLASSES) - 1 / CLASSES
    ridge = 0.1 * len(shown) * centered.var() * torch.eye(features.shape[1])
    weight = torch.linalg.solve(centered.T @ centered + ridge, centered.T @ wanted).T
    fc = model.get_classifier()
    with torch.no_grad():
        fc.weight.copy_(weight)
        fc.bias.copy_(-(weight @ mean))
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def write_digit_reader(path: Path) -> Path:
    """Write a checkpoint of a very small teacher that reads digits of 32 pixels.

    It labels ten times as fast as that of ``write_teacher``, and its trial finds nothing to ask
    further questions about.
    """
    save_file(_reading_state(), path)
    return path


def small_teacher(
    checkpoint: Path,
    augment: AugmentConfig,
    mix: MixConfig | None = None,
    columns: ColumnConfig = ColumnConfig(),  # noqa: B008 - frozen
    device: str = "cpu",
) -> Teacher:
    spec = TeacherSpec(
        architecture="regnety_002", checkpoint=checkpoint, precision="fp32", columns=columns
    )
    return load_teacher(spec, augment, mix or MixConfig(), torch.device(device))


def digit_shard(path: Path, count: int, *, first: int = 0, broken: tuple[int, ...] = ()) -> Path:
    """Write a shard of digits; the images at the indices ``broken`` do not decode."""
    samples = digit_samples(count, first)
    for index in broken:
        key, image, target = samples[index]
        samples[index] = (key, image[: len(image) // 2], target)
    return write_shard(path, samples)
