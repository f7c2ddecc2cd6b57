"""Checkpoints appear whole, read back as they were, and are refused when they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.errors import CheckpointError
from student.checkpoint import Checkpoint, RunIdentity, read_checkpoint, write_checkpoint

RUN = RunIdentity(config={"epochs": 3, "lr": 0.1}, config_digest="c", store="s", shards="d")


def checkpoint() -> Checkpoint:
    return Checkpoint(
        model={"weight": torch.arange(1000.0)},
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]},
        ema={"weight": torch.ones(3)},
        scaler={"scale": 2.0},
        student={"model": "deit"},
        step=3,
        run=RUN,
        meter={"loss": 0.5},
        metrics={"top1": 0.25},
        best=0.25,
    )


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.pt", checkpoint())
    found = read_checkpoint(tmp_path / "last.pt", RUN)
    assert torch.equal(found.model["weight"], checkpoint().model["weight"])
    assert found.optimizer == checkpoint().optimizer
    assert torch.equal(found.ema["weight"], torch.ones(3))
    for name in ("scaler", "student", "step", "run", "meter", "metrics", "best"):
        assert getattr(found, name) == getattr(checkpoint(), name)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_torn_checkpoint_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, checkpoint())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="torn or no checkpoint"):
        read_checkpoint(path, RUN)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no checkpoint of this trainer"):
        read_checkpoint(tmp_path / "other.pt", RUN)
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "none.pt", RUN)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (replace(RUN, config={"epochs": 4, "lr": 0.1}, config_digest="x"), "epochs: 4 / 3"),
        (replace(RUN, store="t"), "store: 't' / 's'"),
        (replace(RUN, shards="e"), "shards: 'e' / 'd'"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path, other, line) -> None:
    write_checkpoint(tmp_path / "last.pt", checkpoint())
    with pytest.raises(CheckpointError, match="belongs to another run") as caught:
        read_checkpoint(tmp_path / "last.pt", other)
    assert f"\n  {line}\n" in str(caught.value)
