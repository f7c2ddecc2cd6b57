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
    "Pairing",
    "block_of",
    "draw_groups",
    "draw_mix",
    "draw_partners",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGroups:
    """The groups of one shard in one block, each a tuple of sample indices."""

    block: int
    groups: tuple[tuple[int, ...], ...]


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
    """Return the index in the group of each member's partner, or ``NO_PARTNER``, at one view.

    Each triple of a block takes another round of a round-robin tournament, so partners
    differ from triple to triple until the tournament is over.
    """
    block = block_of(view, config)
    players = members + members % 2  # an odd group plays with one who is not there
    if players < 2:
        return (NO_PARTNER,) * members
    rounds = stream("pairs", root_seed, key_hash, block, group).permutation(players - 1)
    triple = view % config.block_views // TRIPLE_VIEWS
    opponents = _round_robin(players, rounds[triple % len(rounds)])
    return tuple(opponent if opponent < members else NO_PARTNER for opponent in opponents[:members])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Who is paired with whom in one shard, less the samples that were rejected.

    A rejected sample is left out, and its partner has none; all other pairs stay as drawn.
    """

    root_seed: int
    shard: ShardInfo
    rejected: frozenset[int]  # sample indices
    config: MixConfig

    def of_group(self, view: int, group: int, members: tuple[int, ...]) -> dict[int, int]:
        """Return each member's partner at a view, or ``NO_PARTNER``, by sample index."""
        drawn = draw_partners(
            self.root_seed, self.shard.key_hash, view, group, len(members), self.config
        )
        partners = {}
        for sample, partner in zip(members, drawn, strict=True):
            if sample not in self.rejected:
                alone = partner == NO_PARTNER or members[partner] in self.rejected
                partners[sample] = NO_PARTNER if alone else members[partner]
        return partners

    def of_shard(self, view: int) -> dict[int, int]:
        """Return the partners in all groups at a view, group by group."""
        block, shard = block_of(view, self.config), self.shard
        drawn = draw_groups(self.root_seed, shard.key_hash, shard.samples, block, self.config)
        partners: dict[int, int] = {}
        for group, members in enumerate(drawn.groups):
            partners |= self.of_group(view, group, members)
        return partners

    def draw_mix(self, view: int, pair: tuple[int, int], size: int) -> MixParams:
        """Return how a sample and its partner, or ``NO_PARTNER``, are mixed at a view."""
        return draw_mix(self.root_seed, self.shard.key_hash, view, pair, size, self.config)


def _round_robin(players: int, round_: int) -> list[int]:
    """Return each player's opponent in one of ``players - 1`` rounds (the circle method)."""
    circle = players - 1
    opponents = [(2 * round_ - player) % circle for player in range(circle)]
    opponents[round_] = circle  # who would meet itself meets the player outside the circle
    return [*opponents, round_]


def draw_mix(
    root_seed: int, key_hash: str, view: int, pair: tuple[int, int], size: int, config: MixConfig
) -> MixParams:
    """Return how a pair of samples is mixed at one view; the pair's order does not matter.

    Whoever is paired with ``NO_PARTNER`` is not mixed.

    Follows timm's ``Mixup``: mixup or CutMix by ``switch_probability``; CutMix's box is cut
    at the border and its share corrected to the box's area. ``size`` is the view's side.
    """
    if config.probability == 0 or NO_PARTNER in pair:
        return MixParams.none()
    # One stream for both members: each draws alone, and they must agree.
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
    # Of the box as it is after the cut at the border: the share of pixels that are the own ones.
    lam = FIXED_ONE - fixed(box.area / (size * size))
    return MixParams(kind=MixKind.CUTMIX, lam=lam, box=box)


def _cut_span(center: int, side: int, size: int) -> tuple[int, int]:
    """Return start and length of a span around ``center``, cut at the borders."""
    start = max(0, center - side // 2)
    end = min(size, center + side // 2)
    return start, end - start
