from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import (
    ConfigError,
    IncompleteStoreError,
    PipelineError,
    ShardError,
    TeacherError,
)
from pipeline.identity import PRESETS, ColumnConfig, MixConfig
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.teacher import load_teacher
from pipeline.records import PartRows, Rejection
from pipeline.store import LabelStore, export_store, open_store
from pipeline.tools import diff_stores, extended_config, relabelled_store, thin_store
from pipeline.tools.relabel import RelabelConfig, relabel_store
from pipeline.tools.verify import verify_store
from student.config import TrainConfig
from student.engine import train
from student.inputs import open_inputs
from tests.storing import ALL_COLUMNS, IDENTITY, bytes_of, info_of, ranges, write_store
from tests.student.factories import (
    SMALL_VIEWS,
    TINY,
    PixelTeacher,
    make_identity,
    make_store,
    write_digit_shards,
    write_digit_teacher,
)

SHARDS = [info_of(0), info_of(1, samples=9)]
VIEWS = range(8)
NOTE = "labels of the plain image"
PLAIN = replace(
    IDENTITY, augment=replace(PRESETS["center"], image_size=16), mix=MixConfig(probability=0.0)
)


@pytest.fixture
def source(tmp_path: Path) -> LabelStore:
    return write_store(tmp_path / "source.parquet", SHARDS, ranges(VIEWS, 3), ALL_COLUMNS)


@pytest.fixture
def plain(tmp_path: Path) -> LabelStore:
    """Labels of three views of the same shards, which have other numbers."""
    shards = [replace(shard, number=5 - shard.number) for shard in SHARDS]
    return write_store(tmp_path / "plain.parquet", shards, [(0, 3)], PLAIN)


@pytest.mark.parametrize("view", [None, 0, 2])
def test_a_derived_store_has_one_label_of_another_store_at_all_views_of_a_sample(
    tmp_path: Path, source: LabelStore, plain: LabelStore, view: int | None
) -> None:
    derived = relabelled_store(source, plain, tmp_path / "d.parquet", note=NOTE, view=view)
    assert derived.manifest.view_range == VIEWS
    for shard in SHARDS:
        wanted = plain.read_view(5 - shard.number, view or 0)
        for one in VIEWS:
            found = derived.read_view(shard.number, one)
            assert found.keys == wanted.keys
            np.testing.assert_array_equal(found.label, wanted.label)


def test_its_views_are_those_of_its_source(
    tmp_path: Path, source: LabelStore, plain: LabelStore
) -> None:
    derived = relabelled_store(source, plain, tmp_path / "d.parquet", note=NOTE)
    for shard in SHARDS:
        for view in VIEWS:
            ours, theirs = (one.read_view(shard.number, view) for one in (derived, source))
            for name in ("accepted", "target", "seed", "digest", "has_digest", "mixed_digest"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
            assert ours.columns == {}
    ours, theirs = derived.manifest, source.manifest
    assert (ours.rejections, ours.shards) == (theirs.rejections, theirs.shards)
    assert verify_store(derived.root).labels == source.manifest.rows
    # Stores of the same views compare, so the share of equal labels is known.
    assert diff_stores(source, derived).digests > 0


def test_identity_card_and_record_say_what_it_is(
    tmp_path: Path, source: LabelStore, plain: LabelStore
) -> None:
    derived = relabelled_store(source, plain, tmp_path / "d.parquet", note=NOTE)
    teacher = derived.identity.teacher
    assert teacher.architecture == f"made-up ({NOTE})"
    assert teacher.derivation == NOTE
    assert derived.identity.columns == ColumnConfig()
    assert replace(derived.identity, teacher=IDENTITY.teacher) == IDENTITY
    card = (tmp_path / "d.parquet" / "_README.md").read_text()
    assert f"No teacher gave these labels to these views: {NOTE}." in card
    assert "Labels of a teacher on augmented views" not in card
    assert "Labels of a teacher on augmented views" in source.companions()["_README.md"].decode()
    records = [json.loads(path.read_text()) for path in (tmp_path / "d.parquet").rglob("runs/*")]
    (record,) = [one for one in records if one.get("command") == "relabelled_store"]
    assert [Path(name).name for name in record["stores"]] == ["source.parquet", "plain.parquet"]


@pytest.mark.parametrize("change", ["thin", "zarr", "one-file"])
def test_what_is_made_of_a_derived_store_says_so_too(
    tmp_path: Path, source: LabelStore, plain: LabelStore, change: str
) -> None:
    derived = relabelled_store(source, plain, tmp_path / "d.parquet", note=NOTE)
    out = tmp_path / ("out.zarr" if change == "zarr" else "out.parquet")
    if change == "thin":
        thin_store(derived, out, views=range(3))
    else:
        export_store(derived.root, out, single_file=change == "one-file")
    copy = open_store(out)
    assert copy.identity == derived.identity
    assert NOTE in copy.companions()["_README.md"].decode()


def other_images(rows: PartRows) -> PartRows:
    return replace(rows, image_hash="f" * 64)


def rejects_more(rows: PartRows) -> PartRows:
    rejections = (Rejection(index=0, key=rows.keys[0], reason="undecodable"), *rows.rejections)
    fewer = {
        name: getattr(rows, name)[1:]
        for name in ("keys", "target", "seed", "label", "digest", "has_digest", "mixed_digest")
    }
    return replace(rows, rejections=rejections, **fewer)


def test_what_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, source: LabelStore, plain: LabelStore
) -> None:
    def store(name: str, *arguments: object, **more: object) -> LabelStore:
        return write_store(tmp_path / f"{name}.parquet", *arguments, **more)  # type: ignore[arg-type]

    classes = replace(PLAIN, teacher=replace(PLAIN.teacher, classes=6))
    content = [replace(SHARDS[0], content_hash="0" * 64), SHARDS[1]]
    out = tmp_path / "d.parquet"
    twice = relabelled_store(source, plain, tmp_path / "once.parquet", note=NOTE)
    cases: list[tuple[LabelStore, dict[str, object], type[PipelineError], str]] = [
        (store("other", SHARDS[1:], [(0, 1)], PLAIN), {}, ShardError, "no shard of these keys"),
        (store("content", content, [(0, 1)], PLAIN), {}, ShardError, "other contents"),
        (
            store("images", SHARDS, [(0, 1)], PLAIN, change=other_images),
            {},
            ShardError,
            "other contents",
        ),
        (store("classes", SHARDS, [(0, 1)], classes), {}, ConfigError, "5 classes"),
        (
            store("torn", SHARDS, [(0, 1)], PLAIN, change=rejects_more),
            {},
            IncompleteStoreError,
            "rejects 's-0.tar/0'",
        ),
        (plain, {"view": 3}, ConfigError, "has the views 0..2"),
        (plain, {"note": " "}, ConfigError, "say in a few words"),
        (plain, {"note": "(x)"}, ConfigError, "without brackets"),
        (plain, {"note": "two\nlines"}, ConfigError, "say in a few words"),
        (twice, {}, ConfigError, "derived already"),
    ]
    for labels_of, more, error, text in cases:
        with pytest.raises(error, match=text):
            relabelled_store(source, labels_of, out, **{"note": NOTE, **more})  # type: ignore[arg-type]
        assert not out.exists()


