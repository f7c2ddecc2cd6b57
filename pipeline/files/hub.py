"""Stores published as data sets on Hugging Face's hub, read through huggingface_hub.

Files come one by one into its cache, as they are read. A revision is resolved to a commit once,
and messages and records name that commit, so a branch that moves cannot change a store in use.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies

from tqdm import tqdm

from pipeline.errors import ConfigError, PipelineError, require_package
from pipeline.files.folder import MAX_FILE_BYTES, Folder, check_path, check_size

__all__ = ["HubFolder", "HubUrl", "has_model", "hub_if_reached", "is_hub_url", "why_unreached"]

_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w.-]+))?/(.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_KIND = "dataset"
_REACH_SECONDS = 5.0
_ANSWER_SECONDS = 60.0


@contextmanager
def hub_if_reached() -> Iterator[str]:
    """Have huggingface_hub ask its cache alone in this context if the hub cannot be reached.

    Else it tries each file again and again, for more than a minute. Gives what ``why_unreached``
    says. Raises ``OSError`` too where a connection that was there breaks off.
    """
    why = why_unreached()
    try:
        from huggingface_hub import constants
    except ImportError:
        yield why
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = bool(why)
    try:
        yield why
    except _refusals() as error:
        if isinstance(error, OSError):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error
    finally:
        constants.HF_HUB_OFFLINE = before


def why_unreached() -> str:
    """Return in words why what the hub's cache lacks cannot be had, in a few seconds.

    Nothing where the hub can be reached, or nobody knows: behind a proxy, or without the package.
    """
    try:
        from huggingface_hub import constants
    except ImportError:
        return ""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and the cache has no such file"
    return "" if getproxies().get("https") else _unreached(constants.ENDPOINT)


def _refusals() -> tuple[type[Exception], ...]:
    """Return what huggingface_hub raises where the network or a server fails.

    Its own errors inherit from that of its HTTP client, which is no ``OSError`` and which some of
    its calls let through: not the same client in all its releases.
    """
    kinds: tuple[type[Exception], ...] = _hub().errors.HfHubHTTPError.__bases__
    return kinds


def has_model(repository: str) -> bool:
    """Return whether the hub's cache has files of a model, or of one whose name goes on.

    Which files a model needs its library knows.
    """
    try:
        from huggingface_hub import constants
    except ImportError:
        return False
    folder = escape(f"models--{repository.partition('@')[0].replace('/', '--')}")
    return any(Path(constants.HF_HUB_CACHE).glob(f"{folder}*/snapshots/*/*"))


def _unreached(endpoint: str) -> str:
    """Return why there is no connection to a server, in a few seconds."""
    server = urlsplit(endpoint)
    address = (server.hostname or "", server.port or 443)
    found: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection(address, _REACH_SECONDS).close()
            found.append("")
        except OSError as error:
            found.append(error.strerror or str(error))

    # In a thread, for asking for its address has a deadline of its own, and a long one.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_REACH_SECONDS)
    why = found[0] if found else f"no answer in {_REACH_SECONDS:.0f} s"
    return why and f"{address[0]} cannot be reached ({why}), and the cache has no such file"


def is_hub_url(text: str) -> bool:
    """Return whether a location is on the hub."""
    return text.startswith("hf://")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubUrl:
    """A path in a data set's repository, at a revision."""

    repository: str  # "user/name"
    revision: str  # a branch, a tag or a commit
    path: str

    def __str__(self) -> str:
        return f"hf://datasets/{self.repository}@{self.revision}/{self.path}"

    @staticmethod
    def parse(text: str) -> HubUrl:
        """Read a URL; raises ``ConfigError`` for one that is none."""
        found = _URL.fullmatch(text.rstrip("/"))
        if found is None:
            raise ConfigError(
                f"{text}: write hf://datasets/USER/NAME/PATH, or USER/NAME@REVISION with a branch, "
                "a tag or a commit; other repositories than data sets hold no stores"
            )
        path = check_path(found[3], text)
        return HubUrl(repository=found[1], revision=found[2] or "main", path=path)


