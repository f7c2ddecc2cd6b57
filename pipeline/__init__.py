"""Offline teacher labels for hard distillation: views, pairs, labels, stores, replay.

The names below are the library's door; each is loaded when it is first asked for, so that
importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.columns import ColumnConfig
    from pipeline.errors import (
        CheckpointError,
        ChecksumError,
        ClassesError,
        ConfigError,
        DecodeError,
        IdentityError,
        IncompleteStoreError,
        PipelineError,
        RejectionError,
        ReplayError,
        ShardError,
        StoreError,
        TeacherError,
        TryAgainError,
    )
    from pipeline.files.cache import CacheConfig
    from pipeline.identity import (
        AugmentConfig,
        MixConfig,
        StoreIdentity,
        TeacherIdentity,
    )
    from pipeline.labelling.config import LabelConfig
    from pipeline.shards.packing import PackConfig, PackReport, pack_shards
    from pipeline.store.contract import LabelStore
    from pipeline.store.export import export_store
    from pipeline.store.opening import open_store
    from pipeline.tools.diff import StoreDiff, diff_stores
    from pipeline.tools.merge import MergeReport, merge_stores
    from pipeline.tools.rebind import RebindReport, rebind_store
    from pipeline.tools.repair import RepairReport, repair_store
    from pipeline.tools.report import ReportConfig, StoreReport, report_store
    from pipeline.tools.show import DrawnView, ViewChoice, draw_views, save_sheet, show_views
    from pipeline.tools.stats import StoreStats, store_stats
    from pipeline.tools.thin import KeptSamples, ThinReport, thin_store
    from pipeline.tools.verify import VerifyReport, verify_store
    from pipeline.tools.views import ViewsReport, write_views

__all__ = [
    "AugmentConfig",
    "CacheConfig",
    "CheckpointError",
    "ChecksumError",
    "ClassesError",
    "ColumnConfig",
    "ConfigError",
    "DecodeError",
    "DrawnView",
    "IdentityError",
    "IncompleteStoreError",
    "KeptSamples",
    "LabelConfig",
    "LabelStore",
    "MergeReport",
    "MixConfig",
    "PackConfig",
    "PackReport",
    "PipelineError",
    "RebindReport",
    "RejectionError",
    "RepairReport",
    "ReplayError",
    "ReportConfig",
    "ShardError",
    "StoreDiff",
    "StoreError",
    "StoreIdentity",
    "StoreReport",
    "StoreStats",
    "TeacherError",
    "TeacherIdentity",
    "ThinReport",
    "TryAgainError",
    "VerifyReport",
    "ViewChoice",
    "ViewsReport",
    "diff_stores",
    "draw_views",
    "export_store",
    "merge_stores",
    "open_store",
    "pack_shards",
    "rebind_store",
    "repair_store",
    "report_store",
    "save_sheet",
    "show_views",
    "store_stats",
    "thin_store",
    "verify_store",
    "write_views",
]

_MODULES = {
    **{name: "pipeline.errors" for name in __all__ if name.endswith("Error")},
    "AugmentConfig": "pipeline.identity",
    "CacheConfig": "pipeline.files.cache",
    "ColumnConfig": "pipeline.columns",
    "DrawnView": "pipeline.tools.show",
    "KeptSamples": "pipeline.tools.thin",
    "LabelConfig": "pipeline.labelling.config",
    "LabelStore": "pipeline.store.contract",
    "MergeReport": "pipeline.tools.merge",
    "MixConfig": "pipeline.identity",
    "PackConfig": "pipeline.shards.packing",
    "PackReport": "pipeline.shards.packing",
    "RebindReport": "pipeline.tools.rebind",
    "RepairReport": "pipeline.tools.repair",
    "ReportConfig": "pipeline.tools.report",
    "StoreDiff": "pipeline.tools.diff",
    "StoreIdentity": "pipeline.identity",
    "StoreReport": "pipeline.tools.report",
    "StoreStats": "pipeline.tools.stats",
    "TeacherIdentity": "pipeline.identity",
    "ThinReport": "pipeline.tools.thin",
    "VerifyReport": "pipeline.tools.verify",
    "ViewChoice": "pipeline.tools.show",
    "ViewsReport": "pipeline.tools.views",
    "diff_stores": "pipeline.tools.diff",
    "draw_views": "pipeline.tools.show",
    "export_store": "pipeline.store.export",
    "merge_stores": "pipeline.tools.merge",
    "open_store": "pipeline.store.opening",
    "pack_shards": "pipeline.shards.packing",
    "rebind_store": "pipeline.tools.rebind",
    "repair_store": "pipeline.tools.repair",
    "report_store": "pipeline.tools.report",
    "save_sheet": "pipeline.tools.show",
    "show_views": "pipeline.tools.show",
    "store_stats": "pipeline.tools.stats",
    "thin_store": "pipeline.tools.thin",
    "verify_store": "pipeline.tools.verify",
    "write_views": "pipeline.tools.views",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
