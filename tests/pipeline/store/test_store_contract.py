"""What every store promises, whatever its format: one suite, run on all of them."""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
import os
import pickle
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import zarr
from numpy.testing import assert_array_equal

from pipeline.cli.commands import label_store
from pipeline.errors import ChecksumError, IncompleteStoreError, PipelineError, StoreError
from pipeline.files import local as files
from pipeline.files.local import LocalFolder, sha256
from pipeline.identity import ColumnConfig
from pipeline.records import PartRows, ShardView
from pipeline.store import LabelStore, ParquetStore, export, export_store, open_store
from pipeline.store.card import inspect_store
from pipeline.store.provenance import processor, read_runs, record_run, versions
from pipeline.store.single import SingleFileStore
from pipeline.store.zarr import ZarrStore
from pipeline.tools.verify import verify_store
from student.config import TrainConfig
from student.inputs import open_inputs
from student.replay import ReplayDataset
from tests.labelling import digit_shard, hash_identity, write_hash_store
from tests.storing import ALL_COLUMNS, bytes_of, info_of, omit_two, ranges, write_store

FORMATS = {
    "directory.parquet": ParquetStore,
    "arrays.zarr": ZarrStore,
    "one.parquet": SingleFileStore,
}
VIEWS = 4


def write_all(folder: Path, source: LabelStore) -> None:
    """Write a store that lies in ``directory.parquet`` in the other formats, too."""
    export_store(source.root, folder / "arrays.zarr")
    export_store(source.root, folder / "one.parquet", single_file=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small store with every column in all formats; some samples are omitted."""
    folder = tmp_path_factory.mktemp("formats")
    shards = [info_of(0), info_of(1, 4, samples=9)]
    root = folder / "directory.parquet"
    store = write_store(root, shards, ranges(range(VIEWS), 3), ALL_COLUMNS, omit_two)
    record_run(store.root, "label-teacher", {"labels": 5})
    write_all(folder, store)
    return folder


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in all formats whose shards and parts lie across the edges of Zarr's chunks."""
    folder = tmp_path_factory.mktemp("wide")
    shards = [info_of(0, samples=700), info_of(1, samples=40), info_of(2, samples=1500)]
    views = [(20, 40), (60, 1), (290, 15)]
    store = write_store(folder / "directory.parquet", shards, views, change=omit_two)
    write_all(folder, store)
    return folder


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of a store, one format after another."""
    return str(request.param)


@pytest.fixture
def copy(folder: Path, name: str, tmp_path: Path) -> Path:
    """Return a copy of a store that a test may damage."""
    source, target = folder / name, tmp_path / name
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return target


def assert_same(ours: Any, theirs: Any) -> None:
    """Assert that two records hold the same values of the same types."""
    fields, others = (
        {one.name: getattr(record, one.name) for one in dataclasses.fields(record)}
        for record in (ours, theirs)
    )
    for values in (fields, others):
        values.update(values.pop("columns"))
    assert fields.keys() == others.keys()
    for name, mine in fields.items():
        if isinstance(mine, np.ndarray):
            assert mine.dtype == others[name].dtype, name
            assert_array_equal(mine, others[name])
        else:
            assert mine == others[name], name


def read_all(store: LabelStore) -> dict[tuple[int, int], ShardView]:
    """Read all that a student could ask for."""
    return {
        (shard.number, view): store.read_view(shard.number, view)
        for shard in store.manifest.shards
        for entry in store.manifest.parts_of_shard(shard.number)
        for view in range(entry.part.first_view, entry.part.end_view)
    }


def check_all(store: LabelStore) -> None:
    """Do what verification does of a store without shards."""
    store.check_files()
    store.check_companions()
    for entry in store.manifest.parts:
        store.read_part(entry)


def files_of(root: Path) -> list[Path]:
    """Return all files of a store."""
    return [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())


@contextmanager
def noted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """Note which files are opened, and how many bytes are read of each."""
    noted: list[tuple[str, int]] = []
    plain = LocalFolder._reading

    @contextmanager
    def reading(self: LocalFolder, path: str) -> Iterator[BinaryIO]:
        with plain(self, path) as file:
            yield file
            end = os.lseek(file.fileno(), 0, os.SEEK_CUR)
            noted.append((path, min(end, file.tell())))

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "_reading", reading)
        yield noted


def test_the_name_tells_the_format(folder: Path, name: str) -> None:
    assert type(open_store(folder / name)) is FORMATS[name]
    assert type(open_store(str(folder / name))) is FORMATS[name]


def test_opening_reads_the_manifest_alone(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with noted_reads(monkeypatch) as noted:
        store = open_store(folder / name)
        assert store.manifest.view_range == range(VIEWS)
    expected = {""} if name == "one.parquet" else {"_manifest.json"}
    assert {path for path, _ in noted} == expected
    assert len(noted) <= 5


def test_every_view_is_the_same_in_every_format(folder: Path, name: str) -> None:
    ours, theirs = open_store(folder / "directory.parquet"), open_store(folder / name)
    for position, view in read_all(ours).items():
        assert_same(view, theirs.read_view(*position))


def test_every_view_is_the_same_across_the_edges_of_chunks(wide_folder: Path, name: str) -> None:
    ours, theirs = open_store(wide_folder / "directory.parquet"), open_store(wide_folder / name)
    views = read_all(ours)
    assert len(views) == 3 * 56
    for position, view in views.items():
        assert_same(view, theirs.read_view(*position))
    for entry in ours.manifest.parts:
        assert_same(ours.read_part(entry), theirs.read_part(entry))


def test_every_part_is_the_same_in_every_format(folder: Path, name: str) -> None:
    ours, theirs = open_store(folder / "directory.parquet"), open_store(folder / name)
    for entry in ours.manifest.parts:
        assert_same(ours.read_part(entry), theirs.read_part(entry))


def test_identity_rejections_and_all_else_that_a_manifest_says_stay(
    folder: Path, name: str
) -> None:
    ours, theirs = open_store(folder / "directory.parquet"), open_store(folder / name)
    assert theirs.manifest == ours.manifest
    assert [one.index for one in theirs.manifest.rejections[4]] == [2]
    assert theirs.companions() == ours.companions()
    assert len(theirs.companions()) == 3
    assert inspect_store(theirs).runs == inspect_store(ours).runs
    assert theirs.stored_bytes > 0


def test_omitted_samples_are_counted_and_have_no_rows_in_any_format(
    folder: Path, name: str
) -> None:
    store = open_store(folder / name)
    counts = store.manifest.counts
    assert (counts.indexed, counts.labelled, counts.rejected, counts.omitted) == (16, 12, 2, 2)
    assert store.manifest.rows == counts.labelled * VIEWS
    view = store.read_view(0, 1)
    # Sample 2 is rejected, and its key is known; the others left out are named by index alone.
    assert view.accepted.tolist() == [True, False, False, True, True, True, False]
    assert [key for key in view.keys if not key] == ["", ""]
    assert view.keys[2] == "s-0.tar/2"
    card = inspect_store(store)
    assert card.to_json()["omitted"] == 2
    assert "16 = 12 labelled + 2 rejected + 2 omitted" in card.to_markdown()


def test_a_missing_view_is_named_with_its_cure(folder: Path, name: str) -> None:
    store = open_store(folder / name)
    with pytest.raises(IncompleteStoreError, match="`first_view` and `views` that include 99"):
        store.read_view(0, 99)
    with pytest.raises(IncompleteStoreError, match="no labels for shard 3 at view 0"):
        store.read_view(3, 0)


def test_what_is_read_may_be_changed_without_changing_what_is_read_next(
    folder: Path, name: str
) -> None:
    store = open_store(folder / name)
    whole = read_all(store)
    for view in whole.values():
        for values in (view.label, view.digest, view.columns["margin"]):
            assert values is not None
            values += 1
    for position, view in read_all(open_store(folder / name)).items():
        assert_same(view, store.read_view(*position))


def _read_there(store: LabelStore, queue: Any) -> None:
    queue.put({position: view.label for position, view in read_all(store).items()})


def test_an_open_store_travels_to_other_processes(folder: Path, name: str) -> None:
    store = open_store(folder / name)
    ours = read_all(store)  # caches are filled before the process forks
    for position, view in read_all(pickle.loads(pickle.dumps(store))).items():
        assert_same(view, ours[position])
    context: Any = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_read_there, args=(store, queue))
    process.start()
    theirs = queue.get(timeout=60)
    process.join()
    for position, view in ours.items():
        assert_array_equal(view.label, theirs[position])


def test_threads_may_read_one_store_at_a_time(wide_folder: Path, name: str) -> None:
    store, theirs = open_store(wide_folder / name), open_store(wide_folder / "directory.parquet")
    expected = read_all(theirs)
    order = np.random.default_rng(0).permutation(2 * len(expected))
    positions = [(list(expected) * 2)[at] for at in order]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda at: store.read_view(*at), positions)
        for position, view in zip(positions, found, strict=True):
            assert_same(view, expected[position])


def test_no_changed_byte_of_any_file_changes_a_label_in_silence(copy: Path, folder: Path) -> None:
    expected = read_all(open_store(folder / "directory.parquet"))
    random = np.random.default_rng(3)
    paths = files_of(copy)
    sizes = np.array([path.stat().st_size for path in paths])
    # By size, and a few of each file, however small.
    chosen = [
        *random.choice(len(paths), 300, p=sizes / sizes.sum()),
        *(list(range(len(paths))) * 4),
    ]
    for number in chosen:
        path, size = paths[number], int(sizes[number])
        offset, bit = int(random.integers(size)), 1 << int(random.integers(8))
        _flip(path, offset, bit)
        if copy.is_dir() and path.relative_to(copy).parts[0] in ("_meta", "_README.md"):
            # Beside the labels, which do not depend on it.
            for position, view in read_all(open_store(copy)).items():
                assert_same(view, expected[position])
        else:
            with pytest.raises(StoreError):
                read_all(open_store(copy))
        _flip(path, offset, bit)
    for position, view in read_all(open_store(copy)).items():
        assert_same(view, expected[position])


def _flip(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ bit]))


def test_no_file_that_was_cut_or_grew_changes_a_label_in_silence(copy: Path) -> None:
    for path in files_of(copy):
        whole = path.read_bytes()
        if copy.is_dir() and path.relative_to(copy).parts[0] in ("_meta", "_README.md"):
            continue
        for data in (b"", whole[:1], whole[: len(whole) // 2], whole[:-1], whole + b"\0"):
            path.write_bytes(data)
            with pytest.raises(StoreError):
                read_all(open_store(copy))
        path.write_bytes(whole)
    read_all(open_store(copy))


def test_a_missing_file_is_named_with_its_cure(copy: Path) -> None:
    if copy.is_file():
        store = open_store(copy)
        copy.unlink()
        with pytest.raises(ChecksumError, match=r"one\.parquet is missing; .*export the store"):
            store.read_view(0, 0)
        return
    for path in files_of(copy):
        position = path.relative_to(copy).as_posix()
        if position == "_manifest.json" or position.startswith("_meta/runs"):
            continue
        aside = path.rename(copy.parent / "aside")
        with pytest.raises(ChecksumError, match=f"{position}.* missing.*; .*(run|export|restore)"):
            check_all(open_store(copy))
        aside.rename(path)
    check_all(open_store(copy))


def test_files_that_no_manifest_lists_are_found(copy: Path) -> None:
    if copy.is_file():
        return  # nothing can lie in a file
    part = copy / "shard=0" / "view-00003-00004.parquet"
    chunk = copy / "label" / "c" / "0" / "1"
    stray = part.with_name("view-00004-00005.parquet") if part.exists() else chunk
    stray.write_bytes(b"more")
    with pytest.raises(
        StoreError, match=r"is no file of the store|not in the manifest, the first is"
    ):
        check_all(open_store(copy))


CACHES = {
    "Hugging Face": ("datasets--a--b/snapshots/0f1e", "datasets--a--b/blobs"),
    "git-annex": ("repository/labels", "repository/.git/annex/objects"),
    "DVC": ("repository/labels", "repository/.dvc/cache/files/md5"),
}


def link_into(cache: Path, store: Path) -> list[Path]:
    """Move a store's files into a cache, as its tools name them, and leave links to them."""
    cache.mkdir(parents=True)
    paths = files_of(store)
    for path in paths:
        data = cache / sha256(path.read_bytes())
        path.replace(data)
        path.symlink_to(os.path.relpath(data, path.parent))
    return paths


@pytest.mark.parametrize("tool", CACHES)
def test_a_store_of_links_into_a_cache_is_read_verified_and_copied(
    copy: Path, tool: str, tmp_path: Path
) -> None:
    folder, cache = (tmp_path / position for position in CACHES[tool])
    folder.mkdir(parents=True)
    store = folder / copy.name
    copy.rename(store)
    before = read_all(open_store(store))
    paths = link_into(cache, store)
    assert all(path.is_symlink() for path in paths)
    after = read_all(open_store(store))
    assert before.keys() == after.keys()
    for position in before:
        assert_same(before[position], after[position])
    check_all(open_store(store))
    export_store(store, tmp_path / "x.parquet")
    assert not any(path.is_symlink() for path in files_of(tmp_path / "x.parquet"))
    (cache / paths[0].readlink().name).unlink()
    with pytest.raises(PipelineError, match="is a link to a file that is not there; fetch it"):
        check_all(open_store(store))


def test_damage_behind_a_link_is_found(copy: Path, tmp_path: Path) -> None:
    link_into(tmp_path / "cache", copy)
    largest = max(files_of(copy), key=lambda path: path.stat().st_size)
    _flip(largest.resolve(), largest.stat().st_size // 3, 1)
    with pytest.raises(StoreError):
        check_all(open_store(copy))


def test_a_store_may_be_reached_by_a_link(folder: Path, name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(folder / name)
    assert len(read_all(open_store(tmp_path / name))) == 2 * VIEWS


@pytest.mark.parametrize("target", FORMATS)
def test_from_any_format_to_any_the_same_bytes(
    folder: Path, name: str, target: str, tmp_path: Path
) -> None:
    single = target == "one.parquet"
    store = export_store(folder / name, tmp_path / target, single_file=single)
    assert type(store) is FORMATS[target]
    ours, theirs = files_of(tmp_path / target), files_of(folder / target)
    assert [path.relative_to(tmp_path) for path in ours] == [
        path.relative_to(folder) for path in theirs
    ]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.read_bytes() == other.read_bytes(), mine
    assert [path.name for path in tmp_path.iterdir()] == [target]


def test_a_copy_in_another_format_is_all_that_a_student_needs(name: str, tmp_path: Path) -> None:
    shards = [digit_shard(tmp_path / f"d-{n}.tar", 18, first=100 * n) for n in range(2)]
    identity = hash_identity(columns=ColumnConfig(topk=2))
    root = tmp_path / "directory.parquet"
    source = write_hash_store(root, shards, views=6, per_part=3, identity=identity)
    write_all(tmp_path, source)
    config = TrainConfig.of_settings(
        labels=str(tmp_path / name),
        shards=(str(tmp_path / "d-{0..1}.tar"),),
        output=tmp_path / "run",
        epochs=6,
        batch_size=6,
    )
    inputs = open_inputs(config)
    assert type(inputs.store) is FORMATS[name]
    batches = ReplayDataset(inputs.store, inputs.shards, inputs.plan)
    plain = ReplayDataset(source, inputs.shards, inputs.plan)
    audited = 0
    for step in range(len(batches)):
        ours, theirs = batches[step], plain[step]
        assert (ours.label == theirs.label).all()
        assert (ours.topk_logprob == theirs.topk_logprob).all()
        assert (ours.topk_rest == theirs.topk_rest).all()
        audited += ours.audited
    assert audited >= 1
    report = verify_store(tmp_path / name, config.shards, every_digest=True)
    assert (report.parts, report.labels, report.mismatches) == (4, 36 * 6, ())
    assert report.redrawn == report.digests >= audited
    assert report.bytes == inputs.store.stored_bytes


def test_what_exists_is_not_written_over(folder: Path, name: str, tmp_path: Path) -> None:
    single = name == "one.parquet"
    for make in (Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")):
        make(tmp_path / name)
        with pytest.raises(StoreError, match="exists already; give another path"):
            export_store(folder / "directory.parquet", tmp_path / name, single_file=single)
        remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def remove(path: Path) -> None:
    path.rmdir() if path.is_dir() else path.unlink()


def test_what_appears_while_an_export_runs_is_not_written_over(
    folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any) -> None:
        (tmp_path / name).write_text("mine")
        return publish(*arguments)

    publish = files.publish
    monkeypatch.setattr("pipeline.store.export.publish", slow)
    with pytest.raises(PipelineError, match="exists already"):
        export_store(folder / "arrays.zarr", tmp_path / name, single_file=name == "one.parquet")
    assert (tmp_path / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_export_that_fails_leaves_nothing(
    folder: Path,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: type[BaseException] | OSError,
) -> None:
    calls = 0
    source = open_store(folder / "directory.parquet")
    plain = type(source).read_part

    def fail(self: ParquetStore, entry: Any) -> PartRows:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise stop
        return plain(self, entry)

    monkeypatch.setattr(ParquetStore, "read_part", fail)
    monkeypatch.setattr(ParquetStore, "read_file", lambda *_: None)
    expected = PipelineError if isinstance(stop, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        export_store(source.root, tmp_path / name, single_file=name == "one.parquet")
    assert list(tmp_path.iterdir()) == []


_KILLED = """
import os, sys
from pipeline.store import export
export.publish = lambda *_: os._exit(9)
export.export_store(sys.argv[1], sys.argv[2], single_file=sys.argv[2].endswith("one.parquet"))
"""


def test_an_export_removes_what_a_killed_one_to_the_same_path_left(
    folder: Path, name: str, tmp_path: Path
) -> None:
    source, single = folder / "directory.parquet", name == "one.parquet"
    command = [sys.executable, "-c", _KILLED, str(source), str(tmp_path / name)]
    assert subprocess.run(command).returncode == 9
    left, other = next(tmp_path.iterdir()), tmp_path / f".other.{name}.export-x"
    assert left.name.startswith(f".{name}.export-")
    other.mkdir()
    handle = os.open(left, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as if its process lived
    export_store(source, tmp_path / name, single_file=single)
    assert {path.name for path in tmp_path.iterdir()} == {name, left.name, other.name}
    os.close(handle)
    with pytest.raises(StoreError, match="exists already"):
        export_store(source, tmp_path / name, single_file=single)
    (shutil.rmtree if (tmp_path / name).is_dir() else Path.unlink)(tmp_path / name)
    export_store(source, tmp_path / name, single_file=single)
    assert {path.name for path in tmp_path.iterdir()} == {name, other.name}


def test_a_copy_that_reads_back_otherwise_is_never_given_its_name(
    folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(rows: PartRows) -> PartRows:
        label = rows.label.copy()
        label[0, 0] ^= 1
        return dataclasses.replace(rows, label=label)

    class Forgetful(ParquetStore):
        def read_part(self, entry: Any) -> PartRows:
            return change(super().read_part(entry))

        def read_file(self, entry: Any) -> None:
            return None

    source = open_store(folder / "directory.parquet")
    for writer in ("write_zarr", "write_single_file", "_write_parquet"):
        plain = getattr(export, writer)
        wrong = Forgetful(source.root, source.manifest)
        monkeypatch.setattr(export, writer, lambda _, path, w=plain, s=wrong: w(s, path))
    with pytest.raises(StoreError, match=r"reads back with another label .1 of .* for shard=0"):
        export_store(source.root, tmp_path / name, single_file=name == "one.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("beside", ["_README.md", "_meta/identity.json"])
def test_a_store_whose_card_or_identity_was_changed_is_not_exported(
    copy: Path, tmp_path: Path, beside: str
) -> None:
    if copy.is_file():
        return  # they are in the footer
    _flip(copy / beside, 20, 1)
    with pytest.raises(ChecksumError, match=f"{beside}: sha256 .* restore the file"):
        export_store(copy, tmp_path / "x.zarr")
    assert not (tmp_path / "x.zarr").exists()


def test_a_public_copy_tells_nothing_of_paths_and_machines(
    copy: Path, tmp_path: Path, name: str
) -> None:
    if copy.is_dir():
        for _ in range(2):
            settings = {"out": "/home/ada/labels.parquet", "shards": ["/home/ada/x.tar"]}
            trial = {"flip_rows": 4, "flips": 1, "warnings": ["/home/ada/teacher.pth holds both"]}
            run = {"settings": settings, "labels": 5, "seconds": 1.5, "later": "/home/ada"}
            run["preflight"] = trial
            record_run(LocalFolder(copy), "label-teacher", run)
        (copy / "_meta/runs/torn.json").write_bytes(b'{"settings": "/home/ada"')
    else:
        return  # its records are those of a directory
    source = open_store(copy)
    assert any(b"/home/ada" in data for data in source.companions().values())
    for target in ("p.parquet", "p.zarr", "one.p.parquet"):
        single = target.startswith("one")
        store = export_store(copy, tmp_path / target, single_file=single, public=True)
        files = b"".join(path.read_bytes() for path in files_of(tmp_path / target))
        for private in (b"/home/ada", platform.platform().encode(), processor().encode()):
            assert private not in files
        runs = read_runs(store.root)
        assert [(run.tool, run.labels, run.seconds) for run in runs[-3:-1]] == [
            ("label-teacher", 5, 1.5)
        ] * 2
        assert runs[-2].versions == versions()
        assert (runs[-2].flip_rows, runs[-2].flips) == (4, 1)
        check_all(store)
        assert store.manifest == dataclasses.replace(source.manifest, parts=store.manifest.parts)


def test_the_command_exports(
    folder: Path,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / name
    flags = ["--single-file"] if name == "one.parquet" else []
    source = str(folder / "arrays.zarr")
    monkeypatch.setattr("sys.argv", ["label-store", "export", source, str(target), *flags])
    label_store()
    assert f"{12 * VIEWS} labels" in capsys.readouterr().out
    assert type(open_store(target)) is FORMATS[name]
    with pytest.raises(SystemExit) as caught:
        label_store()
    assert caught.value.code == 1
    assert "exists already; give another path" in capsys.readouterr().err


def test_a_damaged_store_is_not_exported(copy: Path, tmp_path: Path) -> None:
    beside = ("_README.md", "_manifest.json", "_meta")
    data = [path for path in files_of(copy) if not {*path.parts} & {*beside}]
    largest = max(data, key=lambda path: path.stat().st_size)
    _flip(largest, largest.stat().st_size // 3, 1)
    for target in ("x.parquet", "x.zarr"):
        with pytest.raises(StoreError):
            export_store(copy, tmp_path / target)
    assert {path.name for path in tmp_path.iterdir()} == {copy.name}


@pytest.mark.parametrize(
    ("target", "single", "message"),
    [
        ("x.feather", False, r"ends in \.parquet or \.zarr"),
        ("x.zarr", True, r"that of one file in \.parquet"),
        ("s3://bucket/x", False, r"ends in \.parquet or \.zarr"),
    ],
)
def test_impossible_targets_are_named(
    folder: Path, target: str, single: bool, message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        export_store(folder / "directory.parquet", target, single_file=single)


def test_a_store_is_not_exported_into_itself(folder: Path) -> None:
    with pytest.raises(StoreError, match="lies in the store"):
        export_store(folder / "arrays.zarr", folder / "arrays.zarr" / "x.parquet")


def test_digests_of_zero_survive(tmp_path: Path, name: str) -> None:
    def change(rows: PartRows) -> PartRows:
        digest, has_digest = rows.digest.copy(), rows.has_digest.copy()
        digest[1, 0], has_digest[1, 0] = 0, True  # one in four billion
        return dataclasses.replace(rows, digest=digest, has_digest=has_digest)

    root = tmp_path / "directory.parquet"
    source = write_store(root, [info_of(0), info_of(1)], ranges(range(4), 2), change=change)
    write_all(tmp_path, source)
    store = open_store(tmp_path / name)
    for entry in source.manifest.parts:
        assert_same(source.read_part(entry), store.read_part(entry))
    assert store.read_view(1, 2).has_digest.tolist()[1]
    back = tmp_path / "back.parquet"
    export_store(tmp_path / name, back)
    assert bytes_of(back) == bytes_of(root)


def test_a_label_costs_one_part_of_a_file(
    wide_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(wide_folder / name)
    with noted_reads(monkeypatch) as noted:
        store.read_view(1, 61 - 1)
    of_labels = [path for path, _ in noted if path not in ("", "_manifest.json")]
    if name == "arrays.zarr":
        # Shard 1 has rows 700 to 739 and so lies in one chunk; of views, 50 to 99.
        chunks = [path for path in of_labels if "/c/" in path]
        assert set(chunks) == {
            f"{array}/c/{file}"
            for array, file in (
                ("label", "0/0"),
                ("digest", "0/0"),
                ("mixed_digest", "0/0"),
                ("seed", "0"),
                ("target", "0"),
                ("key", "0/0"),
            )
        }
        assert len(chunks) == 3 * 6  # a file's size, its index, and the chunk
    else:
        assert len(noted) == 1


def test_pandas_pyarrow_and_duckdb_read_one_file_as_it_stands(folder: Path) -> None:
    path = folder / "one.parquet"
    store = open_store(path)
    frame = pd.read_parquet(path)
    table = pq.read_table(path, page_checksum_verification=True)
    (counted,) = duckdb.sql(f"select count(*) from '{path}' where shard = 4").fetchall()
    assert len(frame) == len(table) == store.manifest.rows
    assert counted == (8 * VIEWS,)
    assert pq.ParquetFile(path).num_row_groups == len(store.manifest.parts)
    for number in (0, 4):
        view = store.read_view(number, 2)
        found = frame[(frame["shard"] == number) & (frame["view"] == 2)]
        assert found["key"].tolist() == np.array(view.keys)[view.accepted].tolist()
        assert found["label"].tolist() == view.label[view.accepted].tolist()


def test_a_parquet_file_that_is_no_store_is_refused_as_such(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    pd.DataFrame({"label": [1, 2]}).to_parquet(path)
    with pytest.raises(
        StoreError, match="no seal before its footer: it is damaged, or no label store"
    ):
        open_store(path)


def test_zarr_itself_reads_the_arrays(wide_folder: Path) -> None:
    store = open_store(wide_folder / "arrays.zarr")
    group = zarr.open_group(wide_folder / "arrays.zarr", mode="r")
    label: Any = group["label"]
    assert label.shape == (2240, 305)
    about: Mapping[str, Any] = group.attrs["teacher_labels"]  # type: ignore[assignment]
    assert about["identity"] == store.identity.digest
    for shard in about["shards"]:
        rows = slice(shard["first_sample"], shard["first_sample"] + shard["samples"])
        for number in (20, 49, 50, 60, 290, 300, 304):
            view = store.read_view(shard["number"], number)
            found = label[rows, number]
            assert_array_equal(found[view.accepted], view.label[view.accepted])
            assert (found[~view.accepted] == 65535).all()
            digest: Any = group["digest"]
            assert_array_equal(digest[rows, number], view.digest)
            for name in ("seed", "target"):
                array: Any = group[name]
                assert_array_equal(array[rows][view.accepted], getattr(view, name)[view.accepted])
                assert (array[rows][~view.accepted] == -1).all()
            key: Any = group["key"]
            keys = [bytes(row).rstrip(b"\0").decode() for row in key[rows]]
            assert keys == list(view.keys)
        assert (label[rows, 19] == 65535).all()
        assert (label[rows, 61] == 65535).all()


def test_zarr_itself_finds_what_its_checksums_cover(copy: Path, folder: Path) -> None:
    if copy.suffix != ".zarr":
        return
    path = copy / "label" / "c" / "0" / "0"
    _flip(path, 5, 1)
    label: Any = zarr.open_group(copy, mode="r")["label"]
    with pytest.raises(ValueError, match="checksum"):
        label[0, 0]
    path.unlink()  # but not a missing file: this is why a missing label is no class
    assert label[0, 0] == 65535
    with pytest.raises(ChecksumError, match="label/c/0/0 is missing"):
        open_store(copy).read_view(0, 0)


def test_what_zarr_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    def with_key(key: str) -> Any:
        return lambda rows: dataclasses.replace(rows, keys=(key, *rows.keys[1:]))

    for number, (change, message) in enumerate(
        [
            (with_key("a\0b"), "has a NUL"),
            (with_key("k" * 4097), "4097 bytes"),
        ]
    ):
        root = tmp_path / f"{number}.parquet"
        write_store(root, [info_of(0)], [(0, 2)], change=change)
        with pytest.raises(StoreError, match=message):
            export_store(root, tmp_path / "x.zarr")
        export_store(root, tmp_path / f"{number}-one.parquet", single_file=True)


def test_keys_of_any_script_and_length_survive(tmp_path: Path, name: str) -> None:
    keys = ("n01440764/é", "🂡" * 1000, "", "a", " b ", "語")
    store = write_store(
        tmp_path / "directory.parquet",
        [info_of(0)],
        [(0, 2)],
        change=lambda rows: dataclasses.replace(rows, keys=keys),
    )
    write_all(tmp_path, store)
    view = open_store(tmp_path / name).read_view(0, 1)
    assert tuple(np.array(view.keys, object)[view.accepted]) == keys
