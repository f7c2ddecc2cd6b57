from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.identity import ColumnConfig, StoreIdentity
from pipeline.store import LabelStore, export_store, open_store
from pipeline.tools import (
    KeptSamples,
    extend_command,
    extended_config,
    merge_stores,
    thin_store,
)
from pipeline.tools.verify import verify_store
from pipeline.views.rng import sample_share
from tests.labelling import digit_shard, write_hash_store
from tests.pipeline.labelling.test_job import config_of, plan_of
from tests.pipeline.store.test_card import run_cli
from tests.storing import ALL_COLUMNS, IDENTITY, bytes_of, info_of, ranges, write_store

SHARDS = [info_of(0), info_of(1, samples=9)]
VIEWS = range(8)


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return write_store(tmp_path / "s.parquet", SHARDS, ranges(VIEWS, 3), ALL_COLUMNS)


def with_columns(**columns: object) -> StoreIdentity:
    return replace(IDENTITY, columns=ColumnConfig(**columns))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("drop", "kept"),
    [
        ((), {"confidence": True, "margin": True, "topk": 3}),
        (("confidence",), {"margin": True, "topk": 3}),
        (("margin", "topk"), {"confidence": True}),
        (("topk", "confidence", "margin"), {}),
    ],
)
@pytest.mark.parametrize("views", [None, range(6), range(5), range(3, 8)])
def test_a_thinned_store_has_the_bytes_of_one_labelled_so_from_the_start(
    tmp_path: Path,
    store: LabelStore,
    drop: tuple[str, ...],
    kept: dict[str, object],
    views: range | None,
) -> None:
    thin_store(store, tmp_path / "thin.parquet", views=views, drop=drop)
    cut = ranges(VIEWS if views is None else views, 3)
    write_store(tmp_path / "start.parquet", SHARDS, cut, with_columns(**kept))
    assert bytes_of(tmp_path / "thin.parquet") == bytes_of(tmp_path / "start.parquet")


