"""Tries a teacher out on plain images, and looks for the cause where it disagrees with the truth.

Wrong settings give no error: views of another size, mean or order of channels are views like any
other, and classes in another order are classes. They show in how often the teacher is right.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.classes import class_in_words
from pipeline.files.cache import ShardFile
from pipeline.identity import IMAGENET_MEAN, IMAGENET_STD
from pipeline.labelling.agreement import POOR, Cause, is_better
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.job import IndexedShards
from pipeline.labelling.part import GroupTask
from pipeline.labelling.weights import Described
from pipeline.records import AugmentedGroup, Pixels, ShardInfo
from pipeline.shards.index import open_known_shard
from pipeline.views.mixing import normalize

__all__ = ["EVERY", "Images", "Label", "Reading", "Trial", "matching"]

EVERY = 100
"""Views of a job for one of its trial, at most."""

_IMAGES = 384  # of a long job, which tell agreement to 5 points
_TRIED = 96  # images that are labelled in each of the other ways
_SHARDS = 48  # that are opened, at most
_SIZES = (32, 64, 96, 128, 160, 224, 288, 384)
_STATISTICS = (
    (IMAGENET_MEAN, IMAGENET_STD),
    ((0.5,) * 3, (0.5,) * 3),
    ((0.0,) * 3, (1.0,) * 3),  # pixels from 0 to 1
    ((0.0,) * 3, (1 / 255,) * 3),  # from 0 to 255
)
_MATCHED, _EACH = 12, 16  # classes that are matched, and images of each
_EXAMPLES = 3

Run: TypeAlias = Callable[[GroupTask], AugmentedGroup]
"""Decodes and augments."""

Label: TypeAlias = Callable[[Tensor], NDArray[np.uint16]]
"""Labels normalized images, (N, 3, S, S)."""

Rights: TypeAlias = NDArray[np.bool_]
"""Of which images a label is right, (N,)."""

_Shard: TypeAlias = tuple[ShardFile, ShardInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How images are given to a teacher."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False

    def tensor(self, pixels: Pixels) -> Tensor:
        """Return (N, S, S, 3) pixels as a teacher gets them, (N, 3, S, S)."""
        if self.bgr:
            pixels = np.ascontiguousarray(pixels[..., ::-1])
        return normalize(torch.from_numpy(pixels), self.mean, self.std)

    def changes(self, given: Reading) -> Iterator[str]:
        """Yield how this differs from the reading that was given."""
        if self.size != given.size:
            yield f"with `image_size` {self.size}, not {given.size},"
        if (self.mean, self.std) != (given.mean, given.std):
            mean, std = (" ".join(f"{one:.4g}" for one in two) for two in (self.mean, self.std))
            yield f"with `mean` {mean} and `std` {std}"
        if self.bgr:
            yield (
                "with blue before red (BGR: give weights whose first layer has its input channels "
                "in reverse)"
            )


class Trial:
    """A teacher on plain images of the job it is for."""

    def __init__(
        self,
        config: LabelConfig,
        shards: IndexedShards,
        run: Run,
        described: Described,
        label_at: Callable[[int], Label | None],
    ) -> None:
        """``label_at`` gives what labels images of a size, None if the teacher takes none."""
        self._config, self._shards, self._run = config, shards, run
        self._described, self._label_at = described, label_at
        augment = config.augment
        self._given = Reading(size=augment.image_size, mean=augment.mean, std=augment.std)

    def images(self, least: int) -> Images:
        """Return images from all over the shards, as many as suit the job.

        One for ``EVERY`` views, ``least`` at least, ``_IMAGES`` or ``least`` at most, and no more
        than there are.
        """
        suited = min(self._shards.samples * self._config.views // EVERY, _IMAGES)
        return self._spread(max(least, suited))

    def labels(self, images: Images, reading: Reading | None = None) -> NDArray[np.uint16] | None:
        """Return the teacher's labels of images, (N,); None if it takes none of that size."""
        reading = reading or self._given
        label = self._label_at(reading.size)
        return None if label is None else label(reading.tensor(images.pixels(reading.size)))

    def cause(self) -> Cause | None:
        """Return under which other settings the teacher is right of more images, if under any."""
        some = self._spread(_TRIED)
        best, before = self._given, self._rights(some, self._given)
        if before is None:
            return None
        most = before
        for _ in range(2):  # a second setting may be wrong too
            found = self._better(some, best, most)
            if found is None:
                break
            best, most = found
        if most.sum() < POOR * len(most):
            cause = self._other_classes(best)
            if cause is not None:
                return cause
        changes = tuple(best.changes(self._given))
        return _cause(changes, before, most) if changes else None

    def _better(
        self, images: Images, given: Reading, before: Rights
    ) -> tuple[Reading, Rights] | None:
        """Return the neighbor of a reading under which most images are right, if more are."""
        rights = ((one, self._rights(images, one)) for one in self._neighbors(given))
        better = [
            (one, right) for one, right in rights if right is not None and is_better(before, right)
        ]
        return max(better, key=lambda pair: int(pair[1].sum()), default=None)

    def _rights(self, images: Images, reading: Reading) -> Rights | None:
        """Return of which images the teacher knows the class, of those that have one."""
        labels = self.labels(images, reading)
        return None if labels is None else (labels == images.targets)[images.targets >= 0]

    def _neighbors(self, given: Reading) -> Iterator[Reading]:
        """Yield what the teacher's file says of itself, and readings with one thing changed."""
        file = self._described
        size, mean, std = file.size or given.size, file.mean or given.mean, file.std or given.std
        told = [
            dataclasses.replace(given, size=size),
            dataclasses.replace(given, mean=mean, std=std),
            dataclasses.replace(given, size=size, mean=mean, std=std),
        ]
        # Eight times the side is 64 times the work; a size close by makes little difference.
        sizes = [one for one in _SIZES if one / given.size < 0.8 or 1.25 < one / given.size < 8]
        guessed = [
            *(dataclasses.replace(given, size=one) for one in sizes),
            *(dataclasses.replace(given, mean=mean, std=std) for mean, std in _STATISTICS),
            dataclasses.replace(given, bgr=not given.bgr),
        ]
        yield from (one for one in dict.fromkeys([*told, *guessed]) if one != given)

    def _other_classes(self, reading: Reading) -> Cause | None:
        """Return in which other order the teacher may have the classes, if in any."""
        images = self._of_few_classes()
        given, labels = self.labels(images), self.labels(images, reading)
        if given is None or labels is None:
            return None
        targets = images.targets
        before = given == targets
        found = [
            (words, right)
            for words, right in self._orders(labels, targets)
            if is_better(before, right)
        ]
        if not found:
            return None
        words, right = max(found, key=lambda pair: int(pair[1].sum()))
        return _cause((*reading.changes(self._given), words), before, right)

    def _orders(
        self, labels: NDArray[np.uint16], targets: NDArray[np.int64]
    ) -> Iterator[tuple[str, Rights]]:
        """Yield orders of classes in words, and which labels are right under them."""
        cure = "(pack the shards in its order)"
        yield f"with the shards' class n for its n + 1 {cure}", labels == targets + 1
        yield f"with the shards' class n for its n - 1 {cure}", labels == targets - 1
        count = max(self._shards.max_target + 1, int(labels.max(initial=0)) + 1)
        by_text = np.array(sorted(range(count), key=str))
        words = f"with the shards' numbers sorted as texts (0, 1, 10, 11) {cure}"
        yield words, labels == by_text[targets]
        # Learned from one half of each class and tried on the other: what is learned explains
        # itself too well.
        seen: Counter[int] = Counter()
        half = np.zeros(len(targets), np.bool_)
        for index, target in enumerate(targets.tolist()):
            half[index] = seen[target] % 2
            seen[target] += 1
        right = np.zeros(len(labels), np.bool_)
        for tried in (half, ~half):
            own = matching(labels[~tried], targets[~tried])
            right[tried] = labels[tried] == [own.get(one, -1) for one in targets[tried].tolist()]
        names = None if self._shards.classes is None else self._shards.classes.names
        moved = {mine: own for mine, own in matching(labels, targets).items() if mine != own}
        examples = [
            f"class {class_in_words(mine, names)} of the shards is its {own}"
            for mine, own in sorted(moved.items())[:_EXAMPLES]
        ]
        yield f"with its classes in another order ({', '.join(examples)}; pack them in it)", right

    def _spread(self, wanted: int) -> Images:
        """Return images from all over the shards."""
        opened = self._opened()
        cuts = [wanted * number // len(opened) for number in range(len(opened) + 1)]
        picked = [
            (path, info, _even(info.samples, end - start))
            for (path, info), (start, end) in zip(opened, pairwise(cuts), strict=True)
        ]
        return Images(self._config, picked, self._run)

    def _of_few_classes(self) -> Images:
        """Return images of the shards' commonest classes, in turn."""
        opened = [(path, info, open_known_shard(path, info)) for path, info in self._opened()]
        counts = Counter(one.target for *_, shard in opened for one in shard.samples)
        left = {one: _EACH for one, _ in counts.most_common(_MATCHED) if one >= 0}
        picked = []
        for path, info, shard in opened:
            members = []
            for index, sample in enumerate(shard.samples):
                if left.get(sample.target, 0):
                    left[sample.target] -= 1
                    members.append(index)
            picked.append((path, info, members))
        return Images(self._config, picked, self._run)

    def _opened(self) -> list[_Shard]:
        """Return some shards, evenly spread."""
        pairs = list(zip(self._shards.paths, self._shards.infos, strict=True))
        return [pairs[index] for index in _even(len(pairs), _SHARDS)]


class Images:
    """Some samples of a job, without augmentation."""

    def __init__(
        self,
        config: LabelConfig,
        picked: Sequence[tuple[ShardFile, ShardInfo, Sequence[int]]],
        run: Run,
    ) -> None:
        self._config, self._picked, self._run = config, picked, run
        self._decoded: dict[int, Pixels] = {}
        self.targets: NDArray[np.int64] = np.zeros(0, np.int64)
        self.pixels(config.augment.image_size)

    def pixels(self, size: int) -> Pixels:
        """Return the center views of those that decode, (N, S, S, 3), whose targets are (N,).

        The others are left out: the job itself will count and name them.
        """
        if size not in self._decoded:
            rows = [row for one in self._picked for row in self._rows(*one, size)]
            self.targets = np.array([target for _, target in rows], np.int64)
            pixels = np.array([one for one, _ in rows], np.uint8)
            self._decoded[size] = pixels.reshape(-1, size, size, 3)
        return self._decoded[size]

    def _rows(
        self, path: ShardFile, info: ShardInfo, members: Sequence[int], size: int
    ) -> Iterator[tuple[Pixels, int]]:
        config = self._config
        plain = dataclasses.replace(
            config.augment,
            image_size=size,
            crop="center",
            hflip=0.0,
            policy="none",
            erase_probability=0.0,
        )
        mix = dataclasses.replace(config.effective_mixing, probability=0.0)
        samples = open_known_shard(path, info).samples if members else ()
        for first in range(0, len(members), mix.group_size):
            task = GroupTask(
                path=path,
                shard=info,
                group=0,
                members=tuple(members[first : first + mix.group_size]),
                first_view=0,
                views=1,
                root_seed=config.seed,
                augment=plain,
                mix=mix,
            )
            group = self._run(task)
            for index, sample in enumerate(task.members):
                if group.valid[index, 0]:
                    yield group.pixels[index, 0], samples[sample].target


def matching(labels: NDArray[np.uint16], targets: NDArray[np.int64]) -> dict[int, int]:
    """Return which label goes with which target: the commonest pairs, each of both used once."""
    pairs = Counter(zip(targets.tolist(), labels.tolist(), strict=True))
    own: dict[int, int] = {}
    taken: set[int] = set()
    for (target, label), _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        if target not in own and label not in taken:
            own[target] = label
            taken.add(label)
    return own


def _cause(changes: tuple[str, ...], before: Rights, after: Rights) -> Cause:
    return Cause(
        changes=changes,
        images=len(before),
        correct=int(before.sum()),
        otherwise=int(after.sum()),
    )


_GOLDEN = (5**0.5 - 1) / 2  # its multiples fill the unit interval most evenly


def _even(count: int, most: int) -> list[int]:
    """Return up to ``most`` of the numbers below ``count``, evenly spread.

    One of each stretch, at another place in each: in shards whose classes take turns, a fixed step
    would meet one class alone.
    """
    number = np.arange(min(count, most))
    return [int(one) for one in (number + number * _GOLDEN % 1) * count / max(1, len(number))]
