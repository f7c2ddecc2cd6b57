"""What a trial of a teacher showed, and whether its labels are worth paying for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TeacherError
from pipeline.labelling.config import LabelConfig

__all__ = [
    "Cause",
    "OnViews",
    "Preflight",
    "are_too_hard",
    "in_percent",
    "is_better",
    "is_poor",
    "least_share",
    "require_agreement",
    "wilson",
]

POOR = 2 / 3  # agreement that is most likely below this is looked into
LEAST = 1 / 4  # of the way from chance to always
JUDGED_FROM = 32  # images; fewer show nothing by failing to beat chance
GAIN = 0.1  # of the images, which a cause must explain
HARD = 0.4  # of the way from chance to always, below which views say little
MUCH = 1.5  # times as many right under a cause: then the settings are wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Under which other settings a teacher agrees with more of some images, beyond chance."""

    changes: tuple[str, ...]  # each with its cure
    images: int
    correct: int  # of them, with the settings of the job
    otherwise: int  # of them, with the changes

    def __str__(self) -> str:
        return (
            f"{' and '.join(self.changes)} it agrees with {self.otherwise} of {self.images} "
            f"images, and as it is with {self.correct} of these"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OnViews:
    """How often a teacher names an image of the augmented views of a trial."""

    views: int = 0  # whose own class is known, and that of the image mixed in
    own: int = 0  # of them, where the label is the image's own class
    either: int = 0  # of them, where it is that or the class of the image mixed in
    guessed: float = 0.0  # of them, where it would be if labels were dealt out at random

    @staticmethod
    def of(label: NDArray[np.int64], own: NDArray[np.int64], partner: NDArray[np.int64]) -> OnViews:
        """Count (N,) labels of views, and the classes of their two images, -1 if not known."""
        known = (own >= 0) & (partner >= 0)
        label, own, partner = label[known], own[known], partner[known]
        if not len(label):
            return OnViews()
        named = np.bincount(label, minlength=max(label.max(), own.max(), partner.max()) + 1)
        guessed = named[own] + np.where(partner == own, 0, named[partner])
        return OnViews(
            views=len(label),
            own=int((label == own).sum()),
            either=int(((label == own) | (label == partner)).sum()),
            guessed=float(guessed.sum()) / len(label),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What a short trial of the teacher on the job's shards shows."""

    images: int  # labelled as they are, without augmentation, whose class is known
    correct: int  # of them, where the teacher agrees with the target
    rows_per_batch: int
    batch_seconds: float
    flip_rows: int  # augmented views labelled in fp32 too; 0 if that was not done
    flips: int  # of them, where fp32 gives another label
    augment_seconds: float  # of one core for a view, its share of decoding included
    warnings: tuple[str, ...]
    cause: Cause | None = None  # found where agreement is poor
    on_views: OnViews = field(default_factory=OnViews)

    @property
    def interval(self) -> tuple[float, float]:
        """The share of the job's images with which the teacher agrees, with 95 % confidence."""
        return wilson(self.correct, self.images)

    @property
    def flip_interval(self) -> tuple[float, float]:
        """The share of labels that fp32 changes among all, with 95 % confidence."""
        return wilson(self.flips, self.flip_rows)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return Wilson's interval of a share of which ``hits`` of ``count`` were seen, at 95 %.

    >>> low, high = wilson(16, 48)
    >>> round(low, 2), round(high, 2)
    (0.22, 0.47)
    """
    z, share = 1.96, hits / count
    center = share + z * z / (2 * count)
    root = z * math.sqrt(share * (1 - share) / count + (z / count / 2) ** 2)
    low, high = (
        min(1.0, max(0.0, (center + sign * root) / (1 + z * z / count))) for sign in (-1, 1)
    )
    return low, high


def is_better(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> bool:
    """Return whether ``after`` is right of more images, (N,), than chance would have it.

    A sign test over the images of which one is right and the other wrong, at 1 in 1,000, as a
    dozen settings are tried; and a tenth of the images is gained.
    """
    wins, losses = int((after & ~before).sum()), int((before & ~after).sum())
    changed = wins + losses
    tail = sum(math.comb(changed, one) for one in range(wins, changed + 1))
    return wins - losses >= GAIN * len(before) and 1000 * tail < 2**changed


def is_poor(correct: int, images: int, claimed: float | None) -> bool:
    """Return whether a teacher agrees with few images, or fewer than its file claims."""
    if not images:
        return False
    high = wilson(correct, images)[1]
    return high < POOR or (claimed is not None and high < claimed - GAIN)


def least_share(classes: int, guessing: float = 0.0) -> float:
    """Return the share of images with which a teacher agrees at least that is worth asking.

    ``guessing`` is the share of the commonest class, if it is known and above chance.

    >>> least_share(3)
    0.5
    >>> least_share(3, guessing=0.6)
    0.7
    """
    chance = max(1 / classes, guessing)
    return chance + LEAST * (1 - chance)


def are_too_hard(report: Preflight, classes: int) -> bool:
    """Return whether a teacher knows plain images, and augmented views hardly better than chance.

    With 95 % confidence, since a small job's trial is short.

    Views from which students learned little had a fifth of the way from chance to always, and
    others of the same teachers half of it or more.
    """
    seen = report.on_views
    if not report.images or seen.views < JUDGED_FROM:
        return False
    plain = _beyond(report.correct / report.images, 1 / classes)
    high = wilson(seen.either, seen.views)[1]
    return _beyond(high, seen.guessed / seen.views) < HARD <= plain


def _beyond(share: float, chance: float) -> float:
    """Return how much of the way from chance to always a share is."""
    return (share - chance) / (1 - chance) if chance < 1 else 1.0


def require_agreement(config: LabelConfig, report: Preflight, classes: int) -> None:
    """Refuse a teacher whose labels are hardly those of the shards' classes.

    That is one that beats chance on none but a few images, or not for certain; and one that with
    other settings would agree with half as many images again. Raises ``TeacherError``; says
    nothing of untrained weights, or where no class is known.
    """
    if not report.images or config.teacher_random_weights is not None or config.allow_low_agreement:
        return
    (low, high), chance, cause = report.interval, 1 / classes, report.cause
    # Of 32 images or more a fitting teacher beats chance by far; fewer may not show it.
    by_chance = low <= chance and report.images >= JUDGED_FROM
    unfit = by_chance or high < least_share(classes)
    if not unfit and (cause is None or cause.otherwise < MUCH * cause.correct):
        return
    likely = (
        "are the shards' classes in the teacher's order, and `mean`, `std` and `image_size` the "
        "teacher's?"
        if cause is None
        else f"{cause}."
    )
    raise TeacherError(
        f"the teacher does not fit: it agrees with the targets of {report.correct} of "
        f"{report.images} images ({in_percent(low)} to {in_percent(high)} of all, with 95 % "
        f"confidence; chance is {in_percent(chance)}): {likely} "
        "`allow_low_agreement` goes on all the same"
    )


def in_percent(share: float) -> str:
    """Return a share in whole percent, or tenths below one."""
    return f"{share:.1%}" if 0 < share < 0.01 else f"{share:.0%}"
