"""The layers of import-linter: each module is in one, and an import that points up is caught."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(
        command, cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )


UPWARD = {
    "student/losses/hard.py": ("import student.engine", "student.losses.hard -> student.engine"),
    "pipeline/records.py": ("import pipeline.store", "pipeline.records -> pipeline.store"),
    "pipeline/tools/diff.py": ("import pyarrow", "pipeline.tools.diff -> pyarrow"),
    "pipeline/views/draw.py": ("import torch", "pipeline.views.draw -> torch"),
    "student/model.py": ("import ray", "student.model -> ray"),
    "pipeline/files/stray.py": ("", "pipeline.files.stray"),
    "student/stray.py": ("", "student.stray"),
}
"""A line that is added to a module, and what import-linter then says."""


def test_imports_that_point_up_and_modules_in_no_layer_are_caught(tmp_path: Path) -> None:
    for name in ("pipeline", "student", "jobs", "teacher_labels"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert lint(tmp_path).returncode == 0
    for module, (line, _) in UPWARD.items():
        with (tmp_path / module).open("a") as file:
            file.write(f"\n{line}\n")
    found = lint(tmp_path)
    assert found.returncode != 0
    said = " ".join(found.stdout.split())
    assert [message for _, message in UPWARD.values() if message not in said] == []
