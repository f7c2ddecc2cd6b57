"""The guide's loops run as they are written, and train one and the same student."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from student import StoredLabelTask
from student.config import parse_model_args
from tests.student.factories import TINY, make_store, write_digit_shards

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "loops.md"
LOOPS = {
    "own": "import timm, torch\nfrom student",
    "Accelerate": "import timm, torch\nfrom accelerate",
    "Lightning": "import pytorch_lightning, timm, torch\n",
    "Transformers": "import timm, torch\nfrom transformers",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loops")
    make_store(root / "labels.parquet", write_digit_shards(root, [14, 11]), views=3)
    return root


def code_of(beginning: str, root: Path) -> str:
    """Return a block of the guide, with a small world's names and sizes for its own."""
    (code,) = re.findall(rf"```python\n({beginning}.*?)```", GUIDE.read_text(), re.DOTALL)
    for written, here in (
        ("teacher.parquet", str(root / "labels.parquet")),
        ("shards/train/*.tar", str(root / "digits-*.tar")),
        ("batch_size=256, epochs=300", "batch_size=8, epochs=3"),
        ("num_classes=1000", f"num_classes=10, img_size=32, **{parse_model_args(TINY)}"),
        ("num_workers=8", "num_workers=1"),
    ):
        assert written in code
        code = code.replace(written, here)
    return str(code)


def run(loop: str, root: Path) -> dict[str, Any]:
    """Run a loop and return its names."""
    names: dict[str, Any] = {}
    torch.manual_seed(7)
    exec(compile(code_of(LOOPS[loop], root), str(GUIDE), "exec"), names)
    return names


def weights(task: StoredLabelTask) -> dict[str, torch.Tensor]:
    return task.trainable_module.state_dict()


@pytest.fixture(scope="module")
def own(root: Path) -> dict[str, Any]:
    return run("own", root)


def test_the_readmes_own_loop_takes_every_step(own: dict[str, Any]) -> None:
    assert own["batch"].step == 8
    assert own["loss"].isfinite()


@pytest.mark.parametrize("loop", ["Accelerate", "Lightning", "Transformers"])
def test_loops_of_other_libraries_train_the_same_weights(
    loop: str,
    root: Path,
    own: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # Lightning logs where it is
    names = run(loop, root)
    found = weights(names["trainer"].model.task if loop == "Lightning" else names["task"])
    expected = weights(own["task"])
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
