"""Runs a label job from its settings to its manifest, on whichever teachers it is given."""

from __future__ import annotations

import contextlib
import dataclasses
import os

from jobs.draining import Drain, Stopped
from jobs.metrics import Metrics, check_path, measuring
from pipeline.cli.console import Progress as Shown
from pipeline.cli.console import (
    counted,
    duration,
    note,
    say,
    tell_error,
)
from pipeline.cli.following import tell_after_labelling
from pipeline.errors import REJECTION_WORDS, TryAgainError, require_package
from pipeline.labelling.agreement import (
    Preflight,
    are_too_hard,
    in_percent,
    require_agreement,
)
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.estimate import Capacity, estimate_job
from pipeline.labelling.job import (
    IndexedShards,
    JobPlan,
    Progress,
    begin_job,
    check_begun,
    check_identity,
    find_shards,
    finish_job,
    index_shards,
    plan_job,
    receipts_of,
    require_same_views,
    write_run,
)
from pipeline.store import (
    JobProgress,
    Manifest,
    at_work,
    bytes_per_label,
    check_out,
    parts_root,
)

__all__ = [
    "EXIT_AGAIN",
    "EXIT_DRAINED",
    "complete_store",
    "run_label_job",
]

EXIT_DRAINED = 143  # as of a process ended by SIGTERM
EXIT_AGAIN = 75  # EX_TEMPFAIL: machines failed or had no room, the same command may do better


def run_label_job(config: LabelConfig) -> int:
    """Run a label job to its end and return the exit status.

    It is 0, 143 after SIGTERM, or 75 if machines failed and the same command may do better.
    Raises ``PipelineError`` for whatever the user can cure; parts that are committed stay.
    """
    drain = Drain(config.drain_seconds)
    try:
        with drain.listening():
            return _run(config.with_absolute_paths(), drain)  # others are in other directories
    except Stopped:
        say("stopped by SIGTERM; run the same command again, it will do the rest")
        return EXIT_DRAINED
    except TryAgainError as error:
        tell_error(error)
        return EXIT_AGAIN


def complete_store(config: LabelConfig) -> None:
    """Run a label job to its end, from Python: takes no signal, and raises what goes wrong."""
    _run(config.with_absolute_paths(), Drain(config.drain_seconds))


def _run(config: LabelConfig, drain: Drain) -> int:
    # What is cheap to find out comes first: flags, names, the store, Ray, the teacher, shards.
    check_out(config.out)
    config.check_teacher()
    check_path(config.metrics_file)
    paths = find_shards(config.shards, config.cache)
    check_begun(config, len(paths))
    if config.serial or os.environ.get("RAY_ADDRESS", "") in ("", "local"):
        config.check_fetched()  # else other machines fetch the teacher, which may have a network
    if config.serial:
        from jobs.serial import SerialTeacher as Teachers
    else:
        require_package("ray", "jobs", "a label job without `serial`")
        from jobs.cluster import Cluster as Teachers  # type: ignore[assignment]
    starting = "loading the teacher" if config.serial else "starting Ray and loading the teacher"
    with contextlib.ExitStack() as open_now:
        with Shown("teachers", starting):  # what takes longest; named where it takes long
            teachers = open_now.enter_context(contextlib.closing(Teachers(config, drain)))
            teachers.check_paths(paths)
            teacher = teachers.describe()
        check_identity(config, teacher.identity)
        shards = index_shards(paths, config.cache, config.classes, teachers.summarize)
        found = counted(len(shards.paths), "shard"), counted(shards.samples, "sample")
        say(f"{', '.join(found)}{named(shards)}")
        plan = plan_job(config, shards, teacher.identity, teacher.fingerprints, teacher.software)
        describe_plan(plan)
        preflight = None
        if plan.missing:
            describe_redrawn(require_same_views(plan))
            preflight = teachers.preflight(shards)
            describe_preflight(plan, preflight)
            require_agreement(config, preflight, plan.identity.teacher.classes)
            if preflight.cause is not None:
                note(f"warning: {preflight.cause}")
        if config.estimate:
            if preflight is not None:
                describe_estimate(plan, preflight, teachers.capacity())
            return 0
        begin_job(plan)
        progress = Progress(plan)
        root = parts_root(config.out)
        # Nothing is written beside a finished Zarr store, or that would seem unfinished.
        begun = word_of(plan, progress)
        expected, shown = begun.labels_to_do, Shown("labels")
        metrics = Metrics(
            lambda: (progress.parts, progress.labels, progress.rejected),
            len(plan.missing),
            teachers.flow,
            teachers.export,
            config.metrics_file,
            lambda labels: shown.show(min(labels, expected), expected),
        )
        with at_work(root, begun) if plan.missing else contextlib.nullcontext() as me:
            order = plan
            for other in me.others if me is not None else ():
                order = dataclasses.replace(plan, missing=plan.missing[::-1])
                note(f"{other} adds to {config.out} too; this job begins at the other end")
            with (
                shown,
                measuring(metrics),
                drain.labelling(),
                contextlib.closing(receipts_of(plan)) as receipts,
                contextlib.closing(teachers.label(order)) as committed,
            ):
                for one in committed:
                    progress.add(one)
                    receipts.add(one)
                    if me is not None:
                        me.tell(word_now(begun, progress))
        return _end(plan, progress, preflight, metrics)


