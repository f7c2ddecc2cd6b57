"""Small manifests, stores and students for tests of the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config import AugmentConfig, MixConfig, StoreIdentity, TeacherIdentity
from pipeline.records import PartKey, Rejection, ShardInfo
from pipeline.store.manifest import Manifest, PartEntry

SMALL_VIEWS = AugmentConfig(image_size=32)


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
            Rejection(index=index, key=f"{number}-{index}", reason="torn") for index in indices
        )
        for number, indices in (rejected or {}).items()
    }
    parts = tuple(
        PartEntry(
            part=PartKey(shard=shard.number, first_view=first_view, views=views),
            bytes=1,
            sha256="0",
            rows=shard.samples * views,
        )
        for shard in shards
    )
    return Manifest(
        identity=identity or make_identity(),
        fingerprints={},
        shards=shards,
        rejections=rejections,
        parts=parts,
    )
