"""A later release, made of this one's code and the fields that it adds, reads this one's files.

Nothing here mocks the rule: the tree is copied, fields are written into its records as a later
release would write them, and the copy opens, redraws, replays and resumes what this release left.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from student.engine import train
from student.inputs import open_inputs
from tests.golden.make import FORMATS, SHARD, store_path
from tests.student.worlds import World, make_world

ROOT = Path(__file__).resolve().parents[2]

GROWN = 'grown(founding={}, since="9.1.0")'
PLAIN = "{}"
"""How a field gets its default: by the rule, and as one would write it without thinking."""

FIELDS: Mapping[str, tuple[str, str, str, str]] = {
    "AugmentConfig": ("pipeline/identity.py", "    mean: Triple", "zoom: float", "1.0"),
    "MixConfig": ("pipeline/identity.py", "    mixup_alpha: float", "rounds: int", "1"),
    "TeacherIdentity": ("pipeline/identity.py", "    classes: int\n", "head: str", '"main"'),
    "ColumnConfig": ("pipeline/columns.py", "    margin: bool", "entropy: bool", "False"),
    "StoreIdentity": ("pipeline/identity.py", "    augment: AugmentConfig\n", "origin: str", '""'),
    "ShardInfo": ("pipeline/records.py", "    content_hash: str", "classes: int", "0"),
    "Rejection": ("pipeline/records.py", "    reason: RejectionReason", "code: str", '"none"'),
    "PlanConfig": ("student/order.py", "    seed: int", "patience: int", "0"),
    "OptimizationConfig": (
        "student/config.py",
        "    weight_decay: float",
        "decay_to: float",
        "0.0",
    ),
}
"""A record: its file, the field before which a later release puts a new one, and the new one's
declaration and founding value."""

COLUMN = """    Column(
        name="entropy", word="entropy", card="entropy", dtype="uint8", encoding="PLAIN",
        bytes_per_value=(1.0, 1.0), of=lambda ranked, k: ranked.prob[:, 0],
        fits=lambda label, columns: True,
    ),
"""
OPERATION = """from pipeline.views.operation import Operation, no_argument

OPERATION = Operation(
    name="vflip", draw=no_argument, apply=lambda image, argument, fill: image[::-1].copy(), probe=0
)
"""
MORE: Mapping[str, tuple[tuple[str, str], ...]] = {
    "pipeline/columns.py": ((")\nCOLUMNS: ", f"{COLUMN})\nCOLUMNS: "),),
    "pipeline/views/draw.py": (
        (
            '    "rand-augment": (',
            '    "later-augment": ("vflip", "invert"),\n    "rand-augment": (',
        ),
    ),
    "pipeline/identity.py": (
        ('"rand-augment", ', '"rand-augment", "later-augment", '),
        ('"center"]', '"center", "later"]'),
        (
            '    "deit": AugmentConfig(),',
            '    "later": AugmentConfig(policy="later-augment"),\n    "deit": AugmentConfig(),',
        ),
    ),
}
"""What else a later release adds: a column, an operation, a policy that has it, a preset."""

READ = """
import json, sys
from pipeline.columns import COLUMNS
from pipeline.identity import PRESETS
from pipeline.store import open_store
from pipeline.tools.verify import verify_store
from student.config import TrainConfig
from student.engine import train
from student.inputs import open_inputs

asked = json.loads(sys.argv[1])
assert "entropy" in COLUMNS and PRESETS["later"].policy == "later-augment"
digests = {}
for path in asked["stores"]:
    report = verify_store(path, [asked["shard"]], every_digest=True)
    assert report.digests == report.redrawn > 0 and not report.mismatches
    digests[path] = open_store(path).identity.digest
run = asked["run"]
config = TrainConfig.of_settings(**run)
outcome = train(config, open_inputs(config))
print(json.dumps({"digests": digests, "weights": outcome.weights}))
"""


OPEN = """
import sys
from pipeline.store import open_store
open_store(sys.argv[1])
"""


def later_release(root: Path, records: Mapping[str, str]) -> Path:
    """Copy this release to ``root`` and add a field to each record, declared as it says."""
    for name in ("pipeline", "student"):
        shutil.copytree(ROOT / name, root / name)  # with the compiled kernels beside their files
    for record, declared in records.items():
        name, before, field, founding = FIELDS[record]
        file = root / name
        text = file.read_text()
        at = text.index(before, text.index(f"class {record}"))
        line = f"    {field} = {declared.format(founding)}\n"
        text = text[:at] + line + text[at:]
        if "import grown" not in text:
            text = text.replace(
                "from dataclasses", "from pipeline.growth import grown\nfrom dataclasses", 1
            )
        file.write_text(text)
    return root


def with_more(root: Path) -> Path:
    """Add what lies in tables to a later release."""
    (root / "pipeline" / "views" / "ops" / "vflip.py").write_text(OPERATION)
    for name, changes in MORE.items():
        text = (root / name).read_text()
        for old, new in changes:
            assert old in text, f"{name} has no {old!r}"
            text = text.replace(old, new, 1)
        (root / name).write_text(text)
    return root


def run_in(tree: Path, program: str, argument: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, str(argument)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def asking(stores: list[Path], run: Mapping[str, object]) -> str:
    return json.dumps({"stores": stores, "shard": SHARD, "run": run}, default=str)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), (14, 10))


def test_a_later_release_opens_redraws_replays_and_resumes_what_this_one_left(
    tmp_path: Path, world: World
) -> None:
    tree = with_more(later_release(tmp_path / "later", dict.fromkeys(FIELDS, GROWN)))
    stores = [store_path(name, ending) for name in ("hard", "soft") for ending in FORMATS]
    straight = world.config(tmp_path / "straight")
    stopped = world.config(tmp_path / "stopped")
    undisturbed = train(straight, open_inputs(straight))
    train(stopped, open_inputs(stopped), stop_after=2)
    resumed = {**arguments_of(world, tmp_path / "stopped"), "resume": "auto"}
    found = run_in(tree, READ, asking(stores, resumed))
    assert found.returncode == 0, found.stderr[-3000:]
    read = json.loads(found.stdout.splitlines()[-1])
    assert read["weights"] == undisturbed.weights
    assert set(read["digests"].values()) == {
        json.loads((store_path(name) / "_manifest.json").read_bytes())["identity_digest"]
        for name in ("hard", "soft")
    }


@pytest.mark.parametrize("record", FIELDS)
def test_a_field_that_is_added_without_a_founding_value_is_noticed(
    tmp_path: Path, world: World, record: str
) -> None:
    records = {"ColumnConfig": GROWN, record: PLAIN}  # a column comes with its setting
    tree = with_more(later_release(tmp_path / "later", records))
    if FIELDS[record][0].startswith("student"):
        stopped = world.config(tmp_path / "stopped")
        train(stopped, open_inputs(stopped), stop_after=2)
        run = {**arguments_of(world, tmp_path / "stopped"), "resume": "auto"}
        found = run_in(tree, READ, asking([], run))
    else:
        found = run_in(tree, OPEN, store_path("soft"))
    name = FIELDS[record][2].partition(":")[0]
    assert found.returncode != 0
    assert name in found.stderr.splitlines()[-1] or f"\n  `{name}`: " in found.stderr


def arguments_of(world: World, output: Path) -> dict[str, object]:
    settings = world.config(output).to_json()
    return {name: value for name, value in settings.items() if value is not None}
