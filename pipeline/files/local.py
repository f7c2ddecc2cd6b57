"""Files: list, read, and commit whole files so that none is ever seen half-written."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeAlias

from pipeline.errors import ConfigError, PipelineError, ShardError
from pipeline.files.braces import parse_braces
from pipeline.files.cache import CacheConfig, RemoteShard, ShardFile
from pipeline.files.folder import MAX_FILE_BYTES, Folder, check_path, check_size
from pipeline.files.hub import HubFolder, HubUrl, is_hub_url
from pipeline.files.kinds import at_home, read_list, why_no_data, without_waiting
from pipeline.files.objects import ObjectFolder, ObjectUrl, find_objects, is_url

__all__ = [
    "Folder",
    "LocalFolder",
    "Location",
    "commit_new",
    "expand_shards",
    "open_folder",
    "pinned",
    "publish",
    "real_path",
    "replace",
    "require_writable",
    "sha256",
    "writing",
]

_LISTED = 20  # names in an error
_MOST_NAMES = 1_000_000  # of shards: a hundred times the largest data sets'
_REMOTE = ("s3:", "gs:", "az:", "hf:", "http:", "https:")  # which pathlib makes of URLs
_LONGEST_PATTERN = 1 << 14  # characters; reading braces takes the square of it
_LONGEST_PATH, _DEEPEST = 4096, 256  # characters and directories; so does looking for a pattern

Location: TypeAlias = str | Path | Folder
"""Where a store is: a path, or a folder that is open already."""


def sha256(data: bytes | memoryview) -> str:
    """Return the hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def expand_shards(
    patterns: Sequence[str], cache: CacheConfig | None = None, name: str = "shards"
) -> tuple[ShardFile, ...]:
    """Return the shard files that brace patterns (``x-{000..127}.tar``) or globs name.

    A directory stands for its ``*.tar``, and a text file (``.txt``) for the names in its lines. The
    order is that of the patterns; a glob's matches are sorted. URLs become shards that
    are fetched through ``cache`` when opened; here they are looked at alone. ``name`` is the
    parameter that messages name. A file whose own name looks like a pattern is meant by it. Raises
    ``ShardError`` for a file that does not exist, a directory without shards, a pattern without a
    match, what is no file, or a file named twice.
    """
    paths: list[ShardFile] = []
    for pattern in (one for given in patterns for one in _listed_in(at_home(given), name)):
        if is_hub_url(pattern):
            raise ConfigError(
                f"`{name}` {pattern!r}: shards are not read from the hub; fetch them with "
                "hf download, and give their path"
            )
        try:
            room = _MOST_NAMES - len(paths)
            names = [pattern] if os.path.lexists(pattern) else _in_braces(pattern, room)
        except (ValueError, RecursionError) as error:
            raise ShardError(
                f"`{name}` {pattern!r:.200}: its braces do not match, or are too many"
            ) from error
        if names is None:
            raise ShardError(
                f"`{name}` {pattern!r:.200} names more than {room:,} files"
                + f", the rest of {_MOST_NAMES:,}" * (room < _MOST_NAMES)
                + "; check the numbers in its braces"
            )
        missing = []
        for wanted, found in zip(names, _files_of(names, cache or CacheConfig()), strict=True):
            if not found and not is_url(wanted) and os.path.isdir(wanted):  # noqa: PTH112
                raise ShardError(
                    f"`{name}` {wanted!r} is a directory in which no name ends in .tar; give the "
                    "one of the shards, or their files"
                )
            if not found:
                missing.append(wanted)
            paths += found
        if missing:
            raise ShardError(
                f"`{name}` {pattern!r}: {len(missing)} of {len(names)} names match no file: "
                f"{_listed(missing)}; check the path and the numbers in the braces"
            )
    if not paths:
        raise ShardError(f"no shards: give `{name}` one or more tar files or patterns")
    seen: set[Path | str] = set()
    for path in paths:
        if isinstance(path, Path) and not os.path.isfile(path):  # noqa: PTH113 - refusals are no file
            raise ShardError(f"`{name}` {str(path)!r} {why_no_data(path)}")
        check_path(path.name, str(path).rpartition("/")[0])  # it goes into stores
        identity = path.resolve() if isinstance(path, Path) else str(path)
        if identity in seen:
            raise ShardError(f"{path} is named twice by `{name}`; name each shard once")
        seen.add(identity)
    return tuple(paths)


