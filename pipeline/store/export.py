"""Writes a finished store again in another format; nothing is lost on the way, or back."""

from __future__ import annotations

import dataclasses
import fcntl
import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.files.local import (
    Folder,
    LocalFolder,
    Location,
    open_folder,
    publish,
    real_path,
    sha256,
    writing,
)
from pipeline.files.objects import ObjectFolder
from pipeline.records import PartRows
from pipeline.store.assemble import write_zarr
from pipeline.store.commit import different_column
from pipeline.store.contract import LabelStore
from pipeline.store.manifest import IDENTITY_PATH, MANIFEST_PATH, identity_bytes, write_manifest
from pipeline.store.opening import open_store
from pipeline.store.parquet import encode_part
from pipeline.store.single import write_single_file
from pipeline.telling import told

__all__ = ["export_store", "written_aside"]

_log = logging.getLogger(__name__)

_UPLOADING = "_meta/.uploading"
"""Marks a store in object storage that an export has begun."""

Writer = Callable[[LabelStore, Path], None]


def export_store(
    source: Location, target: str | Path, *, single_file: bool = False, public: bool = False
) -> LabelStore:
    """Write the store at ``source`` again at ``target``, which must not exist.

    The name of ``target`` tells the format: .zarr, or .parquet for a directory or, with
    ``single_file``, for one file. It appears whole, after all of it was read back and compared
    with the source, or not at all; in object storage a store without a manifest is none. With
    ``public`` the records of runs keep no paths, settings or machine.

    Raises ``StoreError`` if the source is damaged, or holds what the format cannot.

    >>> export_store("teacher.parquet", "teacher.zarr").manifest.rows
    210
    """
    folder = open_folder(target)
    folder.require_writable()
    write = _writer(Path(folder.name), single_file)
    if _is_taken(folder):
        raise StoreError(f"{target} exists already; give another path, or remove it")
    store = open_store(source)
    store.public = public
    store.check_companions()
    store.check_names()
    if not isinstance(folder, ObjectFolder):
        path, root = Path(folder.name), store.root
        if isinstance(root, LocalFolder) and real_path(path).is_relative_to(real_path(root.path)):
            raise StoreError(f"{target} lies in the store {source}; give a path outside of it")
        with written_aside(store, path, write) as aside:
            publish(aside, path)
        return open_store(path)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / folder.name.rpartition("/")[2]
        with written_aside(store, path, write) as aside:
            _upload(aside, folder)
    return open_store(folder)


def _is_taken(folder: Folder) -> bool:
    """Return whether something is at ``folder``; what a killed export left there is removed."""
    if not isinstance(folder, ObjectFolder):
        return folder.exists() or os.path.lexists(folder.name)
    if folder.exists(_UPLOADING) and not folder.exists(MANIFEST_PATH):
        _log.warning("%s: removing what an export that was killed has left", folder)
        folder.clear(last=_UPLOADING)
    return folder.exists()


def _upload(copy: Path, folder: ObjectFolder) -> None:
    """Send a finished store to object storage, its manifest last.

    Until then a marker tells it from a store that a job has begun, so that the next export may
    remove what a killed one leaves.
    """
    if copy.is_file():
        _send(copy, folder, "")
        return
    sizes = {path: (copy / path).stat().st_size for path in LocalFolder(copy).list()}
    if not folder.commit_new(_UPLOADING, b""):
        raise StoreError(f"{folder}: another export is at work there; give another path, or wait")
    for path in sorted(sizes.keys() - {MANIFEST_PATH}):
        _send(copy / path, folder, path)
    _require_sent(folder, sizes)
    if not folder.commit_new(MANIFEST_PATH, (copy / MANIFEST_PATH).read_bytes()):
        raise StoreError(f"{folder}: another store appeared there meanwhile; give another path")
    folder.remove(_UPLOADING)


def _send(file: Path, folder: Folder, path: str) -> None:
    with folder.write_file(path) as sent, file.open("rb") as data:
        shutil.copyfileobj(data, sent)


