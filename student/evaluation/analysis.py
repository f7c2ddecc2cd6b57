"""What a distilled student learned from whom: tokens by layer, and who disagrees with whom.

Section 5.2 and table 4 of the DeiT paper, as JSON and, with matplotlib, as a plot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import require_package
from pipeline.telling import told
from pipeline.views.mixing import normalize, to_device
from student.evaluation.evaluate import fuse
from student.evaluation.validation import NO_LABEL, ValidationDataset
from student.loading import LoaderOptions, load
from student.model import two_headed

__all__ = ["Analysis", "ClassAccuracy", "Confused", "WorstSample", "analyze", "plot_analysis"]

_WORST = 48  # samples


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAccuracy:
    """A true class, and what the student calls it."""

    number: int
    samples: int
    right: int
    called: int  # samples of any class that are called this one
    mistaken_for: int | None  # the class that it is called most often of all others
    mistaken: int  # how often


@dataclass(frozen=True, slots=True, kw_only=True)
class Confused:
    """Samples of one true class that the student calls another."""

    target: int
    called: int
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstSample:
    """A validation sample, by its row in the data set, to whose class the student gives little."""

    row: int
    key: str
    target: int
    called: int
    teacher: int | None  # its label, if it is known
    probability: float  # of the true class
    confidence: float  # probability of what it is called


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """Means over N validation samples, those that the teacher labelled if it is known."""

    samples: int
    token_cosine: tuple[float, ...] | None  # of class and distillation token, from the input on
    names: tuple[str, ...]  # of whom the matrix compares: truth, teacher, heads
    disagreement: tuple[tuple[float, ...], ...]  # share of samples that two label differently
    prediction: str  # what classes are called by: of ``FUSIONS``
    classes: tuple[ClassAccuracy, ...]  # of all validation samples, by number
    confused: tuple[Confused, ...]  # all that are, the most frequent pairs first
    worst: tuple[WorstSample, ...]  # those with the lowest probability of their class first

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def analyze(
    model: nn.Module,
    dataset: ValidationDataset,
    options: LoaderOptions,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    prediction: str = "mean_of_logits",
) -> Analysis:
    """Run the student over the samples once; its training mode is left as it was.

    ``precision`` gives the context in which it runs. Classes are called by ``prediction``, of a
    student with one head by that.
    """
    device = next(model.parameters()).device
    views = dataset.views
    counts: Tensor | None = None
    names: tuple[str, ...] = ()
    cosine: Tensor | None = None
    samples = rows = 0
    called: list[Tensor] = []  # (2, N) of each batch: true class, and what it is called
    worst = _Worst(dataset)
    with two_headed(model), torch.inference_mode(), _watch_tokens(model) as tokens:
        batches = load(dataset, range(len(dataset)), options, dataset.item_bytes)
        for batch in told(batches, "looking at mistakes", "batches", len(dataset)):
            images = normalize(to_device(batch.pixels, device), views.mean, views.std)
            with precision():
                output = model(images)
            scores = fuse(output)
            said = {"truth": batch.target.to(device)}
            if dataset.has_teacher:
                said["teacher"] = batch.teacher.to(device)
            fusions = [name for name in scores if name != "sum_of_softmaxes"]
            said.update({name: scores[name].argmax(-1) for name in fusions})
            names = tuple(said)
            prediction = prediction if prediction in scores else "class_head"
            called.append(torch.stack([said["truth"], scores[prediction].argmax(-1)]).cpu())
            worst.add(scores[prediction].cpu(), batch.target, batch.teacher)
            labels = torch.stack(list(said.values()))
            known = labels[:, batch.teacher.to(device) != NO_LABEL]
            labels = known if dataset.has_teacher else labels
            differing = (labels[:, None] != labels[None]).sum(-1)
            counts = differing if counts is None else counts + differing
            samples += labels.shape[1]
            if tokens:
                layers = torch.stack([_cosines(layer) for layer in tokens]).double().sum(-1)
                cosine = layers if cosine is None else cosine + layers
                rows += len(images)
                tokens.clear()
    shares = [] if counts is None else (counts.double() / max(1, samples)).tolist()
    return Analysis(
        samples=samples,
        token_cosine=None if cosine is None else tuple((cosine / rows).tolist()),
        names=names,
        disagreement=tuple(tuple(row) for row in shares),
        prediction=prediction,
        classes=_by_class(torch.cat(called, dim=1)) if called else (),
        confused=_confused(torch.cat(called, dim=1)) if called else (),
        worst=worst.found(),
    )


class _Worst:
    """Keeps the samples to whose class the least probability is given."""

    def __init__(self, dataset: ValidationDataset) -> None:
        self._dataset, self._rows = dataset, 0
        self._kept: list[tuple[float, int, int, int, int, float]] = []

    def add(self, scores: Tensor, target: Tensor, teacher: Tensor) -> None:
        """Look at the next samples: their (N, C) scores, classes and the teacher's labels."""
        shares = scores.softmax(-1)
        truth = shares[torch.arange(len(target)), target]
        confidence, called = shares.max(-1)
        rows = range(self._rows, self._rows + len(target))
        columns = (truth, torch.tensor(rows), target, called, teacher, confidence)
        self._kept += zip(*(one.tolist() for one in columns), strict=True)
        self._kept = sorted(self._kept)[:_WORST]
        self._rows = rows.stop

    def found(self) -> tuple[WorstSample, ...]:
        """Return the worst first."""
        return tuple(
            WorstSample(
                row=row,
                key=self._dataset.key_of(row),
                target=target,
                called=called,
                teacher=None if teacher == NO_LABEL else teacher,
                probability=truth,
                confidence=confidence,
            )
            for truth, row, target, called, teacher, confidence in self._kept
        )


