"""What is cheap to find out is found out before shards are read, Ray starts or a teacher loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm

from jobs import serial
from jobs.run import run_label_job
from pipeline.errors import PipelineError
from pipeline.labelling.config import LabelConfig
from pipeline.shards import index
from tests.labelling import SMALL, digit_shard
from tests.pipeline.labelling.test_job import config_of, plan_of, run


@pytest.fixture
def begun(tmp_path: Path) -> LabelConfig:
    """The settings of a job that was broken off after one of its parts."""
    shards = (digit_shard(tmp_path / "s-0.tar", 9), digit_shard(tmp_path / "s-1.tar", 9, first=9))
    config = config_of(shards, out=str(tmp_path / "labels.parquet"), serial=True)
    run(plan_of(config), parts=1)
    return config


class DearError(Exception):
    """What should not have been paid for."""


@pytest.fixture(autouse=True)
def nothing_dear(begun: LabelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def pay(*_: Any, **__: Any) -> None:
        raise DearError

    monkeypatch.setattr(serial, "TeacherWorker", pay)
    monkeypatch.setattr(index, "open_shard", pay)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"views_per_part": 4}, "`views_per_part` is 4: parts would overlap"),
        ({"seed": 6}, "root_seed: 6 / 5"),
        ({"augment": replace(SMALL, hflip=0.25)}, "augment.hflip: 0.25 / 0.5"),
        ({"keep": "margin"}, "columns.margin: True / False"),
        ({"shards": ("nowhere-{0..3}.tar",)}, "4 of 4 names match no file"),
        ({"teacher_checkpoint": Path("nowhere.pth")}, "nowhere.pth"),
        ({"teacher": "regnety_00"}, "'regnety_00' is no model of timm"),
        ({"teacher": "regnety_00"}, "similar names: regnety_0"),
        ({"out": "labels.txt"}, "must end in .parquet or .zarr"),
    ],
)
def test_settings_that_do_not_fit_are_refused_first(
    begun: LabelConfig, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(PipelineError) as caught:
        run_label_job(replace(begun, **change))
    assert said in str(caught.value)


def test_every_name_of_timms_is_taken_for_one(begun: LabelConfig) -> None:
    for name in (*timm.list_models()[::40], *timm.list_pretrained()[::200]):
        replace(begun, teacher=name).check_teacher()


def test_settings_that_fit_go_on_to_the_teacher(begun: LabelConfig) -> None:
    with pytest.raises(DearError):
        run_label_job(begun)


def test_the_last_views_of_a_cut_may_be_done_with_another_size(begun: LabelConfig) -> None:
    with pytest.raises(DearError):
        run_label_job(replace(begun, first_view=8, views=4, views_per_part=4))
