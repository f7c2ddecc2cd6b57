"""Proves that other machines see the files and the directory that a job names by path.

A path names whatever a machine has there. Parts that a node writes to its own disk would be
missed only when the job ends, so each node is asked before it begins.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, PipelineError
from pipeline.files.local import commit_new
from pipeline.files.objects import is_url

__all__ = ["SharedPaths", "offered_paths", "require_shared", "unseen_path"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPaths:
    """What each machine of a job must see as the driver does."""

    probe: Path | None  # a file that the driver wrote; None for a store in object storage
    files: tuple[tuple[Path, int], ...]  # with their bytes

    def answer(self, node: str) -> Path:
        """Return the file that a node writes beside the probe; its name must not be guessed."""
        return Path(f"{self.probe}.{node}")


@contextmanager
def offered_paths(out: str, files: Iterable[tuple[Path, int]]) -> Iterator[SharedPaths]:
    """Write a probe where the store ``out`` is or will be, and remove it and its answers after."""
    probe = None if is_url(out) else _existing(Path(out)) / f".probe-{os.urandom(8).hex()}"
    if probe is not None:
        commit_new(probe, b"")
    try:
        yield SharedPaths(probe=probe, files=tuple(files))
    finally:
        for path in () if probe is None else probe.parent.glob(f"{probe.name}*"):
            path.unlink(missing_ok=True)


def _existing(path: Path) -> Path:
    """Return a directory, or the nearest one above that exists: nothing is made yet."""
    return next(one for one in (path, *path.parents) if one.is_dir())


def unseen_path(paths: SharedPaths, node: str) -> str | None:
    """Return what this machine sees otherwise than the driver, or leave an answer for it."""
    for path, size in paths.files:
        try:
            found = path.stat().st_size
        except OSError as error:
            return f"{path} cannot be read there ({error.strerror})"
        if found != size:
            return f"{path} has {found} bytes there and {size} here"
    if paths.probe is None:
        return None
    if not paths.probe.is_file():
        return f"{paths.probe.parent} is another directory there"
    try:
        commit_new(paths.answer(node), b"")
    except PipelineError as error:
        return str(error)
    return None


def require_shared(paths: SharedPaths, node: str, name: str, unseen: str | None) -> None:
    """Raise ``ConfigError`` with the node's name unless its answer is good, and seen here."""
    if unseen is None and paths.probe is not None and not paths.answer(node).is_file():
        unseen = f"what it writes to {paths.probe.parent} is not seen here"
    if unseen is not None:
        raise ConfigError(
            f"node {name} does not see the job's files as this process does: {unseen}; use paths "
            "of a file system that all nodes share, or object storage, or run on one node"
        )