def _confused(called: Tensor) -> tuple[Confused, ...]:
    """Return which true classes of (2, N) pairs are called others, the most frequent first."""
    pairs, counts = torch.unique(called[:, called[0] != called[1]], dim=1, return_counts=True)
    found = [
        Confused(target=target, called=other, samples=count)
        for (target, other), count in zip(pairs.T.tolist(), counts.tolist(), strict=True)
    ]
    return tuple(sorted(found, key=lambda one: -one.samples))


def _by_class(called: Tensor) -> tuple[ClassAccuracy, ...]:
    """Return how each true class of (2, N) pairs is called."""
    pairs, counts = torch.unique(called, dim=1, return_counts=True)
    by_class: dict[int, dict[int, int]] = {}
    for (target, other), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        by_class.setdefault(target, {})[other] = count
    names = Counter(called[1].tolist())
    found = []
    for target, others in sorted(by_class.items()):
        wrong = [(count, -other) for other, count in others.items() if other != target]
        mistaken, other = max(wrong, default=(0, None))
        found.append(
            ClassAccuracy(
                number=target,
                samples=sum(others.values()),
                right=others.get(target, 0),
                called=names[target],
                mistaken_for=None if other is None else -other,
                mistaken=mistaken,
            )
        )
    return tuple(found)


def plot_analysis(analysis: Analysis, path: Path) -> None:
    """Draw an analysis into an image file; its suffix names the format.

    Raises ``ConfigError`` if matplotlib is not installed.
    """
    require_package("matplotlib", "plots", "`plot`")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    table, curve = figure.subplots(1, 2)
    names = [name.replace("_", " ") for name in analysis.names]
    table.imshow(analysis.disagreement, cmap="Blues", vmin=0)
    table.set_xticks(range(len(names)), names, rotation=30, ha="right")
    table.set_yticks(range(len(names)), names)
    for row, shares in enumerate(analysis.disagreement):
        for column, share in enumerate(shares):
            table.text(column, row, f"{share:.3f}", ha="center", va="center")
    table.set_title(f"disagreement, {analysis.samples} images")
    if analysis.token_cosine is not None:
        curve.plot(range(len(analysis.token_cosine)), analysis.token_cosine, marker="o")
    curve.set(title="class and distillation token", xlabel="layer", ylabel="cosine")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


@contextmanager
def _watch_tokens(model: nn.Module) -> Iterator[list[Tensor]]:
    """Give a list that each forward pass fills with the tokens before and after each block.

    It stays empty for a model without a distillation token.
    """
    seen: list[Tensor] = []
    blocks = getattr(model, "blocks", None)
    hooks = []
    if isinstance(getattr(model, "dist_token", None), Tensor) and isinstance(blocks, nn.Sequential):
        hooks = [blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))]
        hooks += [
            block.register_forward_hook(lambda _, _inputs, output: seen.append(output))
            for block in blocks
        ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _cosines(tokens: Tensor) -> Tensor:
    """Return the cosine of the first two of (N, T, D) tokens, (N,)."""
    return F.cosine_similarity(tokens[:, 0].float(), tokens[:, 1].float(), dim=-1)