def _in_braces(pattern: str, room: int) -> list[str] | None:
    """Return the names that a pattern stands for, None if they are more than ``room``."""
    if len(pattern) > _LONGEST_PATTERN:
        raise ValueError(f"{len(pattern)} characters")
    names = parse_braces(pattern)
    return list(names.make()) if names.count <= room else None


def _listed_in(pattern: str, name: str) -> list[str]:
    """Return the patterns in a text file of them, or a pattern as it is."""
    path = Path(pattern)
    if not pattern.endswith(".txt") or is_url(pattern) or not path.is_file():
        return [pattern]
    try:
        lines = [line.strip() for line in read_list(path)]
    except (OSError, ValueError) as error:
        raise ShardError(f"`{name}` {pattern!r} is no list of shards: {error}") from error
    # Relative names begin where the list is, so that it holds wherever a command is run.
    return [
        at_home(line) if is_url(line) or line.startswith("~") else str(path.parent / line)
        for line in lines
        if line and not line.startswith("#")
    ]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_LISTED])
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _files_of(names: Sequence[str], cache: CacheConfig) -> Iterator[Sequence[ShardFile]]:
    """Yield the files of each name, which may be a glob or a URL."""
    names = [f"{name}*.tar" if is_url(name) and name.endswith("/") else name for name in names]
    urls = [ObjectUrl.parse(name) for name in names if is_url(name)]
    # All are looked at before the first is used, many at a time: each takes a round trip.
    objects = iter(find_objects(urls))
    for name in names:
        if is_url(name):
            yield [RemoteShard(stored=one, cache=cache) for one in next(objects)]
        elif os.path.isdir(name):  # noqa: PTH112 - a name that is too long is none
            yield sorted(Path(name).glob("*.tar"))
        elif os.path.lexists(name) or len(name) > _LONGEST_PATH or name.count("/") > _DEEPEST:
            yield [Path(name)] if os.path.lexists(name) else []
        else:
            found = sorted(glob.glob(name))  # noqa: PTH207 - the pattern may be absolute
            yield [Path(one) for one in found]


def real_path(path: Path) -> Path:
    """Return where a path leads, which need not be there.

    Raises ``OSError`` for links in a circle, with which Python's releases do one thing or another.
    """
    try:
        real = path.resolve()
    except RuntimeError as error:  # before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        path.stat()  # later ones say nothing
    return real


