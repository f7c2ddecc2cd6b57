from __future__ import annotations

import os
import platform
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import IdentityError, RejectionError, ShardError
from pipeline.files.cache import ShardFile
from pipeline.identity import AugmentConfig, MixConfig
from pipeline.labelling import part
from pipeline.labelling.part import (
    PartBuilder,
    augment_group,
    group_tasks,
    read_contents,
    run_task,
)
from pipeline.records import NO_PARTNER, MixParams, ShardInfo
from pipeline.shards.index import Shard, open_known_shard, open_shard
from pipeline.store import claim_store, commit_part, finish_store
from pipeline.views.apply import apply_view, decode, image_size, view_digest
from pipeline.views.draw import draw_view, has_digest
from pipeline.views.fingerprints import fingerprints
from pipeline.views.pairing import draw_groups, draw_partners
from pipeline.views.rng import sample_seed
from tests.labelling import (
    SMALL,
    HashTeacher,
    digit_shard,
    hash_identity,
    label_with_hashes,
    part_of,
)

SIZES = (1, 2, 3, 17, 97)


@pytest.mark.parametrize("samples", SIZES)
@pytest.mark.parametrize("views", [1, 14, 16, 151])
def test_every_sample_is_labelled_at_every_view(tmp_path: Path, samples: int, views: int) -> None:
    shard = open_shard(digit_shard(tmp_path / "a.tar", samples), 0)
    config = AugmentConfig(image_size=8)
    rows = label_with_hashes(shard, part_of(0, views), hash_identity(config))
    assert rows.label.shape == (samples, views)
    assert len(rows.keys) == samples == rows.samples
    assert rows.rejections == ()
    assert len(np.unique(rows.label)) > 0.9 * min(rows.label.size, 10_000)


@pytest.mark.parametrize("samples", SIZES)
def test_labels_do_not_depend_on_how_views_are_cut_into_parts(tmp_path: Path, samples: int) -> None:
    shard = open_shard(digit_shard(tmp_path / "a.tar", samples), 0)
    identity = hash_identity()
    whole = label_with_hashes(shard, part_of(0, 32), identity)
    for first, views in ((0, 1), (1, 13), (14, 2), (15, 15), (16, 16), (31, 1)):
        part = label_with_hashes(shard, part_of(first, views), identity)
        columns = slice(first, first + views)
        assert (part.label == whole.label[:, columns]).all()
        assert (part.digest == whole.digest[:, columns]).all()
        assert (part.has_digest == whole.has_digest[:, columns]).all()


def test_labels_do_not_depend_on_the_order_of_groups(tmp_path: Path) -> None:
    shard = open_shard(digit_shard(tmp_path / "a.tar", 97), 0)
    identity, part = hash_identity(), part_of(3, 20)
    tasks = list(group_tasks(shard.path, shard.info, part, identity))
    random.Random(1).shuffle(tasks)
    builder = PartBuilder(shard.info, part, identity)
    for task in tasks:
        group = run_task(task)
        builder.add(group, HashTeacher().label_group(group))
    shuffled, ordered = builder.finish(shard.contents), label_with_hashes(shard, part, identity)
    assert (shuffled.label == ordered.label).all()
    assert (shuffled.digest == ordered.digest).all()


def test_a_moved_and_renamed_shard_has_the_same_labels(tmp_path: Path) -> None:
    first = open_shard(digit_shard(tmp_path / "a.tar", 19), 0)
    other = open_shard((tmp_path / "a.tar").rename(tmp_path / "other-name.tar"), 0)
    rows = [label_with_hashes(one, part_of(0, 6), hash_identity()) for one in (first, other)]
    assert (rows[0].label == rows[1].label).all()


