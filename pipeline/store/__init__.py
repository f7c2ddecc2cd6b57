"""Label stores: one contract, whatever the format."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.store.commit import (
    Committed,
    check_place,
    check_store,
    claim_store,
    commit_part,
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
    "check_place",
    "check_store",
    "claim_store",
    "commit_part",
    "find_parts",
    "finish_store",
    "listed_parts",
    "open_store",
    "read_entry",
    "read_manifest",
]


def open_store(path: Path) -> ParquetStore:
    """Open a finished store; reads the manifest alone.

    Raises ``StoreError`` if there is none at ``path``.
    """
    if not path.exists():
        raise IncompleteStoreError(f"{path}: there is no label store here; check the path")
    if not path.is_dir() or path.suffix != ".parquet":
        raise StoreError(
            f"{path} is no label store: give the directory whose name ends in .parquet"
        )
    return ParquetStore(path, read_manifest(path))
