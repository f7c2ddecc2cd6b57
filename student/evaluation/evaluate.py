"""Accuracies and losses of students on validation shards, for all ways to use their heads."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.telling import told
from pipeline.views.mixing import normalize, to_device
from student.distributed import Ranks
from student.evaluation.validation import NO_LABEL, ValidationDataset
from student.loading import LoaderOptions, load
from student.model import heads_of, two_headed

__all__ = ["FUSIONS", "Accuracy", "Evaluation", "TeacherComparison", "evaluate", "evaluate_all"]

FUSIONS = ("class_head", "distillation_head", "mean_of_logits", "sum_of_softmaxes")
"""What a prediction may be taken from; DeiT reports the sum of softmaxes."""

_ROWS_PER_CLASS = 10  # fewer tell nothing about the order of classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Shares of samples whose class is the first, or among the first five."""

    top1: float
    top5: float | None  # None of five classes or fewer, among which it always is
    loss: float  # mean cross-entropy against the class, not smoothed


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherComparison:
    """The teacher beside the student, on the samples that it labelled."""

    samples: int
    accuracy: float  # of the teacher
    agreement: Mapping[str, float]  # by fusion: share that the student labels alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The accuracy of each way to fuse two heads; of a single head that of the class head."""

    samples: int
    class_head: Accuracy
    distillation_head: Accuracy | None
    mean_of_logits: Accuracy | None
    sum_of_softmaxes: Accuracy | None
    teacher: TeacherComparison | None
    permuted_top1: float  # if each class were called what it mostly is; 0 if most are not there
    images_per_second: float  # with decoding, of all students evaluated together

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def of(self, fusion: str) -> Accuracy:
        """Return the accuracy of a fusion, that of the class head for one head."""
        accuracy: Accuracy | None = getattr(self, fusion)
        return accuracy or self.class_head

    def classes_look_permuted(self, classes: int) -> bool:
        """Return whether the student tells classes apart but calls them otherwise."""
        enough = self.samples >= _ROWS_PER_CLASS * classes
        top1 = max(self.of(name).top1 for name in FUSIONS)
        return enough and self.permuted_top1 > 0.3 and top1 < self.permuted_top1 / 3


