from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import IdentityError, IncompleteStoreError, ReplayError
from pipeline.identity import ColumnConfig
from pipeline.records import PartRows
from pipeline.store import LabelStore
from pipeline.tools import diff_stores
from tests.pipeline.store.test_card import run_cli
from tests.storing import (
    IDENTITY,
    OTHER_TEACHER,
    info_of,
    ranges,
    rows_of,
    write_store,
)

SHARDS = [info_of(0), info_of(1, samples=9)]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[LabelStore, LabelStore]:
    """Two teachers on the same 8 views, in parts of other sizes."""
    return (
        write_store(tmp_path / "a.parquet", SHARDS, ranges(range(8), 3)),
        write_store(tmp_path / "b.parquet", SHARDS, ranges(range(8), 5), OTHER_TEACHER),
    )


def plain_rows(first: int = 0, views: int = 8) -> list[tuple[int, int, int]]:
    """Return (target, label of the one teacher, label of the other) of all common rows."""
    found = []
    for shard in SHARDS:
        a, b = (rows_of(one, shard, first, views) for one in (IDENTITY, OTHER_TEACHER))
        targets = np.repeat(a.target, views).tolist()
        found += list(zip(targets, a.label.flat, b.label.flat, strict=True))
    return found


def test_disagreement_is_counted_as_a_plain_loop_does(pair: tuple[LabelStore, LabelStore]) -> None:
    diff, rows = diff_stores(*pair), plain_rows()
    known = [row for row in rows if row[0] != -1]
    assert (diff.teachers.rows, diff.teachers.different) == (
        len(rows),
        sum(a != b for _, a, b in rows),
    )
    assert (diff.a_truth.rows, diff.a_truth.different) == (
        len(known),
        sum(truth != a for truth, a, _ in known),
    )
    assert diff.b_truth.different == sum(truth != b for truth, _, b in known)
    assert set(diff.classes) == {truth for truth, _, _ in known}
    for number, one in diff.classes.items():
        of_class = [row for row in known if row[0] == number]
        assert one.rows == len(of_class)
        assert one.different == sum(a != b for _, a, b in of_class)
    assert 0 < diff.teachers.different < diff.teachers.rows
    assert (diff.margins_a, diff.margins_b) == ((), ())
    assert diff.different_identity == (f"teacher.weights: {'a' * 64!r} / {'b' * 64!r}",)
    assert diff.digests > 10


def test_the_matrix_is_symmetric_and_a_store_agrees_with_itself(
    pair: tuple[LabelStore, LabelStore],
) -> None:
    diff, turned = diff_stores(*pair), diff_stores(*pair[::-1])
    assert (diff.teachers, diff.a_truth, diff.b_truth) == (
        turned.teachers,
        turned.b_truth,
        turned.a_truth,
    )
    assert diff_stores(pair[0], pair[0]).teachers.different == 0
    different, rows = diff.teachers.different, diff.teachers.rows
    assert f"| {100 * different / rows:.2f} % | 0 |\n" in diff.to_markdown()


def test_only_common_views_of_common_shards_count(tmp_path: Path) -> None:
    """The other store has other numbers, views 5..11, one strange and one changed shard."""
    ours = write_store(tmp_path / "a.parquet", [*SHARDS, info_of(3)], ranges(range(8), 3))
    changed = replace(info_of(3, 2), content_hash="c" * 64)
    others = [info_of(1, 0, samples=9), info_of(0, 1), changed, info_of(4, 3)]
    theirs = write_store(tmp_path / "b.parquet", others, ranges(range(5, 12), 4), OTHER_TEACHER)
    diff = diff_stores(ours, theirs)
    rows = plain_rows(5, 3)
    assert diff.teachers.rows == len(rows)
    assert diff.teachers.different == sum(a != b for _, a, b in rows)
    assert (diff.shards, diff.shards_of_one) == (2, 3)


