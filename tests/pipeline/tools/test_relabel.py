"""Labelling a sample again with the store's teacher proves the labels themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipeline.cli.commands import label_store
from pipeline.columns import Columns
from pipeline.errors import ConfigError, ReplayError, TeacherError
from pipeline.identity import ColumnConfig, MixConfig, StoreIdentity
from pipeline.labelling.part import group_tasks, label_part, run_task
from pipeline.records import PartRows
from pipeline.shards.index import Shard, open_shard
from pipeline.store import claim_store, commit_part, export_store, finish_store
from pipeline.tools.relabel import RelabelConfig, relabel_store
from pipeline.views.fingerprints import fingerprints
from tests.labelling import SMALL, digit_shard, part_of, small_teacher, write_teacher

VIEWS = replace(SMALL, image_size=32)
COLUMNS = ColumnConfig(confidence=True, topk=3)
PARTS = ((0, 4), (4, 5))  # cut at other views than the teacher's batches
LABELS = 18 * 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a shard of 19 digits with one rejection, and its labels at 9 views."""
    folder = tmp_path_factory.mktemp("relabel")
    write_teacher(folder / "teacher.safetensors")
    digit_shard(folder / "digits.tar", 19, broken=(4,))
    write_store(folder / "labels.parquet", *labelled(folder))
    return folder


def labelled(folder: Path) -> tuple[Shard, StoreIdentity, list[PartRows]]:
    shard = open_shard(folder / "digits.tar", 0)
    teacher = small_teacher(folder / "teacher.safetensors", VIEWS, columns=COLUMNS)
    identity = StoreIdentity(
        root_seed=5, augment=VIEWS, mix=MixConfig(), teacher=teacher.identity, columns=COLUMNS
    )
    rows = []
    for part in (part_of(first, views) for first, views in PARTS):
        groups = map(run_task, group_tasks(shard.path, shard.info, part, identity))
        rows.append(label_part(shard, part, identity, groups, teacher))
    return shard, identity, rows


def write_store(root: Path, shard: Shard, identity: StoreIdentity, parts: list[PartRows]) -> Path:
    claim_store(root, identity, fingerprints(identity))
    for rows in parts:
        commit_part(root, rows)
    finish_store(root, identity, fingerprints(identity), [shard.info], lambda _: "a card\n")
    return root


def config_of(folder: Path, **settings: object) -> RelabelConfig:
    values = {"groups": 100, "checkpoint": folder / "teacher.safetensors", **settings}
    return RelabelConfig(**values)  # type: ignore[arg-type]


def test_the_stores_teacher_gives_the_stores_labels(folder: Path) -> None:
    report = relabel_store(
        folder / "labels.parquet", [str(folder / "digits.tar")], config_of(folder)
    )
    assert report.passed
    assert (report.rows, report.flips, report.changed) == (LABELS, (), 0)
    assert report.groups == 4  # two of each part: fewer than were asked for
    assert report.digests > 0


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_sample_is_taken_from_all_over_the_store_and_is_always_the_same(
    folder: Path, groups: int
) -> None:
    shards, config = [str(folder / "digits.tar")], config_of(folder, groups=groups)
    first, other = (relabel_store(folder / "labels.parquet", shards, config) for _ in range(2))
    assert first == other
    assert first.groups == groups
    assert 0 < first.rows < LABELS


@pytest.mark.parametrize("name", ["labels.zarr", "one-file.parquet"])
def test_a_store_of_another_format_is_labelled_again_alike(
    folder: Path, tmp_path: Path, name: str
) -> None:
    shards, config = [str(folder / "digits.tar")], config_of(folder, groups=2)
    export_store(folder / "labels.parquet", tmp_path / name, single_file=name.startswith("one"))
    expected = relabel_store(folder / "labels.parquet", shards, config)
    assert relabel_store(tmp_path / name, shards, config) == expected


