"""A directory of shards fetched from object storage, shared by all processes of a machine.

A shard is there whole or not at all, with the CRC-32 of its bytes as they came beside it, which
every process compares when it first opens the file: disks forget. Locks are ``flock``s, which end
with their process, so a killed one leaves neither a lock nor, once another process looks, its half
of a file.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import BinaryIO, Concatenate, ParamSpec, TypeAlias, TypeVar

from pipeline.errors import ConfigError, PipelineError
from pipeline.files.objects import StoredObject
from pipeline.growth import settle
from pipeline.telling import step

__all__ = ["CacheConfig", "RemoteShard", "ShardFile"]

_log = logging.getLogger(__name__)

_LOCKS = 256
_SUFFIX = ".tar"
_PARTIAL = ".part"
_WAIT_SECONDS = 0.05
_CHUNK = 1 << 20  # bytes that are read at a time
_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Where fetched shards are kept, and how much of them."""

    directory: Path | None = None
    """Directory of shards fetched from object storage, shared by all runs of a machine; by
    default teacher-labels/shards in $XDG_CACHE_HOME or ~/.cache."""
    gigabytes: float = 100.0
    """Its size; the least recently used shards go first."""

    def __post_init__(self) -> None:
        settle(self)
        if not self.gigabytes > 0:
            raise ConfigError(f"`gigabytes` is {self.gigabytes}; use a positive number")

    @staticmethod
    def of_flags(cache_dir: Path | None, cache_gb: float) -> CacheConfig:
        """Return what a command's settings say; other processes may be elsewhere."""
        directory = None if cache_dir is None else cache_dir.absolute()
        return CacheConfig(directory=directory, gigabytes=cache_gb)

    @property
    def directory_path(self) -> Path:
        """The directory, the default resolved."""
        if self.directory is not None:
            return self.directory
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base) / "teacher-labels" / "shards"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteShard:
    """A shard in object storage, as it was when the run began; fetched when first opened."""

    stored: StoredObject
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __str__(self) -> str:
        return str(self.stored.url)

    @property
    def name(self) -> str:
        """The file's name, without its directory."""
        return self.stored.url.key.rpartition("/")[2]

    @property
    def size(self) -> int:
        """The shard's bytes."""
        return self.stored.size

    def open(self) -> BinaryIO:
        """Return the shard's bytes as an open local file, fetched if need be.

        The file stays readable when others evict it. Raises ``PipelineError`` if the
        object cannot be fetched or was replaced, and if there is no room for it.
        """
        return _ShardCache(self.cache).open(self.stored)


ShardFile: TypeAlias = Path | RemoteShard
"""A shard's tar file, here or in object storage."""

P = ParamSpec("P")
R = TypeVar("R")