def test_an_undecodable_image_changes_its_partner_alone(tmp_path: Path) -> None:
    good = open_shard(digit_shard(tmp_path / "good.tar", 97), 0)
    torn = open_shard(digit_shard(tmp_path / "torn.tar", 97, broken=(40,)), 0)
    identity, views = hash_identity(), 30
    whole = label_with_hashes(good, part_of(0, views), identity)
    rows = label_with_hashes(torn, part_of(0, views), identity)
    assert [(one.index, one.key) for one in rows.rejections] == [(40, good.samples[40].key)]
    assert rows.rejections[0].reason == "undecodable"
    assert rows.samples == len(rows.keys) + len(rows.rejections) == 97
    kept = np.delete(whole.label, 40, axis=0)
    partners = _partners_of(40, good.info.key_hash, 97, views)
    expected = np.ones_like(kept, dtype=bool)
    for view, partner in enumerate(partners):
        if partner != NO_PARTNER:
            expected[partner - (partner > 40), view] = False
    assert ((rows.label == kept) == expected).mean() > 0.9999  # CRCs collide once in 65535
    assert set(partners) != {NO_PARTNER}


def test_the_partner_of_an_undecodable_image_is_labelled_unmixed(tmp_path: Path) -> None:
    torn = open_shard(digit_shard(tmp_path / "torn.tar", 32, broken=(7,)), 0)
    identity = hash_identity()
    rows = label_with_hashes(torn, part_of(0, 3), identity)
    unmixed = label_with_hashes(torn, part_of(0, 3), hash_identity(mix=MixConfig(probability=0)))
    partner = _partners_of(7, torn.info.key_hash, 32, 1)[0]
    row = partner - (partner > 7)
    assert (rows.label[row] == unmixed.label[row]).all()
    # Of the others, only pairs with an empty CutMix box look unmixed.
    assert (rows.label == unmixed.label).sum() <= 3 + 6


def test_views_labelled_later_agree_about_a_rejected_image(tmp_path: Path) -> None:
    torn = open_shard(digit_shard(tmp_path / "torn.tar", 17, broken=(0, 16)), 0)
    identity = hash_identity()
    whole = label_with_hashes(torn, part_of(0, 16), identity)
    parts = [label_with_hashes(torn, part_of(first, 8), identity) for first in (0, 8)]
    assert parts[0].rejections == parts[1].rejections == whole.rejections
    assert (np.concatenate([part.label for part in parts], axis=1) == whole.label).all()


def test_parts_that_disagree_about_a_rejection_are_refused_by_name(tmp_path: Path) -> None:
    path = digit_shard(tmp_path / "torn.tar", 17, broken=(3,))
    torn, identity, root = open_shard(path, 0), hash_identity(), tmp_path / "s.parquet"
    rows = label_with_hashes(torn, part_of(0, 2), identity)
    other = label_with_hashes(torn, part_of(2, 2), identity)
    claim_store(root, identity, {})
    commit_part(root, rows)
    from dataclasses import replace

    lie = [replace(other.rejections[0], index=4, key="digit_0004")]
    commit_part(root, replace(other, rejections=tuple(lie)))
    with pytest.raises(RejectionError, match="digit_0003"):
        finish_store(root, identity, {}, [torn.info], lambda _: "")
    assert not (root / "_manifest.json").exists()


def test_a_shard_of_nothing_but_broken_images_has_an_empty_part(tmp_path: Path) -> None:
    shard = open_shard(digit_shard(tmp_path / "torn.tar", 2, broken=(0, 1)), 0)
    rows = label_with_hashes(shard, part_of(0, 4), hash_identity())
    assert rows.label.shape == (0, 4)
    assert len(rows.rejections) == 2


def test_a_digest_is_of_the_view_and_its_mixing(tmp_path: Path) -> None:
    shard = open_shard(digit_shard(tmp_path / "a.tar", 16), 0)
    identity = hash_identity(mix=MixConfig(probability=0))
    rows = label_with_hashes(shard, part_of(1, 64), identity)
    assert (rows.has_digest.sum(axis=1) == 1).all()
    for index, sample in enumerate(shard.samples):
        seed = sample_seed(identity.root_seed, sample.key)
        assert rows.seed[index] == seed
        view = 1 + int(np.flatnonzero(rows.has_digest[index])[0])
        assert has_digest(seed, view)
        image = decode(shard.image_bytes(index), sample.key, SMALL.max_pixels)
        pixels = apply_view(image, draw_view(seed, view, image_size(image), SMALL), SMALL)
        assert rows.digest[index, view - 1] == view_digest(pixels, None, MixParams.none())


