"""Label stores: one contract, whatever the format."""

from __future__ import annotations

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.files import Place, open_folder
from pipeline.store.columns import bytes_per_label
from pipeline.store.commit import (
    Committed,
    check_place,
    check_store,
    claim_store,
    commit_part,
    copy_part,
    different_column,
    find_parts,
    finish_store,
    read_entry,
)
from pipeline.store.contract import LabelStore
from pipeline.store.manifest import Agreement, Manifest, PartEntry, listed_parts, read_manifest
from pipeline.store.parquet import ParquetStore

__all__ = [
    "Agreement",
    "Committed",
    "LabelStore",
    "Manifest",
    "ParquetStore",
    "PartEntry",
    "bytes_per_label",
    "check_place",
    "check_store",
    "claim_store",
    "commit_part",
    "copy_part",
    "different_column",
    "find_parts",
    "finish_store",
    "listed_parts",
    "open_store",
    "read_entry",
    "read_manifest",
]


def open_store(place: Place) -> ParquetStore:
    """Open a finished store; reads the manifest alone.

    Raises ``StoreError`` if there is none at ``place``.
    """
    folder = open_folder(place)
    if not folder.exists():
        raise IncompleteStoreError(f"{folder}: there is no label store here; check the path")
    if folder.is_a_file() or not folder.name.endswith(".parquet"):
        raise StoreError(
            f"{folder} is no label store: give the directory whose name ends in .parquet"
        )
    return ParquetStore(folder, read_manifest(folder))