def word_of(plan: JobPlan, progress: Progress) -> JobProgress:
    """Return what others may read of a job while it runs."""
    return JobProgress(
        samples=plan.shards.samples,
        rejected=progress.rejected,
        parts=len(plan.parts),
        parts_to_do=len(plan.missing),
        labels_to_do=plan.missing_labels,
        parts_done=progress.parts,
        labels_done=progress.labels,
        seconds=progress.seconds,
    )


def word_now(begun: JobProgress, progress: Progress) -> JobProgress:
    """Return the word about a job that has gone on."""
    return dataclasses.replace(
        begun,
        rejected=progress.rejected,
        parts_done=progress.parts,
        labels_done=progress.labels,
        seconds=progress.seconds,
    )


def _end(plan: JobPlan, progress: Progress, preflight: Preflight | None, metrics: Metrics) -> int:
    """Write the manifest over a whole store, and in any case how the run went."""
    run = {
        "labels": progress.labels,
        "seconds": round(progress.seconds, 3),
        "labels_per_second": round(progress.labels_per_second, 3),
        "parts": {"kept": len(plan.done), "missing": len(plan.missing), "done": progress.parts},
        **metrics.summary(),
        "teacher_versions": dict(plan.software),
        "preflight": None if preflight is None else dataclasses.asdict(preflight),
    }
    if progress.parts < len(plan.missing):
        write_run(plan, run)
        say(
            f"stopped by SIGTERM with {progress.parts} of {len(plan.missing)} parts done; run "
            "the same command again, it will do the rest"
        )
        return EXIT_DRAINED
    describe_store(finish_job(plan, run), plan, progress)
    return 0


def named(shards: IndexedShards) -> str:
    """Return in words what the classes are called."""
    if shards.classes is None:
        return "; their classes have no names: there is no classes.json beside them"
    return f", {len(shards.classes.names)} classes, named by {shards.classes.source}"


def describe_plan(plan: JobPlan) -> None:
    """Say what there is to do."""
    missing = plan.missing_labels
    say(
        f"{plan.config.out}: {len(plan.done)} of {len(plan.done) + len(plan.missing)} parts are "
        f"there already, {len(plan.missing)} are to do ({missing} labels)"
    )


def describe_redrawn(views: int) -> None:
    """Say that what is there already was redrawn, if something is."""
    if views:
        say(f"{views} views that are there were redrawn, and have the digests that are stored")


def describe_preflight(plan: JobPlan, report: Preflight) -> None:
    """Say what the trial showed, and what the job will cost and save."""
    for warning in report.warnings:
        note(f"warning: {warning}")
    say(
        f"teacher {plan.identity.teacher.architecture} ({plan.identity.teacher.precision}): "
        f"{agreement_of(report)}; {report.rows_per_batch} views take {report.batch_seconds:.3f} s"
    )
    describe_views(plan, report)
    if report.flip_rows:
        low, high = report.flip_interval
        say(
            f"in fp32 {report.flips} of {report.flip_rows} labels of augmented views differ "
            f"({report.flips / report.flip_rows:.2%}; of all, with 95 % confidence, {low:.2%} to "
            f"{high:.2%})"
        )
    elif plan.identity.teacher.precision != "fp32":
        say("how many labels differ in fp32 was not measured: the weights are untrained")
    if plan.config.estimate:
        return  # more is said of it later
    labels = plan.missing_labels
    hours = labels / report.rows_per_batch * report.batch_seconds / 3600
    per_label = bytes_per_label(plan.identity)
    say(
        f"estimate: {duration(3600 * hours)} of one teacher, {size(labels * per_label)}; each "
        "student with its teacher in the loop takes that time too, so a second one is a gain"
    )


