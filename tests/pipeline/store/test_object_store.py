"""A store in object storage is the local one, object for object, and replays the same."""

from __future__ import annotations

import base64
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from numpy.testing import assert_array_equal

from pipeline.classes import read_names
from pipeline.errors import (
    ChecksumError,
    ConfigError,
    IncompleteStoreError,
    PipelineError,
    ShardError,
    StoreError,
)
from pipeline.files import cache
from pipeline.files.cache import CacheConfig
from pipeline.files.local import expand_shards, open_folder
from pipeline.labelling.job import finish_job, index_shards, plan_job
from pipeline.shards.index import index_bytes, match_shards, open_shard
from pipeline.store import check_root, commit_part, find_parts, open_store
from pipeline.tools.verify import verify_store
from pipeline.views.floats import float_fingerprints
from student.config import TrainConfig
from student.inputs import open_inputs
from student.loading import LoaderOptions
from student.order import PlanConfig, TrainingPlan
from student.replay import ReplayDataset, replay_loader
from tests.labelling import TEACHER, digit_shard
from tests.object_storage import KEY, SECRET, Request, S3Server
from tests.pipeline.labelling.test_job import config_of, plan_of, ranges, run
from tests.pipeline.store.test_store import make_rows
from tests.pipeline.tools.test_verify import run_cli


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, ...]:
    return tuple(
        digit_shard(tmp_path / f"s-{number}.tar", 9, first=9 * number) for number in range(2)
    )


@pytest.fixture
def bucket(s3: S3Server, shards: tuple[Path, ...]) -> str:
    """A bucket that holds the shards."""
    url = s3.make_bucket()
    for path in shards:
        s3.put(f"{url}/data/{path.name}", path.read_bytes())
    return url


def remote_config(shards: tuple[Path, ...], bucket: str, **settings: Any) -> Any:
    return replace(
        config_of(shards, **settings),
        shards=(f"{bucket}/data/s-{{0..1}}.tar",),
        out=f"{bucket}/stores/labels.parquet",
        cache_dir=shards[0].parent / "cache",
    )


def plan_with_cache(config: Any) -> Any:
    floats = float_fingerprints(config.augment, config.effective_mixing, "cpu")
    return plan_job(config, index_shards(config.shards, config.cache), TEACHER, floats)


def parts_and_papers(objects: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in objects.items() if not name.startswith("_meta/runs/")}


def test_a_store_in_object_storage_has_the_local_stores_bytes(
    s3: S3Server, shards: tuple[Path, ...], bucket: str
) -> None:
    local = plan_of(config_of(shards))
    run(local)
    finish_job(local, {})
    plan = plan_with_cache(remote_config(shards, bucket))
    run(plan)
    finish_job(plan, {})
    root = Path(local.config.out)
    ours = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }
    theirs = s3.objects(plan.config.out)
    assert parts_and_papers(ours) == parts_and_papers(theirs)
    # Parts; card, manifest, identity, the record of the run, and how views are cut into parts.
    assert len(theirs) == len(ours) == 6 + 5
    for path in shards:
        assert s3.asked("GET", path.name) == 1


