"""What a teacher's process does: load the teacher, try it out, label and commit parts."""

from __future__ import annotations

import dataclasses
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.classes import ClassNames, agreed_names
from pipeline.errors import IncompleteStoreError, ShardError, TeacherError
from pipeline.identity import TeacherIdentity
from pipeline.labelling.agreement import OnViews, Preflight, is_poor
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.devices import choose_device, set_threads
from pipeline.labelling.job import (
    IndexedShards,
    PartOrder,
    require_fingerprints,
)
from pipeline.labelling.part import GroupTask, PartBuilder, file_of, group_tasks, run_task
from pipeline.labelling.teacher import Teacher, load_teacher
from pipeline.labelling.trial import EVERY, Label, Trial
from pipeline.records import AugmentedGroup, PartKey, TeacherLabels
from pipeline.shards.index import ShardContents, open_known_shard
from pipeline.store import Committed, check_store, commit_part, read_entries
from pipeline.views.floats import float_fingerprints
from pipeline.views.rng import stream

__all__ = ["TeacherWorker"]

TRIAL_VIEWS = 2400
"""Views that a trial labels in fp32 too: of 1 %, it tells about 0.4 % more or less."""

FEWEST_VIEWS = 240
"""Views that a trial labels of a small job, if that is no more than a tenth of it."""

TIMED_GROUPS = 5  # where labels are not compared


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _TriedViews:
    """What some augmented views of a job showed."""

    compared: int  # that were labelled in fp32 too
    flips: int  # of them, those that differ
    seconds: float  # of a core for a view where an image is decoded once for a block of views
    on_views: OnViews


