"""A store's report against a student: what it calls the views that it is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ClassesError, ConfigError
from pipeline.files.local import expand_shards
from pipeline.shards.index import match_shards
from pipeline.store import claim_store, open_store
from pipeline.tools.against import compare_student
from pipeline.tools.report import report_store
from pipeline.views.floats import fingerprints_on
from pipeline.views.mixing import mix_images, normalize
from student import PlanConfig, load_student, open_replay
from student.cli import store_main
from student.engine import train
from student.evaluation.beside import RunStudent
from student.inputs import open_inputs
from student.model import split_heads, two_headed
from tests.pages import number, read_page, table_of
from tests.student.factories import PixelTeacher, make_identity, make_store
from tests.student.worlds import World, make_world

NAMES = ["truth", "the teacher", "class head", "distillation head", "mean of logits"]
VIEWS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root, identity = tmp_path_factory.mktemp("world"), make_identity()
    claim_store(root / "labels.parquet", identity, fingerprints_on(identity, "cpu"))
    world = make_world(root, (14, 10), views=VIEWS)
    config = world.config(world.root / "run")
    train(config, open_inputs(config))
    return world


def replayed(world: World) -> dict[str, np.ndarray]:
    """Return what all five call each of the 72 views, by the batches of replay."""
    plan = PlanConfig(seed=0, epochs=VIEWS, batch_size=24)
    data = open_replay(str(world.root / "labels.parquet"), [str(world.root / "digits-*.tar")], plan)
    model = load_student(world.root / "run" / "last.pt")
    views = data.store.identity.augment
    said: dict[str, list[torch.Tensor]] = {name: [] for name in NAMES}
    for batch in (data[item] for item in range(VIEWS)):
        with torch.inference_mode(), two_headed(model):
            images = mix_images(normalize(batch.pixels, views.mean, views.std), batch.mix)
            first, second = split_heads(model(images))
        found = [batch.target, batch.label, first.argmax(1), second.argmax(1)]
        found.append((first + second).argmax(1))
        for name, labels in zip(NAMES, found, strict=True):
            said[name].append(labels)
    return {name: torch.cat(labels).numpy() for name, labels in said.items()}


def test_the_matrix_is_that_of_the_views_that_are_replayed(world: World, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    store_main(
        [
            *("report", str(world.root / "labels.parquet"), "--out", str(out)),
            *("--shards", str(world.root / "digits-*.tar")),
            *("--against", str(world.root / "run")),
        ]
    )
    page, said = read_page(out.read_text()), replayed(world)
    assert "The student of run run was shown 72 views of 72" in page.text
    rows = table_of(page, "student-disagreement")
    assert [row[0] for row in rows] == NAMES
    for row in rows:
        shares = [float((said[row[0]] != said[name]).mean()) for name in NAMES]
        assert [number(cell) for cell in row[1:]] == pytest.approx(shares, abs=6e-4)
    other = said["mean of logits"] != said["the teacher"]
    for name, views, different, _ in table_of(page, "student-classes"):
        of = said["truth"] == int(name)
        assert (int(views), int(different)) == (of.sum(), (of & other).sum())


def test_few_views_are_spread_over_all_parts(world: World) -> None:
    store, student = open_store(world.root / "labels.parquet"), RunStudent(world.root / "run")
    given = expand_shards([str(world.root / "digits-*.tar")])
    files = match_shards(store.manifest.shards, given)
    found = compare_student(store, files, student, most=8)
    assert (found.views, found.of) == (8, 72)
    assert len(found.classes) > 3


def test_what_is_no_student_of_the_store_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a store, whose name ends"):
        RunStudent(tmp_path)
    student = RunStudent(world.root / "run" / "last.pt")
    store = open_store(world.root / "labels.parquet")
    with pytest.raises(ConfigError, match="give `shards` too"):
        report_store(store, student=student)
    shards = sorted(world.root.glob("digits-*.tar"))
    identity = make_identity(classes=12)
    prints = fingerprints_on(identity, "cpu")
    claim_store(tmp_path / "other.parquet", identity, prints)
    teacher = PixelTeacher(12)
    make_store(tmp_path / "other.parquet", shards, identity=identity, teacher=teacher, views=1)
    with pytest.raises(ClassesError, match="has 10 classes"):
        report_store(open_store(tmp_path / "other.parquet"), [str(shards[0])], student=student)