def test_an_interrupted_derivation_can_be_run_again(
    tmp_path: Path, source: LabelStore, plain: LabelStore
) -> None:
    class _KilledError(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == 4:
            raise _KilledError

    out = tmp_path / "d.parquet"
    with pytest.raises(_KilledError):
        relabelled_store(source, plain, out, note=NOTE, show=kill)
    assert not (out / "_manifest.json").exists()
    relabelled_store(source, plain, out, note=NOTE)
    relabelled_store(source, plain, tmp_path / "whole.parquet", note=NOTE)
    assert bytes_of(out) == bytes_of(tmp_path / "whole.parquet")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of digits, a derived store of theirs, and the teacher whose name it bears."""
    root = tmp_path_factory.mktemp("derived")
    paths = write_digit_shards(root, (13, 14))
    spec = write_digit_teacher(root / "teacher.safetensors")
    mix = MixConfig()
    teacher = load_teacher(spec, SMALL_VIEWS, mix, torch.device("cpu")).identity
    identity = replace(make_identity(), teacher=teacher)
    source = make_store(root / "source.parquet", paths, identity=identity, views=4)
    views = replace(PRESETS["center"], image_size=32)
    plain_identity = replace(identity, augment=views, mix=MixConfig(probability=0.0))
    plain = make_store(
        root / "plain.parquet", paths, identity=plain_identity, teacher=PixelTeacher(), views=1
    )
    relabelled_store(source, plain, root / "d.parquet", note=NOTE)
    return root


def config_of(root: Path, output: Path, **changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "labels": str(root / "d.parquet"),
        "shards": (str(root / "digits-*.tar"),),
        "output": output,
        "model_args": TINY,
        "epochs": 4,
        "batch_size": 8,
        "workers": 0,
        "threads": 1,
        "device": "cpu",
    }
    return TrainConfig.of_settings(**{**values, **changes})  # type: ignore[arg-type]


def test_a_student_trains_on_a_derived_store_under_audit(digits: Path, tmp_path: Path) -> None:
    config = config_of(digits, tmp_path / "run")
    outcome = train(config, open_inputs(config))
    assert outcome.audited > 0
    report = verify_store(digits / "d.parquet", [str(digits / "digits-*.tar")], every_digest=True)
    assert report.redrawn == report.digests > 0
    assert not report.mismatches


def test_whatever_would_run_its_teacher_refuses_a_derived_store(
    digits: Path, tmp_path: Path
) -> None:
    checkpoint = digits / "teacher.safetensors"
    shards = [str(digits / "digits-*.tar")]
    relabel = RelabelConfig(groups=1, checkpoint=checkpoint, device="cpu")
    with pytest.raises(TeacherError, match=rf"labels are derived \({NOTE}\)"):
        relabel_store(digits / "d.parquet", shards, relabel)
    config = config_of(
        digits, tmp_path / "run", teacher_in_loop=True, teacher_checkpoint=checkpoint
    )
    with pytest.raises(TeacherError, match=rf"labels are derived \({NOTE}\)"):
        train(config, open_inputs(config))
    assert not (tmp_path / "run").exists()
    store = open_store(digits / "d.parquet")
    job = LabelConfig(
        shards=tuple(shards), out=str(store.root), teacher_checkpoint=checkpoint, device="cpu"
    )
    spec = extended_config(job, store, 8).teacher_spec()
    with pytest.raises(TeacherError, match=rf"labels are derived \({NOTE}\)"):
        load_teacher(spec, SMALL_VIEWS, MixConfig(), torch.device("cpu"))


def test_the_name_of_a_model_alone_is_no_derivation() -> None:
    teacher = IDENTITY.teacher
    assert teacher.derivation is None
    assert teacher.derived("x y").derivation == "x y"
    assert asdict(teacher.derived("x y")) == {**asdict(teacher), "architecture": "made-up (x y)"}