class TeacherWorker:
    """A loaded teacher. Several threads may label parts."""

    def __init__(self, config: LabelConfig, threads: int | None = None) -> None:
        set_threads(threads)
        self._config = config
        self._device = choose_device(config.device)
        self._teacher = self._load(config)
        self._busy_before = 0.0  # the job

    @property
    def identity(self) -> TeacherIdentity:
        """What makes this teacher the same as another."""
        return self._teacher.identity

    @cached_property
    def fingerprints(self) -> Mapping[str, int]:
        """What normalizing and mixing give on this teacher's device."""
        config = self._config
        return float_fingerprints(config.augment, config.effective_mixing, self._device)

    @property
    def software(self) -> Mapping[str, str]:
        """The versions, by name, of what the teacher's function is made of beside its weights."""
        return {"timm": str(timm.__version__), "torch": str(torch.__version__)}

    @property
    def busy_seconds(self) -> float:
        """How long the teacher's device was at work for the job."""
        return self._teacher.busy_seconds - self._busy_before

    def label_part(
        self,
        order: PartOrder,
        groups: Iterable[AugmentedGroup],
        contents: Callable[[], ShardContents] | None = None,
    ) -> Committed:
        """Label the groups of one part and commit it.

        ``contents`` gives what another process has read of the shard since this was called; without
        it, it is read here. Raises ``ShardError`` if images change meanwhile.
        """
        if order.identity.teacher != self.identity:
            raise TeacherError(
                f"this process loaded the teacher {self.identity}, the job's is "
                f"{order.identity.teacher}; give all processes the same checkpoint"
            )
        _require_software(self.software, order.software)
        require_fingerprints(order.out, order.identity, self.fingerprints, order.fingerprints)
        if check_store(order.out, order.identity) is None:  # on a node that joined later
            raise IncompleteStoreError(
                f"{order.out}: the store that this job began is not seen on {platform.node()}; use "
                "a path of a file system that all nodes share, or object storage"
            )
        there = read_entries(
            order.out, [order.part], order.identity.digest, {order.part.shard: order.shard}
        )
        if there:  # another job was faster
            return there[0]
        file, contents = file_of(order.path), contents or _read_now(order)
        builder = PartBuilder(order.shard, order.part, order.identity)
        for group, labels in self.label_groups(groups):
            builder.add(group, labels)
        read = contents()
        if file_of(order.path) != file:
            _require_same_images(order, read)
        return commit_part(order.out, builder.finish(read))

    def label_groups(
        self, groups: Iterable[AugmentedGroup]
    ) -> Iterator[tuple[AugmentedGroup, TeacherLabels]]:
        """Yield groups with their labels."""
        return self._teacher.label_groups(groups)

    def preflight(
        self, shards: IndexedShards, run: Callable[[GroupTask], AugmentedGroup] = run_task
    ) -> Preflight:
        """Label some images as they are, and some views in fp32 too.

        ``run`` decodes and augments; an image may end the process that does. Raises
        ``ClassesError`` if a teacher that train-student made has other names of classes.
        """
        checkpoint = f"`teacher_checkpoint` {self._config.teacher_checkpoint}"
        agreed_names(ClassNames.of(self._teacher.class_names, checkpoint), shards.classes)
        batch = self._config.effective_mixing.group_size * self.identity.batch_views
        trial = Trial(self._config, shards, run, self._teacher.described, self._label_at)
        images = trial.images(batch)
        labels = trial.labels(images)
        assert labels is not None, "a teacher takes images of the size that it was built for"
        known = images.targets >= 0
        correct, count = int((labels == images.targets)[known].sum()), int(known.sum())
        looked_into = self._config.teacher_random_weights is None and is_poor(
            correct, count, self._teacher.described.accuracy
        )
        tried = self._try_views(shards, run)
        seconds = self._seconds_per_batch(batch)
        self._busy_before = self._teacher.busy_seconds
        return Preflight(
            images=count,
            correct=correct,
            rows_per_batch=batch,
            batch_seconds=seconds,
            flip_rows=tried.compared,
            flips=tried.flips,
            augment_seconds=tried.seconds,
            warnings=(*shards.warnings, *self._warnings(shards)),
            cause=trial.cause() if looked_into else None,
            on_views=tried.on_views,
        )

    def _seconds_per_batch(self, batch: int) -> float:
        """Return how long the teacher takes for a batch, once it is warm."""
        size = self._config.augment.image_size
        images = torch.rand(batch, 3, size, size, device=self._device)
        started = time.perf_counter()
        self._label(self._teacher, images)
        return time.perf_counter() - started

    def _label_at(self, size: int) -> Label | None:
        """Return what labels images of this size, None if the teacher takes no such ones."""
        teacher = self._teacher
        if size != self._config.augment.image_size and teacher.fixed_size:
            if size != teacher.described.size:
                return None  # one could be built for any size, and each takes memory
            views = dataclasses.replace(self._config.augment, image_size=size)
            try:
                teacher = self._load(dataclasses.replace(self._config, augment=views))
            except TeacherError:  # its weights are for another size
                return None
        return lambda images: self._label(teacher, images)

    def _label(self, teacher: Teacher, images: Tensor) -> NDArray[np.uint16]:
        return teacher.label_images(images.to(self._device)).label

    def _load(self, config: LabelConfig) -> Teacher:
        return load_teacher(
            config.teacher_spec(), config.augment, config.effective_mixing, self._device
        )

    def _try_views(
        self, shards: IndexedShards, run: Callable[[GroupTask], AugmentedGroup]
    ) -> _TriedViews:
        """Make some groups of views and label them, in fp32 as well if that may show something."""
        config, exact = self._config, None
        trained = config.teacher_random_weights is None
        if config.precision != "fp32" and trained:
            exact = self._load(dataclasses.replace(config, precision="fp32"))
        decoded_for = min(config.views, config.effective_mixing.block_views)
        compared = flips = 0
        seconds: list[float] = []
        named: list[NDArray[np.int64]] = []  # (3, N): labels, classes, those of who is mixed in
        for task in self._trial_tasks(shards):
            group = run(task)
            seconds.append(_seconds_of_view(group, decoded_for))
            valid = group.valid.reshape(-1)
            if trained:
                ours = self._teacher.label_group(group).label
                named.append(np.stack([ours, *_classes_of(task, group)])[:, valid])
            if exact is not None:
                theirs = exact.label_group(group).label
                compared += int(valid.sum())
                flips += int((ours != theirs)[valid].sum())
            elif len(seconds) == TIMED_GROUPS:
                break
        return _TriedViews(
            compared=compared,
            flips=flips,
            seconds=statistics.median(seconds),
            on_views=OnViews.of(*np.concatenate(named, axis=1)) if named else OnViews(),
        )

    def _trial_tasks(self, shards: IndexedShards) -> Iterator[GroupTask]:
        """Yield groups drawn from all over the job, each for one teacher batch.

        ``TRIAL_VIEWS`` in all, in a small job one view in ``EVERY`` or ``FEWEST_VIEWS``, and one
        batch at least.
        """
        config, step = self._config, self.identity.batch_views
        identity = config.identity(self.identity)
        views = range(config.first_view, config.first_view + config.views)
        job = shards.samples * len(views)
        most = min(TRIAL_VIEWS, max(job // EVERY, min(job // 10, FEWEST_VIEWS)))
        for number in range(max(1, most // (config.effective_mixing.group_size * step))):
            words = stream("trial", config.seed, number)
            shard = words.integer(len(shards.paths))
            start = views[words.integer(len(views))] // step * step  # where a batch is cut
            first, end = max(start, views.start), min(start + step, views.stop)
            part = PartKey(shard=shard, first_view=first, views=end - first)
            tasks = [*group_tasks(shards.paths[shard], shards.infos[shard], part, identity)]
            yield tasks[words.integer(len(tasks))]

    def _warnings(self, shards: IndexedShards) -> Iterator[str]:
        config, augment = self._config, self._config.augment
        names, classes = shards.classes, self.identity.classes
        if names is not None and len(names.names) != classes:
            yield (
                f"the teacher tells {classes} classes apart, and the shards name "
                f"{len(names.names)}: a student of its labels has {classes} outputs too"
            )
        other = self._teacher.other_weights
        if other is not None:
            yield (
                f"{config.teacher_checkpoint} holds raw and averaged weights, and the "
                f"{'raw' if other == 'ema' else 'averaged'} ones label; `teacher_weights` {other} "
                "takes the others"
            )
        described, mine = self._teacher.described, (*augment.mean, *augment.std)
        mean, std = described.mean or augment.mean, described.std or augment.std
        if not np.allclose((*mean, *std), mine, atol=1e-3):
            yield (
                f"{described.source} expects mean {mean} and std {std}, the views have "
                f"{augment.mean} and {augment.std}: see `mean` and `std`"
            )
        if described.size and not 0.5 <= augment.image_size / described.size <= 2:
            yield (
                f"{described.source} expects {described.size} px, the views have "
                f"{augment.image_size}: see `image_size`"
            )


def _classes_of(task: GroupTask, group: AugmentedGroup) -> tuple[NDArray[np.int64], ...]:
    """Return the classes of P * V views' own images, and of those mixed in; -1 is not known."""
    samples = open_known_shard(task.path, task.shard).samples
    places, views = group.valid.shape
    target = np.full(places, -1, np.int64)
    target[: len(task.members)] = [samples[index].target for index in task.members]
    own = target.repeat(views)
    return own, own[group.mix.partner]


def _require_software(ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    """Raise ``TeacherError`` where a teacher's code is of another release than the job's first's.

    Its weights say nothing of that, and labels on near ties would be of two teachers.
    """
    different = [
        f"{name} {ours.get(name)}, not {one}"
        for name, one in theirs.items()
        if ours.get(name) != one
    ]
    if different:
        raise TeacherError(
            f"{platform.node()} has {', '.join(different)} as where the job's first teacher is, "
            "so its labels would be another's; install the same versions on all nodes, or take it "
            "out of the cluster"
        )


def _read_now(order: PartOrder) -> Callable[[], ShardContents]:
    """Return what gives the contents that a part's shard has now."""
    read = order.contents()
    return lambda: read


def _require_same_images(order: PartOrder, read: ShardContents) -> None:
    """Raise ``ShardError`` if a shard's images are not those that were read of it before."""
    if order.contents().image_hash != read.image_hash:
        raise ShardError(
            f"{order.path}: its images changed while {order.part.path} was labelled, so some of "
            "its labels are of others; see who writes to it, and run the same command again"
        )


def _seconds_of_view(group: AugmentedGroup, decoded_for: int) -> float:
    """Return what a view of a group takes where images are decoded for so many views at once."""
    images, views = len(group.members), group.valid.shape[1]
    seconds: float = group.decode_seconds / decoded_for + group.augment_seconds / views
    return seconds / images
