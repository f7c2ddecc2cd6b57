"""Draws groups, pairs and mix parameters. Sees no pixels.

Everything is drawn over a shard's *indexed* samples, so an image found undecodable leaves
all other pairs as they were. Samples are named by their index in the shard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.identity import TRIPLE_VIEWS, MixConfig
from pipeline.records import FIXED_ONE, NO_PARTNER, Box, MixKind, MixParams, ShardInfo
from pipeline.views.rng import fixed, stream

__all__ = [
    "BlockGroups",
    "GroupPlaces",
    "block_of",
    "draw_group_mixing",
    "draw_groups",
    "draw_mix",
    "draw_partners",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGroups:
    """The groups of one shard in one block, each a tuple of sample indices, by place."""

    block: int
    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlaces:
    """One group: its number in the block, its members by place, and who was rejected."""

    group: int
    members: tuple[int, ...]  # sample indices
    rejected: frozenset[int]  # sample indices, of members or not


def block_of(view: int, config: MixConfig) -> int:
    """Return the block that a view lies in."""
    return view // config.block_views


def draw_groups(
    root_seed: int, key_hash: str, samples: int, block: int, config: MixConfig
) -> BlockGroups:
    """Cut a shard's samples into groups of ``group_size`` for one block.

    The last group takes what remains. A remainder of one would have no partner at all, so
    it takes two from the group before: 97 samples make 5 groups of 16, one of 14, one of 3.
    """
    order = stream("groups", root_seed, key_hash, block).permutation(samples)
    size = config.group_size
    starts = list(range(0, samples, size))
    if samples > size and samples % size == 1:
        starts[-1] -= 2
    ends = [*starts[1:], samples]
    groups = tuple(tuple(order[a:b]) for a, b in zip(starts, ends, strict=True))
    return BlockGroups(block=block, groups=groups)


def draw_partners(
    root_seed: int, key_hash: str, view: int, group: int, members: int, config: MixConfig
) -> tuple[int, ...]:
    """Return each place's partner place at one view, or ``NO_PARTNER`` for the odd one.

    Each triple of a block takes another round of a round-robin tournament, so partners
    differ from triple to triple until the tournament is over.
    """
    block = block_of(view, config)
    seats = members + members % 2  # an odd group plays with an empty seat
    if seats < 2:
        return (NO_PARTNER,) * members
    rounds = stream("pairs", root_seed, key_hash, block, group).permutation(seats - 1)
    triple = view % config.block_views // TRIPLE_VIEWS
    opponents = _round_robin(seats, rounds[triple % len(rounds)])
    return tuple(opponent if opponent < members else NO_PARTNER for opponent in opponents[:members])


def draw_group_mixing(
    root_seed: int,
    shard: ShardInfo,
    view: int,
    group: GroupPlaces,
    size: int,
    config: MixConfig,
) -> list[tuple[int, MixParams]]:
    """Return each place's partner place and mix parameters at one view.

    Whoever has no partner, whose partner is rejected, or whose pair is not mixed at this
    view has ``NO_PARTNER`` and ``MixParams.none()``.
    """
    members, rejected = group.members, group.rejected
    partners = draw_partners(root_seed, shard.key_hash, view, group.group, len(members), config)
    result = []
    for sample, place in zip(members, partners, strict=True):
        mixing = MixParams.none()
        if place != NO_PARTNER and rejected.isdisjoint((sample, members[place])):
            pair = (sample, members[place])
            mixing = draw_mix(root_seed, shard.key_hash, view, pair, size, config)
        unmixed = mixing.kind is MixKind.NONE
        result.append((NO_PARTNER if unmixed else place, mixing))
    return result


def _round_robin(seats: int, round_: int) -> list[int]:
    """Return each seat's opponent in one of ``seats - 1`` rounds (the circle method)."""
    circle = seats - 1
    opponents = [(2 * round_ - seat) % circle for seat in range(circle)]
    opponents[round_] = circle  # who would meet itself meets the seat outside the circle
    return [*opponents, round_]


def draw_mix(
    root_seed: int, key_hash: str, view: int, pair: tuple[int, int], size: int, config: MixConfig
) -> MixParams:
    """Return how a pair of samples is mixed at one view; the pair's order does not matter.

    Follows timm's ``Mixup``: mixup or CutMix by ``switch_probability``; CutMix's box is cut
    at the border and its share corrected to the box's area. ``size`` is the view's side.
    """
    if config.probability == 0:
        return MixParams.none()
    words = stream("mix", root_seed, key_hash, view, min(pair), max(pair))
    if not words.happens(config.probability):
        return MixParams.none()
    both = config.mixup_alpha > 0 and config.cutmix_alpha > 0
    cutmix = words.happens(config.switch_probability) if both else config.cutmix_alpha > 0
    if not cutmix:
        return MixParams(kind=MixKind.MIXUP, lam=words.beta(config.mixup_alpha), box=None)
    share = words.beta(config.cutmix_alpha)
    side = math.isqrt((FIXED_ONE - share) * size * size // FIXED_ONE)
    top, height = _cut_span(words.integer(size), side, size)
    left, width = _cut_span(words.integer(size), side, size)
    box = Box(top=top, left=left, height=height, width=width)
    lam = FIXED_ONE - fixed(box.area / (size * size))
    return MixParams(kind=MixKind.CUTMIX, lam=lam, box=box)


def _cut_span(centre: int, side: int, size: int) -> tuple[int, int]:
    """Return start and length of a span around ``centre``, cut at the borders."""
    start = max(0, centre - side // 2)
    end = min(size, centre + side // 2)
    return start, end - start
