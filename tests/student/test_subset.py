"""Training and verifying on some of a store's shards."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli.commands import label_store
from pipeline.errors import CheckpointError, ShardError
from pipeline.store import open_store
from pipeline.tools.verify import verify_store
from student import PlanConfig, open_replay
from student.checkpoint import read_checkpoint
from student.config import TrainConfig
from student.engine import train
from student.inputs import open_inputs
from student.order import TrainingPlan
from tests.labelling import digit_shard, write_hash_store
from tests.student.factories import make_store
from tests.student.worlds import World, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("subset"), (14, 13, 12))


def some(world: World, output: Path, *numbers: int, **changes: Any) -> TrainConfig:
    shards = tuple(str(world.root / f"digits-{number}.tar") for number in numbers)
    return world.config(output, **{"shards": shards, "subset": True, **changes})


def test_a_missing_shard_is_named_with_the_cure(world: World, tmp_path: Path) -> None:
    config = some(world, tmp_path / "run", 0, 2, subset=False)
    message = r"1 of the 3 shards .* `shards`:\n  digits-1\.tar \(13 samples\)\n.*`subset`"
    with pytest.raises(ShardError, match=message):
        open_inputs(config)
    make_store(tmp_path / "one.parquet", [world.root / "digits-0.tar"], views=3)
    config = some(world, tmp_path / "run", 0, 2, labels=str(tmp_path / "one.parquet"))
    with pytest.raises(ShardError, match="no labels for 1 of the given shards"):
        open_inputs(config)


def test_training_shows_every_sample_of_the_shards_given_and_no_other(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = some(world, tmp_path / "run", 2, 0, epochs=2, batch_size=26)
    inputs = open_inputs(config)
    rows = [inputs.plan.batch(step) for step in range(inputs.plan.steps)]
    seen = {
        (shard, sample, view)
        for batch in rows
        for shard, sample, view in zip(batch.shard, batch.sample, batch.view, strict=True)
    }
    sizes = {0: 14, 2: 12}
    assert seen == {(n, i, v) for n, size in sizes.items() for i in range(size) for v in range(2)}
    with caplog.at_level(logging.WARNING):
        train(config, inputs)
    assert (
        "trains on a subset: 2 of 3 shards, 26 of 39 labelled samples; without digits-1.tar"
        in caplog.text
    )
    assert json.loads((tmp_path / "run" / "config.json").read_text())["subset"] == "0,2"
    checkpoint = read_checkpoint(tmp_path / "run" / "last.pt", inputs.run_identity(config))
    assert checkpoint.run.subset == "0,2"


def test_the_order_is_that_of_the_subset_however_its_shards_are_given(
    world: World, tmp_path: Path
) -> None:
    def run(output: str, *numbers: int) -> str:
        config = some(world, tmp_path / output, *numbers)
        return train(config, open_inputs(config)).weights

    assert run("a", 0, 2) == run("b", 2, 0)
    # A store of those shards alone, in which they have the same numbers, has the same plan.
    manifest = open_store(world.root / "labels.parquet").manifest
    plan = PlanConfig(epochs=3, batch_size=12)
    ours, whole = (TrainingPlan(one, plan) for one in (manifest.of_shards({0}), manifest))
    alone = make_store(tmp_path / "alone.parquet", [world.root / "digits-0.tar"], views=3)
    theirs = TrainingPlan(alone.manifest, plan)
    for step in range(ours.steps):
        assert np.array_equal(ours.batch(step).sample, theirs.batch(step).sample)
    assert manifest.of_shards({0, 1, 2}) is manifest
    assert whole.rows_per_epoch == 39


def test_all_shards_with_the_flag_are_the_run_without_it(world: World, tmp_path: Path) -> None:
    config = some(world, tmp_path / "run", 0, 1, 2, epochs=1)
    assert open_inputs(config).run_identity(config).subset is None
    train(config, open_inputs(config), stop_after=1)
    plain = world.config(tmp_path / "run", epochs=1, resume="auto")
    assert train(plain, open_inputs(plain)).steps == 3


def test_other_shards_than_before_do_not_go_on_with_a_run(world: World, tmp_path: Path) -> None:
    config = some(world, tmp_path / "run", 0, 2)
    train(config, open_inputs(config), stop_after=2)
    for numbers in ((0, 1), (0, 1, 2)):
        other = some(world, tmp_path / "run", *numbers, resume="auto")
        with pytest.raises(CheckpointError, match="subset"):
            train(other, open_inputs(other))
    same = some(world, tmp_path / "run", 2, 0, resume="auto")
    straight = some(world, tmp_path / "straight", 0, 2)
    assert train(same, open_inputs(same)).weights == train(straight, open_inputs(straight)).weights


def test_a_loop_of_ones_own_hears_what_is_left_out(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    plan = PlanConfig(epochs=1, batch_size=12)
    files = [str(world.root / "digits-1.tar")]
    batches = open_replay(world.root / "labels.parquet", files, plan, subset=True)
    assert set(batches[0].shard.tolist()) == {1}
    assert "a subset: 1 of 3 shards" in caplog.text
    with pytest.raises(ShardError, match="`subset`"):
        open_replay(world.root / "labels.parquet", files, plan)


def test_a_store_is_verified_as_far_as_its_shards_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [digit_shard(tmp_path / f"digits-{n}.tar", 13, first=13 * n) for n in range(3)]
    store = tmp_path / "labels.parquet"
    write_hash_store(store, paths, views=12, per_part=6)
    files = [str(tmp_path / "digits-{0,2}.tar")]
    report = verify_store(store, files, every_digest=True, subset=True)
    assert 0 < report.redrawn < report.digests
    assert report.labels == 39 * 12  # every part is read all the same
    assert report.left_out.endswith("without digits-1.tar")
    assert verify_store(store).left_out == ""
    command = ["label-store", "verify", str(store), "--shards", *files, "--all", "--subset"]
    monkeypatch.setattr("sys.argv", command)
    label_store()
    printed = capsys.readouterr().out
    assert "warning: the shards given are a subset: 2 of 3 shards" in printed
    assert f": of the shards given, {report.redrawn} were redrawn" in printed
    monkeypatch.setattr("sys.argv", command[:-1])
    with pytest.raises(SystemExit):
        label_store()
    assert "set --subset" in capsys.readouterr().err
