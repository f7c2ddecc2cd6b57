"""Benchmarks are run by hand; here they are only kept working, at sizes that say nothing."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType

import numpy as np
import pytest
from PIL import Image

from benchmarks import damage as damage_benchmark
from benchmarks import engine as engine_benchmark
from benchmarks import gpu as gpu_benchmark
from benchmarks import loader as loader_benchmark
from benchmarks import store as store_benchmark
from benchmarks import views as views_benchmark
from benchmarks.report import AIMS
from tests.factories import encode, photographs, write_shard
from tests.jobs.processes import RAY_ENVIRONMENT, ray_head
from tests.student.worlds import FORKS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = []
    for number in range(18):
        corner = 5 * number
        pixels = np.asarray(Image.fromarray(photographs()[number % 2]).resize((160, 120)))
        samples.append((f"photo_{number:02d}", encode(pixels[: 119 - corner // 2]), number % 10))
    return write_shard(tmp_path_factory.mktemp("bench") / "photos.tar", samples)


def run(program: ModuleType, arguments: list[str], json_path: Path) -> dict[str, object]:
    """Run a benchmark in another process, since it pins the one that it is in."""
    process = FORKS.Process(
        target=main_of, args=(program.__name__, [*arguments, "--json", str(json_path)])
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    result: dict[str, object] = json.loads(json_path.read_text())
    return result


def main_of(program: str, arguments: list[str]) -> None:
    sys.argv = [program, *arguments]
    import_module(program).main()


@pytest.fixture(scope="module")
def ray_there() -> Iterator[dict[str, str]]:
    """The environment of who joins a Ray that runs; to start one for each job takes long."""
    with ray_head() as head:
        yield {**RAY_ENVIRONMENT, "RAY_ADDRESS": head.address}


def run_anew(
    command: list[str], json_path: Path, environment: Mapping[str, str] = MappingProxyType({})
) -> dict[str, object]:
    """Run a benchmark in a new process, in which nothing is loaded."""
    done = subprocess.run(
        [sys.executable, *command, "--json", str(json_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, object] = json.loads(json_path.read_text())
    return result


def test_the_gpu_benchmark_needs_no_data_nor_ray_webdataset_zarr_or_tyro(tmp_path):
    forbidden = ("ray", "webdataset", "zarr", "tyro", "tensorboard", "obstore", "pandas")
    code = f"import sys; sys.modules.update(dict.fromkeys({forbidden!r}))"
    code += "; from benchmarks.gpu import main; main()"
    sections = ["matrix", "teacher", "feeding", "students", "flips"]
    smoke = ["--device", "cpu", "--smoke", "--only", *sections]
    result = run_anew(["-c", code, *smoke], tmp_path / "gpu.json")
    speeds = result["teacher_images_per_second"]
    assert speeds.keys() == {"pipeline", "kernel by kernel", "autocast", "share of busy time"}
    assert result["feeding"]["augmented_views_per_second"] > 0
    assert 0 < result["feeding"]["teacher_busy"] <= 1
    assert result["feeding"]["cores_for_one_teacher"] > 0
    assert all(hours > 0 for hours in result["imagenet_hours"].values())
    assert result["flips_against_fp32"]["rows"] > 0
    assert result["students"]["deit_tiny_distilled_patch16_224"]["store_ms"] > 0
    assert result["left_out_for_time"] == []
    assert result["minutes"] < 9


def test_the_gpu_benchmark_runs_a_whole_job_on_ray(shard, tmp_path, ray_there):
    smoke = ["--shards", str(shard), "--device", "cpu", "--smoke", "--only", "ray"]
    result = run_anew(["-m", "benchmarks.gpu", *smoke], tmp_path / "gpu.json", ray_there)
    told = result["label_job_on_ray"]
    assert told["labels"] == 18 * 15
    assert 0 <= told["teacher_busy_share"] <= 1  # it is asked for now and then


def test_sections_of_the_gpu_benchmark_that_fail_or_come_late_are_named(monkeypatch):
    settings, names = object(), ["flips", "matrix", "ray"]
    found = gpu_benchmark.measure_all(settings, names, deadline=0.0)
    assert found == {"left_out_for_time": ["matrix", "flips", "ray"], "failed": {}}
    sections = {"matrix": lambda *_: 1 / 0, "flips": lambda *_: {"flips": 3}}
    monkeypatch.setattr(gpu_benchmark, "SECTIONS", sections)
    found = gpu_benchmark.measure_all(settings, names, deadline=math.inf)
    failed = {"matrix": "ZeroDivisionError('division by zero')"}
    assert found == {"flips": 3, "left_out_for_time": [], "failed": failed}


def test_the_benchmarks_of_views_and_loader_report_every_ratio_that_has_an_aim(shard, tmp_path):
    shards = ["--shards", str(shard), "--rounds", "1"]
    views = run(views_benchmark, [*shards, "--images", "4"], tmp_path / "views.json")
    few = ["--batch-size", "4", "--batches", "1", "--worker-batches", "2"]
    loader = run(loader_benchmark, [*shards, *few], tmp_path / "loader.json")
    ratios = {**views["ratios"], **loader["ratios"]}
    expected = [
        name for name in AIMS if not name.startswith(("teacher", "step", "store", "silent"))
    ]
    assert sorted(ratios) == sorted(expected)
    # Peers and jpegtran are measured where they are installed.
    may_lack = {name for name in ratios if name.startswith("crop_flip_vs")}
    may_lack |= set() if shutil.which("jpegtran") else {"view_1_restart"}
    for name, value in ratios.items():
        assert (value is None and name in may_lack) or value > 0


def test_the_benchmark_of_the_engine_reports_the_ratio_that_has_an_aim(shard, tmp_path):
    few = ["--rounds", "1", "--image-size", "32", "--batch-size", "4", "--model-args"]
    small = [*few, "patch_size=8", "embed_dim=48", "depth=1", "num_heads=3"]
    found = run(engine_benchmark, ["--shards", str(shard), *small], tmp_path / "engine.json")
    assert found["ratios"]["step_engine_over_bare"] > 0
    assert "step_engine_over_bare" in AIMS


def test_the_benchmark_of_the_store_reports_every_figure_that_has_an_aim(tmp_path):
    few = ["--samples", "24", "--parts", "6", "--rounds", "1"]
    figures = run(store_benchmark, few, tmp_path / "store.json")["ratios"]
    assert {name for name in AIMS if name.startswith("store")} <= set(figures)
    assert all(value > 0 for value in figures.values())
    assert figures["store_bytes_mixed_300"] < figures["store_bytes_mixed_300_soft"]


def test_the_benchmark_of_the_label_job_runs_a_whole_job_on_ray(shard, tmp_path, ray_there):
    arguments = ["--shards", str(shard), "--rounds", "1", "--views", "15"]
    result = run_anew(["-m", "benchmarks.label_job", *arguments], tmp_path / "job.json", ray_there)
    assert 0 < result["ratios"]["teacher_busy"] <= 1
    assert result["ratios"]["orchestration_share"] < 1


def test_the_benchmark_of_damage_counts_each_damage_once_and_finds_none_silent(tmp_path):
    few = ["--flips", "25", "--cuts", "5", "--samples", "20", "--views", "6"]
    result = run(damage_benchmark, few, tmp_path / "damage.json")
    assert result["ratios"] == {name: 0 for name in AIMS if name.startswith("silent")}
    for outcomes in result["context"]["damage"].values():
        assert sum(outcomes.values()) == 30
