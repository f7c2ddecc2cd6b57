"""Tools for stores that exist: compare, describe, join, extend, thin and mend them."""

from __future__ import annotations

from pipeline.tools.derive import relabelled_store
from pipeline.tools.diff import Disagreement, MarginFlips, StoreDiff, diff_stores
from pipeline.tools.extend import extend_command, extended_config
from pipeline.tools.finalize import FinalizeReport, finalize_store
from pipeline.tools.merge import MergeReport, merge_stores
from pipeline.tools.rebind import RebindReport, rebind_store
from pipeline.tools.repair import RepairReport, repair_store
from pipeline.tools.report import ReportConfig, StoreReport, report_store
from pipeline.tools.show import DrawnView, ViewChoice, draw_views, save_sheet, show_views
from pipeline.tools.stats import ClassStats, EntropyStats, StoreStats, ViewStats, store_stats
from pipeline.tools.status import StoreStatus, store_status
from pipeline.tools.thin import KeptSamples, ThinReport, thin_store
from pipeline.tools.views import ViewsReport, write_views
from pipeline.tools.vote import Vote, VoteBy, voted_store

__all__ = [
    "ClassStats",
    "Disagreement",
    "DrawnView",
    "EntropyStats",
    "FinalizeReport",
    "KeptSamples",
    "MarginFlips",
    "MergeReport",
    "RebindReport",
    "RepairReport",
    "ReportConfig",
    "StoreDiff",
    "StoreReport",
    "StoreStats",
    "StoreStatus",
    "ThinReport",
    "ViewChoice",
    "ViewStats",
    "ViewsReport",
    "Vote",
    "VoteBy",
    "diff_stores",
    "draw_views",
    "extend_command",
    "extended_config",
    "finalize_store",
    "merge_stores",
    "rebind_store",
    "relabelled_store",
    "repair_store",
    "report_store",
    "save_sheet",
    "show_views",
    "store_stats",
    "store_status",
    "thin_store",
    "voted_store",
    "write_views",
]
