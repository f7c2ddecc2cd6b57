"""The doors of the packages: light to open, and examples that run."""

from __future__ import annotations

import doctest
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
import student
from pipeline.store import ParquetStore
from tests.factories import digit_samples

ROOT = Path(__file__).resolve().parents[1]

LIGHT = """
import os, random, sys, threading
opened = []
sys.addaudithook(lambda event, found: opened.append((event, found[0])) if event in (
    "open", "subprocess.Popen", "os.fork", "socket.connect") else None)
seeded = random.getstate()
import pipeline, student
heavy = {"torch", "pyarrow", "numpy", "ray", "tyro", "zarr", "timm"} & set(sys.modules)
# Python itself opens the modules that it imports.
read = [one for one in opened if not str(one[1]).endswith((".py", ".pyc"))]
assert not heavy and not read, (heavy, read)
assert threading.active_count() == 1 and random.getstate() == seeded
assert "pipeline.errors" not in sys.modules
"""


@pytest.mark.parametrize("door", [pipeline, student], ids=lambda door: door.__name__)
def test_every_name_of_a_door_opens_and_no_other(door) -> None:
    assert list(door.__all__) == sorted(door.__all__)
    assert set(door._MODULES) == set(door.__all__)
    for name in door.__all__:
        assert getattr(door, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = door.nothing


def test_opening_a_door_reads_no_file_sets_no_seed_and_starts_no_process() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, check=True)


def test_every_error_is_in_the_door() -> None:
    ours, all_of_them = (
        {name for name in module.__all__ if name.endswith("Error")}
        for module in (pipeline, pipeline.errors)
    )
    assert ours == all_of_them


def test_the_examples_in_docstrings_run(
    hash_store: ParquetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = Path(hash_store.root.name)
    shutil.copytree(labels, tmp_path / "teacher.parquet")
    shutil.copytree(labels, tmp_path / "other.parquet")
    for shard in labels.parent.glob("*.tar"):
        shutil.copy(shard, tmp_path)
    for name, (key, image, _) in zip(("cat", "dog"), digit_samples(2), strict=True):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / f"{key}.jpg").write_bytes(image)
    monkeypatch.chdir(tmp_path)
    names = {name: getattr(door, name) for door in (pipeline, student) for name in door.__all__}
    texts = [inspect.getdoc(names[name]) or "" for name in sorted(names)]
    examples = "\n\n".join(text[text.index(">>> ") :] for text in texts if ">>> " in text)
    test = doctest.DocTestParser().get_doctest(
        examples, names | {"Path": Path}, "examples", __file__, 0
    )
    assert len(test.examples) > 10
    found = doctest.DocTestRunner().run(test)
    assert found.failed == 0
