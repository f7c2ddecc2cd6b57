"""Stores of made-up labels: as many as a test likes, without images or a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.columns import LOG_STEPS, Columns
from pipeline.files.local import sha256
from pipeline.identity import (
    AugmentConfig,
    ColumnConfig,
    MixConfig,
    StoreIdentity,
    TeacherIdentity,
)
from pipeline.records import PartKey, PartRows, Rejection, ShardInfo
from pipeline.store import LabelStore, claim_store, commit_part, finish_store, open_store
from pipeline.store.card import card_text
from pipeline.store.sealing import sealed
from pipeline.views.draw import has_digest, has_mixed_digest

CLASSES = 5
PRINTS = {"decode": 1, "op.rotate": 2}
IDENTITY = StoreIdentity(
    root_seed=1,
    augment=AugmentConfig(image_size=16),
    mix=MixConfig(),
    teacher=TeacherIdentity(
        architecture="made-up",
        weights="a" * 64,
        classes=CLASSES,
        precision="fp32",
        batch_views=3,
    ),
)
ALL_COLUMNS = replace(IDENTITY, columns=ColumnConfig(confidence=True, margin=True, topk=3))
OTHER_TEACHER = replace(IDENTITY, teacher=replace(IDENTITY.teacher, weights="b" * 64))

Change = Callable[[PartRows], PartRows]


def info_of(content: int, number: int | None = None, *, samples: int = 7) -> ShardInfo:
    """Return a shard that ``content`` names; its number is the same unless told otherwise."""
    return ShardInfo(
        number=content if number is None else number,
        name=f"s-{content}.tar",
        key_hash=sha256(b"keys %d" % content),
        content_hash=sha256(b"content %d" % content),
        samples=samples,
        bytes=10240,
    )


def rows_of(identity: StoreIdentity, shard: ShardInfo, first: int, views: int) -> PartRows:
    """Return labels that are a function of teacher, shard and view; sample 2 is rejected.

    The first sample's target is unknown.
    """
    samples, classes = shard.samples - 1, identity.teacher.classes
    content = int(shard.key_hash[:8], 16)
    keys = tuple(f"{shard.name}/{i}" for i in range(shard.samples) if i != 2)
    labels = np.empty((samples, views, classes), np.uint16)
    seed = np.random.default_rng(content).integers(0, 1 << 63, samples, np.int64)
    views_here = np.arange(first, first + views)
    digest, there = np.zeros((samples, views), np.uint32), has_digest(seed[:, None], views_here)
    margin = np.empty((samples, views), np.uint8)
    for view in range(first, first + views):
        random = np.random.default_rng([content, view, int(identity.teacher.weights[:1], 16)])
        labels[:, view - first] = random.permuted(np.tile(np.arange(classes), (samples, 1)), axis=1)
        margin[:, view - first] = random.integers(0, 256, samples)
        pixels = np.random.default_rng([content, view, identity.root_seed])
        digest[:, view - first] = pixels.integers(0, 1 << 32, samples)
    digest[~there] = 0
    target = (np.arange(samples, dtype=np.int32) + content % classes) % classes
    target[0] = -1
    columns, topk = identity.columns, identity.columns.topk
    confidence = 255 - margin // 2
    every = Columns(
        {
            "confidence": confidence,
            "margin": margin,
            "topk_label": labels[:, :, :topk].copy(),
            **_logarithms(confidence / 255, topk),
        }
    )
    return PartRows(
        part=PartKey(shard=shard.number, first_view=first, views=views),
        identity=identity.digest,
        key_hash=shard.key_hash,
        content_hash=shard.content_hash,
        image_hash=sha256(b"images %d" % content),
        formats=("jpeg",),
        samples=shard.samples,
        rejections=(Rejection(index=2, key=f"{shard.name}/2", reason="undecodable"),),
        keys=keys,
        target=target,
        seed=seed,
        label=labels[:, :, 0].copy(),
        digest=digest,
        has_digest=there,
        mixed_digest=np.where(
            has_mixed_digest(there, seed[:, None], views_here), digest ^ np.uint32(5), 0
        ).astype(np.uint32),
        columns=every.only(columns),
    )


def _logarithms(first: NDArray[np.float64], k: int) -> dict[str, NDArray[Any]]:
    """Return k log-probabilities, each after the first half of what is left, and the rest's."""
    left = (1 - first)[..., None] * 0.5 ** np.arange(k)
    with np.errstate(divide="ignore"):
        log = np.log(np.concatenate([first[..., None], left[..., 1:]], axis=-1)[..., :k])
        rest = np.log(left)
    found = {"topk_logprob": log, "topk_rest": rest[..., -1] if k else first}
    return {
        name: np.rint(-values * LOG_STEPS).clip(max=65535).astype(np.uint16)
        for name, values in found.items()
    }


def omit_two(rows: PartRows) -> PartRows:
    """Return the rows of a subset: without two of the labelled samples of shard 0."""
    if rows.part.shard:
        return rows
    return rows.omit(~np.isin(np.arange(len(rows.keys)), (1, len(rows.keys) - 1)))


def ranges(views: range, per_part: int) -> list[tuple[int, int]]:
    """Cut views into (first, count) as a label job does."""
    return [
        (first, min(per_part, views.stop - first))
        for first in range(views.start, views.stop, per_part)
    ]


def write_store(
    root: Path,
    shards: Sequence[ShardInfo],
    views: Iterable[tuple[int, int]],
    identity: StoreIdentity = IDENTITY,
    change: Change = lambda rows: rows,
    classes: tuple[str, ...] | None = None,
) -> LabelStore:
    """Write a finished store of these shards and ranges (first, count) of views."""
    views = list(views)
    claim_store(root, identity, PRINTS)
    for shard in shards:
        for first, count in views:
            commit_part(root, change(rows_of(identity, shard, first, count)))
    finish_store(root, identity, PRINTS, shards, card_text, classes=classes)
    return open_store(root)


def written_anew(data: bytes, change: Callable[[pa.Table], pa.Table] = lambda rows: rows) -> bytes:
    """Return a part as another release of PyArrow may write it, its rows changed or not."""
    sink = pa.BufferOutputStream()
    pq.write_table(change(pq.read_table(pa.BufferReader(data))), sink, compression="snappy")
    return sealed(sink.getvalue().to_pybytes())


def bytes_of(root: Path) -> dict[str, bytes]:
    """Return what is promised to be identical: manifest, card, identity and parts."""
    paths = [root / "_manifest.json", root / "_README.md", root / "_meta" / "identity.json"]
    paths += sorted(root.glob("shard=*/*.parquet"))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
