"""Files: list, read, and commit whole files so that none is ever seen half-written."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from braceexpand import braceexpand

from pipeline.errors import PipelineError, ShardError

__all__ = ["commit_new", "expand_shards", "read_bytes", "replace", "sha256"]


def sha256(data: bytes | memoryview) -> str:
    """Return the hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def expand_shards(patterns: Sequence[str]) -> tuple[Path, ...]:
    """Return the shard files that brace patterns (``x-{000..127}.tar``) or globs name.

    The order is that of the patterns; a glob's matches are sorted. Raises ``ShardError``
    for a file that does not exist, a pattern without a match, or a file named twice.
    """
    paths: list[Path] = []
    for pattern in patterns:
        try:
            names = list(braceexpand(pattern))
        except ValueError as error:
            raise ShardError(f"--shards {pattern!r}: braces do not match") from error
        missing = []
        for name in names:
            if any(mark in name for mark in "*?["):
                found = sorted(glob.glob(name))  # noqa: PTH207 - the pattern may be absolute
            else:
                found = [name] if Path(name).is_file() else []
            if not found:
                missing.append(name)
            paths += [Path(one) for one in found]
        if missing:
            raise ShardError(
                f"--shards {pattern!r}: {len(missing)} of {len(names)} names match no file, "
                f"the first is {missing[0]!r}; check the path and the numbers in the braces"
            )
    if not paths:
        raise ShardError("no shards: give --shards one or more tar files or patterns")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise ShardError(f"{path} is named twice by --shards; name each shard once")
        seen.add(path.resolve())
    return tuple(paths)


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes."""
    return path.read_bytes()


def commit_new(path: Path, data: bytes) -> bool:
    """Write a file that appears whole or not at all; return False if it exists already.

    Of two writers one wins, and the other's bytes vanish. Directories are made as needed.
    Raises ``PipelineError`` if the disk is full or refuses.
    """
    with _writing(path, len(data)):
        aside = _write_aside(path, data)
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            # A file system without hard links: a rename is atomic too, but the last one wins.
            if path.exists():
                return False
            aside.rename(path)
        finally:
            aside.unlink(missing_ok=True)
        _flush_directory(path.parent)
        return True


def replace(path: Path, data: bytes) -> None:
    """Write a file in one step over the one that may be there.

    Raises ``PipelineError`` if the disk is full or refuses.
    """
    with _writing(path, len(data)):
        _write_aside(path, data).replace(path)
        _flush_directory(path.parent)


@contextmanager
def _writing(path: Path, size: int) -> Iterator[None]:
    """Turn the system's refusals into errors that name the file and the cure."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PipelineError(
                f"{path}: the disk is full ({size} bytes were to be written); nothing of this "
                "file is left behind: free space and run again, finished parts are kept"
            ) from error
        raise PipelineError(
            f"{path} cannot be written ({error.strerror}); check the path and its permissions"
        ) from error


def _write_aside(path: Path, data: bytes) -> Path:
    """Write and flush a dot-file beside ``path``; remove it again if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    return aside


def _flush_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
