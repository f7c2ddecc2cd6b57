"""What soft labels cost and how true they are: stored log-probabilities against the full softmax.

For k kept classes, stored forms and temperatures: bytes per view, and how far the loss and its
gradient are from those of all classes. Run `python -m benchmarks.soft`; with `--shards` and
`--teacher-checkpoint` also for a trained teacher. `docs/FORMAT.md` has results.

The made-up teachers have 1,000 classes in groups of 5 in groups of 25. An image's evidence is 12
(deviation 3) for its class, .6 and .3 of that for its groups, and normal noise (1.3 of the image,
.8 of the view); a mixed view adds two images' evidence by the roots of their shares. The smoothed
one is the same with .1 of the mass spread over all classes, as label smoothing does (deviation .4
of the logarithm). The student is halfway: half the teacher's logits, and normal noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from numpy.typing import NDArray

from benchmarks.report import Report, describe_machine
from pipeline.columns import ColumnConfig
from pipeline.identity import AugmentConfig, MixConfig, StoreIdentity
from pipeline.labelling.devices import set_threads
from pipeline.labelling.part import group_tasks, run_task
from pipeline.labelling.teacher import TeacherSpec, load_teacher
from pipeline.records import PartKey
from pipeline.shards.index import open_shard
from pipeline.views.mixing import mix_images, normalize

KEPT = (1, 2, 5, 10, 20, 50, 100, 255)
TAUS = (1.0, 3.0, 4.0)

STORED = "u16/64"
"""The form that stores have."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftBenchmark:
    """Measure stored soft labels: bytes per view, and their loss against the full softmax's."""

    samples: int = 300
    """Samples of the made-up teachers."""
    views: int = 8
    """Views of each sample."""
    classes: int = 1000
    """Classes of the made-up teachers."""
    shards: Path | None = None
    """A shard for a trained teacher, whose views are mixed as DeiT's."""
    teacher: str = "regnety_002"
    """That teacher's architecture."""
    teacher_checkpoint: Path | None = None
    """Its weights."""
    image_size: int = 64
    """Its views' size."""
    groups: int = 40
    """Groups of 16 samples of the shard."""
    json: Path | None = None
    """File to write the figures to."""