class LocalFolder(Folder):
    """A directory of a file system; it need not exist until something is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def is_a_file(self) -> bool:
        """Return whether a file is where the directory would be."""
        return os.path.lexists(self.path) and not self.path.is_dir()

    def read_bytes(self, path: str, at_most: int = MAX_FILE_BYTES) -> bytes:
        """Return a file's bytes; see ``Folder``."""
        with self._reading(path) as file:
            check_size(self.at(path), os.fstat(file.fileno()).st_size, at_most)
            return file.read()

    def read_unwatched(self, path: str, at_most: int = MAX_FILE_BYTES) -> bytes:
        """Return the bytes of a file that no checksum vouches for; see ``Folder``."""
        if (self.path / path).is_symlink() and not self._is_cached(path):
            self._inside(path)
        return self.read_bytes(path, at_most)

    def _is_cached(self, path: str) -> bool:
        """Return whether a link leads into the cache that the whole folder is linked from."""
        # Without links on its way, so a cache that is a link itself vouches for nothing.
        try:
            real, above = real_path(self.path / path), _caches_above(real_path(self.path))
        except OSError:  # links in a circle
            return False
        return any(map(real.is_relative_to, above))

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """Return a part of a file; see ``Folder``."""
        with self._reading(path) as file:
            left = os.fstat(file.fileno()).st_size - offset
            file.seek(offset)
            return file.read(max(0, min(size, left)))  # Python gives memory for all it is asked

    def size(self, path: str) -> int:
        """Return a file's bytes; see ``Folder``."""
        with self._reading(path) as file:
            return os.fstat(file.fileno()).st_size

    @contextmanager
    def _reading(self, path: str) -> Iterator[BinaryIO]:
        location = self._of_folder(path)
        try:
            with open(location, "rb", opener=without_waiting) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise PipelineError(
                        f"{self.at(path)} is no file, but a pipe or a device; put the file there"
                    )
                yield file
        except (FileNotFoundError, NotADirectoryError) as error:
            if location.is_symlink():
                raise PipelineError(
                    f"{self.at(path)} is a link to a file that is not there; fetch it (git annex "
                    "get, dvc pull, or download the repository again)"
                ) from None
            raise FileNotFoundError(error.errno, error.strerror, self.at(path)) from error
        except OSError as error:
            raise PipelineError(
                f"{self.at(path)} cannot be read ({error.strerror}); check its permissions and "
                "the disk"
            ) from error

    def _inside(self, path: str) -> Path:
        """Return where a path of the folder lies, which is not out of it."""
        location = self.path / path
        if not path:
            return location  # a folder may be a link itself: whoever runs this named it
        check_path(path, self.name)
        try:
            real = real_path(location)
            inside = real.is_relative_to(real_path(self.path))
        except OSError as error:  # links in a circle
            raise PipelineError(
                f"{self.at(path)} cannot be found ({error}); put the file itself there, not a link"
            ) from error
        # A store that was received from others must not name files outside of it.
        if not inside:
            raise PipelineError(
                f"{self.at(path)} leads out of {self.name}, to {str(real)!r}; a "
                "store's files lie in the store: put the file itself there, not a link"
            )
        return location

    def _of_folder(self, path: str) -> Path:
        """Return the path of a file, which may be a link, in a directory that is of the folder.

        A link is followed to be read. A file that is written replaces it.
        """
        if not path:
            return self.path
        above, _, name = check_path(path, self.name).rpartition("/")
        return self._inside(above) / name

    def exists(self, path: str = "") -> bool:
        """Return whether this file exists; see ``Folder``."""
        return self._of_folder(path).exists()

    def sizes(self, prefix: str = "") -> Mapping[str, int]:
        """Return the paths that begin with ``prefix``, with their bytes; see ``Folder``."""
        above = prefix.rpartition("/")[0]
        found: dict[str, int] = {}
        folders = [(str(self._inside(above)), f"{above}/" if above else "")]
        while folders:
            directory, path = folders.pop()
            for entry in _entries(directory):
                if entry.name.startswith("."):
                    continue
                # A link to a directory is not entered, so it is listed, for nothing to go unseen.
                name = path + entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append((entry.path, f"{name}/"))
                elif name.startswith(prefix):
                    found[name] = _bytes_of(entry)
        return found

    def commit_new(self, path: str, data: bytes) -> bool:
        """Write a new file; see ``Folder``."""
        return commit_new(self._of_folder(path), data)

    @contextmanager
    def write_file(self, path: str) -> Iterator[BinaryIO]:
        """Give a file that appears whole; see ``Folder``."""
        final = self._of_folder(path)
        with writing(final):
            final.parent.mkdir(parents=True, exist_ok=True)
        aside = final.with_name(f".{final.name}.{os.getpid()}-{os.urandom(4).hex()}")
        try:
            with writing(final):
                with aside.open("x+b") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                aside.rename(final)
        finally:
            aside.unlink(missing_ok=True)

    def replace(self, path: str, data: bytes) -> None:
        """Write a file over the one that may be there; see ``Folder``."""
        replace(self._of_folder(path), data)

    def remove(self, path: str) -> None:
        """Remove a file that is there; see ``Folder``."""
        file = self._of_folder(path)
        try:
            file.unlink()
        except OSError as error:
            raise PipelineError(f"{file} cannot be removed ({error.strerror})") from error
        _flush(file.parent)


def _caches_above(root: Path) -> Iterator[Path]:
    """Yield where git-annex, DVC and Hugging Face would keep the contents of a folder's files."""
    for above in (root, *root.parents):
        yield above / ".git" / "annex" / "objects"
        yield above / ".dvc" / "cache"
        if above.name == "snapshots":
            yield above.parent / "blobs"