def test_labels_of_another_teacher_are_reported_one_by_one(folder: Path, tmp_path: Path) -> None:
    shard, identity, parts = labelled(folder)
    label = parts[1].label.copy()
    label[7, 2] = parts[1].columns["topk_label"][7, 2, 1]
    root = write_store(
        tmp_path / "s.parquet", shard, identity, [parts[0], replace(parts[1], label=label)]
    )
    shards = [str(shard.path)]
    report = relabel_store(root, shards, config_of(folder))
    assert not report.passed
    (flip,) = report.flips
    assert (flip.key, flip.view) == (parts[1].keys[7], PARTS[1][0] + 2)
    assert flip.stored == str(label[7, 2])
    assert flip.found == str(parts[1].label[7, 2])
    assert report.flip_share == 1 / LABELS
    assert relabel_store(root, shards, config_of(folder, allow_flips=1 / LABELS)).passed
    assert not relabel_store(root, shards, config_of(folder, allow_flips=0.9 / LABELS)).passed


def test_other_probabilities_behind_the_same_label_are_counted(
    folder: Path, tmp_path: Path
) -> None:
    shard, identity, parts = labelled(folder)
    log = parts[0].columns["topk_logprob"].copy()
    log[[1, 2, 3], 0, 2] ^= 1
    changed = [
        replace(parts[0], columns=Columns({**parts[0].columns, "topk_logprob": log})),
        parts[1],
    ]
    root = write_store(tmp_path / "s.parquet", shard, identity, changed)
    report = relabel_store(root, [str(shard.path)], config_of(folder))
    assert (report.passed, report.flips, report.changed) == (True, (), 3)


def test_another_view_than_the_labelled_one_is_refused(folder: Path, tmp_path: Path) -> None:
    shard, identity, parts = labelled(folder)
    late = parts[1]
    row, column = np.argwhere(late.has_digest)[0]
    digest = late.digest.copy()
    digest[row, column] ^= 1
    changed = [parts[0], replace(late, digest=digest)]
    root = write_store(tmp_path / "s.parquet", shard, identity, changed)
    message = f"view {PARTS[1][0] + column} of '{late.keys[row]}' is not the one"
    with pytest.raises(ReplayError, match=message):
        relabel_store(root, [str(shard.path)], config_of(folder))


def test_another_teacher_is_refused_by_what_differs(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "teacher.safetensors")
    state["head.fc.bias"] = state["head.fc.bias"] + 1e-3
    save_file(state, tmp_path / "other.safetensors")
    config = config_of(folder, checkpoint=tmp_path / "other.safetensors")
    with pytest.raises(TeacherError, match=r"not the one that labelled the store .*\n  weights: "):
        relabel_store(folder / "labels.parquet", [str(folder / "digits.tar")], config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 0}, "`groups` is 0"),
        ({"allow_flips": 1.5}, "a share is in 0..1"),
        ({"random_weights": 3}, "not both"),
    ],
)
def test_impossible_settings_are_refused(
    folder: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(folder, **settings)


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    monkeypatch.setattr("sys.argv", ["label-store", "verify", *map(str, arguments)])
    try:
        label_store()
    except SystemExit as exit_:
        return exit_.code
    return 0


def test_the_command_labels_again_and_says_so(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shard, identity, parts = labelled(folder)
    label = parts[0].label.copy()
    label[0, 0] = parts[0].columns["topk_label"][0, 0, 1]
    topk = parts[0].columns["topk_label"].copy()
    topk[0, 0, :2] = topk[0, 0, 1::-1]
    columns = Columns({**parts[0].columns, "topk_label": topk})
    wrong = replace(parts[0], label=label, columns=columns)
    root = write_store(tmp_path / "s.parquet", shard, identity, [wrong, parts[1]])
    shards = ("--shards", shard.path, "--relabel", "9", "--device", "cpu")
    teacher = ("--teacher-checkpoint", folder / "teacher.safetensors")
    assert run_cli(monkeypatch, folder / "labels.parquet", *shards, *teacher) == 0
    assert "labelled again: 0 labels differ (0.000%" in capsys.readouterr().out
    assert run_cli(monkeypatch, root, *shards, *teacher) == 1
    assert f"FLIP digits.tar {parts[0].keys[0]} view 0, label: stored" in capsys.readouterr().out
    assert run_cli(monkeypatch, root, *shards, *teacher, "--allow-flips", "0.01", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert len(found["relabelled"]["flips"]) == 1
    assert run_cli(monkeypatch, root, "--relabel", "1") == 1
    assert "give --shards" in capsys.readouterr().err
    assert run_cli(monkeypatch, root, *teacher) == 1
    assert "give --relabel too" in capsys.readouterr().err