def test_a_task_refuses_a_shard_that_is_another_one_now(tmp_path: Path) -> None:
    path = digit_shard(tmp_path / "a.tar", 16)
    shard = open_shard(path, 0)
    task = next(group_tasks(path, shard.info, part_of(0, 3), hash_identity()))
    path.unlink()
    digit_shard(path, 16, first=16)
    with pytest.raises(ShardError, match=r"other keys.*use the very shards"):
        run_task(task)


def test_a_part_with_a_missing_group_is_never_finished(tmp_path: Path) -> None:
    shard = open_shard(digit_shard(tmp_path / "a.tar", 40), 0)
    identity, part = hash_identity(), part_of(0, 3)
    builder = PartBuilder(shard.info, part, identity)
    for task in list(group_tasks(shard.path, shard.info, part, identity))[1:]:
        group = augment_group(shard, task)
        builder.add(group, HashTeacher().label_group(group))
    with pytest.raises(RuntimeError, match="neither labelled nor rejected"):
        builder.finish(shard.contents)


def _partners_of(index: int, key_hash: str, samples: int, views: int) -> list[int]:
    """Return the partner's index of one sample at each view, drawn by the plain rules."""
    identity, found = hash_identity(), []
    for view in range(views):
        drawn = draw_groups(identity.root_seed, key_hash, samples, view // 15, identity.mix)
        for group, members in enumerate(drawn.groups):
            if index in members:
                positions = draw_partners(
                    identity.root_seed, key_hash, view, group, len(members), identity.mix
                )
                position = positions[members.index(index)]
                found.append(NO_PARTNER if position == NO_PARTNER else members[position])
    return found


def test_a_process_keeps_open_the_shards_of_sixteen_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [open_shard(digit_shard(tmp_path / f"{n}.tar", 2, first=2 * n), n) for n in range(16)]
    opened: list[int] = []

    def counted(path: ShardFile, info: ShardInfo) -> Shard:
        opened.append(info.number)
        return open_known_shard(path, info)

    monkeypatch.setattr("pipeline.labelling.part.open_known_shard", counted)
    for _ in range(3):
        for shard in shards:
            assert read_contents(shard.path, shard.info).info == shard.info
    assert opened == list(range(16))


def cut(shard: Path) -> None:
    """Leave the last image's page, whose rest reads as zeros where it is mapped already."""
    last = open_shard(shard, 0).samples[-1]
    os.truncate(shard, last.image_offset + last.image_bytes // 2)


def pack_again(shard: Path) -> None:
    digit_shard(shard.with_name("b.tar"), 17, first=30).rename(shard)


@pytest.mark.parametrize("spoil", [Path.unlink, cut, pack_again])
def test_a_shard_that_is_gone_or_another_one_is_refused_also_where_it_is_open(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    shard = open_shard(digit_shard(tmp_path / "a.tar", 17), 0)
    task, *_, last = group_tasks(shard.path, shard.info, part_of(0, 20), hash_identity())
    run_task(task)
    assert isinstance(shard.path, Path)
    spoil(shard.path)
    with pytest.raises(ShardError, match=r"a\.tar"):
        run_task(last)


def test_a_machine_that_makes_other_pixels_augments_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the job began and where a teacher is may both be sound, and a third node not."""
    shard = open_shard(digit_shard(tmp_path / "a.tar", 17), 0)
    identity = hash_identity(SMALL)
    stored = {**fingerprints(identity), "mixed.bits": 7, "of a later release": 8}
    task, *_ = group_tasks(shard.path, shard.info, part_of(0, 3), identity, stored)
    assert run_task(task).valid.any()
    part._fingerprints_here.cache_clear()
    monkeypatch.setattr(
        "pipeline.views.fingerprints.resize", lambda *_, **__: np.zeros(3, np.uint8)
    )
    said = r"makes other pixels than .* in resize\.down \(shrinking\), resize\.up .* all nodes"
    with pytest.raises(IdentityError, match=f"{platform.node()} {said}"):
        run_task(task)
    part._fingerprints_here.cache_clear()
