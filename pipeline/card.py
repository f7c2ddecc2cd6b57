"""The card of a store: what it is, in words, for whoever finds the directory."""

from __future__ import annotations

from pipeline.config import ColumnConfig
from pipeline.store import Manifest

__all__ = ["card_text"]


def card_text(manifest: Manifest) -> str:
    """Return the store's README, a pure function of its manifest."""
    identity, views = manifest.identity, manifest.view_range
    augment, mix, teacher = identity.augment, identity.mix, identity.teacher
    samples = sum(shard.samples for shard in manifest.shards)
    rejected = sum(len(rejections) for rejections in manifest.rejections.values())
    per_view = manifest.bytes / manifest.rows if manifest.rows else 0.0
    mixing = (
        f"mixup {mix.mixup_alpha:g} / CutMix {mix.cutmix_alpha:g} in pairs, "
        f"probability {mix.probability:g}"
        if mix.probability
        else "none"
    )
    erasing = f", erasing {augment.erase_probability:g}" if augment.erase_probability else ""
    rows = {
        "teacher": f"{teacher.architecture}, {teacher.classes} classes, {teacher.precision}",
        "weights (SHA-256)": teacher.weights,
        "views": f"{views.start}..{views.stop - 1} of every sample, {augment.image_size} px",
        "augmentation": f"{augment.crop} crop, flip {augment.hflip:g}, {augment.policy}{erasing}",
        "mixing": mixing,
        "kept of probabilities": _kept(identity.columns),
        "root seed": str(identity.root_seed),
        "shards": str(len(manifest.shards)),
        "samples": f"{samples} = {samples - rejected} labelled + {rejected} rejected",
        "labels": f"{manifest.rows}, {per_view:.3f} bytes each ({manifest.bytes} bytes)",
        "identity": identity.digest,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "# Teacher labels\n\n"
        "Labels of a teacher on augmented views, and the seeds that replay those views\n"
        "from the shards, bit for bit. Made by `label-teacher`; read with pandas, PyArrow or\n"
        "DuckDB, train with `train-student --labels`, check with `label-store verify`.\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )


def _kept(columns: ColumnConfig) -> str:
    named = {
        "confidence": columns.confidence,
        "margin": columns.margin,
        f"top {columns.topk}": columns.topk,
    }
    return ", ".join(name for name, there in named.items() if there) or "nothing"
