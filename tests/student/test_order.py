"""The order of training: what it covers, and how it may be reached."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from pipeline.errors import ConfigError, StoreError
from pipeline.identity import MixConfig
from pipeline.records import NO_PARTNER
from pipeline.store.manifest import Manifest
from pipeline.views.pairing import block_of, draw_groups, draw_partners
from student.order import PlanConfig, PlannedBatch, TrainingPlan
from tests.student.factories import make_identity, make_manifest

Row = tuple[int, int, int]  # shard, sample, view


@dataclass(frozen=True)
class Case:
    manifest: Manifest
    config: PlanConfig

    def plan(self) -> TrainingPlan:
        return TrainingPlan(self.manifest, self.config)


@st.composite
def cases(draw: st.DrawFn, max_epochs: int = 4) -> Case:
    """Stores of odd shards with rejections and omissions, and a batch size that fits."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 5, 17, 34]), min_size=2, max_size=6))
    rejected = {
        number: draw(st.lists(st.integers(0, size - 1), unique=True, max_size=3))
        for number, size in enumerate(sizes)
    }
    omitting = draw(st.booleans())
    omitted = {
        number: draw(st.sets(st.integers(0, size - 1), max_size=size if omitting else 0))
        - set(rejected[number])
        for number, size in enumerate(sizes)
    }
    repeated = draw(st.booleans())
    first = draw(st.sampled_from([0, 3, 12]))
    manifest = make_manifest(sizes, rejected=rejected, omitted=omitted, first_view=first, views=6)
    rows = sum(manifest.accepted_samples(number) for number in range(len(sizes)))
    unit = 6 if repeated else 2
    if rows < unit:
        manifest = make_manifest([17, 3], first_view=first, views=6)
        rows = 20
    shares = draw(st.integers(1, min(rows // unit, 3)))
    config = PlanConfig(
        seed=draw(st.integers(0, 3)),
        batch_size=unit * shares * draw(st.integers(1, min(rows // unit // shares, 4))),
        read_shares=shares,
        epochs=draw(st.integers(1, max_epochs)),
        repeated_augmentation=repeated,
        window_shards=draw(st.integers(1, 3)),
    )
    return Case(manifest, config)


def rows_of(batch: PlannedBatch) -> list[Row]:
    """Return all rows that are trained on, without guests."""
    return rows_and_guests(batch)[: batch.rows]


def rows_and_guests(batch: PlannedBatch) -> list[Row]:
    triples = zip(batch.shard, batch.sample, batch.view, strict=True)
    return [(int(a), int(b), int(c)) for a, b, c in triples]


def all_rows(plan: TrainingPlan) -> list[Row]:
    return [row for step in range(plan.steps) for row in rows_of(plan.batch(step))]


def expected_rows(manifest: Manifest, views: range) -> set[Row]:
    return {
        (shard.number, int(index), view)
        for shard in manifest.shards
        for index in np.flatnonzero(manifest.accepted(shard.number))
        for view in views
    }


def assert_equal_batches(one: PlannedBatch, other: PlannedBatch) -> None:
    for name in ("shard", "sample", "view", "partner"):
        assert_array_equal(getattr(one, name), getattr(other, name))


@given(case=cases())
@settings(max_examples=80, deadline=None)
def test_every_epoch_shows_each_accepted_sample_once_up_to_the_tail(case: Case) -> None:
    plan = case.plan()
    per_pass, first = case.config.views_per_unit, plan.first_view
    rows = all_rows(plan)
    assert len(rows) == plan.steps * case.config.batch_size
    assert plan.dropped_rows == case.config.epochs * plan.rows_per_epoch - len(rows)
    assert 0 <= plan.dropped_rows < case.config.batch_size
    assert max(Counter(rows).values()) == 1
    passes = -(-case.config.epochs // per_pass)
    assert set(rows) <= expected_rows(case.manifest, range(first, first + passes * per_pass))
    for done in range(1, case.config.epochs // per_pass + 1):
        expected = expected_rows(case.manifest, range(first, first + done * per_pass))
        odd = done * plan.rows_per_epoch % 2  # the last single waits for its mate
        count = len(expected) - odd * per_pass
        if case.config.read_shares > 1:  # each has some of a batch that is partly the next pass's
            count = count // case.config.batch_size * case.config.batch_size
        shown = rows[:count]
        assert set(shown) <= expected
        assert len(shown) == min(count, len(rows))


@given(case=cases(max_epochs=6))
@settings(max_examples=40, deadline=None)
def test_three_epochs_of_repeated_augmentation_show_each_view_once(case: Case) -> None:
    repeated = case.config.repeated_augmentation
    plan = TrainingPlan(
        case.manifest,
        PlanConfig(
            seed=case.config.seed,
            batch_size=case.config.unit_rows,  # so small that no more than a unit is dropped
            epochs=3,
            repeated_augmentation=repeated,
        ),
    )
    rows = all_rows(plan)
    expected = expected_rows(case.manifest, range(plan.first_view, plan.first_view + 3))
    assert len(rows) == len(set(rows))
    assert set(rows) <= expected
    assert len(expected) - len(rows) < case.config.unit_rows


@given(case=cases(), order=st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_a_batch_does_not_depend_on_the_batches_asked_for_before_it(case, order) -> None:
    plan = case.plan()
    in_order = [plan.batch(step) for step in range(plan.steps)]
    steps = list(range(plan.steps))
    order.shuffle(steps)
    for step in steps[:10]:
        assert_equal_batches(case.plan().batch(step), in_order[step])
        assert_equal_batches(plan.batch(step), in_order[step])


@given(case=cases(), ranks=st.sampled_from([1, 2, 3]), share=st.sampled_from([1, 2, 3]))
@settings(max_examples=40, deadline=None)
def test_the_slices_of_all_ranks_are_the_global_batch(case: Case, ranks: int, share: int) -> None:
    size = case.config.unit_rows * ranks * share
    if size > sum(map(case.manifest.accepted_samples, case.manifest.by_shard)):
        return
    config = PlanConfig(
        seed=1,
        batch_size=size,
        epochs=2,
        repeated_augmentation=case.config.repeated_augmentation,
        read_shares=share,
    )
    plan = TrainingPlan(case.manifest, config)
    for step in range(min(plan.steps, 5)):
        slices = [plan.slice(step, rank, ranks) for rank in range(ranks)]
        whole, rows = plan.batch(step), size // ranks
        assert [row for one in slices for row in rows_of(one)] == rows_of(whole)
        guests = [guest for one in slices for guest in rows_and_guests(one)[rows:]]
        assert guests == rows_and_guests(whole)[size:]
        partners = [rows_and_guests(one)[position] for one in slices for position in one.partner]
        assert partners == [rows_and_guests(whole)[position] for position in whole.partner]


def drawn_partner(manifest: Manifest, row: Row) -> int | None:
    """Return the sample that pairing gives a row as partner, the plain way."""
    shard, sample, view = row
    info, identity = manifest.by_shard[shard], manifest.identity
    mix = identity.mix
    groups = draw_groups(
        identity.root_seed, info.key_hash, info.samples, block_of(view, mix), mix
    ).groups
    for number, group in enumerate(groups):
        if sample in group:
            positions = draw_partners(
                identity.root_seed, info.key_hash, view, number, len(group), mix
            )
            position = positions[group.index(sample)]
            return None if position == NO_PARTNER else group[position]
    raise AssertionError(row)


@given(case=cases())
@settings(max_examples=40, deadline=None)
def test_partners_are_those_that_pairing_draws_and_rejected_ones_are_left_out(case) -> None:
    plan = case.plan()
    rejected = {(n, one.index) for n, many in case.manifest.rejections.items() for one in many}
    for step in range(plan.steps):
        batch = plan.batch(step)
        rows, guests = rows_and_guests(batch), 0
        for row, partner_row in enumerate(batch.partner):
            shard, _, view = rows[row]
            partner = drawn_partner(case.manifest, rows[row])
            if partner is None or (shard, partner) in rejected:
                assert partner_row == row
                continue
            assert rows[partner_row] == (shard, partner, view)
            if case.manifest.accepted(shard)[partner]:
                assert batch.partner[partner_row] == row
            else:
                assert partner_row == batch.rows + guests
                guests += 1
        assert len(rows) == batch.rows + guests


@given(case=cases())
@settings(max_examples=30, deadline=None)
def test_a_unit_is_two_samples_at_consecutive_views(case: Case) -> None:
    plan, views = case.plan(), case.config.views_per_unit
    batch = plan.batch(plan.steps - 1)
    shaped = batch.view[: batch.rows].reshape(-1, 2, views)
    assert_array_equal(shaped - shaped[..., :1], np.broadcast_to(np.arange(views), shaped.shape))
    for name in ("shard", "sample"):
        values = getattr(batch, name)[: batch.rows].reshape(-1, 2, views)
        assert (values == values[..., :1]).all()
    assert (shaped[..., 0] % views == 0).all()


def test_one_seed_gives_one_order_and_another_seed_another() -> None:
    manifest = make_manifest([97, 17, 3])
    orders = [
        all_rows(TrainingPlan(manifest, PlanConfig(seed=seed, batch_size=10, epochs=1)))
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_epochs_differ_in_order() -> None:
    plan = TrainingPlan(make_manifest([34, 34]), PlanConfig(seed=0, batch_size=68, epochs=2))
    first, second = ([row[:2] for row in rows_of(plan.batch(step))] for step in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)


@given(case=cases())
@settings(max_examples=40, deadline=None)
def test_epochs_share_out_the_steps_without_gap(case: Case) -> None:
    plan = case.plan()
    assert plan.epoch_start(0) == 0
    for step in range(plan.steps):
        epoch = plan.epoch_of(step)
        assert plan.epoch_start(epoch) <= step < plan.epoch_start(epoch + 1)
    assert plan.steps == case.config.epochs * plan.rows_per_epoch // case.config.batch_size


def test_a_plan_survives_pickling() -> None:
    plan = TrainingPlan(make_manifest([17, 5]), PlanConfig(seed=0, batch_size=4, epochs=2))
    before = plan.batch(3)
    assert_equal_batches(pickle.loads(pickle.dumps(plan)).batch(3), before)


def test_the_order_of_training_never_changes() -> None:
    """A golden value: with another order a resumed run would repeat and miss samples."""
    manifest = make_manifest([5, 17, 3], rejected={1: [4]})
    plan = TrainingPlan(manifest, PlanConfig(seed=0, batch_size=4, epochs=2, window_shards=2))
    assert rows_of(plan.batch(0)) == [(0, 3, 0), (0, 1, 0), (2, 1, 0), (2, 0, 0)]
    assert rows_of(plan.batch(plan.steps - 1)) == [(2, 1, 1), (2, 0, 1), (1, 12, 1), (2, 2, 1)]


def test_the_order_of_shares_never_changes() -> None:
    manifest = make_manifest([5, 17, 3, 6, 8], rejected={1: [4]})
    config = PlanConfig(seed=0, batch_size=8, epochs=2, window_shards=2, read_shares=2)
    plan = TrainingPlan(manifest, config)
    assert rows_of(plan.batch(0)) == [
        (3, 0, 0),
        (3, 4, 0),
        (3, 5, 0),
        (3, 1, 0),
        (1, 13, 0),
        (1, 10, 0),
        (1, 11, 0),
        (1, 7, 0),
    ]
    assert rows_of(plan.batch(plan.steps - 1)) == [
        (1, 13, 1),
        (1, 10, 1),
        (1, 6, 1),
        (1, 0, 1),
        (0, 3, 1),
        (0, 1, 1),
        (0, 4, 1),
        (0, 2, 1),
    ]


def read_by(plan: TrainingPlan, node: int, nodes: int, epoch: int) -> set[int]:
    """Return the shards that a machine reads in an epoch, as one rank of so many."""
    steps = range(plan.epoch_start(epoch), plan.epoch_start(epoch + 1))
    return {int(one) for step in steps for one in np.unique(plan.slice(step, node, nodes).shard)}


@pytest.mark.parametrize("nodes", [2, 4, 8])
def test_a_machine_reads_about_its_share_of_the_bytes(nodes: int) -> None:
    """In each epoch 1.2 parts at most, mostly those of the epoch before; all of them without."""
    sizes = np.random.default_rng(5).integers(60, 141, 32 * nodes).tolist()
    manifest = make_manifest(sizes, rejected={7: [3], 50: [5, 6]})
    settings = {"seed": 3, "batch_size": 16 * nodes, "epochs": 3}
    dealt = TrainingPlan(manifest, PlanConfig(**settings, read_shares=nodes))
    plain = TrainingPlan(manifest, PlanConfig(**settings))
    whole = sum(shard.bytes for shard in manifest.shards)

    def share(shards: set[int]) -> float:
        return sum(manifest.by_shard[number].bytes for number in shards) / whole

    for node in range(nodes):
        read = [read_by(dealt, node, nodes, epoch) for epoch in range(3)]
        assert max(map(share, read)) <= 1.2 / nodes
        assert share(set().union(*read)) <= 1.2 / nodes
        assert min(share(read_by(plain, node, nodes, epoch)) for epoch in range(3)) > 0.9
    # Ranks of one machine share its part; half as many machines read two shares each.
    ranks = [read_by(dealt, rank, 2 * nodes, 0) for rank in range(2 * nodes)]
    assert all(share(ranks[2 * node] | ranks[2 * node + 1]) <= 1.2 / nodes for node in range(nodes))
    assert share(read_by(dealt, 0, nodes // 2, 0)) <= 1.2 * 2 / nodes
    assert [dealt.shares_of(0, ranks) for ranks in (nodes, 2 * nodes, 1)] == [1, 1, nodes]


def test_shares_keep_their_shards_and_shuffle_them_anew() -> None:
    plan = TrainingPlan(
        make_manifest([20] * 16), PlanConfig(batch_size=8, epochs=3, window_shards=2, read_shares=2)
    )
    orders = []
    for epoch in range(3):
        steps = range(plan.epoch_start(epoch), plan.epoch_start(epoch + 1))
        halves = [rows_of(plan.slice(step, 0, 2)) for step in steps]
        orders.append([row[:2] for half in halves for row in half])
    assert len({frozenset(order) for order in orders}) == 1
    assert len({tuple(order) for order in orders}) == 3


def test_a_plan_of_a_million_samples_finds_a_late_batch_without_walking_to_it() -> None:
    manifest = make_manifest([1000] * 1280 + [999], views=300, rejected={7: [3], 700: [5, 6]})
    started = time.perf_counter()
    plan = TrainingPlan(manifest, PlanConfig(seed=0, batch_size=1024, epochs=300))
    rows = rows_of(plan.batch(plan.steps - 1))
    assert {row[2] for row in rows} == {299}
    assert time.perf_counter() - started < 5  # about 0.2 s; a walk takes hours


def refusal(manifest: Manifest, **settings_: int) -> str:
    values = {"seed": 0, "batch_size": 4, "epochs": 1, **settings_}
    with pytest.raises(ConfigError) as caught:
        TrainingPlan(manifest, PlanConfig(**values))
    return str(caught.value)


def test_a_batch_size_that_does_not_fit_is_refused_with_those_that_do() -> None:
    manifest = make_manifest([20])
    assert "use 6 or 8" in refusal(manifest, batch_size=7)
    assert "use 20" in refusal(manifest, batch_size=22)
    assert "use 6 or 12" in refusal(manifest, batch_size=8, repeated_augmentation=True)
    plan = TrainingPlan(make_manifest([40]), PlanConfig(batch_size=24, epochs=1))
    for shares, words in (
        ((1, 5), "of 10 (two samples x 5 pieces (`accumulate`))"),
        ((5, 1), "of 10 (two samples x 5 ranks)"),
        ((5, 2), "of 20 (two samples x 5 ranks x 2 pieces (`accumulate`))"),
    ):
        with pytest.raises(ConfigError) as caught:
            plan.check_ranks(*shares)
        assert f"it must be a multiple {words} and at most" in str(caught.value)
    assert "use 12 or 18" in refusal(manifest, batch_size=14, read_shares=3)
    assert "two samples, and 3 `read_shares`" in refusal(manifest, batch_size=14, read_shares=3)
    assert "fewer than the smallest batch" in refusal(make_manifest([1]), batch_size=2)
    assert "`batch_size` is 0" in refusal(manifest, batch_size=0)
    plan = TrainingPlan(manifest, PlanConfig(seed=0, batch_size=8, epochs=1))
    with pytest.raises(ConfigError, match="use 6 or 12"):
        plan.slice(0, 0, 3)


def test_more_epochs_than_views_are_refused_with_the_way_to_more_views() -> None:
    manifest = make_manifest([20], first_view=3, views=6)
    message = refusal(manifest, epochs=7)
    assert "7 epochs need 7 views" in message
    assert "to view 10" in message
    assert "9 views" in refusal(manifest, batch_size=6, epochs=7, repeated_augmentation=True)
    TrainingPlan(manifest, PlanConfig(seed=0, batch_size=6, epochs=6, repeated_augmentation=True))


def test_repeated_augmentation_needs_whole_triples() -> None:
    manifest = make_manifest([20], first_view=4, views=6)
    message = refusal(manifest, batch_size=6, repeated_augmentation=True)
    assert "`first_view` 3" in message


def test_cycling_does_not_make_triples_of_two_views() -> None:
    manifest = make_manifest([20], views=2)
    settings = {"batch_size": 6, "epochs": 3, "repeated_augmentation": True, "cycle_views": True}
    message = refusal(manifest, **settings)
    assert "shows 3 views of a sample in one batch, and the store has 2; extend" in message
    assert "to view 3" in message


def test_pairs_without_mixing_are_units_too() -> None:
    identity = make_identity(mix=MixConfig(probability=0))
    plan = TrainingPlan(
        make_manifest([5], identity=identity), PlanConfig(seed=0, batch_size=4, epochs=2)
    )
    assert len(set(all_rows(plan))) == 8


def test_a_manifest_whose_rejections_do_not_fit_is_refused() -> None:
    plan = TrainingPlan(
        make_manifest([20], rejected={0: [20]}), PlanConfig(seed=0, batch_size=4, epochs=1)
    )
    with pytest.raises(StoreError, match="other samples than their manifest counts"):
        plan.batch(0)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("sizes", [(17, 3, 34), (17, 5, 5)])
def test_cycling_shows_every_view_again_and_no_other(sizes, repeated: bool) -> None:
    manifest = make_manifest(sizes, first_view=3, views=6)
    settings = PlanConfig(
        seed=1, batch_size=6, epochs=12, repeated_augmentation=repeated, cycle_views=True
    )
    plan = TrainingPlan(manifest, settings)
    rows: Counter[Row] = Counter()
    for step in range(plan.steps):
        batch = plan.batch(step)
        rows.update(
            (int(a), int(b), int(c))
            for a, b, c in zip(batch.shard, batch.sample, batch.view, strict=True)
        )
    assert {view for _, _, view in rows} == set(range(3, 9))
    assert sum(2 - count for count in rows.values()) == plan.dropped_rows
    assert len(rows) == sum(sizes) * 6
    first = TrainingPlan(manifest, PlanConfig(**{**vars_of(settings), "epochs": 6}))
    for step in range(first.steps):
        assert_array_equal(first.batch(step).sample, plan.batch(step).sample)


def vars_of(config: PlanConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in PlanConfig.__dataclass_fields__}


def test_too_few_views_are_refused_with_both_ways_out() -> None:
    with pytest.raises(ConfigError, match=r"to view 7, or show .*`cycle_views`"):
        TrainingPlan(make_manifest([17]), PlanConfig(seed=0, batch_size=2, epochs=7))
