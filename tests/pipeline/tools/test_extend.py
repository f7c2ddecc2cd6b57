from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.label_teacher import parse_arguments
from jobs.run import run_label_job
from pipeline.errors import ConfigError, IdentityError, IncompleteStoreError
from pipeline.identity import PRESETS, ColumnConfig, MixConfig
from pipeline.labelling.config import LabelConfig
from pipeline.store import LabelStore, open_store
from pipeline.tools import extend_command, extended_config
from tests.labelling import digit_shard, write_teacher
from tests.pipeline.store.test_card import run_cli
from tests.storing import IDENTITY, bytes_of, info_of, ranges, write_store

ODD = replace(
    IDENTITY,
    root_seed=77,
    augment=replace(PRESETS["three-augment"], image_size=20, hflip=0.25),
    mix=MixConfig(probability=0.5, mixup_alpha=0.3, group_size=4, block_views=6),
    columns=ColumnConfig(margin=True, topk=2),
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Shards, a small teacher, and the command that labels 8 views of them serially."""
    folder = tmp_path_factory.mktemp("job")
    digit_shard(folder / "a.tar", 9, broken=(3,))
    digit_shard(folder / "b.tar", 6, first=9)
    checkpoint = write_teacher(folder / "teacher.safetensors")
    identity = "--image-size 16 --seed 3 --precision fp32 --mixing.group-size 4 --batch-views 3"
    runtime = "--serial --device cpu --threads 1 --max-rejected 0.5 --allow-low-agreement"
    teacher = f"--teacher regnety_002 --teacher-checkpoint {checkpoint} --keep confidence,topk=2"
    words = f"--shards {folder}/*.tar {teacher} {identity} {runtime}"
    return folder, shlex.split(words)


def label(arguments: list[str], out: Path, *more: str) -> None:
    assert run_label_job(parse_arguments([*arguments, "--out", str(out), *more])) == 0


def few(job: tuple[Path, list[str]]) -> list[str]:
    """Return what --extend-to needs: shards, weights, how to run; nothing of the identity."""
    folder, _ = job
    runtime = "--serial --device cpu --threads 1 --max-rejected 0.5 --allow-low-agreement"
    weights = f"--teacher-checkpoint {folder}/teacher.safetensors"
    return shlex.split(f"--shards {folder}/*.tar {weights} {runtime}")


def test_8_views_extended_to_16_are_the_bytes_of_one_run_of_16(
    job: tuple[Path, list[str]], tmp_path: Path
) -> None:
    _, arguments = job
    whole, grown = tmp_path / "whole.parquet", tmp_path / "grown.parquet"
    label(arguments, whole, "--views", "16", "--views-per-part", "8")
    label(arguments, grown, "--views", "8", "--views-per-part", "8")
    early = bytes_of(grown)
    label(few(job), grown, "--extend-to", "16")
    assert bytes_of(grown) == bytes_of(whole)
    assert {name for name, data in bytes_of(grown).items() if early.get(name) != data} == {
        "_manifest.json",
        "_README.md",
        "shard=0/view-00008-00016.parquet",
        "shard=1/view-00008-00016.parquet",
    }
    label(few(job), grown, "--extend-to", "16")  # again: nothing is left to do
    assert bytes_of(grown) == bytes_of(whole)
    odd = tmp_path / "odd.parquet"
    label(arguments, odd, "--views", "7", "--views-per-part", "5")
    label(few(job), odd, "--extend-to", "16")
    ours, theirs = open_store(odd), open_store(whole)
    assert ours.manifest.view_range == range(16)
    for shard in ours.manifest.shards:
        for view in range(16):
            mine, other = (one.read_view(shard.number, view) for one in (ours, theirs))
            assert mine.label.tolist() == other.label.tolist()
            assert mine.digest.tolist() == other.digest.tolist()
            assert (mine.columns["topk_logprob"] == other.columns["topk_logprob"]).all()


def test_another_checkpoint_cannot_extend_a_store(
    job: tuple[Path, list[str]], tmp_path: Path
) -> None:
    _, arguments = job
    out = tmp_path / "s.parquet"
    label(arguments, out, "--views", "2")
    before = bytes_of(out)
    other = [*few(job), "--out", str(out), "--extend-to", "4"]
    position = other.index("--teacher-checkpoint")
    other[position : position + 2] = ["--teacher-random-weights", "1"]
    with pytest.raises(IdentityError, match=r"teacher\.weights"):
        run_label_job(parse_arguments(other))
    again = [*few(job), "--out", str(out), "--extend-to", "4", "--seed", "4"]
    with pytest.raises(IdentityError, match=r"root_seed: 4 / 3"):
        run_label_job(parse_arguments(again))
    assert bytes_of(out) == before


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return write_store(tmp_path / "s.parquet", [info_of(0)], ranges(range(8), 3), ODD)


def test_all_of_an_identity_comes_from_the_store(store: LabelStore) -> None:
    given = ["--shards", "x.tar", "--out", store.root.name, "--extend-to", "12", "--threads", "2"]
    config = parse_arguments(given)
    assert config.identity(store.identity.teacher) == store.identity
    spec = config.teacher_spec()
    teacher = store.identity.teacher
    assert (spec.architecture, spec.num_classes, spec.precision, spec.batch_views) == (
        teacher.architecture,
        teacher.classes,
        teacher.precision,
        teacher.batch_views,
    )
    assert (config.first_view, config.views, config.views_per_part) == (0, 12, 3)
    assert (config.shards, config.threads) == (("x.tar",), 2)
    plain = LabelConfig(shards=("x.tar",), out=store.root.name, threads=2)
    assert extended_config(plain, store, 12) == config


@pytest.mark.parametrize("topk", [0, 3])
@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("confidence", [False, True])
def test_columns_read_back_from_their_words(confidence: bool, margin: bool, topk: int) -> None:
    columns = ColumnConfig(confidence=confidence, margin=margin, topk=topk)
    assert ColumnConfig.from_text(columns.to_text()) == columns


def test_what_contradicts_an_extension_is_refused(store: LabelStore, tmp_path: Path) -> None:
    base = ["--shards", "x.tar", "--out", store.root.name]
    with pytest.raises(ConfigError, match=r"has the views 0\.\.7 already; give the number"):
        parse_arguments([*base, "--extend-to", "7"])
    with pytest.raises(ConfigError, match="leave out --preset"):
        parse_arguments([*base, "--extend-to", "12", "--preset", "center"])
    with pytest.raises(ConfigError, match="leave out `first_view` and `views`"):
        parse_arguments([*base, "--extend-to", "12", "--views", "4"])
    with pytest.raises(IncompleteStoreError, match="there is no label store here"):
        parse_arguments(["--shards", "x.tar", "--out", "none.parquet", "--extend-to", "12"])


def test_the_command_prints_a_job_that_may_be_run_again(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = store.root.name
    assert run_cli(monkeypatch, "extend", out, "--views", 4) == 1
    assert (
        "has the records of 0 label jobs with 0 lists of shards; give --shards"
        in capsys.readouterr().err
    )
    assert run_cli(monkeypatch, "extend", out, "--views", 4, "--shards", "x-*.tar") == 0
    printed = capsys.readouterr().out
    assert printed == f"label-teacher --out {out} --extend-to 12 --shards 'x-*.tar'\n"
    settings = {"shards": ["a b.tar"], "teacher_checkpoint": "t.pth"}
    record = json.dumps({"settings": settings}).encode()
    store.root.commit_new("_meta/runs/20260101.json", record)
    command = extend_command(store, 4)
    assert command[3:] == (
        *("--extend-to", "12", "--teacher-checkpoint", "t.pth"),
        *("--shards", "a b.tar"),
    )
    assert parse_arguments(command[1:]).views == 12
    other = json.dumps({"settings": {"shards": ["c.tar"]}}).encode()  # as after a merge
    store.root.commit_new("_meta/runs/20260102.json", other)
    with pytest.raises(ConfigError, match=r"2 label jobs with 2 lists of shards; give `shards`"):
        extend_command(store, 4)
    assert extend_command(store, 4, ["c.tar", "d.tar"])[-2:] == ("c.tar", "d.tar")
    with pytest.raises(ConfigError, match="1 or more"):
        extend_command(store, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"shards": ["a.tar", "--out", "/elsewhere"]},
        {"shards": ["a.tar\x1b[2K"]},
        {"shards": ["a.tar"], "teacher_checkpoint": "--cache-dir"},
        {"shards": 5},
        [5],
    ],
)
def test_a_record_adds_no_flag_to_the_command_that_extends_its_store(
    store: LabelStore, settings: object
) -> None:
    record = json.dumps({"settings": settings}).encode()
    store.root.commit_new("_meta/runs/20260101.json", record)
    with pytest.raises(ConfigError, match=r"where a file or number belongs|give `shards`"):
        extend_command(store, 4)