def _entries(directory: str) -> Sequence[os.DirEntry[str]]:
    """Return what a directory holds, nothing if it cannot be read: others may delete it."""
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:
        return []


def _bytes_of(entry: os.DirEntry[str]) -> int:
    """Return the bytes of a file, or of a link that leads nowhere."""
    try:
        return entry.stat().st_size
    except OSError:
        return 0


def open_folder(location: Location) -> Folder:
    """Return the folder at a path or URL; it need not exist, and nothing is read or written.

    Raises ``ConfigError`` for a URL that is malformed or carries credentials.
    """
    if isinstance(location, str) and is_hub_url(location):
        return HubFolder(HubUrl.parse(location))
    if isinstance(location, str) and is_url(location):
        return ObjectFolder(ObjectUrl.parse(location))
    if isinstance(location, Folder):
        return location
    return LocalFolder(Path(at_home(str(location))))


def pinned(location: str) -> str:
    """Return a location that stays what it is: on the hub, that of a commit."""
    folder = open_folder(location)
    if not isinstance(folder, HubFolder):
        return location
    folder.pin()
    return folder.name


def commit_new(path: Path, data: bytes) -> bool:
    """Write a file that appears whole or not at all; return False if it exists already.

    Of two writers one wins, and the other's bytes vanish. Directories are made as needed.
    Raises ``PipelineError`` if the disk is full or refuses.
    """
    with writing(path, len(data)):
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
        _flush(path.parent)
        return True


def replace(path: Path, data: bytes) -> None:
    """Write a file in one step over the one that may be there.

    Raises ``PipelineError`` if the disk is full or refuses.
    """
    with writing(path, len(data)):
        _write_aside(path, data).replace(path)
        _flush(path.parent)


def publish(aside: Path, path: Path) -> None:
    """Flush a new file or directory to the disk and give it its name, in one step.

    Raises ``PipelineError`` if that name is taken; ``aside`` then stays where it is.
    """
    with writing(path):
        if aside.is_dir():
            for directory, _, names in os.walk(aside, topdown=False):
                for name in names:
                    _flush(Path(directory) / name)
                _flush(Path(directory))
            if os.path.lexists(path):
                raise PipelineError(f"{path} exists already; give another path, or remove it")
            aside.rename(path)  # fails if a directory with files has come there meanwhile
        else:
            _flush(aside)
            try:
                os.link(aside, path)
            except FileExistsError as error:
                raise PipelineError(
                    f"{path} exists already; give another path, or remove it"
                ) from error
            aside.unlink()
        _flush(path.parent)


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn the system's refusals into errors that name the file and the cure.

    So is a path that was a URL.
    """
    if path.parts[:1] and path.parts[0] in _REMOTE:
        raise PipelineError(
            f"{path} is a URL, and this is written to a local path alone; give one, and copy it"
        )
    if not path.name:
        raise PipelineError(f"{path} is a directory; give the path of a file to be written")
    if _is_of_the_system(path):
        raise PipelineError(
            f"{path} is a pipe or a device, which a file would replace; give another path"
        )
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            amount = "" if size is None else f" ({size} bytes were to be written)"
            raise PipelineError(
                f"{path}: the disk is full{amount}; nothing of this file is left behind: free "
                "space and run again, finished parts are kept"
            ) from error
        raise PipelineError(
            f"{path} cannot be written ({error.strerror or error}); check the path and its "
            "permissions"
        ) from error


def require_writable(path: Path) -> None:
    """Raise ``PipelineError`` where a file cannot be written; makes the directories above it.

    For what takes long to make, before it is made.
    """
    with writing(path):
        _write_aside(path, b"").unlink()


def _is_of_the_system(path: Path) -> bool:
    """Return whether a path is no file or directory; a rename over /dev/null takes it from all."""
    if str(path.parent) in ("/dev", "/dev/fd") or path.parent.match("/proc/*/fd"):
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _write_aside(path: Path, data: bytes) -> Path:
    """Write and flush a dot-file beside ``path``; remove it again if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # a signal's too
        aside.unlink(missing_ok=True)
        raise
    return aside


def _flush(path: Path) -> None:
    """Wait until a file, or a directory's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
