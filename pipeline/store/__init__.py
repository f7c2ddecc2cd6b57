"""Label stores: one contract, whatever the format."""

from __future__ import annotations

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
    require_planned,
)
from pipeline.store.contract import LabelStore
from pipeline.store.export import export_store
from pipeline.store.manifest import (
    MAX_COMPANION_BYTES,
    Agreement,
    Manifest,
    PartEntry,
    check_companion_paths,
    listed_parts,
    read_manifest,
)
from pipeline.store.opening import open_store, parts_root
from pipeline.store.parquet import ParquetStore
from pipeline.store.place import (
    begun_classes,
    begun_fingerprints,
    check_out,
    committed_parts,
    pack_store,
    packed_store,
    read_committed,
    require_listed,
    require_no_subset,
    unpack_store,
)

__all__ = [
    "MAX_COMPANION_BYTES",
    "Agreement",
    "Committed",
    "LabelStore",
    "Manifest",
    "ParquetStore",
    "PartEntry",
    "begun_classes",
    "begun_fingerprints",
    "bytes_per_label",
    "check_companion_paths",
    "check_out",
    "check_place",
    "check_store",
    "claim_store",
    "commit_part",
    "committed_parts",
    "copy_part",
    "different_column",
    "export_store",
    "find_parts",
    "finish_store",
    "listed_parts",
    "open_store",
    "pack_store",
    "packed_store",
    "parts_root",
    "read_committed",
    "read_manifest",
    "require_listed",
    "require_no_subset",
    "require_planned",
    "unpack_store",
]
