"""Label stores: one contract, whatever the format."""

from __future__ import annotations

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
from pipeline.store.export import export_store
from pipeline.store.manifest import Manifest, PartEntry, listed_parts, read_manifest
from pipeline.store.opening import open_store
from pipeline.store.parquet import ParquetStore

__all__ = [
    "Committed",
    "LabelStore",
    "Manifest",
    "ParquetStore",
    "PartEntry",
    "check_place",
    "check_store",
    "claim_store",
    "commit_part",
    "export_store",
    "find_parts",
    "finish_store",
    "listed_parts",
    "open_store",
    "read_entry",
    "read_manifest",
]
