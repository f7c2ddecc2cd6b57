"""Labels such as an ImageNet teacher gives, without a teacher: for sizes and speeds.

Samples differ in how sure the teacher is of them; what it confuses is a short list of each
sample's own; views shift its logits; and a mixed view is won by one of its two images. Pairs
are drawn by the pipeline's own code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import ColumnConfig, Ranked, keep_columns
from pipeline.identity import (
    AugmentConfig,
    MixConfig,
    StoreIdentity,
    TeacherIdentity,
)
from pipeline.records import FIXED_ONE, MixKind, PartKey, PartRows, ShardInfo, TeacherLabels
from pipeline.views.draw import has_digest, has_mixed_digest
from pipeline.views.pairing import Pairing
from pipeline.views.rng import sample_seed

__all__ = ["CLASSES", "LabelModel", "make_identity", "make_rows"]

CLASSES = 1000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelModel:
    """How sure the teacher is, in units of logits. The defaults agree with a sample's class in
    about four of five unmixed views, and in two of five mixed ones.
    """

    lead_mean: float = 3.0  # of a sample's own class over its strongest confusion
    lead_std: float = 2.5  # over samples: some are nearly always right, some never
    view_std: float = 1.4  # of each class's logit over the views of a sample
    fall: float = 0.55  # from one confusion to the next
    confusions: int = 14  # classes a sample is confused with: half go with its class
    tail: int = 6  # classes that come and go at random
    tail_depth: float = 6.0  # mean of the tail's logits below the strongest confusion's


def make_identity(*, mixed: bool, columns: ColumnConfig) -> StoreIdentity:
    """Return the identity of a store of such labels."""
    return StoreIdentity(
        root_seed=0,
        augment=AugmentConfig(),
        mix=MixConfig(probability=1.0 if mixed else 0.0),
        teacher=TeacherIdentity(
            architecture="synthetic",
            weights="0" * 64,
            classes=CLASSES,
            precision="bf16",
            batch_views=15,
        ),
        columns=columns,
    )


def make_rows(
    samples: int,
    views: int,
    identity: StoreIdentity,
    *,
    seed: int = 0,
    model: LabelModel | None = None,
) -> PartRows:
    """Return the rows of views 0 to ``views`` - 1 of one shard, with the identity's columns."""
    random = np.random.default_rng(seed)
    keys = tuple(f"n{random.integers(10**7, 10**8)}_{n:06d}" for n in range(samples))
    seeds = np.array([sample_seed(identity.root_seed, key) for key in keys], np.int64)
    shard = ShardInfo(
        number=0,
        name="synthetic.tar",
        key_hash=f"{seed:064d}",
        content_hash="0" * 64,
        samples=samples,
        bytes=0,
    )
    target = random.integers(0, CLASSES, samples).astype(np.int32)
    partner, share = _draw_mixing(shard, views, identity)
    classes, logits = _draw_logits(target, partner, share, random, model or LabelModel())
    drawn = has_digest(seeds[:, None], np.arange(views))
    mixed = has_mixed_digest(drawn, seeds[:, None], np.arange(views))
    words = random.integers(1, 1 << 32, (samples, views)).astype(np.uint32)
    labels = _labels(classes, logits, identity.columns)
    return PartRows(
        part=PartKey(shard=0, first_view=0, views=views),
        identity=identity.digest,
        key_hash=shard.key_hash,
        content_hash=shard.content_hash,
        image_hash="0" * 64,
        formats=("jpeg",),
        samples=samples,
        rejections=(),
        keys=keys,
        target=target,
        seed=seeds,
        digest=np.where(drawn, words, 0).astype(np.uint32),
        has_digest=drawn,
        mixed_digest=np.where(mixed, words[::-1], 0).astype(np.uint32),
        label=labels.label,
        columns=labels.columns,
    )


def _draw_mixing(
    shard: ShardInfo, views: int, identity: StoreIdentity
) -> tuple[NDArray[np.int64], Floats]:
    """Return each view's partner (the sample itself if unmixed) and own share, (N, V)."""
    mix, side = identity.mix, identity.augment.image_size
    partner = np.repeat(np.arange(shard.samples)[:, None], views, axis=1)
    share = np.ones((shard.samples, views))
    if not mix.probability:
        return partner, share
    pairing = Pairing(root_seed=identity.root_seed, shard=shard, rejected=frozenset(), config=mix)
    for view in range(views):
        for pair in pairing.of_shard(view).items():
            params = pairing.draw_mix(view, pair, side)
            if params.kind is not MixKind.NONE:
                partner[pair[0], view] = pair[1]
                share[pair[0], view] = params.lam / FIXED_ONE
    return partner, share


def _draw_logits(
    target: NDArray[np.int32],
    partner: NDArray[np.int64],
    share: Floats,
    random: np.random.Generator,
    model: LabelModel,
) -> tuple[NDArray[np.int64], Floats]:
    """Return the classes that matter in each view, (N, V, M), and their logits."""
    samples, views = partner.shape
    own = model.confusions + 1
    related = random.integers(0, CLASSES, (CLASSES, model.confusions))  # of each class
    pool = np.empty((samples, own), np.int64)
    pool[:, 0] = target
    pool[:, 1:] = related[target]
    pool[:, 2::2] = random.integers(0, CLASSES, pool[:, 2::2].shape)  # of this image alone
    base = -model.fall * np.arange(own) + random.normal(0, 0.5, (samples, own))
    base[:, 0] = random.normal(model.lead_mean, model.lead_std, samples)
    tail = random.integers(0, CLASSES, (samples, views, model.tail))
    tail_logits = random.exponential(1.5, tail.shape) - model.tail_depth
    shift = random.normal(0, model.view_std, (samples, views, own))
    mine = base[:, None] + shift
    if (share == 1).all():
        classes = np.concatenate([np.repeat(pool[:, None], views, axis=1), tail], axis=2)
        return classes, np.concatenate([mine, tail_logits], axis=2)
    theirs = base[partner] + random.normal(0, model.view_std, shift.shape)
    # A member with little of the image loses evidence for all its classes alike.
    mine += 4.0 * np.log(np.maximum(share, 1e-3))[..., None]
    theirs += 4.0 * np.log(np.maximum(1 - share, 1e-3))[..., None]
    classes = np.concatenate([np.repeat(pool[:, None], views, axis=1), pool[partner], tail], axis=2)
    return classes, np.concatenate([mine, theirs, tail_logits - 2], axis=2)


def _labels(classes: NDArray[np.int64], logits: Floats, columns: ColumnConfig) -> TeacherLabels:
    """Return the labels of views, (N, V), and the columns asked for."""
    best = np.argsort(-logits, axis=2, kind="stable")
    ranked = np.take_along_axis(classes, best, axis=2)
    weight = np.exp(np.take_along_axis(logits, best, axis=2))
    prob = weight / (weight.sum(axis=2, keepdims=True) + 0.02 * weight[..., :1])
    prob = prob.reshape(-1, prob.shape[2])
    flat = Ranked(
        classes=ranked.reshape(-1, ranked.shape[2]),
        log_prob=np.log(prob),
        log_rest=np.log(1 - np.cumsum(prob, axis=1)),
    )
    kept = keep_columns(columns, lambda _: flat)
    return TeacherLabels(
        label=ranked[..., 0].astype(np.uint16),
        columns=kept.map(lambda values: values.reshape(*ranked.shape[:2], *values.shape[1:])),
    )