def test_flips_go_by_the_margin_of_each_store_that_has_one(tmp_path: Path) -> None:
    with_margin = replace(IDENTITY, columns=ColumnConfig(margin=True))
    ours = write_store(tmp_path / "a.parquet", SHARDS, ranges(range(8), 3), with_margin)
    theirs = write_store(tmp_path / "b.parquet", SHARDS, ranges(range(8), 5), OTHER_TEACHER)
    diff = diff_stores(ours, theirs)
    assert diff.margins_b == ()
    margins = np.concatenate(
        [rows_of(with_margin, s, 0, 8).columns["margin"] for s in SHARDS], axis=None
    )
    flips = np.array([a != b for _, a, b in plain_rows()])
    for one in diff.margins_a:
        chosen = margins // 16 == one.low // 16
        assert (one.flips.rows, one.flips.different) == (chosen.sum(), flips[chosen].sum())
    assert sum(one.flips.rows for one in diff.margins_a) == len(flips)
    assert "## Other labels by margin of A" in diff.to_markdown()


def test_a_sample_that_one_store_rejects_is_left_out_and_counted(
    tmp_path: Path, pair: tuple[LabelStore, LabelStore]
) -> None:
    def mended(rows: PartRows) -> PartRows:
        """Label the rejected sample, which the other store does not have."""
        spread = [0, 1, 1, *range(2, len(rows.keys))]
        keys = list(rows.keys)
        keys.insert(2, rows.rejections[0].key)
        arrays = ("target", "seed", "label", "digest", "has_digest", "mixed_digest")
        return replace(
            rows,
            keys=tuple(keys),
            rejections=(),
            **{name: getattr(rows, name)[spread] for name in arrays},
        )

    whole = write_store(tmp_path / "c.parquet", SHARDS, [(0, 8)], OTHER_TEACHER, mended)
    diff, before = diff_stores(pair[0], whole), diff_stores(*pair)
    assert diff.samples_of_one == 2
    assert (diff.teachers, diff.classes) == (before.teachers, before.classes)


def test_stores_of_other_views_are_refused_with_the_fields(
    tmp_path: Path, pair: tuple[LabelStore, LabelStore]
) -> None:
    other = replace(IDENTITY, root_seed=2, augment=replace(IDENTITY.augment, hflip=0.25))
    store = write_store(tmp_path / "c.parquet", SHARDS, [(0, 3)], other)
    with pytest.raises(IdentityError) as caught:
        diff_stores(pair[0], store)
    assert "augment.hflip: 0.5 / 0.25" in str(caught.value)
    assert "root_seed: 1 / 2" in str(caught.value)
    assert "teacher" not in str(caught.value)


def test_stores_without_a_common_view_are_refused(
    tmp_path: Path, pair: tuple[LabelStore, LabelStore]
) -> None:
    later = write_store(tmp_path / "c.parquet", SHARDS, [(8, 3)])
    with pytest.raises(IncompleteStoreError, match=r"no view.*views 0\.\.7 and 8\.\.10"):
        diff_stores(pair[0], later)


def test_other_pixels_under_equal_settings_are_named(
    tmp_path: Path, pair: tuple[LabelStore, LabelStore]
) -> None:
    def drifted(rows: PartRows) -> PartRows:
        return replace(rows, digest=np.where(rows.has_digest, rows.digest ^ 1, 0))

    store = write_store(tmp_path / "c.parquet", SHARDS, [(0, 8)], OTHER_TEACHER, drifted)
    with pytest.raises(ReplayError, match=r"other pixels for sample 's-0\.tar/\d', view \d"):
        diff_stores(pair[0], store)


def test_the_command_prints_what_the_function_returns(
    pair: tuple[LabelStore, LabelStore],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    roots = [store.root for store in pair]
    assert run_cli(monkeypatch, "diff", *roots) == 0
    assert capsys.readouterr().out == diff_stores(*pair).to_markdown()
    assert run_cli(monkeypatch, "diff", *roots, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(diff_stores(*pair).to_json()))
    assert run_cli(monkeypatch, "diff", roots[0], "none.parquet")
    assert "label-store: error: none.parquet: there is no label store here" in (
        capsys.readouterr().err
    )