def test_views_cut_elsewhere_are_the_same_row_for_row(tmp_path: Path, store: LabelStore) -> None:
    thin_store(store, tmp_path / "thin.parquet", views=range(1, 7), drop=("topk",))
    thin = open_store(tmp_path / "thin.parquet")
    assert thin.manifest.view_range == range(1, 7)
    for shard in SHARDS:
        for view in range(1, 7):
            ours, theirs = (one.read_view(shard.number, view) for one in (thin, store))
            assert ours.keys == theirs.keys
            for name in ("label", "target", "seed", "digest"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
            assert ours.columns.keys() == {"confidence", "margin"}
            for name, values in ours.columns.items():
                np.testing.assert_array_equal(values, theirs.columns[name])


def test_thinned_halves_merge_back_into_the_whole(tmp_path: Path, store: LabelStore) -> None:
    for name, views in (("a", range(3)), ("b", range(3, 8))):
        thin_store(store, tmp_path / f"{name}.parquet", views=views)
    halves = [open_store(tmp_path / f"{name}.parquet") for name in "ab"]
    merge_stores(halves, tmp_path / "c.parquet")
    assert bytes_of(tmp_path / "c.parquet") == bytes_of(tmp_path / "s.parquet")


def test_shards_with_other_views_keep_them_all_unless_asked(tmp_path: Path) -> None:
    long = write_store(tmp_path / "a.parquet", SHARDS[:1], ranges(VIEWS, 3))
    short = write_store(tmp_path / "b.parquet", SHARDS[1:], ranges(range(5), 3))
    merge_stores([long, short], tmp_path / "c.parquet")
    uneven = open_store(tmp_path / "c.parquet")
    assert uneven.manifest.view_range == range(5)
    thin_store(uneven, tmp_path / "d.parquet")
    assert bytes_of(tmp_path / "d.parquet") == bytes_of(tmp_path / "c.parquet")


@pytest.mark.parametrize("views", [range(8, 9), range(3, 3), range(0, 9), range(5, 2)])
def test_views_that_the_store_does_not_have_are_refused(
    tmp_path: Path, store: LabelStore, views: range
) -> None:
    with pytest.raises(ConfigError, match=r"has the views 0:8 of all shards"):
        thin_store(store, tmp_path / "thin.parquet", views=views)
    assert not (tmp_path / "thin.parquet").exists()


def test_columns_that_the_store_does_not_have_are_refused(
    tmp_path: Path, store: LabelStore
) -> None:
    plain = write_store(tmp_path / "plain.parquet", SHARDS, [(0, 3)])
    with pytest.raises(ConfigError, match="which the store does not have; it has"):
        thin_store(plain, tmp_path / "thin.parquet", drop=("margin",))
    with pytest.raises(ConfigError, match="use some of confidence, margin, topk"):
        thin_store(store, tmp_path / "thin.parquet", drop=("digest",))


def test_an_interrupted_run_can_be_run_again(tmp_path: Path, store: LabelStore) -> None:
    class _KilledError(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == 3:
            raise _KilledError

    out = tmp_path / "thin.parquet"
    with pytest.raises(_KilledError):
        thin_store(store, out, drop=("topk",), show=kill)
    assert not (out / "_manifest.json").exists()
    thin_store(store, out, drop=("topk",))
    fewer = with_columns(confidence=True, margin=True)
    write_store(tmp_path / "start.parquet", SHARDS, ranges(VIEWS, 3), fewer)
    assert bytes_of(out) == bytes_of(tmp_path / "start.parquet")


def test_a_store_is_never_thinned_in_place(tmp_path: Path, store: LabelStore) -> None:
    before = bytes_of(tmp_path / "s.parquet")
    with pytest.raises(StoreError, match="would not be in the result"):
        thin_store(store, store.root, views=range(3))
    with pytest.raises(StoreError, match="another identity"):
        thin_store(store, store.root, drop=("topk",))
    assert bytes_of(tmp_path / "s.parquet") == before


def test_the_command_thins_and_names_errors(
    tmp_path: Path,
    store: LabelStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("thin", "s.parquet", "--out", "t.parquet", "--views", "0:6")
    assert run_cli(monkeypatch, *command, "--drop", "confidence,topk") == 0
    assert "| columns dropped | confidence, topk |" in capsys.readouterr().out
    write_store(tmp_path / "start.parquet", SHARDS, ranges(range(6), 3), with_columns(margin=True))
    assert bytes_of(tmp_path / "t.parquet") == bytes_of(tmp_path / "start.parquet")
    wrong = ("thin", "s.parquet", "--out", "u.parquet", "--views", "6")
    assert run_cli(monkeypatch, *wrong) == 1
    assert "error: --views 6: give two numbers, as 0:100" in capsys.readouterr().err


def labelled_keys(store: LabelStore) -> set[str]:
    found: set[str] = set()
    for shard in store.manifest.shards:
        view = store.read_view(shard.number, store.manifest.view_range.start)
        found |= {key for key, kept in zip(view.keys, view.accepted, strict=True) if kept}
    return found


RULES = [
    KeptSamples(classes=(1, 4)),
    KeptSamples(keys=("s-0.tar/0", "s-0.tar/6", "s-1.tar/3")),
    KeptSamples(sample_share=0.5),
    KeptSamples(shard_numbers=(1,), sample_share=0.5, classes=(0, 1, 2, 3)),
]


@pytest.fixture
def plain(tmp_path: Path) -> LabelStore:
    return write_store(tmp_path / "plain.parquet", SHARDS, ranges(VIEWS, 3))


@pytest.mark.parametrize("kept", RULES)
@pytest.mark.parametrize("views", [None, range(1, 7)])
def test_samples_that_are_kept_have_their_rows_and_all_others_are_omitted(
    tmp_path: Path, plain: LabelStore, kept: KeptSamples, views: range | None
) -> None:
    report = thin_store(plain, tmp_path / "thin.parquet", kept=kept, views=views)
    thin = open_store(tmp_path / "thin.parquet")
    keys = labelled_keys(thin)
    assert len(keys) == report.samples == thin.manifest.counts.labelled
    assert 0 < len(keys) < report.samples_before == 14
    for shard in thin.manifest.shards:
        for view in thin.manifest.view_range:
            ours, theirs = (one.read_view(shard.number, view) for one in (thin, plain))
            expected = [key in keys for key in theirs.keys]
            assert ours.accepted.tolist() == expected
            for name in ("label", "target", "seed", "digest"):
                mine, others = getattr(ours, name), getattr(theirs, name)
                np.testing.assert_array_equal(mine[expected], others[expected])
                assert not mine[~ours.accepted].any()
    checked = verify_store(thin.root)
    assert checked.labels == len(keys) * len(thin.manifest.view_range)
    kinds = (report.samples, checked.rejected, checked.omitted)
    assert sum(kinds) == checked.samples == sum(one.samples for one in thin.manifest.shards)


def test_each_rule_keeps_what_it_says(tmp_path: Path, plain: LabelStore) -> None:
    def kept(**rule: Any) -> set[str]:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        thin_store(plain, out, kept=KeptSamples(**rule))
        return labelled_keys(open_store(out))

    everything = labelled_keys(plain)
    assert kept(keys=("s-0.tar/0", "s-0.tar/2")) == {"s-0.tar/0"}  # 2 is rejected
    assert kept(shard_numbers=(1,)) == {key for key in everything if key.startswith("s-1")}
    targets = plain.read_view(0, 0), plain.read_view(1, 0)
    of_class = {
        key
        for one in targets
        for key, target in zip(one.keys, one.target, strict=True)
        if target == 3
    }
    assert kept(classes=(3,)) == of_class
    shares = [kept(sample_share=share) for share in (0.2, 0.5, 0.8)]
    assert shares[0] < shares[1] < shares[2] < everything
    assert shares[1] == {key for key in everything if sample_share(0, key) < 0.5}
    assert kept(sample_share=0.5, sample_seed=1) != shares[1]
    assert kept(sample_share=0.5, keys=tuple(everything - shares[0])) == shares[1] - shares[0]


def test_shares_are_what_they_say_and_never_change() -> None:
    keys = [f"n{number:08d}" for number in range(20_000)]
    below = sum(sample_share(0, key) < 0.1 for key in keys)
    assert abs(below - 2000) < 4 * 2000**0.5  # four standard deviations, and fixed by the hash
    assert sample_share(0, "n00000000") == 0.9474589753910472


def test_a_subset_says_whose_it_is(tmp_path: Path, plain: LabelStore) -> None:
    thin_store(plain, tmp_path / "a.parquet", kept=KeptSamples(sample_share=0.8))
    first = open_store(tmp_path / "a.parquet")
    thin_store(
        first, tmp_path / "b.parquet", kept=KeptSamples(shard_numbers=(1,), classes=(0, 1, 2))
    )
    (one, two) = open_store(tmp_path / "b.parquet").manifest.subset_of
    assert first.manifest.subset_of == (one,)
    written = json.loads((plain.root.path / "_manifest.json").read_bytes())
    assert one.manifest == written["sha256"] == plain.manifest.digest
    assert one.identity == plain.identity.digest
    assert (one.samples, one.share, one.share_seed, one.shards) == (14, 0.8, 0, None)
    assert two.manifest == first.manifest.digest
    assert (two.shards, two.classes, two.share, two.keys) == ("1", "0-2", None, None)
    # Views and columns alone leave no mark, but keep it.
    thin_store(first, tmp_path / "c.parquet", views=range(2))
    assert open_store(tmp_path / "c.parquet").manifest.subset_of == (one,)
    thin_store(plain, tmp_path / "d.parquet", views=range(2))
    assert open_store(tmp_path / "d.parquet").manifest.subset_of == ()


def test_thinning_twice_is_thinning_once_to_both(tmp_path: Path, plain: LabelStore) -> None:
    rules = KeptSamples(sample_share=0.8), KeptSamples(classes=(0, 1, 2))
    thin_store(plain, tmp_path / "a.parquet", kept=rules[0])
    thin_store(open_store(tmp_path / "a.parquet"), tmp_path / "b.parquet", kept=rules[1])
    both = KeptSamples(sample_share=0.8, classes=(0, 1, 2))
    thin_store(plain, tmp_path / "c.parquet", kept=both)
    parts = [
        {path: data for path, data in bytes_of(tmp_path / name).items() if "shard=" in path}
        for name in ("b.parquet", "c.parquet")
    ]
    assert parts[0] == parts[1]


def test_what_the_store_does_not_have_is_named(tmp_path: Path, plain: LabelStore) -> None:
    for rule, message in (
        ({"shard_numbers": (0, 9)}, r"`shard_numbers` has 1 .* first is 9"),
        ({"classes": (1, 77)}, r"`classes` has 1 .* first is 77"),
        ({"keys": ("s-0.tar/0", "x")}, r"`keys` has 1 .* first is 'x'"),
        ({"sample_share": 1e-9}, "no sample .* is kept"),
    ):
        with pytest.raises(ConfigError, match=message):
            thin_store(plain, tmp_path / "no.parquet", kept=KeptSamples(**rule))
        assert not (tmp_path / "no.parquet").exists()
    for rule, message in (
        ({"sample_share": 0.0}, "`sample_share` is 0"),
        ({"sample_share": 1.5}, "`sample_share` is 1.5"),
        ({"classes": ()}, r"`classes` is \(\); name one"),
    ):
        with pytest.raises(ConfigError, match=message):
            KeptSamples(**rule)


def test_another_rule_at_the_same_place_is_refused(tmp_path: Path, plain: LabelStore) -> None:
    out = tmp_path / "thin.parquet"
    thin_store(plain, out, kept=KeptSamples(sample_share=0.5))
    before = bytes_of(out)
    with pytest.raises(StoreError, match="another subset"):
        thin_store(plain, out, kept=KeptSamples(sample_share=0.8))
    assert bytes_of(out) == before
    thin_store(plain, out, kept=KeptSamples(sample_share=0.5))
    assert bytes_of(out) == before


def test_subsets_of_shards_merge_and_those_of_samples_of_one_shard_do_not(
    tmp_path: Path, plain: LabelStore
) -> None:
    stores = []
    for number, rule in enumerate(
        (
            {"shard_numbers": (0,), "sample_share": 0.5},
            {"shard_numbers": (1,), "sample_share": 0.5},
            {"shard_numbers": (1,), "classes": (1,)},
        )
    ):
        thin_store(plain, tmp_path / f"{number}.parquet", kept=KeptSamples(**rule))
        stores.append(open_store(tmp_path / f"{number}.parquet"))
    merge_stores(stores[:2], tmp_path / "both.parquet")
    merged = open_store(tmp_path / "both.parquet").manifest
    assert merged.subset_of == (*stores[0].manifest.subset_of, *stores[1].manifest.subset_of)
    assert merged.omitted == {**stores[0].manifest.omitted, **stores[1].manifest.omitted}
    with pytest.raises(StoreError, match=r"omit other samples of s-1\.tar"):
        merge_stores(stores[1:], tmp_path / "no.parquet")
    with pytest.raises(StoreError, match="omit other samples"):
        merge_stores([plain, stores[2]], tmp_path / "no.parquet")


def test_subsets_keep_their_places_in_every_format(tmp_path: Path, plain: LabelStore) -> None:
    thin_store(plain, tmp_path / "thin.parquet", kept=KeptSamples(sample_share=0.5))
    export_store(tmp_path / "thin.parquet", tmp_path / "thin.zarr")
    export_store(tmp_path / "thin.zarr", tmp_path / "one.parquet", single_file=True)
    again = export_store(tmp_path / "one.parquet", tmp_path / "again.parquet")
    assert bytes_of(tmp_path / "again.parquet") == bytes_of(tmp_path / "thin.parquet")
    assert len(again.manifest.subset_of) == 1
    for name in ("thin.zarr", "one.parquet"):
        thinned = tmp_path / f"{name}.thin.parquet"
        thin_store(open_store(tmp_path / name), thinned, kept=KeptSamples(sample_share=0.4))
        assert open_store(thinned).manifest.subset_of[0].share == 0.5


def test_the_command_takes_rules_from_files(
    tmp_path: Path,
    plain: LabelStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "keys.txt").write_text("s-0.tar/0\r\n\ns-1.tar/3\n")
    (tmp_path / "classes.txt").write_text("0, 1\n2-4\n")
    flags = ["--keys", tmp_path / "keys.txt", "--classes", tmp_path / "classes.txt"]
    out = tmp_path / "thin.parquet"
    assert run_cli(monkeypatch, "thin", plain.root.path, "--out", out, *flags) == 0
    # The first sample's class is unknown, so it is of no class that was asked for.
    assert labelled_keys(open_store(out)) == {"s-1.tar/3"}
    assert "| labelled samples | 1 of 14 |" in capsys.readouterr().out
    assert run_cli(monkeypatch, "thin", plain.root.path, "--out", out, "--classes", "x") == 1
    assert "--classes has 'x'" in capsys.readouterr().err
    assert run_cli(monkeypatch, "thin", plain.root.path, "--out", out) == 1
    assert "--sample-share" in capsys.readouterr().err


def test_no_job_adds_to_a_subset(tmp_path: Path) -> None:
    paths = [digit_shard(tmp_path / "digits-0.tar", 9)]
    whole = write_hash_store(tmp_path / "s.parquet", paths, views=3, per_part=3)
    out = tmp_path / "thin.parquet"
    thin_store(whole, out, kept=KeptSamples(sample_share=0.5))
    config = config_of((paths[0],), out=out, views=3)
    assert plan_of(config).missing == ()
    with pytest.raises(StoreError, match="extend the store that it was taken from"):
        plan_of(replace(config, views=6))
    (out / "_manifest.json").unlink()  # as an interrupted run leaves it
    with pytest.raises(StoreError, match="extend the store that it was taken from"):
        plan_of(replace(config, views=6))
    thin_store(whole, out, kept=KeptSamples(sample_share=0.5))
    for refused in (
        lambda: extended_config(config, open_store(out), 6),
        lambda: extend_command(open_store(out), 3, ("digits-0.tar",)),
    ):
        with pytest.raises(ConfigError, match="is a subset"):
            refused()
