"""Training on a subset whose samples are mixed with others that it omits."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.testing import assert_array_equal

from pipeline.identity import MixConfig
from pipeline.labelling.teacher import load_teacher
from pipeline.records import NO_PARTNER
from pipeline.store import export_store
from pipeline.store.opening import open_store
from pipeline.tools import KeptSamples, thin_store
from pipeline.tools.relabel import RelabelConfig, relabel_store
from pipeline.tools.verify import verify_store
from student.audit import audit_store
from student.batches import mixed_images, mixed_target
from student.distributed import Ranks
from student.engine import train
from student.inputs import open_inputs
from student.loading import LoaderOptions
from student.order import PlanConfig, TrainingPlan
from student.replay import ReplayDataset, replay_loader
from tests.student.factories import (
    SMALL_VIEWS,
    assert_fits,
    make_identity,
    make_store,
    write_digit_shards,
    write_digit_teacher,
)
from tests.student.worlds import World

SIZES = (34, 13, 5)
VIEWS = 6
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a teacher that varies, in which an image does not decode, and half of it."""
    root = tmp_path_factory.mktemp("omitted")
    paths = write_digit_shards(root, SIZES, torn={0: [5]})
    spec = write_digit_teacher(root / "teacher.safetensors")
    teacher = load_teacher(spec, SMALL_VIEWS, make_identity().mix, CPU)
    identity = replace(make_identity(), teacher=teacher.identity)
    whole = make_store(root / "whole.parquet", paths, identity=identity, teacher=teacher)
    thin_store(whole, root / "labels.parquet", kept=KeptSamples(sample_share=0.5))
    return root


def dataset(root: Path, store: str = "labels.parquet", **plan: Any) -> ReplayDataset:
    opened = open_store(root / store)
    settings = PlanConfig(**{"seed": 0, "batch_size": 12, "epochs": VIEWS, **plan})
    numbers = sorted(opened.manifest.by_shard)
    files = {number: root / f"digits-{number}.tar" for number in numbers}
    return ReplayDataset(opened, files, TrainingPlan(opened.manifest, settings))


def teachers_images(data: ReplayDataset) -> dict[tuple[int, int, int], tuple[Any, ...]]:
    """Return the mixed image, classes, share and label of each (shard, sample, view)."""
    found = {}
    for step in range(len(data)):
        batch = data[step]
        images = mixed_images(batch, SMALL_VIEWS, CPU)
        truth = mixed_target(batch, CPU)
        assert len(images) == len(batch.keys) == len(batch.label) == len(truth.target)
        for row in range(len(images)):
            name = (int(batch.shard[row]), int(batch.sample[row]), int(batch.view[row]))
            assert name not in found
            found[name] = (
                *(images[row], truth.target[row], truth.partner_target[row], truth.lam[row]),
                *(batch.label[row], batch.mix.kind[row], batch.keys[row], batch.seed[row]),
            )
    return found


@pytest.mark.parametrize("repeated", [False, True])
def test_every_row_of_a_subset_is_that_of_the_whole_store_bit_for_bit(
    root: Path, repeated: bool
) -> None:
    whole = teachers_images(dataset(root, "whole.parquet", batch_size=6))
    subset = dataset(root, batch_size=6, repeated_augmentation=repeated)
    rows = teachers_images(subset)
    accepted = subset.store.manifest.counts.labelled
    assert accepted * VIEWS - len(rows) < 6
    mixed_with_guests = 0
    for name, row in rows.items():
        for ours, theirs in zip(row, whole[name], strict=True):
            assert_array_equal(ours, theirs)
        partner = subset.pairing(name[0]).of_shard(name[2])[name[1]]
        mixed_in = name[1] if partner == NO_PARTNER else partner
        assert row[2] == whole[name[0], mixed_in, name[2]][1]
        known = subset.store.manifest.accepted(name[0])
        mixed_with_guests += partner != NO_PARTNER and not known[partner]
    assert mixed_with_guests > len(rows) / 4


def test_all_samples_that_are_kept_are_audited_with_the_partners_they_had(root: Path) -> None:
    audited = audit_store(dataset(root), LoaderOptions(), Ranks(), CPU)
    assert audited > 0
    shards = [str(root / "digits-*.tar")]
    report = verify_store(root / "labels.parquet", shards, every_digest=True)
    assert report.mismatches == ()
    assert report.redrawn > 0
    assert report.omitted > 0
    config = RelabelConfig(groups=6, checkpoint=root / "teacher.safetensors", device="cpu")
    relabelled = relabel_store(root / "labels.parquet", shards, config)
    assert relabelled.passed
    assert relabelled.rows > 0


def test_batches_of_a_subset_do_not_depend_on_workers_or_pickling(root: Path) -> None:
    data = dataset(root)
    again = pickle.loads(pickle.dumps(data))
    for step, batch in enumerate(replay_loader(data, 0, 4, LoaderOptions(workers=2))):
        assert len(batch.pixels) > len(batch.keys)
        assert_fits(batch, data.item_bytes)
        for other in (data[step], again[step]):
            assert_array_equal(batch.pixels, other.pixels)
            assert_array_equal(batch.partner_target, other.partner_target)
            assert_array_equal(batch.mix.partner, other.mix.partner)
        assert batch.to("cpu").partner_target.tolist() == batch.partner_target.tolist()


def test_a_guest_is_decoded_only_where_it_is_mixed_in(root: Path, tmp_path: Path) -> None:
    paths = write_digit_shards(tmp_path, (20,))
    unmixed = make_identity(mix=MixConfig(probability=0.0))
    whole = make_store(tmp_path / "whole.parquet", paths, identity=unmixed)
    thin_store(whole, tmp_path / "labels.parquet", kept=KeptSamples(sample_share=0.6))
    batch = dataset(tmp_path, batch_size=4)[0]
    assert len(batch.pixels) == len(batch.keys) == 4
    full = dataset(root, "whole.parquet")[0]
    assert len(full.pixels) == len(full.keys)


def test_a_student_trains_alike_from_the_subset_and_with_the_teacher_in_the_loop(
    root: Path, tmp_path: Path
) -> None:
    world = World(root)
    weights = []
    for name in ("stored", "loop", "zarr"):
        more: dict[str, Any] = {}
        if name == "loop":
            more = {"teacher_in_loop": True, "teacher_checkpoint": root / "teacher.safetensors"}
        if name == "zarr":
            export_store(root / "labels.parquet", tmp_path / "labels.zarr")
            more = {"labels": str(tmp_path / "labels.zarr")}
        config = world.config(tmp_path / name, epochs=2, batch_size=6, **more)
        outcome = train(config, open_inputs(config))
        assert outcome.audited > 0
        weights.append(outcome.weights)
    assert weights[0] == weights[1] == weights[2]


def test_other_samples_than_before_do_not_go_on_with_a_run(root: Path, tmp_path: Path) -> None:
    whole = open_store(root / "whole.parquet")
    thin_store(whole, tmp_path / "other.parquet", kept=KeptSamples(sample_share=0.5, sample_seed=1))
    ours, theirs = (
        (config := World(root).config(tmp_path / "run", labels=labels, batch_size=6))
        and open_inputs(config).run_identity(config)
        for labels in (str(root / "labels.parquet"), str(tmp_path / "other.parquet"))
    )
    assert ours.shards != theirs.shards
