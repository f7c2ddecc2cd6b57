"""Writes a finished store again in another format; nothing is lost on the way, or back."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.files.local import Folder, LocalFolder, Place, open_folder, publish, sha256, writing
from pipeline.records import PartRows
from pipeline.store.assemble import write_zarr
from pipeline.store.commit import different_column
from pipeline.store.contract import LabelStore
from pipeline.store.manifest import IDENTITY_PATH, MANIFEST_PATH, identity_bytes, write_manifest
from pipeline.store.opening import open_store
from pipeline.store.parquet import encode_part
from pipeline.store.single import write_single_file

__all__ = ["export_store", "remove", "write_aside"]

Writer = Callable[[LabelStore, Path], None]


def export_store(source: Place, target: str | Path, *, single_file: bool = False) -> LabelStore:
    """Write the store at ``source`` again at ``target``, which must not exist.

    The name of ``target`` tells the format: .zarr, or .parquet for a directory or, with
    ``single_file``, for one file. It appears whole, after all of it was read back and compared
    with the source, or not at all; in object storage a store without a manifest is none. Raises
    ``StoreError`` if the source is damaged, or holds what the format cannot.

    >>> export_store("teacher.parquet", "teacher.zarr").manifest.rows
    210
    """
    folder = open_folder(target)
    write = _writer(Path(folder.name), single_file)
    if folder.exists() or (isinstance(folder, LocalFolder) and os.path.lexists(folder.path)):
        raise StoreError(f"{target} exists already; give another path, or remove it")
    store = open_store(source)
    store.check_companions()
    if isinstance(folder, LocalFolder):
        path, root = folder.path, store.root
        if isinstance(root, LocalFolder) and path.resolve().is_relative_to(root.path.resolve()):
            raise StoreError(f"{target} lies in the store {source}; give a path outside of it")
        aside = write_aside(store, path, write)
        try:
            publish(aside, path)
        except BaseException:
            remove(aside)
            raise
        return open_store(path)
    with tempfile.TemporaryDirectory() as directory:
        aside = write_aside(store, Path(directory) / folder.name.rpartition("/")[2], write)
        _upload(aside, folder)
    return open_store(folder)


def _upload(copy: Path, folder: Folder) -> None:
    """Send a finished store to object storage, its manifest last."""
    paths = LocalFolder(copy).list() if copy.is_dir() else [""]
    for path in sorted(paths, key=lambda path: path == MANIFEST_PATH):
        if path == MANIFEST_PATH:
            _require_sent(folder, paths)
        with folder.write_file(path) as file, (copy / path).open("rb") as data:
            shutil.copyfileobj(data, file)


def _require_sent(folder: Folder, paths: Collection[str]) -> None:
    missing = sorted(set(paths) - {MANIFEST_PATH} - set(folder.list()))
    if missing:
        raise IncompleteStoreError(
            f"{folder} lacks {len(missing)} files that were sent, the first is {missing[0]}; no "
            "manifest was written: delete what is there, and export again"
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


def write_aside(source: LabelStore, path: Path, write: Writer) -> Path:
    """Write a store beside ``path``, compare it with its source, and return where it is.

    Nothing is left there if that fails.
    """
    if not source.manifest.parts:
        raise StoreError(f"{source.root} has no labels, so there is nothing to export")
    # A dot-name is a commit under way to all readers; its end tells the format.
    aside = path.with_name(f".{os.getpid()}-{os.urandom(4).hex()}.{path.name}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(source, aside)
        _require_same(source, open_store(aside))
    except BaseException:
        remove(aside)
        raise
    return aside


def remove(path: Path) -> None:
    """Remove a file, or a directory with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_parquet(source: LabelStore, root: Path) -> None:
    """Write a Parquet directory: with the PyArrow that wrote the parts first, the same bytes."""
    folder, manifest = open_folder(root), source.manifest
    entries = []
    for entry in manifest.parts:
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
    for ours, theirs in zip(source.manifest.parts, copy.manifest.parts, strict=True):
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
