"""Tools for stores that exist: compare, describe, join, extend and thin them."""

from __future__ import annotations

from pipeline.reuse.diff import Disagreement, MarginFlips, StoreDiff, diff_stores
from pipeline.reuse.stats import ClassStats, EntropyStats, StoreStats, ViewStats, store_stats

__all__ = [
    "ClassStats",
    "Disagreement",
    "EntropyStats",
    "MarginFlips",
    "StoreDiff",
    "StoreStats",
    "ViewStats",
    "diff_stores",
    "store_stats",
]
