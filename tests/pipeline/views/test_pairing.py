from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.identity import TRIPLE_VIEWS, MixConfig
from pipeline.records import FIXED_ONE, NO_PARTNER, Box, MixKind, MixParams, ShardInfo
from pipeline.views.pairing import Pairing, block_of, draw_groups, draw_mix, draw_partners

CONFIG = MixConfig()
SHARD = "5e" * 32  # a key hash

views = st.integers(0, 100_000)
sizes = st.integers(1, 400)
group_sizes = st.sampled_from([4, 6, 16, 24])


def partners_in_shard(samples: int, view: int, config: MixConfig = CONFIG) -> dict[int, int]:
    """Return each sample's partner at a view; the odd ones are left out."""
    block = block_of(view, config)
    partners = {}
    for number, members in enumerate(draw_groups(0, SHARD, samples, block, config).groups):
        positions = draw_partners(0, SHARD, view, number, len(members), config)
        for member, position in zip(members, positions, strict=True):
            if position != NO_PARTNER:
                partners[member] = members[position]
    return partners


# ------------------------------------------------------------------------ groups


@given(samples=sizes, block=st.integers(0, 1000), group_size=group_sizes)
def test_every_sample_is_in_exactly_one_group_of_a_block(samples, block, group_size):
    config = MixConfig(group_size=group_size)
    groups = draw_groups(0, SHARD, samples, block, config).groups
    assert sorted(index for group in groups for index in group) == list(range(samples))
    assert all(len(group) <= group_size for group in groups)
    assert samples == 1 or all(len(group) >= 2 for group in groups)
    assert len(groups) == -(-samples // group_size)


@pytest.mark.parametrize(
    ("samples", "lengths"),
    [
        (1, [1]),
        (2, [2]),
        (3, [3]),
        (16, [16]),
        (17, [14, 3]),
        (18, [16, 2]),
        (97, [16, 16, 16, 16, 16, 14, 3]),
    ],
)
def test_a_single_sample_left_over_takes_two_from_the_group_before(samples, lengths):
    groups = draw_groups(0, SHARD, samples, 0, CONFIG).groups
    assert [len(group) for group in groups] == lengths


def test_groups_are_drawn_anew_for_every_block_shard_and_seed():
    draws = {
        draw_groups(seed, shard, 64, block, CONFIG).groups
        for seed in (0, 1)
        for shard in (SHARD, "00" * 32)
        for block in (0, 1, 2)
    }
    assert len(draws) == 12


def test_groups_are_golden():
    groups = draw_groups(0, SHARD, 7, 3, MixConfig(group_size=4)).groups
    assert groups == ((6, 3, 5, 4), (2, 1, 0))


# ---------------------------------------------------------------------- partners


@given(samples=sizes, view=views, group_size=group_sizes)
def test_partners_are_mutual_and_of_the_same_group(samples, view, group_size):
    config = MixConfig(group_size=group_size)
    partners = partners_in_shard(samples, view, config)
    assert all(partners[partner] == member for member, partner in partners.items())
    assert all(partner != member for member, partner in partners.items())
    group_of = {
        member: number
        for number, group in enumerate(
            draw_groups(0, SHARD, samples, block_of(view, config), config).groups
        )
        for member in group
    }
    assert all(group_of[a] == group_of[b] for a, b in partners.items())


@given(members=st.integers(1, 40), view=views, group=st.integers(0, 99))
def test_one_member_of_an_odd_group_stays_alone_and_none_of_an_even_one(members, view, group):
    positions = draw_partners(0, SHARD, view, group, members, CONFIG)
    assert len(positions) == members
    assert positions.count(NO_PARTNER) == members % 2


@given(block=st.integers(0, 5000), members=st.integers(2, 40), group=st.integers(0, 99))
def test_triples_of_a_block_differ_in_partners_while_the_tournament_lasts(block, members, group):
    first = block * CONFIG.block_views
    triples = [
        draw_partners(0, SHARD, first + TRIPLE_VIEWS * t, group, members, CONFIG) for t in range(5)
    ]
    rounds = members - 1 + members % 2
    lasting = triples[:rounds]
    for position in range(members):
        met = [triple[position] for triple in lasting]
        assert len(set(met)) == len(met)
    # Then it starts again.
    assert triples[rounds:] == triples[: max(0, 5 - rounds)]


@given(view=views, members=st.integers(2, 17))
def test_views_of_a_triple_share_their_partners(view, members):
    first = view - view % TRIPLE_VIEWS
    triple = {draw_partners(0, SHARD, first + i, 2, members, CONFIG) for i in range(3)}
    assert len(triple) == 1


def test_a_sample_meets_about_95_partners_in_300_views():
    samples = 1000
    met: dict[int, set[int]] = {index: set() for index in range(samples)}
    for view in range(0, 300, TRIPLE_VIEWS):
        for member, partner in partners_in_shard(samples, view).items():
            met[member].add(partner)
    # 100 triples; the chance to meet someone again costs about 100 * 99 / 2 / 999 of them.
    assert abs(np.mean([len(one) for one in met.values()]) - 95.3) < 1
    assert max(len(one) for one in met.values()) <= 100


def test_every_pair_of_a_group_is_equally_likely():
    counts = Counter(
        positions[0]
        for block in range(3000)
        if (positions := draw_partners(0, SHARD, block * 15, 0, 6, CONFIG))
    )
    assert set(counts) == {1, 2, 3, 4, 5}
    assert all(abs(count - 600) < 5 * math.sqrt(600) for count in counts.values())


def test_partners_are_golden():
    assert draw_partners(0, SHARD, 4, 1, 5, CONFIG) == (1, 0, 4, -1, 2)


# ------------------------------------------------------------------- less rejections


def pairing(samples: int, rejected: set[int], config: MixConfig = CONFIG) -> Pairing:
    shard = ShardInfo(
        number=0, name="a.tar", key_hash=SHARD, content_hash="", samples=samples, bytes=0
    )
    return Pairing(root_seed=0, shard=shard, rejected=frozenset(rejected), config=config)


@given(samples=sizes, view=views, rejected=st.sets(st.integers(0, 399), max_size=40))
def test_a_rejection_takes_its_sample_and_leaves_its_partner_alone(samples, view, rejected):
    drawn = partners_in_shard(samples, view)
    expected = {
        sample: NO_PARTNER if drawn.get(sample) in rejected else drawn.get(sample, NO_PARTNER)
        for sample in set(range(samples)) - rejected
    }
    assert pairing(samples, rejected).of_shard(view) == expected


@given(samples=sizes, view=views, rejected=st.sets(st.integers(0, 399), max_size=40))
def test_a_shards_pairs_are_those_of_its_groups_in_their_order(samples, view, rejected):
    groups = draw_groups(0, SHARD, samples, block_of(view, CONFIG), CONFIG).groups
    shard = pairing(samples, rejected)
    found = [
        pair
        for number, members in enumerate(groups)
        for pair in shard.of_group(view, number, members).items()
    ]
    assert found == list(shard.of_shard(view).items())
    assert [sample for sample, _ in found] == [
        sample for members in groups for sample in members if sample not in rejected
    ]


# -------------------------------------------------------------------------- mixing


@given(view=views, a=st.integers(0, 999), b=st.integers(0, 999), size=st.integers(1, 384))
def test_both_members_of_a_pair_share_the_mix(view, a, b, size):
    assert draw_mix(0, SHARD, view, (a, b), size, CONFIG) == draw_mix(
        0, SHARD, view, (b, a), size, CONFIG
    )


@given(view=views, sample=st.integers(0, 999))
def test_whoever_has_no_partner_is_not_mixed(view, sample):
    assert draw_mix(0, SHARD, view, (sample, NO_PARTNER), 224, CONFIG) == MixParams.none()
    assert pairing(1000, set()).draw_mix(view, (sample, NO_PARTNER), 224) == MixParams.none()


@given(view=views, a=st.integers(0, 999), size=st.integers(1, 384))
def test_lambda_after_cutmix_is_the_share_outside_the_box(view, a, size):
    config = MixConfig(mixup_alpha=0)
    mix = draw_mix(0, SHARD, view, (a, a + 1), size, config)
    assert mix.kind is MixKind.CUTMIX
    assert mix.box is not None
    assert 0 <= mix.box.top <= size - mix.box.height
    assert 0 <= mix.box.left <= size - mix.box.width
    assert abs(mix.lam / FIXED_ONE - (1 - mix.box.area / size**2)) <= 0.5 / FIXED_ONE


def draws(count: int, config: MixConfig) -> list[MixParams]:
    return [draw_mix(0, SHARD, view, (3, 8), 224, config) for view in range(count)]


def test_mixup_and_cutmix_take_turns_by_the_switch():
    kinds = Counter(mix.kind for mix in draws(6000, CONFIG))
    assert set(kinds) == {MixKind.MIXUP, MixKind.CUTMIX}
    assert abs(kinds[MixKind.CUTMIX] - 3000) < 5 * math.sqrt(1500)
    rare = Counter(mix.kind for mix in draws(6000, MixConfig(switch_probability=0.1)))
    assert abs(rare[MixKind.CUTMIX] - 600) < 5 * math.sqrt(540)


def test_the_probability_of_mixing_holds():
    kinds = Counter(mix.kind for mix in draws(6000, MixConfig(probability=0.25)))
    assert abs(kinds[MixKind.NONE] - 4500) < 5 * math.sqrt(4500 * 0.25)
    assert set(draws(50, MixConfig(probability=0))) == {MixParams.none()}


def test_mixups_share_is_beta_08():
    shares = np.array([mix.lam for mix in draws(8000, MixConfig(cutmix_alpha=0))]) / FIXED_ONE
    std = math.sqrt(1 / (4 * (2 * 0.8 + 1)))
    assert abs(shares.mean() - 0.5) < 5 * std / math.sqrt(8000)
    assert abs(shares.std() / std - 1) < 0.03


def test_cutmix_boxes_are_those_of_a_beta_1_share_cut_at_the_border():
    mixes = draws(8000, MixConfig(mixup_alpha=0))
    assert all(mix.kind is MixKind.CUTMIX for mix in mixes)
    sides = np.array([max(mix.box.height, mix.box.width) for mix in mixes if mix.box]) / 224
    # A whole side is sqrt(1 - share) with a uniform share, mean 2/3; borders cut a part off.
    rng = np.random.default_rng(0)
    whole = np.sqrt(rng.random(200_000))
    center = rng.random((2, 200_000))
    cut = np.minimum(1, center + whole / 2) - np.maximum(0, center - whole / 2)
    expected = cut.max(axis=0)
    # A side is cut to an even number of pixels: 1 pixel less on average.
    assert abs(sides.mean() - expected.mean() + 1 / 224) < 5 * expected.std() / math.sqrt(8000)
    shares = np.array([mix.lam for mix in mixes]) / FIXED_ONE
    own = 1 - cut.prod(axis=0)
    assert abs(shares.mean() - own.mean()) < 5 * own.std() / math.sqrt(8000) + 0.01


def test_mixes_are_golden():
    assert [draw_mix(0, SHARD, view, (3, 8), 224, CONFIG) for view in range(3)] == [
        MixParams(kind=MixKind.MIXUP, lam=37775, box=None),
        MixParams(kind=MixKind.CUTMIX, lam=52992, box=Box(top=110, left=4, height=98, width=98)),
        MixParams(kind=MixKind.MIXUP, lam=3549, box=None),
    ]
