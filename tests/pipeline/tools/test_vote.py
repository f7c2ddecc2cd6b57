"""A vote of several teachers: the label that most give, whoever says what."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cli.commands import label_store
from pipeline.columns import LOG_STEPS, ColumnConfig
from pipeline.errors import (
    ConfigError,
    IdentityError,
    IncompleteStoreError,
    ShardError,
    TeacherError,
)
from pipeline.identity import StoreIdentity
from pipeline.labelling.teacher import load_stored_teacher
from pipeline.records import PartRows, ShardView
from pipeline.store import LabelStore, open_store
from pipeline.tools import diff_stores, thin_store, voted_store
from pipeline.tools.verify import verify_store
from pipeline.tools.vote import _majority, _mean_of, _Teacher
from tests.storing import CLASSES, IDENTITY, info_of, ranges, write_store

SHARDS = [info_of(0), info_of(1, samples=9)]
VIEWS = range(8)
SOFT = ("topk_label", "topk_logprob", "topk_rest")


def identity_of(number: int) -> StoreIdentity:
    teacher = replace(IDENTITY.teacher, architecture=f"t{number}", weights=str(number) * 64)
    return replace(IDENTITY, teacher=teacher)


def of_teacher(root: Path, number: int, *, per_part: int = 3, views: range = VIEWS) -> LabelStore:
    """Return a store of made-up labels, other ones for each teacher."""

    def change(rows: PartRows) -> PartRows:
        noise = np.arange(rows.label.size).reshape(rows.label.shape) * (number + 1) % 3 == 0
        return replace(rows, label=(rows.label + noise * (number + 1)).astype(np.uint16) % CLASSES)

    cut = ranges(views, per_part)
    return write_store(root / f"{number}.parquet", SHARDS, cut, identity_of(number), change)


@pytest.fixture
def stores(tmp_path: Path) -> list[LabelStore]:
    """Three teachers', cut into other parts each, the last with views besides."""
    return [
        of_teacher(tmp_path, 0),
        of_teacher(tmp_path, 1, per_part=8),
        of_teacher(tmp_path, 2, per_part=5, views=range(10)),
    ]


def plain_vote(labels: Sequence[int]) -> tuple[int, int]:
    """Return the label with most votes, of several the one given first, and its votes."""
    counts = Counter(labels)
    most = max(counts.values())
    return next(one for one in labels if counts[one] == most), most


def test_each_view_has_the_label_that_most_teachers_give(tmp_path, stores) -> None:
    report = voted_store(stores, tmp_path / "vote.parquet")
    voted = open_store(tmp_path / "vote.parquet")
    assert voted.manifest.view_range == VIEWS
    several, unanimous, changed, views = Counter(), 0, 0, 0
    for shard in SHARDS:
        for view in VIEWS:
            found = voted.read_view(shard.number, view)
            ballots = [store.read_view(shard.number, view).label for store in stores]
            for index in np.flatnonzero(found.accepted):
                labels = [int(one[index]) for one in ballots]
                label, votes = plain_vote(labels)
                assert found.label[index] == label
                assert found.columns["confidence"][index] == round(255 * votes / 3)
                several[votes] += 1
                unanimous += votes == 3
                changed += label != labels[0]
                views += 1
    assert set(several) == {1, 2, 3}  # the made-up labels try all of it out
    assert report.to_json() == {
        "by": "majority",
        "teachers": 3,
        "views": views,
        "unanimous": unanimous,
        "majority": several[2] + several[3],
        "tied": several[1],
        "changed": changed,
    }
    assert f"({changed})" in report.to_markdown()


