"""The order in which training consumes a store: one endless stream of units.

Everything here follows from the manifest, a seed and a few settings, so any process finds
any batch by itself: no communication, no state to save but a step number.

A **unit** is two samples, each at ``views_per_unit`` consecutive views: a pair that is mixed
with one another, or two samples whose partner is not shown. A **pass** shows every accepted sample
once, in **windows** of a few shards; a sample that a window leaves single opens the next.

With several **shares** the shards are dealt out once, by the seed, and each share gives the same
part of every batch, so that a machine reads its own shards alone. A shard on the border of two
shares is a window of its own, which both read.

A partner that a subset omits is a **guest**: its pixels are mixed in, and it is no row of a batch.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, StoreError
from pipeline.growth import grown, require, settle
from pipeline.identity import TRIPLE_VIEWS
from pipeline.records import NO_PARTNER, ShardInfo, decode_mask
from pipeline.views.pairing import Pairing
from pipeline.views.rng import stream

if TYPE_CHECKING:
    from pipeline.store.manifest import Manifest

__all__ = ["PlanConfig", "PlannedBatch", "TrainingPlan"]

UNIT_SAMPLES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """What decides the order of training, beside the store."""

    epochs: int = 300
    """Epochs; each consumes one view of every sample."""
    batch_size: int = 1024
    """Rows of a global batch, over all ranks and accumulated pieces."""
    seed: int = 0
    """Seed of the order of training, of the weights and of drop path."""
    repeated_augmentation: bool = False
    """Show three views of a sample in one batch, from one decode (DeiT's repeated
    augmentation); three epochs then consume each view once."""
    cycle_views: bool = False
    """Begin with the store's first views again when all were shown; the same images then come
    back as they were."""
    window_shards: int = 8
    """Shards whose samples are shuffled together."""
    read_shares: int = grown(founding=1, since="0.1.0")
    """Shares that shards are dealt out to, each of which gives the same part of every batch: the
    number of machines, so that each reads only its own. Samples of two shares are never shuffled
    together."""

    def __post_init__(self) -> None:
        settle(self)
        for name in ("batch_size", "epochs", "window_shards", "read_shares"):
            require(self, name, getattr(self, name) >= 1, "use at least 1")

    @property
    def views_per_unit(self) -> int:
        """Views of each sample in one unit (m)."""
        return TRIPLE_VIEWS if self.repeated_augmentation else 1

    @property
    def unit_rows(self) -> int:
        """Rows of one unit; the batch size is a multiple of it."""
        return UNIT_SAMPLES * self.views_per_unit

    @property
    def batch_units(self) -> int:
        """Units of a global batch."""
        return self.batch_size // self.unit_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBatch:
    """N rows of one batch, unit after unit; the rows of one sample lie together.

    After them come the views of guests, M - N of them, in the order of the rows that they are
    mixed into. Without omitted samples M is N.
    """

    shard: NDArray[np.int64]  # (M,), shard numbers
    sample: NDArray[np.int64]  # (M,), indices in the shard
    view: NDArray[np.int64]  # (M,)
    partner: NDArray[np.int64]  # (N,), row of the partner; the row itself if it has none

    @property
    def rows(self) -> int:
        """Rows to train on (N)."""
        return len(self.partner)


class _Member(NamedTuple):
    """A sample in a unit, with the first of the unit's views, and its guest."""

    shard: int
    sample: int
    view: int
    guest: int = NO_PARTNER


class _Unit(NamedTuple):
    first: _Member
    second: _Member
    paired: bool


@dataclass(frozen=True, slots=True)
class _ShardUnits:
    """What one shard contributes to a pass: pairs, and single samples with their guests."""

    pairs: tuple[tuple[int, int], ...]
    singles: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _Pass:
    """A pass cut into windows: shard numbers, and accepted samples up to each window's end."""

    windows: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]  # counted from the start of the stream