def evaluate(
    model: nn.Module,
    dataset: ValidationDataset,
    options: LoaderOptions,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Evaluation:
    """Return the student's accuracies; its training mode is left as it was."""
    return evaluate_all({"": model}, dataset, options, precision)[""]


def evaluate_all(
    models: Mapping[str, nn.Module],
    dataset: ValidationDataset,
    options: LoaderOptions,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> dict[str, Evaluation]:
    """Return the accuracies of several students, of which each sees every view once.

    ``precision`` gives the context in which they run; scores are float32. Ranks share the batches,
    and all return what one rank would: each batch is the same, and so are the students.
    """
    device = next(next(iter(models.values())).parameters()).device
    tallies = {name: _Tally(device) for name in models}
    views, started = dataset.views, time.perf_counter()
    for model in models.values():
        ranks.share_buffers(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for model in models.values():
            stack.enter_context(two_headed(model))
        mine = range(ranks.rank, len(dataset), ranks.ranks)
        for batch in told(
            load(dataset, mine, options, dataset.item_bytes), "evaluating", "batches", len(mine)
        ):
            images = normalize(to_device(batch.pixels, device), views.mean, views.std)
            target, teacher = to_device(batch.target, device), to_device(batch.teacher, device)
            for name, model in models.items():
                with precision():
                    output = model(images)
                tallies[name].add(fuse(output), target, teacher)
        for name, tally in tallies.items():
            tallies[name] = _Tally.of_ranks(ranks.gather(tally.on_cpu()))
    seconds = max(time.perf_counter() - started, 1e-9)
    return {name: tally.result(tally.samples / seconds) for name, tally in tallies.items()}


def fuse(output: Any) -> Mapping[str, Tensor]:
    """Return the float32 scores, (N, C), of each of ``FUSIONS`` that a model's output allows."""
    heads = [one.float() for one in heads_of(output)]
    if len(heads) == 1:
        return {"class_head": heads[0]}
    class_logits, distillation_logits = heads
    return {
        "class_head": class_logits,
        "distillation_head": distillation_logits,
        "mean_of_logits": (class_logits + distillation_logits) / 2,
        "sum_of_softmaxes": class_logits.softmax(-1) + distillation_logits.softmax(-1),
    }


def _cross_entropy(fusion: str, scores: Tensor, target: Tensor) -> Tensor:
    """Return the sum of the losses of (N, C) scores, in float64."""
    if fusion == "sum_of_softmaxes":
        log = (scores / 2).clamp_min(torch.finfo(scores.dtype).tiny).log()
    else:
        log = scores.log_softmax(-1)
    return -log.gather(1, target[:, None]).double().sum()


class _Tally:
    """Counts of hits that stay on the device until all batches are through."""

    def __init__(self, device: torch.device) -> None:
        self.samples = 0
        self._names: tuple[str, ...] = ()
        self._hits = torch.zeros(len(FUSIONS), 3, dtype=torch.int64, device=device)
        self._teacher = torch.zeros(2, dtype=torch.int64, device=device)
        self._classes = 0
        self._called: list[Tensor] = []  # (2, N) of each batch, true class and the class head's
        self._losses: list[Tensor] = []  # (F,) of each batch, sums by fusion in float64

    def add(self, scores: Mapping[str, Tensor], target: Tensor, teacher: Tensor) -> None:
        """Count a batch; ``teacher`` (N,) holds -1 where its label is not known."""
        self._names = tuple(scores)
        self.samples += len(target)
        known = teacher != NO_LABEL
        self._teacher += torch.stack([known.sum(), (known & (teacher == target)).sum()])
        for row, one in enumerate(scores.values()):
            first = one.topk(min(5, one.shape[1]), dim=1).indices
            ranked = first == target[:, None]
            alike = known & (first[:, 0] == teacher)
            self._hits[row] += torch.stack([ranked[:, 0].sum(), ranked.any(1).sum(), alike.sum()])
        losses = [_cross_entropy(name, one, target) for name, one in scores.items()]
        self._losses.append(torch.stack(losses))
        self._classes = scores["class_head"].shape[1]
        self._called.append(torch.stack([target, scores["class_head"].argmax(1)]))

    def on_cpu(self) -> _Tally:
        """Return a copy that may be sent to other ranks; waits for the device."""
        copy = _Tally(torch.device("cpu"))
        copy.samples, copy._names, copy._classes = self.samples, self._names, self._classes
        copy._hits, copy._teacher = self._hits.cpu(), self._teacher.cpu()
        copy._called = [torch.cat(self._called, dim=1).cpu()] if self._called else []
        copy._losses = list(torch.stack(self._losses).cpu()) if self._losses else []
        return copy

    @staticmethod
    def of_ranks(tallies: Sequence[_Tally]) -> _Tally:
        """Return the tally of all samples that ranks counted; any may have had none."""
        whole = _Tally(torch.device("cpu"))
        for one in tallies:
            whole.samples += one.samples
            whole._names, whole._classes = (
                one._names or whole._names,
                one._classes or whole._classes,
            )
            whole._hits, whole._teacher = whole._hits + one._hits, whole._teacher + one._teacher
            whole._called += one._called
            whole._losses += one._losses
        return whole

    def result(self, images_per_second: float) -> Evaluation:
        """Return what was counted."""
        count = max(1, self.samples)
        known, right = self._teacher.tolist()
        hits = dict(zip(self._names, self._hits.tolist(), strict=False))
        # Exactly rounded, so that the ranks' shares may come in any order.
        sums = map(math.fsum, zip(*(one.tolist() for one in self._losses), strict=True))
        losses = dict(zip(self._names, sums, strict=False))
        accuracies: dict[str, Any] = {
            name: Accuracy(
                top1=hits[name][0] / count,
                top5=hits[name][1] / count if self._classes > 5 else None,
                loss=losses[name] / count,
            )
            if name in losses
            else None
            for name in FUSIONS
        }
        comparison = None
        if known:
            comparison = TeacherComparison(
                samples=known,
                accuracy=right / known,
                agreement={name: row[2] / known for name, row in hits.items()},
            )
        return Evaluation(
            samples=self.samples,
            **accuracies,
            teacher=comparison,
            permuted_top1=self._most_common() / count,
            images_per_second=images_per_second,
        )

    def _most_common(self) -> int:
        """Return how many samples are called what their class, and no other, mostly is."""
        if not self._called:
            return 0
        seen = torch.cat(self._called, dim=1)
        pairs, counts = torch.unique(seen, dim=1, return_counts=True)
        most: dict[int, tuple[int, int]] = {}  # of each class: how many, called what
        for (target, called), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
            most[target] = max(most.get(target, (0, 0)), (count, called))
        if 2 * len(most) < self._classes:
            return 0  # few classes are told apart by chance alone
        kept: dict[int, int] = {}  # of classes called alike, one
        for count, called in most.values():
            kept[called] = max(kept.get(called, 0), count)
        return sum(kept.values())
