"""Small manifests, stores and students for tests of the trainer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from pipeline.identity import AugmentConfig, MixConfig, StoreIdentity, TeacherIdentity
from pipeline.labelling.part import Labeller, group_tasks, label_part, run_task
from pipeline.labelling.teacher import TeacherSpec
from pipeline.records import (
    AugmentedGroup,
    Box,
    PartKey,
    Rejection,
    ShardInfo,
    TeacherLabels,
    encode_mask,
)
from pipeline.shards.index import open_shard
from pipeline.store import ParquetStore, commit_part, finish_store, open_store
from pipeline.store.manifest import Agreement, Manifest, PartEntry
from pipeline.views.apply import resize
from pipeline.views.floats import fingerprints_on
from pipeline.views.mixing import mix_images, mixed_digests, normalize
from student.lending import Lending, tensors_of
from tests.factories import digit_samples, digits, write_shard

SMALL_VIEWS = AugmentConfig(image_size=32)
TINY = ("patch_size=8", "embed_dim=48", "depth=2", "num_heads=3")
"""--model-args of a student that trains in milliseconds."""


def make_identity(
    *,
    root_seed: int = 7,
    classes: int = 10,
    augment: AugmentConfig = SMALL_VIEWS,
    mix: MixConfig | None = None,
) -> StoreIdentity:
    return StoreIdentity(
        root_seed=root_seed,
        augment=augment,
        mix=mix or MixConfig(),
        teacher=TeacherIdentity(
            architecture="regnety_002",
            weights="0" * 64,
            classes=classes,
            precision="fp32",
            batch_views=3,
        ),
    )


def make_manifest(
    samples: Sequence[int],
    *,
    rejected: Mapping[int, Sequence[int]] | None = None,
    omitted: Mapping[int, Collection[int]] | None = None,
    first_view: int = 0,
    views: int = 6,
    identity: StoreIdentity | None = None,
) -> Manifest:
    """Return the manifest of a store whose shards have these numbers of samples."""
    shards = tuple(
        ShardInfo(
            number=number,
            name=f"shard-{number}.tar",
            key_hash=f"keys-{number}",
            content_hash=f"content-{number}",
            samples=count,
            bytes=1000 * count,
        )
        for number, count in enumerate(samples)
    )
    rejections = {
        number: tuple(
            Rejection(index=index, key=f"{number}-{index}", reason="undecodable")
            for index in indices
        )
        for number, indices in (rejected or {}).items()
    }
    parts = tuple(
        PartEntry(
            part=PartKey(shard=shard.number, first_view=first_view, views=views),
            bytes=1,
            sha256="0" * 64,
            rows=shard.samples * views,
        )
        for shard in shards
    )
    return Manifest(
        identity=identity or make_identity(),
        fingerprints={},
        shards=shards,
        image_hashes={shard.number: f"images-{shard.number}" for shard in shards},
        formats={shard.number: ("jpeg",) for shard in shards},
        rejections=rejections,
        omitted={
            number: encode_mask(np.isin(np.arange(samples[number]), list(indices)))
            for number, indices in (omitted or {}).items()
            if indices
        },
        parts=parts,
        agreement=Agreement(known=0, equal=0),
    )


class PixelTeacher:
    """Labels a view by a checksum of its pixels: as varied as labels can be."""

    def __init__(self, classes: int = 10) -> None:
        self.classes = classes

    def label_group(self, group: AugmentedGroup) -> TeacherLabels:
        rows = group.pixels.reshape(group.valid.size, -1)
        label = [crc32(row.tobytes()) % self.classes for row in rows]
        pixels = torch.from_numpy(group.pixels.reshape(-1, *group.pixels.shape[2:]))
        mixed = mix_images(normalize(pixels, SMALL_VIEWS.mean, SMALL_VIEWS.std), group.mix)
        digests = mixed_digests(mixed, group.has_mixed_digest.reshape(-1))
        return TeacherLabels(label=np.array(label, np.uint16), mixed_digest=digests)


def write_digit_shards(
    directory: Path, sizes: Sequence[int], *, torn: Mapping[int, Sequence[int]] | None = None
) -> tuple[Path, ...]:
    """Write shards of digits, in which the ``torn`` places hold half a JPEG."""
    directory.mkdir(parents=True, exist_ok=True)
    paths, first = [], 0
    for number, size in enumerate(sizes):
        samples = digit_samples(size, first)
        for index in (torn or {}).get(number, ()):
            key, image, target = samples[index]
            samples[index] = (key, image[: len(image) // 2], target)
        paths.append(write_shard(directory / f"digits-{number}.tar", samples))
        first += size
    return tuple(paths)


def make_store(
    root: Path,
    paths: Sequence[Path],
    *,
    identity: StoreIdentity | None = None,
    teacher: Labeller | None = None,
    first_view: int = 0,
    views: int = 6,
) -> ParquetStore:
    """Label shards in this process, one part each."""
    identity, teacher = identity or make_identity(), teacher or PixelTeacher()
    infos = []
    for number, path in enumerate(paths):
        shard = open_shard(path, number)
        infos.append(shard.info)
        part = PartKey(shard=number, first_view=first_view, views=views)
        groups = map(run_task, group_tasks(path, shard.info, part, identity))
        commit_part(root, label_part(shard, part, identity, groups, teacher))
    finish_store(
        root, identity, fingerprints_on(identity, "cpu"), infos, lambda _: "a store of a test"
    )
    return open_store(root)


def write_digit_teacher(path: Path, architecture: str = "test_resnet") -> TeacherSpec:
    """Fit the last layer of an untrained network to clean digits, and save its weights.

    Unlike an untrained network's, its labels vary from view to view.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=10).eval()
    images, targets = digits()
    box = Box(top=0, left=0, height=8, width=8)
    pixels = np.stack([resize(image, box, SMALL_VIEWS.image_size) for image in images[:800]])
    normalized = normalize(torch.from_numpy(pixels), SMALL_VIEWS.mean, SMALL_VIEWS.std)
    with torch.inference_mode():
        features = model.forward_head(model.forward_features(normalized), pre_logits=True)
    features = features.double()
    mean, std = features.mean(0), features.std(0) + 1e-9
    scaled = (features - mean) / std
    wanted = torch.nn.functional.one_hot(torch.from_numpy(targets[:800]), 10).double() - 0.1
    gram = scaled.T @ scaled + torch.eye(scaled.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, scaled.T @ wanted).T / std
    layer = model.get_classifier()
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(-weight @ mean)
    save_file(model.state_dict(), path)
    return TeacherSpec(architecture=architecture, checkpoint=path, num_classes=10)


def flip_one_label(store: ParquetStore, root: Path) -> ParquetStore:
    """Write the store again with one label changed, valid in every other respect."""
    manifest = store.manifest
    for number, entry in enumerate(manifest.parts):
        rows = store.read_part(entry)
        if number == 0:
            label = rows.label.copy()
            label[0, 0] = (label[0, 0] + 1) % manifest.identity.teacher.classes
            rows = replace(rows, label=label)
        commit_part(root, rows)
    finish_store(
        root, manifest.identity, manifest.fingerprints, manifest.shards, lambda _: "flipped"
    )
    return open_store(root)


def assert_fits(item: object, item_bytes: int) -> None:
    """Assert that the tensors of an item have room where the data set says that they have."""
    run = Lending(workers=1, each=1, size=item_bytes).borrow(0)
    assert run is not None
    for name, one in tensors_of(item).items():
        assert run.empty(tuple(one.shape), one.dtype) is not None, name