def test_what_the_caches_disk_has_damaged_is_never_labelled(
    s3: S3Server, shards: tuple[Path, ...], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = plan_of(config_of(shards))
    run(local)
    plan = plan_with_cache(remote_config(shards, bucket))
    for path in Path(plan.config.cache_dir or "").glob("*.tar"):
        data = bytearray(path.read_bytes())
        shard = open_shard(path, 0)
        for sample in shard.samples:  # the last scan's pixels, which still decode
            data[sample.image_offset + sample.image_bytes * 7 // 8] ^= 4
        path.write_bytes(data)
    monkeypatch.setattr(cache, "_compared", set())  # as another process
    run(plan)
    for part in plan.missing:
        ours = Path(local.config.out, part.path).read_bytes()
        assert s3.objects(plan.config.out)[part.path] == ours
    for path in shards:
        assert s3.asked("GET", path.name) == 2


def test_a_job_that_runs_again_in_object_storage_does_only_what_is_missing(
    s3: S3Server, shards: tuple[Path, ...], bucket: str
) -> None:
    config = remote_config(shards, bucket)
    run(plan_with_cache(config), parts=4)
    with pytest.raises(IncompleteStoreError, match=r"s3://.* is an unfinished store"):
        open_store(config.out)
    plan = plan_with_cache(config)
    assert ranges(plan.missing) == [(1, 3, 6), (1, 6, 8)]
    run(plan)
    assert finish_job(plan, {}).rows == 18 * 8
    written = [one for one in s3.requests if one.method == "PUT"]
    parts = [one.path for one in written if "/shard=" in one.path.replace("%3D", "=")]
    assert len(parts) == len(set(parts)) == 6  # one PUT each, none twice
    manifest = next(n for n, one in enumerate(written) if one.path.endswith("_manifest.json"))
    assert not any("view-" in one.path for one in written[manifest:])


def test_manifest_and_runs_never_hold_the_secret(
    s3: S3Server, shards: tuple[Path, ...], bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_with_cache(remote_config(shards, bucket))
    run(plan)
    finish_job(plan, {})
    for name, data in s3.objects(plan.config.out).items():
        assert SECRET.encode() not in data, name
        assert KEY.encode() not in data, name
    assert SECRET.encode() not in pickle.dumps(plan)
    assert SECRET not in repr(plan)
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err


def test_a_store_opens_and_verifies_in_object_storage(
    s3: S3Server, shards: tuple[Path, ...], bucket: str
) -> None:
    config = remote_config(shards, bucket)
    plan = plan_with_cache(config)
    run(plan)
    finish_job(plan, {})
    report = verify_store(config.out, config.shards, every_digest=True, cache=config.cache)
    assert report.mismatches == ()
    assert report.redrawn == report.digests > 0
    entry = open_store(config.out).manifest.parts[1]
    data = bytearray(s3.objects(config.out)[entry.part.path])
    data[len(data) // 2] ^= 1
    s3.put(f"{config.out}/{entry.part.path}", bytes(data))
    with pytest.raises(ChecksumError, match=r"s3://.*: sha256 is .* the manifest says"):
        verify_store(config.out)


def test_the_command_verifies_a_store_in_object_storage(
    s3: S3Server,
    shards: tuple[Path, ...],
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = remote_config(shards, bucket)
    plan = plan_with_cache(config)
    run(plan)
    finish_job(plan, {})
    cache = ("--cache-dir", config.cache_dir, "--cache-gb", "0.1")
    s3.requests.clear()
    assert run_cli(monkeypatch, "verify", config.out, "--shards", *config.shards, *cache) == 0
    assert f"{config.out}: 6 parts, 144 labels" in capsys.readouterr().out
    assert s3.asked("GET", ".tar") == 0  # the job's cache has them
    assert run_cli(monkeypatch, "inspect", config.out) == 0
    assert "| 1: s-1.tar | 9 |" in capsys.readouterr().out


def test_places_without_a_store_are_refused_in_object_storage(s3: S3Server) -> None:
    bucket = s3.make_bucket()
    with pytest.raises(IncompleteStoreError, match="there is no label store here"):
        open_store(f"{bucket}/labels.parquet")
    s3.put(f"{bucket}/other.parquet/notes.txt", b"mine")
    with pytest.raises(StoreError, match="not empty and is no label store"):
        check_root(f"{bucket}/other.parquet")
    with pytest.raises(StoreError, match=r"must end in \.parquet"):
        check_root(f"{bucket}/other")


_COMMIT = """
import base64, pickle, sys
from pipeline.store import commit_part
root, many = pickle.loads(base64.b64decode(sys.argv[1]))
for rows in many:
    commit_part(root, rows)
"""


def test_writers_that_race_for_parts_agree_and_leave_whole_ones(s3: S3Server) -> None:
    root = f"{s3.make_bucket()}/s.parquet"
    many = [make_rows(5, 4, first=4 * number) for number in range(25)]
    argument = base64.b64encode(pickle.dumps((root, many))).decode()
    command = [sys.executable, "-c", _COMMIT, argument]
    for process in [subprocess.Popen(command) for _ in range(2)]:
        assert process.wait(60) == 0
    assert [part.first_view for part in find_parts(root)] == [4 * number for number in range(25)]
    folder = open_folder(root)
    for rows in many:
        assert commit_part(root, rows).entry.bytes == len(folder.read_bytes(rows.part.path))
    puts = [one for one in s3.requests if one.method == "PUT" and "view-" in one.path]
    assert len(puts) == 3 * 25
    assert all(one.if_none_match == "*" for one in puts)


def test_of_two_writers_with_other_rows_the_first_stands(s3: S3Server) -> None:
    root = f"{s3.make_bucket()}/s.parquet"
    rows = make_rows(5, 4)
    commit_part(root, rows)
    before = s3.objects(root)
    label = rows.label.copy()
    label[2, 1] ^= 1
    with pytest.raises(StoreError, match=r"s3://.*committed with another label"):
        commit_part(root, replace(rows, label=label))
    assert s3.objects(root) == before


def test_a_failed_commit_leaves_nothing_and_can_be_made_again(s3: S3Server) -> None:
    root = f"{s3.make_bucket()}/s.parquet"
    rows = make_rows(5, 4)
    s3.fault = lambda request: "503" if request.method == "PUT" else None
    with pytest.raises(PipelineError, match=r"view-00000-00004\.parquet: the storage cannot"):
        commit_part(root, rows)
    assert s3.objects(root) == {}
    s3.fault = None
    commit_part(root, rows)
    assert list(s3.objects(root)) == [rows.part.path]


def test_indexing_fetches_a_few_shards_at_a_time_and_keeps_their_order(
    s3: S3Server, tmp_path: Path
) -> None:
    bucket, names = s3.make_bucket(), [f"n-{number}.tar" for number in range(9)]
    for number, name in enumerate(names):
        path = digit_shard(tmp_path / name, 3, first=3 * number)
        s3.put(f"{bucket}/{name}", path.read_bytes())
    lock, counts = threading.Lock(), [0, 0]  # under way now, and at most

    def slow(request: Request) -> None:
        if request.method == "GET" and request.path.endswith(".tar"):
            with lock:
                counts[0] += 1
                counts[1] = max(counts)
            time.sleep(0.2)
            with lock:
                counts[0] -= 1

    s3.fault = slow
    indexed = index_shards([f"{bucket}/n-{{0..8}}.tar"], CacheConfig(directory=tmp_path / "c"))
    assert [info.name for info in indexed.infos] == names
    assert [info.number for info in indexed.infos] == list(range(9))
    assert 2 <= counts[1] <= 4
    assert indexed.infos == index_shards([str(tmp_path / "n-{0..8}.tar")]).infos


def test_shards_with_an_index_beside_them_are_not_fetched_to_be_indexed(
    s3: S3Server, tmp_path: Path
) -> None:
    bucket = s3.make_bucket()
    local = [digit_shard(tmp_path / f"n-{number}.tar", 4, first=4 * number) for number in range(3)]
    for path in local[:2]:
        s3.put(f"{bucket}/{path.name}", path.read_bytes())
        with path.open("rb") as file:
            s3.put(f"{bucket}/{path.name}.idx", index_bytes(file, path.name))
    cache = CacheConfig(directory=tmp_path / "c")
    indexed = index_shards([f"{bucket}/n-{{0..1}}.tar"], cache)
    assert s3.asked("GET", ".tar") == 0
    assert indexed.infos == index_shards([str(tmp_path / "n-{0..1}.tar")]).infos
    s3.put(f"{bucket}/n-2.tar", local[2].read_bytes())
    assert len(index_shards([f"{bucket}/n-{{0..2}}.tar"], cache).infos) == 3
    assert s3.asked("GET", ".tar") == 1  # of the one without an index


def test_a_commit_whose_answer_is_lost_is_found_to_be_done(s3: S3Server) -> None:
    root = f"{s3.make_bucket()}/s.parquet"
    rows = make_rows(5, 4)
    failures = iter(["lost"])
    s3.fault = lambda request: next(failures, None) if request.method == "PUT" else None
    entry = commit_part(root, rows).entry
    assert [len(data) for data in s3.objects(root).values()] == [entry.bytes]
    assert commit_part(root, rows).entry == entry


def test_a_server_that_ignores_conditions_is_refused_before_a_part_is_written(
    s3: S3Server, shards: tuple[Path, ...], bucket: str
) -> None:
    plan = plan_with_cache(remote_config(shards, bucket))
    s3.fault = lambda request: "unconditional"
    for _ in range(2):  # also when it runs again
        with pytest.raises(StoreError, match=r"s3://.*writes over what is there although"):
            run(plan)
    assert list(s3.objects(plan.config.out)) == ["_meta/identity.json"]


def test_a_conflict_that_leaves_no_object_is_tried_again(s3: S3Server) -> None:
    folder = open_folder(s3.make_bucket())
    failures = iter(["409", "409"])
    s3.fault = lambda request: next(failures, None) if request.method == "PUT" else None
    assert folder.commit_new("a", b"x")
    assert folder.read_bytes("a") == b"x"
    s3.fault = lambda request: "409" if request.method == "PUT" else None
    with pytest.raises(PipelineError, match=r"/b: 5 writes collided with another writer's"):
        folder.commit_new("b", b"x")


@pytest.mark.parametrize("workers", [0, 2])
def test_replay_from_object_storage_gives_the_local_batches(
    s3: S3Server, shards: tuple[Path, ...], bucket: str, workers: int
) -> None:
    config = remote_config(shards, bucket)
    plan = plan_with_cache(config)
    run(plan)
    finish_job(plan, {})
    local = plan_of(config_of(shards))
    run(local)
    finish_job(local, {})
    fresh = CacheConfig(directory=shards[0].parent / "fresh")
    s3.requests.clear()
    batches = []
    for location, patterns, processes in (
        (config.out, config.shards, workers),
        (local.config.out, [str(path) for path in shards], 0),
    ):
        store = open_store(location)
        files = match_shards(store.manifest.shards, expand_shards(patterns, fresh))
        order = TrainingPlan(store.manifest, PlanConfig(seed=0, batch_size=6, epochs=8))
        assert s3.asked("GET", ".tar") == (2 if batches else 0)  # planning fetches no shard
        dataset = ReplayDataset(store, files, order)
        batches.append([*replay_loader(dataset, 0, order.steps, LoaderOptions(workers=processes))])
    assert len(batches[0]) == len(batches[1]) == 24
    for ours, theirs in zip(*batches, strict=True):
        assert (ours.step, ours.keys, ours.audited) == (theirs.step, theirs.keys, theirs.audited)
        for name in ("shard", "sample", "view", "seed", "pixels", "target", "label"):
            assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_the_trainer_opens_a_store_and_shards_in_object_storage(
    s3: S3Server, shards: tuple[Path, ...], bucket: str, tmp_path: Path
) -> None:
    job = remote_config(shards, bucket)
    plan = plan_with_cache(job)
    run(plan)
    finish_job(plan, {})
    config = TrainConfig.of_settings(
        labels=job.out,
        shards=job.shards,
        output=tmp_path / "run",
        epochs=8,
        batch_size=6,
        cache_dir=tmp_path / "c",
        cache_gb=0.1,
    )
    inputs = open_inputs(config)
    assert inputs.plan.steps == 24
    assert not (tmp_path / "c").exists()
    assert SECRET not in str(config.to_json())
    s3.client().delete_object(Bucket=bucket.removeprefix("s3://"), Key="data/s-1.tar")
    with pytest.raises(ShardError, match=r"1 of 2 names match no file: 's3://.*/data/s-1.tar'"):
        open_inputs(config)


def test_names_of_classes_are_read_beside_shards_in_object_storage(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    patterns, cache = [f"{bucket}/data/s-{{0..1}}.tar"], CacheConfig(directory=tmp_path / "cache")
    assert index_shards(patterns, cache).classes is None
    s3.put(f"{bucket}/data/classes.json", b'["ape","cat"]')
    named = index_shards(patterns, cache).classes
    assert named is not None
    assert (named.names, named.source) == (("ape", "cat"), f"{bucket}/data/classes.json")
    for location in (f"{bucket}/data", f"{bucket}/data/classes.json"):
        assert read_names(location).names == ("ape", "cat")
        assert index_shards(patterns, cache, location).classes is not None
    with pytest.raises(ConfigError, match="no such file"):
        read_names(f"{bucket}/nothing.txt")