def _require_sent(folder: Folder, sizes: Mapping[str, int]) -> None:
    there = set(folder.list())
    missing = sorted(
        path
        for path in sizes.keys() - {MANIFEST_PATH}
        if path not in there or folder.size(path) != sizes[path]
    )
    if missing:
        raise IncompleteStoreError(
            f"{folder} lacks {len(missing)} files that were sent, or holds others, the first is "
            f"{missing[0]}; no manifest was written: export again"
        )


def _writer(path: Path, single_file: bool) -> Writer:
    if path.suffix == ".zarr" and not single_file:
        return write_zarr
    if path.suffix == ".parquet":
        return write_single_file if single_file else _write_parquet
    raise StoreError(
        f"{path}: the name of a store ends in .parquet or .zarr"
        + (", that of one file in .parquet" if single_file else "")
    )


@contextmanager
def written_aside(source: LabelStore, path: Path, write: Writer) -> Iterator[Path]:
    """Give a store written beside ``path`` and compared with its source, to be moved to ``path``.

    It lies in a directory of this process's own, which is removed at the end of the block, with
    what is still in it. Those of killed processes that wrote to the same path go first.
    """
    if not source.manifest.parts:
        raise StoreError(f"{source.root} has no labels, so there is nothing to export")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _directory_beside(path) as directory:
        aside = directory / path.name  # the end of a name tells the format
        with writing(path):
            write(source, aside)
        _require_same(source, open_store(aside))
        yield aside


@contextmanager
def _directory_beside(path: Path) -> Iterator[Path]:
    # A dot-name is a commit under way to all readers.
    prefix = f".{path.name}.export-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        with _locked(left) as alone:
            if alone:
                _remove(left)
    with writing(path):
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    with _locked(directory):
        try:
            yield directory
        finally:
            _remove(directory)


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Hold the directory's lock, which ends with its process; give False if another holds it."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks, where nobody removes anything
        yield False
    else:
        yield True
    finally:
        os.close(handle)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _write_parquet(source: LabelStore, root: Path) -> None:
    """Write a Parquet directory: with the PyArrow that wrote the parts first, the same bytes."""
    folder, manifest = open_folder(root), source.manifest
    entries = []
    for entry in told(manifest.parts, "writing", "parts", len(manifest.parts)):
        data = source.read_file(entry) or encode_part(source.read_part(entry))
        folder.replace(entry.part.path, data)
        entries.append(dataclasses.replace(entry, bytes=len(data), sha256=sha256(data)))
    for path, companion in source.companions().items():
        folder.replace(path, companion)
    folder.replace(IDENTITY_PATH, identity_bytes(manifest.identity, manifest.fingerprints))
    write_manifest(folder, dataclasses.replace(manifest, parts=tuple(entries)))


def _require_same(source: LabelStore, copy: LabelStore) -> None:
    """Read all of the copy, and raise ``StoreError`` where it differs from its source."""
    copy.check_files()
    mine, others = _named(source), _named(copy)
    if mine != others or source.companions() != copy.companions():
        raise StoreError(f"{copy.root} reads back with another manifest than {source.root}")
    pairs = zip(source.manifest.parts, copy.manifest.parts, strict=True)
    for ours, theirs in told(pairs, "comparing", "parts", len(source.manifest.parts)):
        different = _different_field(source.read_part(ours), copy.read_part(theirs))
        if different is not None:
            raise StoreError(
                f"{copy.root} reads back with another {different} for {ours.part.path} than "
                f"{source.root}; is the disk sound?"
            )


def _named(store: LabelStore) -> list[object]:
    """Return what the manifests of a store and its copy share: all but the parts' bytes."""
    manifest = dataclasses.replace(store.manifest, parts=())
    return [manifest.to_json(), *((entry.part, entry.rows) for entry in store.manifest.parts)]


def _different_field(ours: PartRows, theirs: PartRows) -> str | None:
    mine, other = ((one.header, one.keys) for one in (ours, theirs))
    if mine != other:
        return "header"
    kinds, others = (
        {name: values.dtype for name, values in one.arrays().items()} for one in (ours, theirs)
    )
    return "type" if kinds != others else different_column(ours, theirs)