def made_up(config: SoftBenchmark, *, smoothed: bool) -> Floats:
    """Return a made-up teacher's logits of mixed views, (N * V, C)."""
    random, count = np.random.default_rng(0), config.classes
    own = random.integers(0, count, config.samples)
    strength = np.clip(random.normal(12, 3, config.samples), 4, None)
    of_image = random.normal(0, 1.3, (config.samples, count))
    classes = np.arange(count)
    logits = np.empty((config.samples, config.views, count))

    def evidence(image: int) -> Floats:
        near = [classes == own[image], classes // 5 == own[image] // 5]
        near.append(classes // 25 == own[image] // 25)
        related = np.select(near, (1.0, 0.6, 0.3), 0.0) * random.normal(1, 0.12, count)
        shift: Floats = random.normal(0, 0.8, count)
        found: Floats = strength[image] * related + of_image[image] + shift
        return found

    for image in range(config.samples):
        for view in range(config.views):
            share = random.beta(0.8, 0.8) if view % 2 else random.uniform()
            partner = int(random.integers(config.samples))
            logits[image, view] = share**0.5 * evidence(image)
            logits[image, view] += (1 - share) ** 0.5 * evidence(partner)
    flat = logits.reshape(-1, count)
    if smoothed:
        spread = np.exp(random.normal(0, 0.4, flat.shape) - 0.08) / count
        flat = np.log(0.9 * np.exp(log_softmax(flat)) + 0.1 * spread)
    return flat


def of_teacher(config: SoftBenchmark) -> Floats:
    """Return a trained teacher's logits of a shard's mixed views, (N * V, C)."""
    assert config.shards is not None
    spec = TeacherSpec(
        architecture=config.teacher,
        checkpoint=config.teacher_checkpoint,
        weights=None,
        random_weights=None if config.teacher_checkpoint else 0,
        num_classes=None if config.teacher_checkpoint else 10,
        precision="fp32",
        batch_views=3,
        columns=ColumnConfig(),
    )
    augment, mix = AugmentConfig(image_size=config.image_size), MixConfig()
    teacher = load_teacher(spec, augment, mix, torch.device("cpu"))
    identity = StoreIdentity(root_seed=0, augment=augment, mix=mix, teacher=teacher.identity)
    shard = open_shard(config.shards, 0)
    part = PartKey(shard=0, first_view=0, views=config.views)
    found = []
    tasks = list(group_tasks(shard.path, shard.info, part, identity))
    for task in tasks[: config.groups * -(-config.views // 3)]:
        group = run_task(task)
        pixels = torch.from_numpy(group.pixels.reshape(-1, *group.pixels.shape[-3:]))
        images = mix_images(normalize(pixels, augment.mean, augment.std), group.mix)
        found.append(teacher.logits(images).double().numpy()[group.valid.reshape(-1)])
    return np.concatenate(found)


def log_softmax(logits: Floats) -> Floats:
    """Return log-probabilities over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


@dataclass(frozen=True, slots=True)
class Form:
    """How a logarithm is stored: its bits, and what is read back."""

    bits: Callable[[Floats], NDArray[Any]]
    back: Callable[[NDArray[Any]], Floats]


def fixed(units: int, dtype: str) -> Form:
    """Return the form of whole numbers of 1/units, as -log p."""
    most = np.iinfo(dtype).max
    return Form(
        lambda log: np.minimum(np.rint(-log * units), most).astype(dtype),
        lambda bits: -bits.astype(np.float64) / units,
    )


FORMS: Mapping[str, Form] = {
    "u16/1024": fixed(1024, "uint16"),
    "u16/256": fixed(256, "uint16"),
    "u16/64": fixed(64, "uint16"),
    "u8/16": fixed(16, "uint8"),
    "float16": Form(
        lambda log: log.astype(np.float16).view(np.uint16),
        lambda bits: bits.view(np.float16).astype(np.float64),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is kept of N views' distributions, before it is stored."""

    classes: NDArray[np.int64]  # (N, k)
    log: Floats  # (N, k)
    rest: Floats  # (N,), the logarithm of the missing mass


def keep(log: Floats, k: int) -> Kept:
    """Return the k likeliest classes and the missing mass; ``log`` is (N, C)."""
    order = np.argsort(-log, axis=1, kind="stable")
    ranked = np.take_along_axis(log, order, axis=1)
    with np.errstate(divide="ignore"):
        rest = np.log(np.exp(ranked[:, k:]).sum(1))
    return Kept(classes=order[:, :k], log=ranked[:, :k], rest=np.maximum(rest, -64))


def stored_bytes(kept: Kept, form: Form) -> tuple[float, float]:
    """Return bytes per view of the classes, and of the logarithms, compressed as in a part."""
    lists = [kept.classes.astype(np.uint16), form.bits(kept.log)]
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(one.ravel()), one.shape[1]) for one in lists
    ]
    names = ["classes", "log", "rest"]
    table = pa.table([*arrays, pa.array(form.bits(kept.rest))], names)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=9,
        use_dictionary=False,
        column_encoding={
            "classes.list.element": "PLAIN",
            "log.list.element": "BYTE_STREAM_SPLIT",
            "rest": "BYTE_STREAM_SPLIT",
        },
    )
    group = pq.read_metadata(pa.BufferReader(sink.getvalue())).row_group(0)
    sizes = [group.column(number).total_compressed_size / len(kept.rest) for number in range(3)]
    return sizes[0], sizes[1] + sizes[2]


def teacher_at(kept: Kept, classes: int, tau: float, *, flat: bool) -> Floats:
    """Return the teacher at tau over all classes: the rest spread evenly, or left out."""
    weight = np.zeros((len(kept.log), classes))
    others = classes - kept.log.shape[1]
    if flat and others:
        weight[:] = np.exp((kept.rest - np.log(others)) / tau)[:, None]
    np.put_along_axis(weight, kept.classes, np.exp(kept.log / tau), 1)
    found: Floats = weight / weight.sum(1, keepdims=True)
    return found


def compare(log: Floats, student: Floats, teacher: Floats, tau: float) -> dict[str, float]:
    """Return a loss and its gradient in the student's logits, against those of all classes."""
    full = np.exp(log_softmax(log / tau))
    predicted = log_softmax(student / tau)

    def loss(of: Floats) -> float:
        terms = of * (np.log(np.maximum(of, 1e-300)) - predicted)
        return float(tau * tau * terms.sum(1).mean())

    ours, theirs = (np.exp(predicted) - one for one in (teacher, full))
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return {
        "full": loss(full),
        "loss": loss(teacher),
        "cosine": float(((ours * theirs).sum(1) / norms).mean()),
        "error": float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)),
    }