class TrainingPlan:
    """The order of all rows of a training run, cut into global batches.

    ``manifest`` is that of the store, or of some of its shards (``Manifest.of_shards``).

    Batch ``k`` is the same however it is reached, and whatever the number of ranks. Epoch
    ``e`` ends with the last batch that it can fill; its other rows open the next epoch, and
    only the run's last rows, fewer than a batch, are never shown (``dropped_rows``).

    Raises ``ConfigError`` if the batch size does not fit, or the store has too few views.
    """

    def __init__(self, manifest: Manifest, config: PlanConfig) -> None:
        self.config, self.manifest = config, manifest
        self._root_seed = manifest.identity.root_seed
        self._mix = manifest.identity.mix
        self._shards: dict[int, ShardInfo] = dict(manifest.by_shard)
        self._rejected = {
            number: frozenset(one.index for one in rejections)
            for number, rejections in manifest.rejections.items()
            if rejections
        }
        self._omitted = dict(manifest.omitted)  # as text: few of them are needed at a time
        self._accepted = {number: manifest.accepted_samples(number) for number in self._shards}
        self.rows_per_epoch = sum(self._accepted.values())
        self.first_view = manifest.view_range.start
        self._passes = len(manifest.view_range) // config.views_per_unit
        _check_views(manifest.view_range, config)
        _check_batch_size(config, self.rows_per_epoch)
        self._forget()

    def _forget(self) -> None:
        """Start with empty caches: a pass and a few windows, as batches need them in turn."""
        self._pass = lru_cache(maxsize=3)(self._draw_pass)
        self._window = lru_cache(maxsize=3 * self.config.read_shares)(self._draw_window)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_pass", "_window")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    @property
    def steps(self) -> int:
        """Global batches in the whole run."""
        return self.epoch_start(self.config.epochs)

    @property
    def dropped_rows(self) -> int:
        """Rows at the run's end that fill no batch."""
        return self.config.epochs * self.rows_per_epoch - self.steps * self.config.batch_size

    def epoch_start(self, epoch: int) -> int:
        """Return the first step of an epoch, which is one past the last of the epoch before."""
        return epoch * self.rows_per_epoch // self.config.batch_size

    def epoch_of(self, step: int) -> int:
        """Return the epoch that a step belongs to."""
        # The last e with e * R // B <= step, which is the last with e * R < (step + 1) * B.
        return ((step + 1) * self.config.batch_size - 1) // self.rows_per_epoch

    def check_ranks(self, ranks: int, pieces: int = 1) -> None:
        """Raise ``ConfigError`` unless every rank gets whole units of every batch.

        It may work off its share in ``pieces``; each wants whole units.
        """
        _check_batch_size(self.config, self.rows_per_epoch, ranks, pieces)

    def batch(self, step: int) -> PlannedBatch:
        """Return global batch ``step``; raises ``IndexError`` beyond the run."""
        return self.slice(step, rank=0, ranks=1)

    def slice(self, step: int, rank: int, ranks: int) -> PlannedBatch:
        """Return the rows of global batch ``step`` that are ``rank``'s, of ``ranks``.

        Concatenated in the order of ranks, the slices are the batch.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is not in 0..{self.steps - 1}")
        if not 0 <= rank < ranks:
            raise ConfigError(f"rank {rank} is not in 0..{ranks - 1}")
        self.check_ranks(ranks)
        # A range of the one stream of units: ranks agree without a word, and a run may go on with
        # any number of them.
        each = self.config.batch_units // ranks
        of_share = self.config.batch_units // self.config.read_shares
        units: list[_Unit] = []
        start, end = rank * each, (rank + 1) * each
        while start < end:
            share, offset = divmod(start, of_share)
            count = min(end - start, of_share - offset)
            units += self._of_share(share, step * of_share + offset, count)
            start += count
        return self._rows(units)

    def shares_of(self, rank: int, ranks: int) -> int:
        """Return how many shares a rank's slice of a batch is taken from."""
        units = self.config.batch_units
        each, of_share = units // ranks, units // self.config.read_shares
        return ((rank + 1) * each - 1) // of_share - rank * each // of_share + 1

    def _rows(self, units: list[_Unit]) -> PlannedBatch:
        """Lay out units as rows: unit, then member, then view."""
        views = self.config.views_per_unit
        members = np.array([(unit.first, unit.second) for unit in units], np.int64)
        rows = np.arange(len(units) * UNIT_SAMPLES * views).reshape(-1, UNIT_SAMPLES, views)
        paired = np.array([unit.paired for unit in units])[:, None, None]
        partner = np.where(paired, rows[:, ::-1], rows)
        shard, sample, view, guest = np.repeat(members.reshape(-1, 4), views, axis=0).T
        batch = PlannedBatch(
            shard=shard,
            sample=sample,
            view=view + np.tile(np.arange(views), len(members) * UNIT_SAMPLES),
            partner=partner.reshape(-1),
        )
        return _with_guests(batch, guest)

    def _of_share(self, share: int, start: int, count: int) -> list[_Unit]:
        """Return ``count`` units from ``start`` on of a share's own stream, which has no end.

        Each pass is cut between shares, so that all have shown equally many units after each,
        but for one.
        """
        units: list[_Unit] = []
        while count:
            # The first pass after which the share has shown more than ``start`` units.
            needed = self.config.read_shares * (start + 1) - share
            pass_ = -(-UNIT_SAMPLES * needed // self.rows_per_epoch) - 1
            before, after = (self._shown(share, one) for one in (pass_ - 1, pass_))
            first = self._borders(pass_)[share] + start - before
            taken = self._units(first, first + min(count, after - start))
            units += taken
            start, count = start + len(taken), count - len(taken)
        return units

    def _shown(self, share: int, pass_: int) -> int:
        """Return how many units of a share are shown by the end of a pass."""
        units = (pass_ + 1) * self.rows_per_epoch // UNIT_SAMPLES
        return (units + share) // self.config.read_shares

    def _borders(self, pass_: int) -> tuple[int, ...]:
        """Return where in the stream each share of a pass begins, and where the last one ends."""
        lengths = (
            self._shown(share, pass_) - self._shown(share, pass_ - 1)
            for share in range(self.config.read_shares)
        )
        return tuple(accumulate(lengths, initial=pass_ * self.rows_per_epoch // UNIT_SAMPLES))

    def _units(self, start: int, end: int) -> list[_Unit]:
        """Return units ``start`` to ``end`` of the stream."""
        units: list[_Unit] = []
        while start < end:
            pass_ = self._pass_of(start)
            ends = self._pass(pass_).ends
            window = bisect.bisect_right(ends, start, key=lambda rows: rows // UNIT_SAMPLES)
            before = ends[window - 1] if window else pass_ * self.rows_per_epoch
            offset = start - before // UNIT_SAMPLES
            drawn = self._window(pass_, window)
            if len(drawn) != ends[window] // UNIT_SAMPLES - before // UNIT_SAMPLES:
                raise StoreError(
                    f"shards {list(self._pass(pass_).windows[window])} have other samples than "
                    "their manifest counts; run the label job again to write it anew"
                )
            taken = drawn[offset : offset + end - start]
            units += taken
            start += len(taken)
        return units

    def _pass_of(self, unit: int) -> int:
        # The first pass p with unit < (p + 1) * R // 2.
        return (UNIT_SAMPLES * unit + 1) // self.rows_per_epoch

    def _draw_pass(self, pass_: int) -> _Pass:
        # A stream for each pass, so that any pass is drawn alone when a run resumes in it.
        words, size = stream("epoch", self.config.seed, pass_), self.config.window_shards
        windows: list[tuple[int, ...]] = []
        for numbers in self._dealt(pass_):
            order = [numbers[index] for index in words.permutation(len(numbers))]
            windows += (tuple(order[start : start + size]) for start in range(0, len(order), size))
        accepted = (sum(self._accepted[number] for number in window) for window in windows)
        ends = tuple(accumulate(accepted, initial=pass_ * self.rows_per_epoch))[1:]
        return _Pass(tuple(windows), ends)

    def _dealt(self, pass_: int) -> list[list[int]]:
        """Return the shards of each share in a pass, and alone those that two or more have.

        Which they are is the same in all passes, but for shards on a border.
        """
        numbers = list(self._shards)
        if self.config.read_shares == 1:
            return [numbers]
        order = stream("shares", self.config.seed).permutation(len(numbers))
        borders = self._borders(pass_)[1:]
        row, groups = pass_ * self.rows_per_epoch, dict[tuple[int, int], list[int]]()
        for number in (numbers[index] for index in order):
            first, row = row // UNIT_SAMPLES, row + self._accepted[number]
            last = max(first, row // UNIT_SAMPLES - 1)
            shares = (bisect.bisect_right(borders, first), bisect.bisect_right(borders, last))
            groups.setdefault(shares, []).append(number)
        return list(groups.values())

    def _draw_window(self, pass_: int, window: int) -> tuple[_Unit, ...]:
        """Return the units of one window, shuffled."""
        view = self._view_of(pass_)
        units: list[_Unit] = []
        singles = self._carried_into(pass_, window)
        for number in self._pass(pass_).windows[window]:
            drawn = self._draw_shard(number, view)
            units += [
                _Unit(_Member(number, one, view), _Member(number, other, view), True)
                for one, other in drawn.pairs
            ]
            singles += [_Member(number, index, view, guest) for index, guest in drawn.singles]
        units += [
            _Unit(*two, paired=False) for two in zip(singles[::2], singles[1::2], strict=False)
        ]  # an odd one is carried into the next window
        order = stream("window", self.config.seed, pass_, window).permutation(len(units))
        return tuple(units[index] for index in order)

    def _carried_into(self, pass_: int, window: int) -> list[_Member]:
        """Return the single that the windows before leave over, or nothing.

        Pairs take two samples each, so one is left over if and only if the samples so far
        are odd; it is the last single so far. It lies at most one pass back: an even pass
        leaves as many over as it found, and an odd one has a single of its own.
        """
        ends = self._pass(pass_).ends
        before = ends[window - 1] if window else pass_ * self.rows_per_epoch
        if before % UNIT_SAMPLES == 0:
            return []
        earlier = self._pass(pass_).windows[:window]
        last = self._last_single(earlier, self._view_of(pass_))
        if last is None:
            last = self._last_single(self._pass(pass_ - 1).windows, self._view_of(pass_ - 1))
        if last is None:  # pragma: no cover - excluded by the parity above
            raise AssertionError("an odd number of samples without a single one")
        return [last]

    def _last_single(self, windows: Iterable[tuple[int, ...]], view: int) -> _Member | None:
        numbers = [number for window in windows for number in window]
        for number in reversed(numbers):
            # Only an odd shard, or one without all its samples, can have a single: others need no
            # draw.
            fewer = number in self._rejected or number in self._omitted
            if self._shards[number].samples % 2 or fewer:
                singles = self._draw_shard(number, view).singles
                if singles:
                    index, guest = singles[-1]
                    return _Member(number, index, view, guest)
        return None

    def _draw_shard(self, number: int, view: int) -> _ShardUnits:
        """Return a shard's accepted pairs and single samples at a view (or its triple)."""
        pairing = Pairing(
            root_seed=self._root_seed,
            shard=self._shards[number],
            rejected=self._rejected.get(number, frozenset()),
            config=self._mix,
        )
        mask = decode_mask(self._omitted.get(number, ""), self._shards[number].samples)
        omitted = frozenset(np.flatnonzero(mask).tolist())
        pairs: dict[int, int] = {}  # by the partner: each pair is met from both sides
        singles: list[tuple[int, int]] = []
        for sample, partner in pairing.of_shard(view).items():
            if sample in omitted:
                continue
            if partner == NO_PARTNER or partner in omitted:
                mixed = self._mix.probability > 0  # else nobody needs a guest's pixels
                singles.append((sample, partner if mixed else NO_PARTNER))
            elif sample not in pairs:
                pairs[partner] = sample
        return _ShardUnits(tuple((one, other) for other, one in pairs.items()), tuple(singles))

    def _view_of(self, pass_: int) -> int:
        # Without cycling, no pass is beyond the store's.
        return self.first_view + pass_ % self._passes * self.config.views_per_unit


def _with_guests(batch: PlannedBatch, guest: NDArray[np.int64]) -> PlannedBatch:
    """Add the views of guests: ``guest`` (N,) is the index of each row's, or none."""
    hosts = np.flatnonzero(guest != NO_PARTNER)
    if not len(hosts):
        return batch
    partner = batch.partner.copy()
    partner[hosts] = batch.rows + np.arange(len(hosts))
    return PlannedBatch(
        shard=np.concatenate([batch.shard, batch.shard[hosts]]),
        sample=np.concatenate([batch.sample, guest[hosts]]),
        view=np.concatenate([batch.view, batch.view[hosts]]),
        partner=partner,
    )


def _check_views(views: range, config: PlanConfig) -> None:
    each = config.views_per_unit
    if views.start % each:
        raise ConfigError(
            f"the store's views begin at {views.start}, and repeated augmentation shows "
            f"triples that begin at multiples of {each}; label again from `first_view` "
            f"{views.start - views.start % each}, or train without repeated augmentation"
        )
    needed = -(-config.epochs // each) * each
    enough = each if config.cycle_views else needed
    if len(views) < each:
        raise ConfigError(
            f"repeated augmentation shows {each} views of a sample in one batch, and the store has "
            f"{len(views)}; extend the store to view {views.start + enough}, or "
            "train without `repeated_augmentation`"
        )
    if config.cycle_views:
        return
    if needed > len(views):
        raise ConfigError(
            f"{config.epochs} epochs need {needed} views of every sample, and the store has "
            f"{len(views)} (from view {views.start}); train for at most "
            f"{len(views) - len(views) % each} epochs, or extend the store to view "
            f"{views.start + needed}, or show views again with `cycle_views`"
        )


def _check_batch_size(config: PlanConfig, rows: int, ranks: int = 1, pieces: int = 1) -> None:
    step = config.unit_rows * math.lcm(ranks * pieces, config.read_shares)
    size = config.batch_size
    unit = "three views of two samples" if config.repeated_augmentation else "two samples"
    shares = f" x {ranks} ranks" if ranks > 1 else ""
    shares += f" x {pieces} pieces (`accumulate`)" if pieces > 1 else ""
    shares += f", and {config.read_shares} `read_shares`" if config.read_shares > 1 else ""
    if size % step == 0 and size <= rows:
        return
    if rows < step:
        raise ConfigError(
            f"the store has {rows} samples, fewer than the smallest batch of {step} rows "
            f"({unit}{shares}); label more samples, or train with fewer ranks, pieces or shares"
        )
    below = min(size, rows) // step * step
    valid = [one for one in (below, below + step) if 0 < one <= rows]
    raise ConfigError(
        f"batch size {size} does not fit: it must be a multiple of {step} ({unit}{shares}) "
        f"and at most the {rows} samples of the store; use "
        + " or ".join(str(one) for one in valid)
    )
