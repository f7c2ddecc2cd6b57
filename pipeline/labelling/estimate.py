"""What a label job will take, from what a short trial measured."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.labelling.agreement import Preflight

__all__ = ["Capacity", "Estimate", "estimate_job"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Who labels."""

    teachers: int
    cores: int  # that augment
    shared: bool  # the teachers run on these cores too


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job will take; whatever reads shards and writes parts is left out."""

    labels: int
    teacher_views_per_second: float  # of one teacher
    core_views_per_second: float  # augmented by one core
    views_per_second: float  # of the whole job
    hours: float
    teacher_hours: float  # of all teachers together
    bytes: float
    cost: float | None  # in the currency of the price
    break_even: float  # students that cost as much with their teacher in the loop

    @property
    def cores_wanted(self) -> float:
        """Cores for each teacher that does not wait for augmentation."""
        return self.teacher_views_per_second / self.core_views_per_second


def estimate_job(
    labels: int,
    trial: Preflight,
    capacity: Capacity,
    bytes_per_label: float,
    hour_price: float | None = None,
) -> Estimate:
    """Return what ``labels`` will take at the speeds of a trial.

    ``hour_price`` is what an hour of one teacher's device costs. A student of as many views with
    its teacher in the loop is taken to cost the teacher's time alone: it augments either way.
    """
    teacher = trial.batch_seconds / trial.rows_per_batch  # seconds for a view
    core = trial.augment_seconds
    if capacity.shared:
        seconds = teacher / capacity.teachers + core / capacity.cores
    else:
        seconds = max(teacher / capacity.teachers, core / capacity.cores)
    hours = labels * seconds / 3600
    return Estimate(
        labels=labels,
        teacher_views_per_second=1 / teacher,
        core_views_per_second=1 / core,
        views_per_second=1 / seconds,
        hours=hours,
        teacher_hours=hours * capacity.teachers,
        bytes=labels * bytes_per_label,
        cost=None if hour_price is None else hours * capacity.teachers * hour_price,
        break_even=seconds * capacity.teachers / teacher,
    )