def test_its_views_are_those_of_its_stores_and_it_says_what_it_is(tmp_path, stores) -> None:
    voted_store(stores, tmp_path / "vote.parquet")
    voted = open_store(tmp_path / "vote.parquet")
    assert verify_store(voted.root).labels == stores[0].manifest.rows
    assert diff_stores(stores[1], voted).digests > 0
    for view in VIEWS:
        ours, theirs = (one.read_view(0, view) for one in (voted, stores[0]))
        for name in ("accepted", "target", "seed", "digest", "has_digest", "mixed_digest"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    teacher = voted.identity.teacher
    assert teacher.architecture == "t0 (by a majority vote with t1 and t2)"
    assert teacher.derivation == "by a majority vote with t1 and t2"
    with pytest.raises(TeacherError, match="derived"):
        load_stored_teacher(voted.identity, torch.device("cpu"), checkpoint=None, random_weights=1)
    (record,) = [
        record
        for record in map(json.loads, (one.read_text() for one in voted_runs(tmp_path)))
        if record.get("command") == "voted_store"
    ]
    names = [Path(name).name for name in record["stores"]]
    assert names == ["0.parquet", "1.parquet", "2.parquet"]
    # Another order breaks ties otherwise, and is another store.
    voted_store([stores[1], stores[0], stores[2]], tmp_path / "other.parquet")
    assert open_store(tmp_path / "other.parquet").identity.digest != voted.identity.digest


def voted_runs(root: Path) -> list[Path]:
    return sorted((root / "vote.parquet").rglob("runs/*"))


def test_ties_go_to_the_teacher_that_is_named_first() -> None:
    ballots = np.array([[[3, 1, 4]], [[2, 4, 4]], [[2, 1, 0]], [[3, 4, 1]]], np.uint16)
    voted, tied = _majority(ballots)
    assert voted.label.tolist() == [[3, 1, 4]]
    assert voted.columns["confidence"].tolist() == [[128, 128, 128]]
    assert tied.tolist() == [[True, True, False]]


def test_stores_that_do_not_vote_on_the_same_are_refused(tmp_path, stores) -> None:
    out = tmp_path / "vote.parquet"
    with pytest.raises(ConfigError, match="`stores` has 2; a vote by majority takes three or more"):
        voted_store(stores[:2], out)
    with pytest.raises(ConfigError, match="two of one teacher"):
        voted_store([stores[0], *stores[:2]], out)
    other = replace(identity_of(5), root_seed=9)
    seeded = write_store(tmp_path / "seed.parquet", SHARDS, [(0, 8)], other)
    with pytest.raises(IdentityError, match="root_seed: 1 / 9"):
        voted_store([*stores, seeded], out)
    fewer = write_store(tmp_path / "few.parquet", SHARDS[:1], [(0, 8)], identity_of(6))
    with pytest.raises(ShardError, match="has no labels of"):
        voted_store([*stores, fewer], out)
    narrow = replace(identity_of(7), teacher=replace(identity_of(7).teacher, classes=9))
    wide = write_store(tmp_path / "wide.parquet", SHARDS, [(0, 8)], narrow)
    with pytest.raises(ConfigError, match=f"labels of {CLASSES} classes, .* of 9"):
        voted_store([*stores, wide], out)
    voted_store(stores, out)
    with pytest.raises(ConfigError, match="derived"):
        voted_store([open_store(out), *stores], tmp_path / "again.parquet")
    thin_store(stores[2], tmp_path / "short.parquet", views=range(5))
    with pytest.raises(IncompleteStoreError, match="no labels for shard 0 at view 5"):
        voted_store([*stores[:2], open_store(tmp_path / "short.parquet")], tmp_path / "s.parquet")


def soft_store(
    root: Path, number: int, *, topk: int, views: range = VIEWS, per_part: int = 3
) -> LabelStore:
    """Return a made-up teacher's labels and its probabilities of its ``topk`` likeliest classes."""
    columns = ColumnConfig(confidence=True, margin=True, topk=topk)
    identity = replace(identity_of(number), columns=columns)
    return write_store(root / f"soft-{number}.parquet", SHARDS, ranges(views, per_part), identity)


def whole(found: ShardView, index: int) -> list[float]:
    """Return all classes' probabilities as the soft loss takes them, one row at a time."""
    kept, log, rest = (found.columns[name][index] for name in SOFT)
    prob = [math.exp(-one / LOG_STEPS) for one in log.tolist()]
    left = math.exp(-int(rest) / LOG_STEPS) if len(prob) < CLASSES else 0
    total = sum(prob) + left
    even = left / max(CLASSES - len(prob), 1)
    full = [even / total] * CLASSES
    for one, share in zip(kept.tolist(), prob, strict=True):
        full[one] = share / total
    return full


@pytest.mark.parametrize("kept", [(3, 3, 3), (1, 1), (2, 3, 1, 5), (5, 2)])
def test_a_mean_is_that_of_the_teachers_probabilities(tmp_path, kept) -> None:
    """Those of one row at a time; what a teacher did not keep is spread over its other classes."""
    stores = [
        soft_store(tmp_path, number, topk=topk, per_part=3 + number)
        for number, topk in enumerate(kept)
    ]
    report = voted_store(stores, tmp_path / "mean.parquet", by="mean")
    voted = open_store(tmp_path / "mean.parquet")
    assert voted.identity.columns == ColumnConfig(confidence=True, topk=kept[0])
    assert verify_store(voted.root).labels == stores[0].manifest.rows
    agreed = changed = 0
    for shard in SHARDS:
        for view in VIEWS:
            found = voted.read_view(shard.number, view)
            ballots = [store.read_view(shard.number, view) for store in stores]
            for index in np.flatnonzero(found.accepted):
                rows = [whole(one, index) for one in ballots]
                mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
                first, log, rest = (found.columns[name][index] for name in SOFT)
                order = sorted(range(CLASSES), key=lambda one: (-round(mean[one], 12), one))
                assert first.tolist() == order[: kept[0]]
                assert found.label[index] == order[0]
                assert found.columns["confidence"][index] == round(255 * mean[order[0]])
                kept_shares = [mean[one] for one in order[: kept[0]]]
                others = sum(mean[one] for one in order[kept[0] :])
                # Half a step of the stored logarithms, and what rounding adds to a share of 0.
                near = {"rel": 0.51 / LOG_STEPS, "abs": 1e-12}
                assert np.exp(log / -LOG_STEPS) == pytest.approx(np.array(kept_shares), **near)
                assert math.exp(-int(rest) / LOG_STEPS) == pytest.approx(others, **near)
                labels = {int(one.label[index]) for one in ballots}
                agreed += len(labels) == 1
                changed += found.label[index] != ballots[0].label[index]
    assert (report.by, report.teachers) == ("mean", len(kept))
    assert (report.unanimous, report.changed) == (agreed, changed)
    assert 0 < changed < report.views


def test_a_mean_may_have_a_label_that_no_teacher_gave(tmp_path) -> None:
    """Two teachers sure of other classes agree on their second."""
    prob, even = np.array([[0.5, 0.45]]), np.array([0.05 / 3])
    teachers = [_Teacher(classes=np.array([[first, 2]]), prob=prob, even=even) for first in (0, 1)]
    kept, prob, rest = _mean_of(teachers, CLASSES)
    assert kept.tolist() == [[2, 0, 1, 2]]
    each = 0.05 / 3
    expected = [0.45, (0.5 + each) / 2, (0.5 + each) / 2, 0]
    np.testing.assert_allclose(prob[0], expected, rtol=1e-12)
    np.testing.assert_allclose(rest[0], [0.55, expected[1] + 2 * each, 2 * each, 2 * each])


def test_a_mean_of_stores_without_probabilities_is_refused(tmp_path, stores) -> None:
    soft = soft_store(tmp_path, 4, topk=2)
    with pytest.raises(ConfigError, match="keeps no probabilities, of which `by` mean is made"):
        voted_store([soft, stores[0]], tmp_path / "mean.parquet", by="mean")
    with pytest.raises(ConfigError, match="a vote by mean takes two or more"):
        voted_store([soft], tmp_path / "mean.parquet", by="mean")


def test_a_mean_of_more_or_fewer_classes_is_another_store(tmp_path) -> None:
    """What was not kept is spread, so the same teachers give another mean."""
    first = soft_store(tmp_path / "a", 0, topk=2)
    others = [soft_store(tmp_path / name, 1, topk=k) for name, k in (("a", 2), ("b", 3))]
    identities = set()
    for number, other in enumerate(others):
        out = tmp_path / f"{number}.parquet"
        voted_store([first, other], out, by="mean")
        identities.add(open_store(out).identity.digest)
    assert len(identities) == 2


def test_the_command_says_how_the_vote_went(tmp_path, stores, capsys) -> None:
    paths = [str(store.root) for store in stores]
    label_store(["vote", *paths, "--out", str(tmp_path / "vote.parquet"), "--json"])
    assert json.loads(capsys.readouterr().out)["teachers"] == 3
    label_store(["vote", *paths, "--out", str(tmp_path / "two.parquet")])
    assert "all teachers agree" in capsys.readouterr().out
    one, other = (tmp_path / name / "_manifest.json" for name in ("vote.parquet", "two.parquet"))
    assert one.read_bytes() == other.read_bytes()
    soft = [str(soft_store(tmp_path, number, topk=2).root) for number in (3, 4)]
    label_store(["vote", *soft, "--by", "mean", "--out", str(tmp_path / "mean.parquet")])
    assert "by mean" in capsys.readouterr().out
    teacher = open_store(tmp_path / "mean.parquet").identity.teacher
    assert teacher.derivation == "by the mean of probabilities with t4"
