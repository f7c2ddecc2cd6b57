"""Tells how far the label jobs of a store are, from any machine that sees it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.errors import StoreError
from pipeline.files.local import Folder, open_folder
from pipeline.store import Worker, find_parts, open_store, parts_root, read_manifest, read_workers
from pipeline.store.manifest import IDENTITY_PATH, MANIFEST_PATH

__all__ = ["StoreStatus", "store_status"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatus:
    """What is known of a store and of the jobs that add to it. None is what nobody knows."""

    store: str
    state: Literal["finished", "labelling", "unfinished"]
    parts: int  # that are there
    parts_wanted: int | None
    labels: int | None  # of a finished store
    samples: int | None
    rejected: int | None  # as far as jobs have told
    workers: tuple[Worker, ...]  # that are at work now
    labels_per_second: float | None  # of those together, since they began
    seconds_left: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the status as plain JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return the status as lines of text."""
        lines = [f"{self.store}: {self.state}", f"parts: {self.parts}{self._share()}"]
        if self.labels is not None:
            lines.append(f"labels: {self.labels}")
        if self.samples is not None:
            lines.append(f"rejected: {self.rejected} of {self.samples} samples")
        for one in self.workers:
            done, to_do = one.progress.labels_done, one.progress.labels_to_do
            lines.append(f"at work: {one}, {done} of {to_do} labels")
        if self.labels_per_second:
            lines.append(f"labels per second: {self.labels_per_second:.1f}")
        if self.seconds_left is not None:
            lines.append(f"left: about {self.seconds_left / 3600:.2f} h")
        if self.state == "unfinished":
            lines.append("nobody is at work; the same label job goes on with what is missing")
        return "\n".join(lines) + "\n"

    def _share(self) -> str:
        if not self.parts_wanted:
            return ""
        return f" of {self.parts_wanted} ({self.parts / self.parts_wanted:.1%})"


def store_status(path: str) -> StoreStatus:
    """Return how far a store is: what is there, who is at work, and when they may be done.

    Lists the store and reads small files; no part, no shard. How many parts it will have, and how
    many samples are rejected, is what its jobs have told: not known where they left no word.

    >>> store_status("teacher.parquet").state
    'finished'
    """
    folder = open_folder(parts_root(path))
    if not folder.exists(IDENTITY_PATH):
        if not open_folder(path).exists():
            raise StoreError(f"{path}: there is no store; give the `out` of the label job")
        return _finished(path)
    return _begun(path, folder)


def _finished(path: str) -> StoreStatus:
    manifest = open_store(path).manifest
    return StoreStatus(
        store=path,
        state="finished",
        parts=len(manifest.parts),
        parts_wanted=len(manifest.parts),
        labels=manifest.rows,
        samples=manifest.counts.indexed,
        rejected=manifest.counts.rejected,
        workers=(),
        labels_per_second=None,
        seconds_left=None,
    )


def _begun(path: str, folder: Folder) -> StoreStatus:
    parts = set(find_parts(folder))
    words = read_workers(folder)
    there = tuple(one for one in words if one.is_there)
    listed = read_manifest(folder).parts if folder.exists(MANIFEST_PATH) else ()
    progress = words[0].progress if words else None
    wanted = None if progress is None else max(one.progress.parts for one in there or words[:1])
    as_listed = bool(listed) and {entry.part for entry in listed} == parts
    # A job that was killed before it added to a finished store leaves the manifest as it was.
    if as_listed and not there and (wanted is None or wanted <= len(parts)):
        return _finished(path)
    speed = sum(one.progress.labels_done / max(1e-9, one.progress.seconds) for one in there)
    left = None
    if there and speed and wanted is not None:
        per_part = there[0].progress.labels_to_do / max(1, there[0].progress.parts_to_do)
        left = max(0, wanted - len(parts)) * per_part / speed
    return StoreStatus(
        store=path,
        state="labelling" if there else "unfinished",
        parts=len(parts),
        parts_wanted=wanted,
        labels=None,
        samples=None if progress is None else progress.samples,
        rejected=None if progress is None else max(one.progress.rejected for one in words),
        workers=there,
        labels_per_second=speed if there else None,
        seconds_left=left,
    )
