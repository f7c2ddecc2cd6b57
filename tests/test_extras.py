"""Who only trains, or labels without Ray, needs no extra; who lacks one is told which."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.student.factories import TINY, write_digit_shards

ROOT = Path(__file__).parents[1]
BARE = """
import sys
for name in ("ray", "zarr", "obstore", "huggingface_hub.file_download"):
    sys.modules[name] = None  # as if it were not installed
from importlib import import_module
module, function, *arguments = sys.argv[1:]
getattr(import_module(module), function)(arguments)
"""
LABEL = ("jobs.label_teacher", "main", "--shards", "digits-*.tar", "--teacher", "resnet18")
LABEL += ("--teacher-random-weights", "1", "--num-classes", "10", "--image-size", "32")
LABEL += ("--views", "3", "--views-per-part", "3", "--allow-low-agreement")
STORE = ("pipeline.cli.commands", "label_store")
TRAIN = ("student.cli", "main", "--labels", "s.parquet", "--epochs", "1", "--batch-size", "6")
TRAIN += ("--model", "deit_tiny_distilled_patch16_224", "--model-args", *TINY, "--workers", "0")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bare")
    write_digit_shards(root, [12])
    done = run_bare(root, *LABEL, "--serial", "--out", "s.parquet")
    assert done.returncode == 0, done.stderr
    return root


def run_bare(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BARE, *words]
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def test_labelling_serially_verifying_and_training_need_no_extra(root: Path) -> None:
    for words in (
        (*STORE, "verify", "s.parquet", "--shards", "digits-*.tar", "--all"),
        (*TRAIN, "--shards", "digits-*.tar", "--output", "run"),
    ):
        done = run_bare(root, *words)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        ((*LABEL, "--out", "t.parquet"), "ray", "jobs"),
        ((*LABEL, "--serial", "--out", "t.zarr"), "zarr", "zarr"),
        ((*STORE, "export", "s.parquet", "t.zarr"), "zarr", "zarr"),
        ((*STORE, "verify", "s3://bucket/s.parquet"), "obstore", "cloud"),
        ((*TRAIN, "--shards", "s3://bucket/x.tar", "--output", "t"), "obstore", "cloud"),
    ],
)
def test_who_lacks_an_extra_is_told_in_a_line(
    root: Path, words: tuple[str, ...], package: str, extra: str
) -> None:
    done = run_bare(root, *words)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"needs {package}: pip install 'teacher-labels[{extra}]'" in last
    assert "Traceback" not in done.stderr
    assert not [path for path in root.iterdir() if path.name.startswith("t")]


def test_the_extras_are_those_that_messages_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        name: {Requirement(one).name for one in needed}
        for name, needed in project["optional-dependencies"].items()
    }
    assert (extras["jobs"], extras["cloud"], extras["zarr"]) == ({"ray"}, {"obstore"}, {"zarr"})
    base = {Requirement(one).name for one in project["dependencies"]}
    assert not base & {"ray", "obstore", "zarr"}
