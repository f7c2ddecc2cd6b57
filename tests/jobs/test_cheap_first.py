"""What is cheap to find out is found out before shards are read, Ray starts or a teacher loads."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm

from jobs import serial
from jobs.joining import RayConnection
from jobs.run import run_label_job
from pipeline.errors import PipelineError, TeacherError
from pipeline.labelling import timm_files
from pipeline.labelling.config import LabelConfig
from pipeline.shards import index
from tests.jobs.processes import ROOT
from tests.labelling import SMALL, digit_shard
from tests.pipeline.labelling.test_job import config_of, plan_of, run


@pytest.fixture
def begun(tmp_path: Path) -> LabelConfig:
    """The settings of a job that was broken off after one of its parts."""
    shards = (digit_shard(tmp_path / "s-0.tar", 9), digit_shard(tmp_path / "s-1.tar", 9, first=9))
    out = str(tmp_path / "labels.parquet")
    config = config_of(shards, out=out, serial=True, teacher_random_weights=3)
    run(plan_of(config), parts=1)
    return config


class DearError(Exception):
    """What should not have been paid for."""


@pytest.fixture(autouse=True)
def nothing_dear(begun: LabelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def pay(*_: Any, **__: Any) -> None:
        raise DearError

    monkeypatch.setattr(serial, "TeacherWorker", pay)
    monkeypatch.setattr(RayConnection, "open", pay)
    monkeypatch.setattr(index, "open_shard", pay)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"views_per_part": 4}, "`views_per_part` is 4: parts would overlap"),
        ({"seed": 6}, "root_seed: 6 / 5"),
        ({"augment": replace(SMALL, hflip=0.25)}, "augment.hflip: 0.25 / 0.5"),
        ({"keep": "margin"}, "columns.margin: True / False"),
        ({"shards": ("nowhere-{0..3}.tar",)}, "4 of 4 names match no file"),
        (
            {"teacher_checkpoint": Path("nowhere.pth"), "teacher_random_weights": None},
            "nowhere.pth",
        ),
        ({"teacher": "regnety_00"}, "'regnety_00' is no model of timm"),
        ({"teacher": "regnety_00"}, "similar names: regnety_0"),
        ({"teacher": "timm/resnet18.a1_in1k"}, "similar names: resnet18"),
        ({"teacher": "resnet18.nobody"}, "it knows resnet18.a1_in1k"),
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


NEAR = "resnet18.a1_in1k"  # timm's own repository has its name
FAR = "vit_base_patch32_clip_quickgelu_224.openai"  # and this one's weights another


@pytest.fixture
def without_hub(begun: LabelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabelConfig:
    """The settings of a job whose teacher would be fetched, where there is no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("HTTPS_PROXY", "https_proxy", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return replace(
        begun,
        teacher=NEAR,
        teacher_random_weights=None,
        out=str(tmp_path / "other.parquet"),
        serial=False,
    )


@pytest.mark.parametrize("teacher", [NEAR, FAR, "resnet18"])
@pytest.mark.parametrize("serial", [False, True])
def test_a_teacher_that_cannot_be_fetched_is_refused_first(
    without_hub: LabelConfig, teacher: str, serial: bool
) -> None:
    with pytest.raises(TeacherError, match=r"127\.0\.0\.1 cannot be reached .*`checkpoint`"):
        run_label_job(replace(without_hub, teacher=teacher, serial=serial))


@pytest.mark.parametrize(
    ("teacher", "cached"),
    [
        (NEAR, "timm/resnet18.a1_in1k"),
        ("resnet18", "timm/resnet18.a1_in1k"),
        (FAR, "timm/vit_base_patch32_clip_224.openai"),
    ],
)
def test_a_teacher_in_the_hubs_cache_needs_no_network(
    without_hub: LabelConfig, tmp_path: Path, teacher: str, cached: str
) -> None:
    folder = tmp_path / "hub" / f"models--{cached.replace('/', '--')}" / "snapshots" / "1"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    with pytest.raises(DearError):
        run_label_job(replace(without_hub, teacher=teacher))


def test_the_hub_is_not_asked_for_a_teacher_in_its_cache(
    without_hub: LabelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hub" / "models--timm--resnet18.a1_in1k" / "snapshots" / "1"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    monkeypatch.setattr(timm_files, "why_unreached", lambda: pytest.fail("it was asked"))
    without_hub.check_fetched()


def test_a_teacher_that_the_hub_may_have_is_loaded_with_it(
    without_hub: LabelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        with pytest.raises(DearError):
            run_label_job(without_hub)


def test_what_other_machines_can_fetch_they_are_asked_for(
    without_hub: LabelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    with pytest.raises(DearError):
        run_label_job(without_hub)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(TeacherError):
        run_label_job(without_hub)


def test_weights_that_timm_fetches_from_elsewhere_are_left_to_it(without_hub: LabelConfig) -> None:
    with pytest.raises(DearError):
        run_label_job(replace(without_hub, teacher="legacy_seresnet18.in1k"))


NO_NETWORK = """
import sys
from importlib import import_module
module, function, *arguments = sys.argv[1:]
try:
    getattr(import_module(module), function)(arguments)
finally:
    print(*{"torch", "timm", "ray"} & set(sys.modules))
"""
LABEL = ("jobs.label_teacher", "main", "--shards", "s-*.tar", "--out", "o.parquet", "--views", "2")
TRAIN = ("--labels", "labels.parquet", "--shards", "s-*.tar", "--output", "run", "--epochs", "1")
WITH_WEIGHTS = ("--model", "resnet18", "--model-args", "pretrained=True")
CONNECT = "127.0.0.1 cannot be reached (Connection refused)"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*LABEL, "--teacher", NEAR), f"cannot create the teacher '{NEAR}': {CONNECT}"),
        ((*LABEL, "--teacher", "resnet18", "--serial"), CONNECT),
        ((*LABEL, "--teacher", "hf-hub:a/b"), "--teacher 'hf-hub:a/b' is no model of timm"),
        (("student.cli", "main", *TRAIN, *WITH_WEIGHTS), f"ask for ({CONNECT}"),
        (("student.cli", "main", *TRAIN, "--model", "hf-hub:a/b"), "is a source to fetch from"),
        (("jobs.train_student", "main", *TRAIN, *WITH_WEIGHTS), f"ask for ({CONNECT}"),
        (("jobs.train_student", "main", *TRAIN, "--model", "timm/b"), "is a source to fetch from"),
    ],
)
def test_without_a_network_no_program_loads_pytorch_to_say_so(
    begun: LabelConfig, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    variables = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "0", "RAY_ADDRESS": ""}
    variables |= {"HF_HOME": str(tmp_path / "hub"), "HTTPS_PROXY": "", "https_proxy": ""}
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, *words],
        cwd=tmp_path,
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert [said in line for line in done.stderr.splitlines()] == [True], done.stderr
    assert (done.returncode, done.stdout.strip()) == (1, "")  # and nothing was loaded for seconds
