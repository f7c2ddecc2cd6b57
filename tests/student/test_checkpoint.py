"""Checkpoints appear whole, read back as they were, and are refused when they do not fit."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.errors import CheckpointError
from pipeline.identity import AugmentConfig
from student import checkpoint as checkpoints
from student.checkpoint import (
    Checkpoint,
    RunIdentity,
    SavedStudent,
    Segment,
    find_checkpoint,
    open_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from student.finetune import read_weights

RUN = RunIdentity(
    config={"epochs": 3, "lr": 0.1},
    store={"teacher": {"classes": 10}},
    views={"first": 0},
    shards="d",
)
STUDENT = SavedStudent(
    model="deit",
    model_args=(),
    classes=10,
    image_size=32,
    heads=2,
    headline="mean_of_logits",
    precision="fp32",
    views=AugmentConfig(image_size=32),
)


def checkpoint() -> Checkpoint:
    return Checkpoint(
        model={"weight": torch.arange(1000.0)},
        optimizer={
            "state": {0: {"step": torch.tensor(3.0)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}],
        },
        ema={"weight": torch.ones(3)},
        scaler={"scale": 2.0},
        student=STUDENT,
        step=3,
        run=RUN,
        history=(
            Segment(step=0, epochs=3, ranks=1, accumulate=1, threads=1, fast=False, device="cpu"),
        ),
        meter={"epoch": {"loss": 0.5}},
        metrics={"top1": 0.25},
        best=0.25,
        winner="raw",
        needs="0.1.0",
    )


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.pt", checkpoint())
    found = read_checkpoint(tmp_path / "last.pt", RUN)
    assert torch.equal(found.model["weight"], checkpoint().model["weight"])
    assert found.optimizer == checkpoint().optimizer
    assert torch.equal(found.ema["weight"], torch.ones(3))
    for name in (
        "scaler",
        "student",
        "step",
        "run",
        "history",
        "meter",
        "best",
        "winner",
        "needs",
        "notes",
    ):
        assert getattr(found, name) == getattr(checkpoint(), name)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_torn_checkpoint_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, checkpoint())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"torn or no checkpoint|is empty"):
        read_checkpoint(path, RUN)


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_a_checkpoint_that_the_machine_cannot_read_now_is_not_taken_for_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    for name in ("last.pt", "previous.pt"):
        write_checkpoint(tmp_path / name, checkpoint())
    load = checkpoints.load_tensors

    def fails(path: Path) -> object:
        if path.name == "last.pt":
            raise error
        return load(path)

    monkeypatch.setattr(checkpoints, "load_tensors", fails)
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read now"):
        find_checkpoint(tmp_path / "last.pt", RUN)


@pytest.mark.parametrize("changed", ["betas", "best", "meter", "weight"])
def test_any_value_that_was_changed_in_the_file_is_found(tmp_path: Path, changed: str) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, checkpoint())
    values = torch.load(path, weights_only=True)
    match changed:
        case "betas":
            values["optimizer"]["param_groups"][0]["betas"] = (0.9, 0.99)
        case "best":
            values["best"] = 0.5
        case "meter":
            values["meter"]["epoch"]["loss"] = 0.25
        case "weight":
            values["model"]["weight"][7] += 1
    torch.save(values, path)
    with pytest.raises(CheckpointError, match="its digest is another"):
        read_checkpoint(path, RUN)


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.path, "harm"))


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    torch.save({"format_version": 1, "model": Harm(harm)}, tmp_path / "last.pt")
    for read in (lambda path: read_checkpoint(path, RUN), read_weights):  # of --finetune
        with pytest.raises(CheckpointError, match="holds ") as caught:
            read(tmp_path / "last.pt")
        assert f"{Path.__module__}.Path" in str(caught.value)
        assert "code that is not run" in str(caught.value)
        assert "weights_only" not in str(caught.value)  # PyTorch says how to run it
    assert not harm.exists()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no checkpoint of this trainer"):
        read_checkpoint(tmp_path / "other.pt", RUN)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pt", RUN)


def test_a_later_version_is_refused_with_the_release_that_knows_it(tmp_path: Path) -> None:
    torch.save({"format_version": 4, "needs": "0.5.0"}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"version 4.*install teacher-labels 0\.5\.0 or"):
        read_checkpoint(tmp_path / "last.pt", RUN)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (replace(RUN, config={"epochs": 4, "lr": 0.1}), "`epochs`: 4 / 3"),
        (replace(RUN, store={"teacher": {"classes": 12}}), "store.teacher.classes: 12 / 10"),
        (replace(RUN, views={"first": 6}), "views.first: 6 / 0"),
        (replace(RUN, shards="e"), "shards: 'e' / 'd'"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path, other, line) -> None:
    write_checkpoint(tmp_path / "last.pt", checkpoint())
    with pytest.raises(CheckpointError, match="belongs to another run") as caught:
        read_checkpoint(tmp_path / "last.pt", other)
    assert f"\n  {line}\n" in str(caught.value)


def test_a_value_that_no_trainer_writes_is_refused_and_not_written_out(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, checkpoint())
    values = torch.load(path, weights_only=True)
    args: object = 1
    for _ in range(60):  # whose text has 2 ** 60 words
        args = argparse.Namespace(a=args, b=args)
    torch.save({**values, "notes": {"args": args}}, path)
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged"):
        open_checkpoint(path)
