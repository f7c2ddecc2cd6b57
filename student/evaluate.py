"""Top-1 and top-5 accuracy of a student on validation shards, for all ways to use its heads."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pipeline.augment import apply_view, decode, image_size
from pipeline.cache import ShardFile
from pipeline.config import AugmentConfig
from pipeline.errors import DecodeError, ShardError
from pipeline.mixing import normalise, to_device
from pipeline.shards import Shard, open_shard
from pipeline.views import draw_view
from student.loading import LoaderOptions, load
from student.model import two_headed

__all__ = ["FUSIONS", "Accuracy", "Evaluation", "ValidationDataset", "centre_views", "evaluate"]

FUSIONS = ("class_head", "distillation_head", "mean_of_logits", "sum_of_softmaxes")
"""What a prediction may be taken from; DeiT reports the sum of softmaxes."""

_OPEN_SHARDS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Shares of samples whose class is the first, or among the first five."""

    top1: float
    top5: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The accuracy of each way to fuse the two heads."""

    samples: int
    class_head: Accuracy
    distillation_head: Accuracy
    mean_of_logits: Accuracy
    sum_of_softmaxes: Accuracy

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationBatch:
    """N centre views with their classes."""

    pixels: Tensor  # (N, S, S, 3) uint8
    target: Tensor  # (N,) int64

    def pin_memory(self) -> ValidationBatch:
        """Return the batch in pinned memory; the loader calls this."""
        return ValidationBatch(pixels=self.pixels.pin_memory(), target=self.target.pin_memory())


def centre_views(augment: AugmentConfig, fraction: float) -> AugmentConfig:
    """Return the store's settings without any randomness, for validation.

    ``fraction`` is the share of the shorter side that the centre crop keeps.
    """
    return replace(
        augment,
        crop="center",
        center_fraction=fraction,
        hflip=0.0,
        policy="none",
        erase_probability=0.0,
    )


class ValidationDataset(Dataset[ValidationBatch]):
    """Consecutive batches of all samples of some shards.

    Raises ``ShardError`` for a shard that cannot be read, or a class that the student
    lacks; an item raises it for an image that does not decode.
    """

    def __init__(
        self, paths: Sequence[ShardFile], views: AugmentConfig, *, classes: int, batch_size: int
    ) -> None:
        self._paths, self._views, self._batch_size = tuple(paths), views, batch_size
        self._forget()
        counts = []
        for number, path in enumerate(self._paths):
            shard = self._shard(number)
            counts.append(len(shard.samples))
            beyond = [sample for sample in shard.samples if sample.target >= classes]
            if beyond:
                raise ShardError(
                    f"{path}: sample {beyond[0].key!r} has class {beyond[0].target}, the store's "
                    f"teacher and the student have {classes} classes (0..{classes - 1}); give "
                    "validation shards whose .cls are the teacher's class indices"
                )
        self._ends = list(accumulate(counts))

    def _forget(self) -> None:
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._open_shard)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_shard"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def __len__(self) -> int:
        return -(-self._ends[-1] // self._batch_size) if self._ends else 0

    def __getitem__(self, item: int) -> ValidationBatch:
        start = item * self._batch_size
        rows = [
            self._view(place)
            for place in range(start, min(start + self._batch_size, self._ends[-1]))
        ]
        return ValidationBatch(
            pixels=torch.from_numpy(np.stack([pixels for pixels, _ in rows])),
            target=torch.tensor([target for _, target in rows]),
        )

    def _open_shard(self, number: int) -> Shard:
        return open_shard(self._paths[number], number)

    def _view(self, place: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], int]:
        number = bisect.bisect_right(self._ends, place)
        shard = self._shard(number)
        index = place - (self._ends[number - 1] if number else 0)
        sample = shard.samples[index]
        try:
            image = decode(shard.image_bytes(index), sample.image_name)
        except DecodeError as error:
            raise ShardError(
                f"{shard.path}: validation image {sample.key!r} does not decode ({error}); "
                "mend or remove it, so that accuracies count the same images everywhere"
            ) from error
        params = draw_view(0, 0, image_size(image), self._views)
        return apply_view(image, params, self._views), sample.target


def evaluate(
    model: nn.Module,
    dataset: ValidationDataset,
    views: AugmentConfig,
    options: LoaderOptions,
    *,
    bf16: bool = False,
) -> Evaluation:
    """Return the student's accuracies; its training mode is left as it was."""
    device = next(model.parameters()).device
    hits = torch.zeros(len(FUSIONS), 2, dtype=torch.int64, device=device)
    samples = 0
    with two_headed(model), torch.inference_mode():
        for batch in load(dataset, range(len(dataset)), options):
            images = normalise(to_device(batch.pixels, device), views.mean, views.std)
            target = to_device(batch.target, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                class_logits, distillation_logits = model(images)
            scores = fuse(class_logits.float(), distillation_logits.float())
            hits += torch.stack([_hits(scores[name], target) for name in FUSIONS])
            samples += len(batch.target)
    shares = (hits.double() / max(1, samples)).tolist()
    accuracies = {
        name: Accuracy(top1=top1, top5=top5)
        for name, (top1, top5) in zip(FUSIONS, shares, strict=True)
    }
    return Evaluation(samples=samples, **accuracies)


def fuse(class_logits: Tensor, distillation_logits: Tensor) -> Mapping[str, Tensor]:
    """Return the scores, (N, C), of each of ``FUSIONS`` from both heads' logits."""
    return {
        "class_head": class_logits,
        "distillation_head": distillation_logits,
        "mean_of_logits": (class_logits + distillation_logits) / 2,
        "sum_of_softmaxes": class_logits.softmax(-1) + distillation_logits.softmax(-1),
    }


def _hits(scores: Tensor, target: Tensor) -> Tensor:
    """Return how many rows have their class first, and among the first five, (2,)."""
    ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices == target[:, None]
    return torch.stack([ranked[:, 0].sum(), ranked.any(dim=1).sum()])
