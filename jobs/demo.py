"""The command ``teacher-labels demo``: the whole way on images that it draws, in two minutes."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cli.console import (
    duration,
    flags_of,
    parse_flags,
    running,
    say,
    tell,
    tell_next,
    tell_page,
    unused,
    within_another,
    words_given,
)
from pipeline.errors import ConfigError, PipelineError

__all__ = ["DemoFlags", "main"]

SIDE, VIEWS = 48, 16  # pixels; views of each image, and epochs of the student
_IMAGES, _EPOCHS = (240, 60), 10  # of a class, to train and to validate; of the teacher
_TEACHER = "test_resnet"
# Drawings of four shapes are learned from mild views; the defaults are DeiT's, for ImageNet.
_LABEL = f"--preset crop-flip --crop-scale 0.5 1 --image-size {SIDE} --precision fp32 --serial"
_STUDENT = "--model test_resnet --distillation-kind classical --batch-size 32 --lr 3e-3 --workers 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFlags:
    """Go the whole way in two minutes: images, shards, a teacher, its labels, a student, reports.

    Needs no images, no teacher, no network and no GPU, and stays in one directory.
    """

    out: Path = Path("teacher-labels-demo")
    """Directory for all of it, at which there is nothing."""


def main(arguments: Sequence[str] | None = None, program: str = "demo") -> None:
    """Run ``teacher-labels demo``."""
    arguments = words_given(arguments)
    with running(program, flags_of(DemoFlags), arguments=arguments):
        flags: DemoFlags = parse_flags(DemoFlags, program, arguments)
        out = flags.out
        if out.exists():
            raise ConfigError(f"`out` {out} is there already; give another path, or delete it")
        started = time.monotonic()
        with within_another():
            _make_images(out)
            _make_labels(out)
            _train(out)
        _step(f"The whole way took {duration(time.monotonic() - started)}.")
        tell_page(out / "report.html")
        tell_page(out / "student" / "report.html")
        tell("with images of your own, a directory of them for each class:")
        pack = ("--images", str(out / "images" / "train"), "--out", unused("shards"))
        tell_next("teacher-labels", "pack", *pack)


def _make_images(out: Path) -> None:
    _step("1. Images: drawings of four shapes, with a directory for each class, as yours have.")
    from jobs.shapes import write_shapes

    write_shapes(out / "images", *_IMAGES)
    say(f"   {4 * sum(_IMAGES):,} images are in {out / 'images'}")


def _make_labels(out: Path) -> None:
    """Pack, train a teacher, label, prove, and write the store's report."""
    from pipeline.cli.commands import label_store, pack_shards

    _step("2. Shards: the images are shuffled into tar files, which training reads in order.")
    train, val = str(out / "shards" / "train"), str(out / "shards" / "val")
    images = out / "images"
    _run(pack_shards, "pack", "--images", str(images / "train"), "--out", train)
    classes = ("--classes", train)
    _run(pack_shards, "pack", "--images", str(images / "val"), "--out", val, *classes)

    _step("3. A teacher: you have one, most likely. This small network learns the four shapes.")
    from jobs.small_teacher import TeacherTraining, train_teacher

    weights = out / "teacher.safetensors"
    trained = train_teacher(
        TeacherTraining(
            shards=(train,),
            val_shards=(val,),
            out=weights,
            model=_TEACHER,
            image_size=SIDE,
            hflip=0.5,
            epochs=_EPOCHS,
            batch_size=32,
            lr=3e-3,
        )
    )
    say(
        f"   it is right on {trained.share:.1%} of the validation images; its weights are {weights}"
    )

    _step(
        f"4. Labels: the teacher says what it sees on {VIEWS} augmented and mixed views of each "
        "image, once for all students."
    )
    from jobs.label_teacher import main as label

    store = str(out / "labels.parquet")
    teacher = ("--teacher", _TEACHER, "--teacher-checkpoint", str(weights))
    views = ("--views", str(VIEWS), *shlex.split(_LABEL))
    _run(label, "label", "--shards", train, "--out", store, *teacher, *views)

    _step("5. Proof: views are redrawn from the shards, and each has the digest that was stored.")
    _run(label_store, "store", "verify", store, "--shards", train, "--all")

    _step("6. A look: a page about the labels, with pictures of what the teacher got wrong.")
    page = ("--shards", train, "--out", str(out / "report.html"))
    _run(label_store, "store", "report", store, *page)


def _train(out: Path) -> None:
    """Train a student from the store, and compare the store with the teacher in the loop."""
    from student.checkpoint import LAST, open_checkpoint
    from student.cli import main as train

    store, shards = str(out / "labels.parquet"), str(out / "shards" / "train")
    common = ("--labels", store, "--shards", shards, *shlex.split(_STUDENT))
    val = ("--val-shards", str(out / "shards" / "val"))

    _step(
        f"7. A student: it replays the views for {VIEWS} epochs and learns from the labels. The "
        "teacher is not needed any more."
    )
    run = (*common, *val, "--epochs", str(VIEWS), "--output", str(out / "student"))
    _run(train, "train", *run)

    _step(
        "8. The same again, for one epoch: once from the store, and once with the teacher in the "
        "loop. Both must end with the same weights, bit for bit."
    )
    one = (*common, "--epochs", "1", "--report-images", "0", "--threads", "1")
    loop = ("--teacher-in-loop", "--teacher-checkpoint", str(out / "teacher.safetensors"))
    _run(train, "train", *one, "--output", str(out / "with-store"))
    _run(train, "train", *one, "--output", str(out / "in-loop"), *loop)
    from pipeline.labelling.weights import state_digest

    digests = [
        state_digest(open_checkpoint(out / name / LAST).model) for name in ("with-store", "in-loop")
    ]
    if digests[0] != digests[1]:
        raise PipelineError(
            f"{out}: the store and the teacher in the loop gave different students; that is a fault"
        )
    say(f"   both have sha256 {digests[0]}")


def _step(text: str) -> None:
    say("")
    say(text)


def _run(command: Callable[[Sequence[str], str], None], name: str, *words: str) -> None:
    """Show a command, run it, and say how long it took; raises ``SystemExit`` if it fails."""
    say(f"   $ {shlex.join(['teacher-labels', name, *words])}")
    started = time.monotonic()
    try:
        command(words, f"teacher-labels {name}")
    except SystemExit as end:
        if end.code:
            raise
    say(f"   done in {duration(time.monotonic() - started)}")


if __name__ == "__main__":
    main()
