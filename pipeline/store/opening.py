"""Opens a finished store, whatever its format."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.files.local import Folder, Location, open_folder
from pipeline.store.contract import LabelStore
from pipeline.store.layout import Layout
from pipeline.store.manifest import MANIFEST_PATH, Manifest, read_values
from pipeline.store.parquet import ParquetStore
from pipeline.store.single import open_single_file
from pipeline.store.zarr import ZarrStore

__all__ = ["open_store", "parts_root"]


def open_store(location: Location) -> LabelStore:
    """Open a finished store to read labels, or to give it to a tool; reads its manifest alone.

    The name tells the format: a directory that ends in .parquet or .zarr, or one file that
    ends in .parquet. Raises ``StoreError`` if there is no such store at ``location``.

    >>> store = open_store("teacher.parquet")
    >>> store.manifest.rows, store.manifest.view_range
    (210, range(0, 6))
    >>> store.read_view(shard=0, view=1).label.shape
    (17,)
    """
    folder = open_folder(location)
    kind = folder.name.rpartition(".")[2]
    if kind in ("parquet", "zarr"):
        if folder.is_a_file():
            if kind == "parquet":
                return open_single_file(folder)
        else:
            return _open_directory(folder, kind)
    elif not folder.exists():
        raise _missing(folder)
    raise StoreError(
        f"{folder} is no label store: give a directory whose name ends in .parquet or .zarr, or "
        "one file whose name ends in .parquet"
    )


def _open_directory(folder: Folder, kind: str) -> LabelStore:
    try:
        # The manifest first, and if it is there nothing else: a listing of a large store takes
        # hundreds of requests, and not everybody who may read objects may list them.
        values = read_values(folder)
    except IncompleteStoreError:
        if folder.exists():
            raise
        raise _missing(folder) from None
    manifest = Manifest.from_json(values, str(folder))
    if kind == "parquet":
        return ParquetStore(folder, manifest)
    if "zarr" not in values:
        raise StoreError(
            f"{folder} is named as a Zarr store, but its manifest is another's; name the "
            "directory .parquet"
        )
    layout = Layout.from_json(values["zarr"], manifest, folder.at(MANIFEST_PATH))
    return ZarrStore(folder, manifest, layout)


def _missing(folder: Folder) -> IncompleteStoreError:
    """Return the error for a location where there is nothing."""
    unfinished = parts_root(folder.name)
    if unfinished != folder.name and open_folder(unfinished).exists():
        return IncompleteStoreError(
            f"{folder} is unfinished: its parts are in {unfinished}; run the label job again "
            "with the same settings, it does only what is missing"
        )
    return IncompleteStoreError(f"{folder}: there is no label store here; check the path")


def parts_root(out: str | Path) -> str:
    """Return the Parquet directory in which a job commits the parts of the store ``out``.

    That is the store itself, but for a Zarr store a directory beside it.
    """
    name = str(out).rstrip("/")
    return f"{name}.parts.parquet" if name.endswith(".zarr") else name
