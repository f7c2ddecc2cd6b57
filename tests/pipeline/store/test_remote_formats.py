"""Stores of all formats that lie in object storage are read by ranges, and verified."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pipeline.errors import ChecksumError, IncompleteStoreError, PipelineError, StoreError
from pipeline.store import export, export_store, open_store
from pipeline.store.card import inspect_store
from tests.object_storage import Request, S3Server
from tests.storing import ALL_COLUMNS, info_of, ranges, write_store

NAMES = ("directory.parquet", "arrays.zarr", "one.parquet")


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> str:
    """A bucket with one store in all formats."""
    shards = [info_of(0), info_of(1, samples=9)]
    root = tmp_path / NAMES[0]
    write_store(root, shards, ranges(range(4), 3), ALL_COLUMNS)
    export_store(root, tmp_path / NAMES[1])
    export_store(root, tmp_path / NAMES[2], single_file=True)
    url = s3.make_bucket()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            s3.put(f"{url}/stores/{path.relative_to(tmp_path)}", path.read_bytes())
    return url


@pytest.mark.parametrize("name", NAMES)
def test_a_remote_store_reads_as_the_local_one(
    s3: S3Server, bucket: str, tmp_path: Path, name: str
) -> None:
    local, remote = open_store(tmp_path / name), open_store(f"{bucket}/stores/{name}")
    assert type(remote) is type(local)
    assert remote.manifest == local.manifest
    assert remote.companions() == local.companions()
    remote.check_files()
    remote.check_companions()
    for shard in (0, 1):
        for view in range(4):
            ours, theirs = local.read_view(shard, view), remote.read_view(shard, view)
            assert ours.keys == theirs.keys
            for column in ("label", "digest", "seed"):
                assert_array_equal(getattr(ours, column), getattr(theirs, column))
            assert_array_equal(ours.columns["topk_logprob"], theirs.columns["topk_logprob"])
    for entry in local.manifest.parts:
        assert_array_equal(local.read_part(entry).label, remote.read_part(entry).label)
    again = pickle.loads(pickle.dumps(remote))
    assert_array_equal(again.read_view(1, 3).label, local.read_view(1, 3).label)


@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_a_remote_store_is_one_ranged_request(
    s3: S3Server, bucket: str, name: str
) -> None:
    store = open_store(f"{bucket}/stores/{name}")
    store.read_view(0, 0)
    s3.requests.clear()
    store.read_view(1, 3)
    if name == "arrays.zarr":
        assert s3.requests == []  # both shards lie in chunks that were read
    else:
        assert [(one.method, one.range is not None) for one in s3.requests] == [("GET", True)]


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_remote_store_is_found(
    s3: S3Server, bucket: str, tmp_path: Path, name: str
) -> None:
    path = {
        "directory.parquet": "directory.parquet/shard=0/view-00000-00003.parquet",
        "arrays.zarr": "arrays.zarr/label/c/0/0",
        "one.parquet": "one.parquet",
    }[name]
    data = bytearray((tmp_path / path).read_bytes())
    data[100] ^= 1
    s3.put(f"{bucket}/stores/{path}", bytes(data))
    with pytest.raises(ChecksumError, match="sha256"):
        open_store(f"{bucket}/stores/{name}").read_view(0, 0)
    s3.put(f"{bucket}/stores/{path}", bytes(data[:-50]))
    with pytest.raises(ChecksumError):
        open_store(f"{bucket}/stores/{name}").read_view(0, 0)


def test_a_remote_zarr_store_exports_to_a_local_directory(bucket: str, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        back = export_store(f"{bucket}/stores/{name}", tmp_path / f"back-{number}.parquet")
        for entry in back.manifest.parts:
            ours = (tmp_path / NAMES[0] / entry.part.path).read_bytes()
            assert ours == back.read_file(entry)


@pytest.mark.parametrize("name", NAMES)
def test_a_store_exports_to_object_storage_with_the_manifest_last(
    s3: S3Server, bucket: str, tmp_path: Path, name: str
) -> None:
    target = f"{bucket}/copies/{name}"
    s3.requests.clear()
    store = export_store(tmp_path / NAMES[0], target, single_file=name == NAMES[2])
    puts = [one.path for one in s3.requests if one.method == "PUT"]
    assert puts[-1].endswith("one.parquet" if name == NAMES[2] else "/_manifest.json")
    copied = s3.objects(f"{bucket}/copies")
    root = tmp_path / name
    local = [path for path in [root, *root.rglob("*")] if path.is_file()]
    assert copied == {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in local}
    assert_array_equal(store.read_view(1, 2).label, open_store(root).read_view(1, 2).label)
    with pytest.raises(StoreError, match="exists already"):
        export_store(tmp_path / NAMES[0], target, single_file=name == NAMES[2])


def test_an_upload_that_loses_a_file_has_no_manifest(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    target = f"{bucket}/copies/{NAMES[0]}"
    first, name = "copies/directory.parquet/_meta/identity.json", bucket.removeprefix("s3://")

    def lose(request: Request) -> None:
        if request.method == "PUT" and request.path.endswith("00004.parquet"):
            s3.client().delete_object(Bucket=name, Key=first)

    s3.fault = lose
    with pytest.raises(IncompleteStoreError, match=r"lacks 1 files.* is _meta/identity\.json; no"):
        export_store(tmp_path / NAMES[0], target)
    assert "_manifest.json" not in s3.objects(target)


@pytest.mark.parametrize("name", NAMES[:2])
def test_an_export_removes_what_a_killed_one_has_sent(
    s3: S3Server, bucket: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = f"{bucket}/copies/{name}"
    whole = s3.objects(export_store(tmp_path / NAMES[0], f"{bucket}/{name}").root.name)

    def killed(*_: object) -> None:
        s3.put(f"{target}/shard=9/view-00000-00003.parquet", b"of another store")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, "_require_sent", killed)
        with pytest.raises(KeyboardInterrupt):
            export_store(tmp_path / NAMES[0], target)
    assert "_manifest.json" not in s3.objects(target)
    with pytest.raises(IncompleteStoreError):
        open_store(target)
    export_store(tmp_path / NAMES[0], target)
    assert s3.objects(target) == whole


def test_an_export_removes_nothing_of_a_job(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    target = f"{bucket}/copies/{NAMES[0]}"
    s3.put(f"{target}/_meta/identity.json", b"{}")
    with pytest.raises(StoreError, match="exists already"):
        export_store(tmp_path / NAMES[0], target)
    assert s3.objects(target) == {"_meta/identity.json": b"{}"}


@pytest.mark.parametrize("name", NAMES)
def test_whoever_may_read_objects_but_not_list_them_reads_a_store(
    s3: S3Server, bucket: str, tmp_path: Path, name: str
) -> None:
    stored = {f"/{bucket.removeprefix('s3://')}/{key}" for key in s3.objects(bucket)}
    # So S3 answers: who may not list must not learn what is missing.
    s3.fault = lambda request: None if request.path.replace("%3D", "=") in stored else "403"
    store = open_store(f"{bucket}/stores/{name}")
    local = open_store(tmp_path / name)
    assert_array_equal(store.read_view(1, 2).label, local.read_view(1, 2).label)
    with pytest.raises(PipelineError, match="access was refused"):
        open_store(f"{bucket}/stores/other-{name}")


@pytest.mark.parametrize("name", NAMES)
def test_whoever_may_not_list_inspects_checks_and_copies_a_store(
    s3: S3Server, bucket: str, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    stored = {f"/{bucket.removeprefix('s3://')}/{key}" for key in s3.objects(bucket)}
    s3.fault = lambda request: None if request.path.replace("%3D", "=") in stored else "403"
    store = open_store(f"{bucket}/stores/{name}")
    card = inspect_store(store)
    assert card.manifest == open_store(tmp_path / name).manifest
    assert card.runs == ()
    store.check_files()
    store.check_companions()
    assert store.user_files() == {}
    export_store(f"{bucket}/stores/{name}", tmp_path / "copy.parquet")
    assert open_store(tmp_path / "copy.parquet").manifest.parts == store.manifest.parts
    said = f"{name} may be read here but not listed, so files beside the labels are not seen"
    assert (said in caplog.text) == (name != "one.parquet")  # of which no file is beside


@pytest.mark.parametrize("name", NAMES)
def test_opening_a_store_lists_nothing(s3: S3Server, bucket: str, name: str) -> None:
    s3.requests.clear()
    store = open_store(f"{bucket}/stores/{name}")
    assert len(s3.requests) <= 5
    store.read_view(0, 0)
    assert all(one.path.endswith(name) or f"/{name}/" in one.path for one in s3.requests)


def test_a_store_that_is_not_there_is_named(bucket: str) -> None:
    for name in ("missing.parquet", "missing.zarr"):
        with pytest.raises(IncompleteStoreError, match=f"{name}: there is no label store here"):
            open_store(f"{bucket}/stores/{name}")


def test_a_missing_remote_chunk_is_named_with_its_cure(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    store = open_store(f"{bucket}/stores/arrays.zarr")
    assert np.all(store.read_view(0, 0).label < 5)
    client, name = s3.client(), bucket.removeprefix("s3://")
    client.delete_object(Bucket=name, Key="stores/arrays.zarr/label/c/0/0")
    with pytest.raises(ChecksumError, match=r"label/c/0/0 is missing; restore it from a copy"):
        open_store(f"{bucket}/stores/arrays.zarr").read_view(0, 0)
