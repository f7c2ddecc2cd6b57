"""The commands as functions: one call each, in the words of the flags."""

from __future__ import annotations

import doctest
import inspect
import json
import pydoc
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pipeline
import student
import teacher_labels
from jobs.label_teacher import configured, parse_arguments
from pipeline.errors import ConfigError, PipelineError
from pipeline.identity import AugmentConfig
from pipeline.labelling.config import LabelConfig
from student.config import SETTINGS
from tests.factories import digit_samples

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "first_minute.ipynb"


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with 15 images of each of two classes."""
    for index, (key, image, _) in enumerate(digit_samples(30)):
        path = tmp_path / "images" / ("cat", "dog")[index % 2] / f"{key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_of_all_calls_run_one_after_the_other(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    names = {name: getattr(teacher_labels, name) for name in teacher_labels.__all__}
    assert sorted(names) == ["evaluate", "label", "pack", "show", "train"]
    order = ("pack", "label", "show", "train", "evaluate")
    texts = [inspect.getdoc(names[name]) or "" for name in order]
    examples = "\n\n".join(text[text.index(">>> ") :] for text in texts)
    test = doctest.DocTestParser().get_doctest(examples, names, "examples", __file__, 0)
    with capsys.disabled():
        found = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert (found.failed, found.attempted) == (0, len(test.examples))
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_call_means_what_its_flags_mean() -> None:
    flags = ["--shards", "x", "--out", "y.parquet", "--preset", "crop-flip", "--hflip", "0"]
    flags += ["--mixing.group-size", "8", "--keep", "confidence"]
    given = {"shards": ("x",), "out": "y.parquet", "preset": "crop-flip", "hflip": 0}
    given |= {"mixing": {"group_size": 8}, "keep": "confidence"}
    assert configured(given) == parse_arguments(flags)


def test_a_slip_is_named_and_nothing_exits(images: Path) -> None:
    teacher_labels.pack("images", "shards")
    with pytest.raises(ConfigError, match="did you mean `per_shard`"):
        teacher_labels.pack("images", "shards", per_shards=3)
    with pytest.raises(ConfigError, match="did you mean views"):
        teacher_labels.label("shards", "x.parquet", vews=3)
    with pytest.raises(ConfigError, match="no setting `epoch`"):
        teacher_labels.train("x.parquet", "shards", "run", epoch=3)
    with pytest.raises(PipelineError, match="no model of timm"):
        teacher_labels.label("shards", "x.parquet", teacher="resnet5000", serial=True)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pack", {"images", "out", "part", "max_side"}),
        ("label", {"shards", "views", "preset", "crop_scale", "mixing", "serial"}),
        ("train", {"labels", "recipe", *SETTINGS}),
        ("evaluate", {"checkpoint", "val_shards", "analysis"}),
        ("show", {"store", "class_", "disagree", "count"}),
    ],
)
def test_help_shows_the_settings_of_a_call_by_name(name: str, settings: set[str]) -> None:
    call = getattr(teacher_labels, name)
    found = inspect.signature(call)
    assert settings <= found.parameters.keys()
    kinds = {one.kind for one in found.parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    assert "settings: " not in pydoc.render_doc(call)
    assert "**" not in str(found)


def test_all_settings_of_a_label_job_are_shown() -> None:
    known = {one.name for kind in (LabelConfig, AugmentConfig) for one in fields(kind)}
    assert known - {"augment"} <= inspect.signature(teacher_labels.label).parameters.keys()
    part = inspect.signature(teacher_labels.pack).parameters["part"]
    assert (part.default, part.kind) == ((0.0, 1.0), part.KEYWORD_ONLY)


@pytest.mark.parametrize("package", [pipeline, student])
def test_names_that_load_late_are_listed(package: ModuleType) -> None:
    assert {*package.__all__} <= {*dir(package)}


def test_what_comes_next_is_said_by_the_names_of_the_commands(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reader of the notebook finds them beside its calls."""
    teacher_labels.pack("images", "shards")
    seen: dict[str, Any] = {"teacher": "test_vit", "teacher_random_weights": 0, "num_classes": 2}
    small = {"image_size": 32, "views": 1, "serial": True}
    teacher_labels.label("shards", "x.parquet", **seen, **small)
    told = [line for line in capsys.readouterr().err.splitlines() if "next: " in line]
    assert told
    assert all(line.startswith("next: teacher-labels ") for line in told)


def test_the_door_is_light() -> None:
    code = (
        "import sys, teacher_labels\n"
        "heavy = {'torch', 'pyarrow', 'numpy', 'ray', 'tyro'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_notebook_runs_from_its_first_cell_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On fewer images and epochs than it shows; all else is as it stands there."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "examples")
    monkeypatch.syspath_prepend(str(tmp_path / "examples"))
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    small = "\n".join(sources)
    for shown, tried in SMALLER.items():
        assert shown in small, shown
        small = small.replace(shown, tried)
    space: dict[str, object] = {"__name__": "__main__"}
    exec(compile(small, str(NOTEBOOK), "exec"), space)
    assert (tmp_path / "examples" / "first-minute" / "labels.parquet" / "_manifest.json").exists()
    assert all(cell.get("outputs", []) == [] for cell in cells)  # results are the reader's own


SMALLER = {
    'write_shapes(work / "images")': 'write_shapes(work / "images", 24, 8)',
    '"--epochs", "10"': '"--epochs", "1"',
    "epochs=16": "epochs=1",
    "    serial=True": "    serial=True, allow_low_agreement=True",
}
