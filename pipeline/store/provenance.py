"""The records of how a store's runs went: read for people, never compared."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files.local import Folder
from pipeline.identity import canonical_json, read_json
from pipeline.store.manifest import MAX_COMPANION_BYTES, RUNS_PATH, check_companion_paths

__all__ = [
    "Run",
    "processor",
    "public_record",
    "read_runs",
    "record_run",
    "version_differences",
    "versions",
]

VERSIONED_PACKAGES = (
    "teacher-labels",
    "numba",
    "numpy",
    "pillow",
    "pyarrow",
    "ray",
    "simplejpeg",
    "timm",
    "torch",
)


_PUBLIC = ("finished", "tool", "labels", "seconds", "versions", "python")
_PUBLIC_PREFLIGHT = ("images", "correct", "rows_per_batch", "batch_seconds", "flip_rows", "flips")
"""What a published record keeps: fields that come later are left out until they are named here.
The warnings of a trial name files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run left beside a store; ``error`` says why a record cannot be read."""

    name: str  # of its file
    finished: str = ""  # ISO 8601, UTC
    tool: str = ""  # the command that ran
    labels: int = 0  # new ones
    seconds: float = 0.0
    versions: Mapping[str, str] | None = None
    processor: str = ""
    flip_rows: int = 0  # views that were labelled in fp32 too
    flips: int = 0  # of them, where fp32 gives another label
    settings: Mapping[str, Any] | None = None  # of a label job
    error: str = ""

    @staticmethod
    def from_json(name: str, values: Mapping[str, Any]) -> Run:
        """Build a run from its record; raises ``ValueError`` or ``TypeError`` for no record."""
        preflight, settings = values.get("preflight") or {}, values.get("settings")
        if settings is not None and not isinstance(settings.get("shards", []), list):
            raise TypeError("its shards are no list")
        return Run(
            name=name,
            finished=str(values.get("finished", "")),
            tool=str(values.get("tool", "label-teacher")),
            labels=int(values.get("labels", 0)),
            seconds=float(values.get("seconds", 0.0)),
            versions={str(key): str(one) for key, one in values.get("versions", {}).items()},
            processor=str(values.get("machine", {}).get("processor", "")),
            flip_rows=int(preflight.get("flip_rows", 0)),
            flips=int(preflight.get("flips", 0)),
            settings=settings,
        )


def read_runs(root: Folder) -> tuple[Run, ...]:
    """Return the runs of a store, the oldest first; damaged records say so.

    Raises ``StoreError`` for a file among them that no release names so.
    """
    runs = []
    for path in check_companion_paths(root.list_if_allowed(RUNS_PATH), str(root)):
        name = path.rpartition("/")[2]
        try:
            record = read_json(root.read_unwatched(path, MAX_COMPANION_BYTES))
            runs.append(Run.from_json(name, record))
        except (PipelineError, OSError, ValueError, TypeError, AttributeError) as error:
            runs.append(Run(name=name, error=repr(error)))
    return tuple(runs)


def record_run(root: Folder, tool: str, run: Mapping[str, Any]) -> None:
    """Record how a run of ``tool`` went, with versions, hardware and time."""
    now = datetime.now(UTC)
    record = {
        "finished": now.isoformat(timespec="seconds"),
        "tool": tool,
        "versions": versions(),
        "python": sys.version.split()[0],
        "machine": {"platform": platform.platform(), "processor": processor()},
        **run,
    }
    name = f"{now:%Y%m%dT%H%M%S%f}.json"
    root.commit_new(f"{RUNS_PATH}{name}", canonical_json(record) + b"\n")


def public_record(record: bytes) -> bytes:
    """Return a run's record without paths, settings and the machine, for strangers to read.

    One that cannot be read is left empty.
    """
    try:
        values = read_json(record)
        kept = {name: values[name] for name in _PUBLIC if name in values}
        trial = values.get("preflight") or {}
        kept["preflight"] = {name: trial[name] for name in _PUBLIC_PREFLIGHT if name in trial}
    except (ValueError, TypeError):
        kept = {}
    return canonical_json(kept) + b"\n"


def versions() -> dict[str, str]:
    """Return the versions of all packages that touch pixels, labels or files."""
    found = {}
    for name in VERSIONED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def version_differences(root: Folder) -> str:
    """Return in words how versions differ from those of a store's first run, for messages."""
    theirs: Mapping[str, str] = next((run.versions for run in read_runs(root) if run.versions), {})
    lines = [
        f"{name} {version} here, {theirs.get(name, 'unknown')} there"
        for name, version in versions().items()
        if theirs.get(name) != version
    ]
    return "; ".join(lines) or "all versions are equal: do the machines differ?"


def processor() -> str:
    """Return the CPU's name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
