"""Label stores: one contract, whatever the format."""

from __future__ import annotations

from pipeline.store.at_work import JobProgress, Worker, at_work, read_workers
from pipeline.store.columns import bytes_per_label
from pipeline.store.commit import (
    check_root,
    check_store,
    claim_store,
    commit_part,
    copy_part,
    different_column,
    find_parts,
    finish_store,
    lost_views,
    named_views,
    read_begun,
    read_entries,
    require_planned,
)
from pipeline.store.committed import Committed, CommittedParts
from pipeline.store.contract import LabelStore
from pipeline.store.cuts import Claim, Cut, claim_cut, cut_views, runs_without
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
from pipeline.store.parquet import ParquetStore, decode_part
from pipeline.store.parts import PartKeys
from pipeline.store.receipts import Receipts, read_receipts
from pipeline.store.target import (
    begun_classes,
    begun_fingerprints,
    begun_identity,
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
    "Claim",
    "Committed",
    "CommittedParts",
    "Cut",
    "JobProgress",
    "LabelStore",
    "Manifest",
    "ParquetStore",
    "PartEntry",
    "PartKeys",
    "Receipts",
    "Worker",
    "at_work",
    "begun_classes",
    "begun_fingerprints",
    "begun_identity",
    "bytes_per_label",
    "check_companion_paths",
    "check_out",
    "check_root",
    "check_store",
    "claim_cut",
    "claim_store",
    "commit_part",
    "committed_parts",
    "copy_part",
    "cut_views",
    "decode_part",
    "different_column",
    "export_store",
    "find_parts",
    "finish_store",
    "listed_parts",
    "lost_views",
    "named_views",
    "open_store",
    "pack_store",
    "packed_store",
    "parts_root",
    "read_begun",
    "read_committed",
    "read_entries",
    "read_manifest",
    "read_receipts",
    "read_workers",
    "require_listed",
    "require_no_subset",
    "require_planned",
    "runs_without",
    "unpack_store",
]