class HubFolder(Folder):
    """A directory, or one file, of a data set on the hub, to read alone."""

    def __init__(self, url: HubUrl) -> None:
        super().__init__(str(url))
        self._url = url
        self._unreached: str | None = None  # why the hub is not, once that is known

    def pin(self) -> None:
        """Resolve the revision to a commit, which the folder keeps from then on."""
        if _COMMIT.fullmatch(self._url.revision):
            return
        self._require_reached("")
        with self._errors_named(""):
            found = (
                _hub()
                .HfApi()
                .dataset_info(
                    self._url.repository, revision=self._url.revision, timeout=_ANSWER_SECONDS
                )
            )
        commit = str(found.sha)  # which names directories of the cache
        if not _COMMIT.fullmatch(commit):
            raise PipelineError(f"{self.name}: the hub calls its commit {commit!r}; run again")
        self._url = replace(self._url, revision=commit)
        self.name = str(self._url)

    def is_a_file(self) -> bool:
        """Return whether a file has the folder's own name: a store in one file."""
        return self._url.path.endswith(".parquet") and self._has_file("")

    def read_bytes(self, path: str, at_most: int = MAX_FILE_BYTES) -> bytes:
        """Return a file's bytes; see ``Folder``."""
        file = self._fetched(path)
        check_size(self.at(path), file.stat().st_size, at_most)
        return file.read_bytes()

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """Return a part of a file, which is fetched whole; see ``Folder``."""
        fetched = self._fetched(path)
        left = fetched.stat().st_size - offset
        with fetched.open("rb") as file:
            file.seek(offset)
            return file.read(max(0, min(size, left)))  # Python gives memory for all it is asked

    def size(self, path: str) -> int:
        """Return a file's bytes; see ``Folder``."""
        return self._fetched(path).stat().st_size

    def exists(self, path: str = "") -> bool:
        """Return whether this file exists; without a path, whether anything is there."""
        return self._has_file(path) or (not path and bool(self.list()))

    def _has_file(self, path: str) -> bool:
        try:
            self._fetched(path)
        except FileNotFoundError:
            return False
        return True

    def sizes(self, prefix: str = "") -> Mapping[str, int]:
        """Return the paths that begin with ``prefix``, with their bytes; see ``Folder``."""
        self.pin()
        self._require_reached(prefix)
        above = self._path(prefix.rpartition("/")[0])
        try:
            with self._errors_named(above):
                entries = (
                    _hub()
                    .HfApi()
                    .list_repo_tree(
                        self._url.repository,
                        above,
                        recursive=True,
                        revision=self._url.revision,
                        repo_type=_KIND,
                    )
                )
                files = {one.path: int(one.size) for one in entries if hasattr(one, "size")}
        except FileNotFoundError:
            return {}
        start = len(self._url.path) + 1
        return {
            path[start:]: size
            for path, size in files.items()
            if path.startswith(f"{self._url.path}/{prefix}") and "/." not in f"/{path[start:]}"
        }

    def commit_new(self, path: str, data: bytes) -> bool:
        """Raise ``PipelineError``: stores on the hub are only read."""
        self.require_writable()

    def write_file(self, path: str) -> NoReturn:
        """Raise ``PipelineError``: stores on the hub are only read."""
        self.require_writable()

    def replace(self, path: str, data: bytes) -> None:
        """Raise ``PipelineError``: stores on the hub are only read."""
        self.require_writable()

    def require_writable(self) -> NoReturn:
        """Raise ``PipelineError``: stores on the hub are only read."""
        raise PipelineError(
            f"{self}: a store on the hub is only read; write to a path, and publish that with "
            f"hf upload {self._url.repository} STORE"
        )

    def _path(self, path: str) -> str:
        return f"{self._url.path}/{check_path(path, self.name)}" if path else self._url.path

    def _fetched(self, path: str) -> Path:
        """Fetch a file into the hub's cache and return where it is."""
        self.pin()
        with self._errors_named(path):
            found = _hub().hf_hub_download(
                self._url.repository,
                self._path(path),
                repo_type=_KIND,
                revision=self._url.revision,
                local_files_only=bool(self._why_unreached()),
                tqdm_class=partial(tqdm, disable=True),  # a store is many small files
            )
        file = Path(found)
        if file.is_dir():  # the cache has files below it, and the hub was not asked
            raise FileNotFoundError(f"{self.at(path)}: no such file")
        return file

    def _why_unreached(self) -> str:
        """Return why the hub cannot be reached, which is found out once."""
        if self._unreached is None:
            self._unreached = why_unreached()
        return self._unreached

    def _require_reached(self, path: str) -> None:
        if self._why_unreached():
            raise self._not_here(self.at(path) if path else self.name)

    @staticmethod
    def _not_here(name: str) -> PipelineError:
        return PipelineError(
            f"{name} is not in the hub's cache, and the hub cannot be reached; connect (and "
            "unset HF_HUB_OFFLINE), or give the commit that the cache has: USER/NAME@COMMIT"
        )

    @contextmanager
    def _errors_named(self, path: str) -> Iterator[None]:
        """Turn the hub's refusals into errors that name URL and cure."""
        errors, name = _hub().errors, self.at(path) if path else self.name
        others: tuple[type[Exception], ...] = (*_refusals(), ValueError)
        try:
            yield
        except errors.RevisionNotFoundError:
            raise PipelineError(
                f"{name}: the data set has no revision {self._url.revision}; check its branches, "
                "tags and commits"
            ) from None
        except (errors.RepositoryNotFoundError, errors.GatedRepoError):
            raise PipelineError(
                f"{name}: there is no such data set, or it is private or gated; check the name, "
                "and log in (hf auth login) if you may read it"
            ) from None
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
            raise self._not_here(name) from None
        except errors.EntryNotFoundError:
            raise FileNotFoundError(f"{name}: no such file") from None
        except others as error:
            raise PipelineError(
                f"{name}: the hub cannot be reached or answers with an error "
                f"({type(error).__name__}); check the network and run again"
            ) from None


def _hub() -> Any:
    require_package("huggingface_hub", "hub", "a store on the hub")
    import huggingface_hub
    import huggingface_hub.errors

    return huggingface_hub