def describe_views(plan: JobPlan, report: Preflight) -> None:
    """Say what the teacher names on augmented views, and what to do if that is little."""
    seen, config = report.on_views, plan.config
    if not seen.views or config.augment.crop == "center":
        return
    own, either, guessed = (
        f"{share / seen.views:.0%}" for share in (seen.own, seen.either, seen.guessed)
    )
    is_mixed = config.effective_mixing.probability > 0
    say(
        f"on {seen.views} augmented views it names the image's own class in {own}"
        + f", one of the two mixed images in {either}" * is_mixed
        + f" (by chance {guessed})"
    )
    if not are_too_hard(report, plan.identity.teacher.classes):
        return
    if config.augment.policy == "none":
        cure = "a larger `crop_scale`, or views that are not mixed"
    else:
        cure = "`preset` crop-flip and `crop_scale` 0.5 1"
    note(
        "warning: the teacher knows plain images, and these views are too hard for it: most of "
        f"their labels teach nothing. Milder views suit small teachers and small images: {cure}"
    )


def describe_estimate(plan: JobPlan, report: Preflight, capacity: Capacity) -> None:
    """Say what the job would take with whoever labels now."""
    labels = plan.missing_labels
    price = plan.config.hour_price
    found = estimate_job(labels, report, capacity, bytes_per_label(plan.identity), price)
    say(
        f"measured: a teacher labels {found.teacher_views_per_second:.1f} views/s, a core augments "
        f"{found.core_views_per_second:.1f}; with {counted(capacity.teachers, 'teacher')} and "
        f"{counted(capacity.cores, 'core')} {found.views_per_second:.1f} views/s"
    )
    if not capacity.shared and capacity.cores < capacity.teachers * found.cores_wanted:
        say(f"teachers will wait for augmentation: each could use {found.cores_wanted:.0f} cores")
    cost = "" if found.cost is None else f", which cost {found.cost:.2f}"
    say(
        f"the job: {duration(3600 * found.hours)}, {found.teacher_hours:.2f} hours of teachers"
        f"{cost}; {size(found.bytes)} in the store"
    )
    say(
        f"break-even: {found.break_even:.2f} students of {plan.config.views} epochs with their "
        f"teacher in the loop; number {int(found.break_even) + 1} is the first gain"
    )


def agreement_of(report: Preflight) -> str:
    """Return in words how well the teacher agrees with the shards' classes."""
    if not report.images:
        return "the shards name no classes, so nothing could be compared with its labels"
    low, high = report.interval
    return (
        f"agrees with the targets of {report.correct} of {report.images} plain images "
        f"({in_percent(low)} to {in_percent(high)} of all, with 95 % confidence)"
    )


def describe_store(manifest: Manifest, plan: JobPlan, progress: Progress) -> None:
    """Say what the finished store holds; the counts add up."""
    views = manifest.view_range
    say(
        f"read {manifest.counts.in_words}; "
        f"{progress.labels} new labels in {duration(progress.seconds)} "
        f"({progress.labels_per_second:.1f} labels/s)"
    )
    for rejections in manifest.rejections.values():
        for rejection in rejections:
            say(f"rejected: {rejection.key}: {REJECTION_WORDS[rejection.reason]}")
    per_label = manifest.bytes / max(1, manifest.rows)
    say(
        f"{plan.config.out}: {manifest.rows} labels, views {views.start}..{views.stop - 1}, "
        f"{counted(len(manifest.parts), 'part')}, {per_label:.3f} bytes per label"
    )
    tell_after_labelling(plan.config.out, manifest, plan.config.shards)


def size(count: float) -> str:
    """Return bytes in words: 640 kB, 2.5 MB, 300 GB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.0f} kB"