def _saying_where(
    method: Callable[Concatenate[_ShardCache, P], R],
) -> Callable[Concatenate[_ShardCache, P], R]:
    """Turn the system's refusals into errors that name the cache and the cure."""

    @wraps(method)
    def wrapped(self: _ShardCache, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            cure = "free space or lower `gigabytes`" if full else "give another `directory`"
            raise PipelineError(
                f"the shard cache {self.directory} failed ({error.strerror or error}); {cure}; "
                "it may be deleted at any time"
            ) from error

    return wrapped


class _ShardCache:
    def __init__(self, config: CacheConfig) -> None:
        self.directory = config.directory_path
        self._limit = int(config.gigabytes * 1e9)

    @_saying_where
    def open(self, stored: StoredObject) -> BinaryIO:
        """Return an object as a file, from the cache or through it."""
        if stored.size > self._limit:
            raise ConfigError(
                f"{stored.url} has {stored.size} bytes, more than the shard cache may hold "
                f"({self._limit}); raise `gigabytes`"
            )
        identity = f"{stored.url}\n{stored.etag}\n{stored.size}"
        name = hashlib.sha256(identity.encode()).hexdigest()[:40]
        path = self.directory / f"{name}{_SUFFIX}"
        for _ in range(2):
            file, crc = _open_whole(path, stored.size) or self._fetched(stored, path)
            if _has_crc(file, crc, path):
                return file
            file.close()
            _log.warning("%s: %s is damaged, it is fetched again", stored.url, path)
            _remove(path)
        raise PipelineError(
            f"{path}: the bytes of {stored.url} are not those that were written there, twice; the "
            "disk or memory is failing: give another `directory`"
        )

    def _fetched(self, stored: StoredObject, path: Path) -> tuple[BinaryIO, int]:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One process fetches, the others wait for it; other shards rarely share its lock.
        with self._locked(f"fetch-{int(path.name[:8], 16) % _LOCKS:03d}"):
            return _open_whole(path, stored.size) or self._fetch(stored, path)

    def _fetch(self, stored: StoredObject, path: Path) -> tuple[BinaryIO, int]:
        aside = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}{_PARTIAL}")
        file = self._reserve(aside, stored)
        _log.info("fetching %s, %d bytes", stored.url, stored.size)
        try:
            written = crc = 0
            with step(f"fetching {stored.url}", "MB") as show:
                for chunk in stored.stream():
                    written += file.write(chunk)
                    crc = binascii.crc32(chunk, crc)
                    if written > stored.size:
                        break
                    show(written // _MEGABYTE, -(-stored.size // _MEGABYTE))
            if written != stored.size:
                raise PipelineError(
                    f"{stored.url} came with {written} bytes and has {stored.size}; run again, "
                    "and check the network and the object"
                )
            file.flush()
            os.fsync(file.fileno())
            _crc_path(path).write_text(f"{crc:08x}")  # one that is torn is no shard's
            aside.rename(path)
        except BaseException:
            file.close()
            aside.unlink(missing_ok=True)
            raise
        file.seek(0)
        fcntl.flock(file, fcntl.LOCK_UN)
        return file, crc

    def _reserve(self, aside: Path, stored: StoredObject) -> BinaryIO:
        """Create a file that takes an object's bytes of the cache, once there is room for it."""
        waited = False
        while True:
            with self._locked("room"):
                if self._make_room(stored.size):
                    file = aside.open("w+b")
                    # Held for as long as it is written: others see that its writer lives.
                    fcntl.flock(file, fcntl.LOCK_EX)
                    file.truncate(stored.size)
                    return file
            if not waited:
                _log.warning(
                    "%s waits: shards that are being fetched fill the cache; a higher "
                    "`gigabytes` would let more of them come at once",
                    stored.url,
                )
            waited = True
            time.sleep(_WAIT_SECONDS)

    def _make_room(self, size: int) -> bool:
        """Evict until ``size`` bytes fit; return False if too much is being fetched."""
        fetching, whole = self._contents()
        used = size + fetching + sum(bytes_ for _, bytes_, _ in whole)
        for _, freed, path in sorted(whole):
            if used <= self._limit:
                break
            _log.info("evicting %s, %d bytes", path, freed)
            _remove(path)
            used -= freed
        return used <= self._limit

    def _contents(self) -> tuple[int, list[tuple[float, int, Path]]]:
        """Return the bytes being fetched, and (time of last use, bytes, path) of whole shards."""
        while True:
            fetching, whole = 0, []
            try:
                for path in self.directory.iterdir():
                    if path.name.endswith(_PARTIAL) and not _unlink_if_left(path):
                        fetching += path.lstat().st_size
                    elif path.suffix == _SUFFIX:
                        status = path.lstat()  # a link to nowhere would never be there
                        whole.append((status.st_mtime, status.st_size, path))
            except FileNotFoundError:
                continue  # fetched by now, and under a name that this list may lack: look again
            return fetching, whole

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self.directory / f".lock-{name}").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _crc_path(path: Path) -> Path:
    """Return where the CRC-32 of a cached shard is kept."""
    return path.with_name(f".{path.name}.crc32")


def _remove(path: Path) -> None:
    """Delete a cached shard and what is known of it."""
    path.unlink(missing_ok=True)
    _crc_path(path).unlink(missing_ok=True)


_compared: set[tuple[str, int]] = set()  # path and inode of files that this process has compared


def _has_crc(file: BinaryIO, expected: int, path: Path) -> bool:
    """Return whether a file has the bytes that came; a process reads each file once for it.

    A CRC-32, for it is about accidents, and three times as fast as a SHA-256.
    """
    known = (str(path), os.fstat(file.fileno()).st_ino)
    if known in _compared:
        return True
    crc = 0
    while chunk := file.read(_CHUNK):
        crc = binascii.crc32(chunk, crc)
    file.seek(0)
    if crc == expected:
        _compared.add(known)
    return crc == expected


def _open_whole(path: Path, size: int) -> tuple[BinaryIO, int] | None:
    """Open a fetched shard with its CRC-32, and note its use; None if it is not there."""
    try:
        crc = int(_crc_path(path).read_bytes(), 16)
        file = path.open("rb")
    except (FileNotFoundError, ValueError):
        return None
    if os.fstat(file.fileno()).st_size != size:  # cut by hand, or by a file system's repair
        file.close()
        path.unlink(missing_ok=True)
        return None
    with contextlib.suppress(OSError):  # another user's cache may be readable alone
        os.utime(file.fileno())
    return file, crc


def _unlink_if_left(path: Path) -> bool:
    """Delete a half-written file whose writer is dead; return whether it was."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()  # not there: its writer lives, and has just finished
        return True
