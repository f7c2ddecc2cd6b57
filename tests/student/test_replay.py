"""Replay gives the teacher's own views, in the plan's order, from any process."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from pipeline.errors import ConfigError, ReplayError, ShardError
from pipeline.labelling.part import group_tasks, run_task
from pipeline.records import Box, PartKey
from pipeline.shards.index import open_shard
from pipeline.store import ParquetStore
from pipeline.views import regions
from pipeline.views.mixing import mix_images, normalize
from pipeline.views.restarts import PiecesHeader, SmallerJpeg
from student.loading import LoaderOptions
from student.order import PlanConfig, TrainingPlan
from student.replay import ReplayDataset, StudentBatch, replay_loader
from tests.factories import digit_samples, encode, photographs, write_shard
from tests.student.factories import SMALL_VIEWS, assert_fits, make_store, write_digit_shards

SIZES = (34, 3, 1, 2)
VIEWS = 15


@dataclass(frozen=True)
class Labelled:
    store: ParquetStore
    shards: Mapping[int, Path]

    def dataset(self, *, rank: int = 0, ranks: int = 1, **plan: Any) -> ReplayDataset:
        epochs = len(self.store.manifest.view_range)
        settings = PlanConfig(**{"seed": 0, "batch_size": 12, "epochs": epochs, **plan})
        order = TrainingPlan(self.store.manifest, settings)
        return ReplayDataset(self.store, self.shards, order, rank=rank, ranks=ranks)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """A store of odd shards, one with an image that does not decode."""
    root = tmp_path_factory.mktemp("replay")
    paths = write_digit_shards(root, SIZES, torn={0: [5]})
    store = make_store(root / "labels.parquet", paths, views=VIEWS)
    return Labelled(store, dict(enumerate(paths)))


@pytest.fixture(scope="module")
def labelled_rows(labelled: Labelled) -> dict[tuple[int, int, int], tuple[Any, ...]]:
    """What the labeller made of each (shard, sample, view): its pixels, and those mixed."""
    rows = {}
    for number, path in labelled.shards.items():
        part = PartKey(shard=number, first_view=0, views=VIEWS)
        info = open_shard(path, number).info
        for group in map(run_task, group_tasks(path, info, part, labelled.store.identity)):
            flat = group.pixels.reshape(-1, *group.pixels.shape[2:])
            mixed = mixed_images(torch.from_numpy(flat), group.mix)
            views = group.valid.shape[1]
            for position, index in enumerate(group.members):
                for column in range(views):
                    if group.valid[position, column]:
                        row = position * views + column
                        view = group.first_view + column
                        rows[number, index, view] = (flat[row], mixed[row].clone())
    return rows


def mixed_images(pixels: torch.Tensor, mix: Any) -> torch.Tensor:
    return mix_images(normalize(pixels, SMALL_VIEWS.mean, SMALL_VIEWS.std), mix)


def assert_same_batches(one: StudentBatch, other: StudentBatch) -> None:
    assert (one.step, one.keys, one.audited) == (other.step, other.keys, other.audited)
    for name in ("shard", "sample", "view", "seed", "pixels", "target", "label"):
        assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("partner", "kind", "lam", "box"):
        assert_array_equal(getattr(one.mix, name), getattr(other.mix, name))


@pytest.mark.parametrize("repeated", [False, True])
def test_every_row_is_pixel_for_pixel_what_the_teacher_saw(labelled, labelled_rows, repeated):
    dataset = labelled.dataset(repeated_augmentation=repeated)
    seen, audited = set(), 0
    for step in range(len(dataset)):
        batch = dataset[step]
        assert_fits(batch, dataset.item_bytes)
        mixed = mixed_images(batch.pixels, batch.mix)
        audited += batch.audited
        for row in range(len(batch.keys)):
            name = (int(batch.shard[row]), int(batch.sample[row]), int(batch.view[row]))
            pixels, teachers = labelled_rows[name]
            assert_array_equal(batch.pixels[row].numpy(), pixels)
            assert torch.equal(mixed[row], teachers)
            stored = labelled.store.read_view(name[0], name[2])
            assert batch.label[row] == stored.label[name[1]]
            assert batch.target[row] == stored.target[name[1]]
            assert batch.keys[row] == stored.keys[name[1]]
            assert batch.seed[row] == stored.seed[name[1]]
            seen.add(name)
    assert len(seen) == len(dataset) * 12  # no row twice
    assert audited > 0
    assert (0, 5) not in {name[:2] for name in seen}  # the torn one


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(labelled: Labelled, workers: int) -> None:
    dataset = labelled.dataset()
    expected = [labelled.dataset()[step] for step in range(1, len(dataset))]
    loaded = replay_loader(dataset, 1, len(dataset), LoaderOptions(workers=workers))
    for one, other in zip(loaded, expected, strict=True):
        assert_same_batches(one, other)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("repeated", [False, True])
def test_the_ranks_batches_joined_are_the_global_batch(
    labelled: Labelled, ranks: int, repeated: bool
) -> None:
    plan = {"repeated_augmentation": repeated, "batch_size": 36, "epochs": 3}
    whole = labelled.dataset(**plan)
    parts = [labelled.dataset(rank=rank, ranks=ranks, **plan) for rank in range(ranks)]
    for step in range(len(whole)):
        expected = whole[step]
        slices = [part[step] for part in parts]
        assert sum((one.keys for one in slices), ()) == expected.keys
        for name in ("shard", "sample", "view", "pixels", "target", "label"):
            joined = np.concatenate([getattr(one, name) for one in slices])
            assert_array_equal(joined, getattr(expected, name))
        rows = len(expected.keys) // ranks
        partners = [one.mix.partner + rows * rank for rank, one in enumerate(slices)]
        assert_array_equal(np.concatenate(partners), expected.mix.partner)
        assert_array_equal(np.concatenate([one.mix.lam for one in slices]), expected.mix.lam)


def test_repeated_augmentation_decodes_a_sample_once(labelled, monkeypatch) -> None:
    decoded: list[str] = []
    original = regions.decode
    monkeypatch.setattr(
        regions,
        "decode",
        lambda data, name, most: decoded.append(name) or original(data, name, most),
    )
    batch = labelled.dataset(repeated_augmentation=True)[0]
    assert len(decoded) == len(set(batch.keys)) == len(batch.keys) // 3


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize(("blocks", "way"), [(4, "join_pieces"), (0, "shorten")])
def test_no_more_is_decoded_than_one_view_needs(
    tmp_path, monkeypatch, blocks, way, repeated
) -> None:
    images = [photographs()[number % 2][: 300 + number] for number in range(6)]
    samples = [
        (f"photo_{number}", encode(image, quality=60, restart_marker_blocks=blocks), number)
        for number, image in enumerate(images)
    ]
    dataset = one_shard(tmp_path, samples).dataset(batch_size=6, repeated_augmentation=repeated)
    smaller: list[PiecesHeader] = []
    original = getattr(regions, way)

    def count(data: bytes, header: PiecesHeader, box: Box, spare: int) -> SmallerJpeg | None:
        found = original(data, header, box, spare)
        smaller.extend([header] * (found is not None))
        return found

    monkeypatch.setattr(regions, way, count)
    batches = read_all(dataset)
    rows = sum(len(one.keys) for one in batches)
    assert sum(one.audited for one in batches) > 0
    assert (len(smaller) == 0) if repeated else (len(smaller) > rows / 4)
    monkeypatch.setattr(regions, way, lambda *_: None)
    for one, other in zip(batches, read_all(dataset), strict=True):
        assert_same_batches(one, other)


def test_a_data_set_survives_pickling(labelled: Labelled) -> None:
    dataset = labelled.dataset()
    expected = dataset[2]
    assert_same_batches(pickle.loads(pickle.dumps(dataset))[2], expected)


def test_ranks_that_do_not_divide_the_batch_are_refused(labelled: Labelled) -> None:
    with pytest.raises(ConfigError, match="multiple of 10"):
        labelled.dataset(ranks=5)


def read_all(dataset: ReplayDataset, workers: int = 0) -> list[StudentBatch]:
    options = LoaderOptions(workers=workers)
    return list(replay_loader(dataset, 0, len(dataset), options))


def with_changed_digests(labelled: Labelled) -> ReplayDataset:
    dataset = labelled.dataset()
    original = labelled.store.read_view

    class Drifted(ParquetStore):
        def read_view(self, shard: int, view: int) -> Any:
            stored = original(shard, view)
            return replace(stored, digest=stored.digest ^ np.uint32(stored.has_digest.any()))

    dataset.store = Drifted(labelled.store.root, labelled.store.manifest)
    return dataset


@pytest.mark.parametrize("workers", [0, 1])
def test_a_view_with_another_digest_stops_the_run_by_name(labelled, workers: int) -> None:
    with pytest.raises(ReplayError) as caught:
        read_all(with_changed_digests(labelled), workers)
    message = str(caught.value)
    assert "view " in message
    assert "'digit_" in message
    assert "has digest" in message
    assert "verify the store with its shards" in message
    assert "Traceback" not in message


def test_without_the_audit_no_digest_is_compared(labelled: Labelled) -> None:
    drifted = with_changed_digests(labelled)
    unaudited = ReplayDataset(drifted.store, labelled.shards, drifted.plan, audit=False)
    assert sum(batch.audited for batch in read_all(unaudited)) == 0


def test_views_drawn_from_another_view_number_do_not_pass_the_audit(labelled, monkeypatch):
    from pipeline.views import make

    original = make.draw_view
    monkeypatch.setattr(
        make, "draw_view", lambda seed, view, size, config: original(seed, view + 1, size, config)
    )
    with pytest.raises(ReplayError, match="has digest"):
        read_all(labelled.dataset())


def one_shard(root: Path, samples: list[tuple[str, bytes, int]]) -> Labelled:
    path = write_shard(root / "one.tar", samples)
    return Labelled(make_store(root / "l.parquet", [path], views=3), {0: path})


def test_an_image_that_no_longer_decodes_stops_the_run_by_name(tmp_path, monkeypatch) -> None:
    made = one_shard(tmp_path, digit_samples(12))
    data = bytearray(made.shards[0].read_bytes())
    sample = open_shard(made.shards[0], 0).samples[4]
    start = sample.image_offset
    data[start : start + sample.image_bytes] = bytes(sample.image_bytes)
    made.shards[0].write_bytes(data)  # same keys, targets and lengths
    with pytest.raises(ReplayError, match=r"one\.tar: 'digit_0004' does not decode"):
        read_all(made.dataset())


def test_a_shard_that_was_packed_again_is_refused(tmp_path: Path) -> None:
    made = one_shard(tmp_path, digit_samples(12))
    write_shard(made.shards[0], digit_samples(12, first=1))
    with pytest.raises(ShardError, match="other keys"):
        made.dataset()[0]


def test_a_shard_with_other_targets_is_refused(tmp_path: Path) -> None:
    made = one_shard(tmp_path, digit_samples(12))
    changed = [(key, image, (target + 1) % 10) for key, image, target in digit_samples(12)]
    write_shard(made.shards[0], changed)
    with pytest.raises(ShardError, match="targets changed"):
        made.dataset()[0]


def test_a_store_whose_targets_are_not_the_shards_is_refused(labelled: Labelled) -> None:
    dataset = labelled.dataset()
    original = labelled.store.read_view

    class Relabelled(ParquetStore):
        def read_view(self, shard: int, view: int) -> Any:
            stored = original(shard, view)
            return replace(stored, target=stored.target + 1)

    dataset.store = Relabelled(labelled.store.root, labelled.store.manifest)
    with pytest.raises(ShardError, match="has target"):
        dataset[0]


def test_the_pieces_of_a_rank_are_its_own_slice_of_the_batch(labelled) -> None:
    """With shares dealt out to machines, another rank's rows would be read from other shards."""
    plan = TrainingPlan(labelled.store.manifest, PlanConfig(batch_size=12, epochs=3))
    for rank in range(2):
        data = ReplayDataset(
            labelled.store, labelled.shards, plan, rank=rank, ranks=2, accumulate=3
        )
        rows = plan.slice(1, rank, 2)
        pieces = [data[item] for item in range(3, 6)]
        for name in ("shard", "sample", "view"):
            assert_array_equal(
                np.concatenate([getattr(one, name) for one in pieces]), getattr(rows, name)
            )