def measure(logits: Floats) -> Iterator[dict[str, Any]]:
    """Yield the figures of each k, temperature, and form."""
    log, classes = log_softmax(logits), logits.shape[1]
    noise = np.random.default_rng(5).normal(0, 1, logits.shape)
    student = 0.5 * (logits - logits.mean(1, keepdims=True)) + noise
    for k in sorted({min(one, classes) for one in KEPT}):
        kept = keep(log, k)
        for name, form in FORMS.items():
            read = Kept(
                classes=kept.classes,
                log=form.back(form.bits(kept.log)),
                rest=form.back(form.bits(kept.rest)),
            )
            ids, logs = stored_bytes(kept, form)
            for tau in TAUS:
                for flat in (True, False):
                    teacher = teacher_at(read, classes, tau, flat=flat)
                    guessed = 1 - np.take_along_axis(teacher, kept.classes, 1).sum(1)
                    yield {
                        "k": k,
                        "form": name,
                        "tau": tau,
                        "rest": "spread" if flat else "left out",
                        "bytes_classes": ids,
                        "bytes_logarithms": logs,
                        "guessed": float(guessed.mean()),
                        **compare(log, student, teacher, tau),
                    }


def print_kept(rows: list[dict[str, Any]], form: str) -> None:
    """Print one line for each k: bytes, and for each temperature loss, cosine, and error."""
    print("| k | bytes | " + " | ".join(f"tau {tau:g}" for tau in TAUS) + " |")
    print("|---|---|" + "---|" * len(TAUS))
    for k in sorted({row["k"] for row in rows}):
        mine = [row for row in rows if row["k"] == k and row["form"] == form]
        spread = [row for row in mine if row["rest"] == "spread"]
        without = [row for row in mine if row["rest"] == "left out"]
        total = spread[0]["bytes_classes"] + spread[0]["bytes_logarithms"]
        cells = [
            f"{a['loss']:.3f} ({a['full']:.3f}; {b['loss']:.3g}), {a['cosine']:.4f}, "
            f"{a['error']:.3f}, {a['guessed']:.2f}"
            for a, b in zip(spread, without, strict=True)
        ]
        print(f"| {k} | {total:.2f} | " + " | ".join(cells) + " |")


def print_forms(rows: list[dict[str, Any]]) -> None:
    """Print one line for each k: for each form bytes of the logarithms, and errors."""
    print("| k | " + " | ".join(FORMS) + " |\n|---|" + "---|" * len(FORMS))
    spread = [row for row in rows if row["rest"] == "spread"]
    for k in sorted({row["k"] for row in rows}):
        cells = []
        for form in FORMS:
            mine = [row for row in spread if row["k"] == k and row["form"] == form]
            errors = ", ".join(f"{row['error']:.4f}" for row in mine)
            cells.append(f"{mine[0]['bytes_logarithms']:.2f}: {errors}")
        print(f"| {k} | " + " | ".join(cells) + " |")


def main() -> None:
    """Measure, print tables, and write JSON if asked to."""
    config = tyro.cli(SoftBenchmark, description=SoftBenchmark.__doc__)
    set_threads()
    cases: dict[str, Callable[[], Floats]] = {
        "made-up": lambda: made_up(config, smoothed=False),
        "made-up, smoothed": lambda: made_up(config, smoothed=True),
    }
    if config.shards is not None:
        cases = {config.teacher: lambda: of_teacher(config), **cases}
    found = {}
    for case, make in cases.items():
        logits = make()
        rows = found[case] = list(measure(logits))
        print(f"\n## {case}, {logits.shape[1]} classes, {len(logits)} views\n")
        print(
            "Loss (of the full softmax; with the rest left out), cosine and relative error of its"
        )
        print("gradient, and the share of the teacher that is guessed:\n")
        print_kept(rows, STORED)
        print("\nBytes of the logarithms: relative error of the gradient at each tau:\n")
        print_forms(rows)
    errors = {
        f"soft_gradient_error_{k}_tau_{tau:g}": next(
            row["error"]
            for row in found["made-up"]
            if (row["k"], row["tau"], row["form"], row["rest"]) == (k, tau, STORED, "spread")
        )
        for k, tau in ((10, 1.0), (100, 3.0))
        if k < config.classes
    }
    context = {"machine": describe_machine(), "soft": found}
    report = Report(ratios=errors, context=context)
    report.show()
    report.write(config.json)


if __name__ == "__main__":
    main()
