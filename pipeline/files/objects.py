"""Object storage: ``s3://``, ``gs://`` and ``az://`` through obstore, which loads when needed.

Credentials come from the environment, an AWS profile or the machine's role, and from
nowhere else; URLs that carry some are refused. No message repeats what a server answered
beyond its error code, since answers may quote parts of a request.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from pipeline.errors import ConfigError, PipelineError, require_package
from pipeline.files.folder import MAX_FILE_BYTES, Folder, UnlistableError, check_path, check_size

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ClientConfig, RetryConfig

__all__ = [
    "ObjectFolder",
    "ObjectUrl",
    "StoredObject",
    "find_objects",
    "is_url",
    "started_here",
]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_SCHEMES = ("s3", "gs", "az")
_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://(.*)$", re.DOTALL)
_QUERY = re.compile(r"\?[^/]*=")  # a glob's question mark is not followed by name=value
_CODE = re.compile(r"<Code>(\w+)</Code>")
_WRONG_REGION = frozenset(
    {"AuthorizationHeaderMalformed", "IncorrectEndpoint", "PermanentRedirect", "TemporaryRedirect"}
)
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})
_WHERE = {  # what says where a bucket is, for messages
    "s3": "AWS_REGION and AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME",
}
_EXPIRED = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidToken",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "TokenRefreshRequired",
    }
)
_STATUS = re.compile(r"status code: (\d{3})")

_ATTEMPTS = 7  # of a request, as AWS_MAX_ATTEMPTS says
_RETRY_SECONDS = 60.0
_READ_SECONDS = 30  # without an answer
_SLOWEST = 4 << 20  # bytes that a write in one request is given a second for
_MOST = 5 << 30  # bytes of such a write: S3 takes no more
_ANSWERS = 3  # of which all but the last may break off
_CONFLICTS = 5  # S3 answers 409 while another writer of the same object is at work

_LOOKS = 16  # at a time
_AT_ONCE = 2000  # objects, after which a list is continued in ranges of keys, many at a time

_started_in: int | None = None  # the process whose threads talk to the storage


def is_url(text: str) -> bool:
    """Return whether a location is written as a URL, not as a path."""
    return _URL.match(text) is not None


def started_here() -> bool:
    """Return whether this process has used object storage; its forks then cannot."""
    return _started_in == os.getpid()


@dataclass(frozen=True, slots=True)
class ObjectUrl:
    """A bucket, or container, and a key in it."""

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    @staticmethod
    def parse(text: str) -> ObjectUrl:
        """Read a URL; raises ``ConfigError`` for one that is none, or carries credentials."""
        match = _URL.match(text)
        scheme, rest = (match[1], match[2]) if match else ("", "")
        bucket, _, key = rest.partition("/")
        if "@" in bucket or _QUERY.search(rest):
            raise ConfigError(
                f"a {scheme}:// URL carries credentials or a signed query; give scheme, bucket "
                "and key alone, and put credentials into the environment (AWS_ACCESS_KEY_ID ...), "
                "a profile or the machine's role"
            )
        if scheme not in _SCHEMES:
            raise ConfigError(
                f"{text}: the scheme {scheme}:// is unknown; use s3://, gs://, az:// or a path"
            )
        key = key.rstrip("/")
        if not bucket or (key and any(name in ("", ".", "..") for name in key.split("/"))):
            raise ConfigError(
                f"{text}: write {scheme}://BUCKET/KEY, without empty names, '.' and '..'"
            )
        return ObjectUrl(scheme, bucket, key)

    def child(self, path: str) -> ObjectUrl:
        """Return the URL of a path below this one; raises ``PipelineError`` if it is not below."""
        check_path(path, str(self))
        return ObjectUrl(self.scheme, self.bucket, f"{self.key}/{path}" if self.key else path)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object as it was when it was looked at."""

    url: ObjectUrl
    size: int  # in bytes
    etag: str  # changes with the contents
    version: str | None  # a number that Google has beside it

    @staticmethod
    def look(url: ObjectUrl) -> StoredObject | None:
        """Ask for an object's size and ETag; return None if it does not exist."""
        with _errors_named(url):
            import obstore

            try:
                return _stored(url, obstore.head(_client(url), url.key))
            except FileNotFoundError:
                return None

    @staticmethod
    def list(url: ObjectUrl) -> Iterable[StoredObject]:
        """List all objects below a URL, by key."""
        first = _asked_again(lambda: _listed(url, most=_AT_ONCE))
        in_order = sorted(first, key=_key_of)
        if len(first) < _AT_ONCE:
            return in_order
        rest = _list_ranges(url, *map(_key_of, first[-2:])) if in_order == first else None
        if rest is None:  # the storage does not list by key, or not from a key on
            return sorted(_asked_again(lambda: _listed(url)), key=_key_of)
        return [*first, *rest]

    def stream(self, chunk_bytes: int = 8 << 20) -> Iterator[bytes]:
        """Yield the object's bytes in chunks; raises ``PipelineError`` if it was changed."""
        with _errors_named(self.url):
            import obstore
            from obstore.exceptions import PreconditionError

            weak = self.etag.startswith("W/") or not self.etag.startswith('"')
            try:
                result = obstore.get(
                    _client(self.url), self.url.key, options={} if weak else {"if_match": self.etag}
                )
                yield from map(bytes, result.stream(min_chunk_size=chunk_bytes))
            except FileNotFoundError:
                raise PipelineError(
                    f"{self.url} was there when this run began and is gone; put it back"
                ) from None
            except PreconditionError:
                raise PipelineError(
                    f"{self.url} was replaced by another object while this run was at work; put "
                    "the old one back, or run again"
                ) from None


def _asked_again(ask: Callable[[], T]) -> T:
    """Return what ``ask`` gives, which may be asked again if the answer breaks off.

    obstore itself repeats requests that fail, but not those whose answers break off.
    """
    for _ in range(_ANSWERS - 1):
        try:
            return ask()
        except _BrokenAnswerError as error:
            _log.info("%s; asking again", error)
    return ask()


def _key_of(one: StoredObject) -> str:
    return one.url.key


def _listed(url: ObjectUrl, after: str = "", most: float = math.inf) -> list[StoredObject]:
    """Return the objects below a URL in the storage's order, or those with keys behind ``after``.

    Ends with the page that has the last of ``most``.
    """
    found: list[StoredObject] = []
    for page in _pages(url, after):
        found += page
        if len(found) >= most:
            break
    return found


class _UnsortedError(Exception):
    """The storage does not list by key."""


def _list_ranges(url: ObjectUrl, before: str, after: str) -> list[StoredObject] | None:
    """Return the objects behind a key, listed in ranges at a time; None if that cannot be.

    The ranges are good for a store's parts: those of shards 10 and 100 to 109 are in one.
    """
    names = [f"{url.key}/shard={number}".lstrip("/") for number in range(10, 100)]
    # The first range begins before the last key that is known: OneLake has listed nothing from a
    # key on, and said that it was all.
    cuts = [before, *(name for name in names if name > after)]

    def read(start: str, end: str | None) -> list[StoredObject]:
        found: list[StoredObject] = []
        last = start
        for page in _pages(url, start):
            for one in page:
                if one.url.key <= last:
                    raise _UnsortedError
                if end is not None and one.url.key > end:
                    return found
                last = one.url.key
                found.append(one)
        return found

    def read_again(start: str, end: str | None) -> list[StoredObject]:
        return _asked_again(lambda: read(start, end))

    try:
        with ThreadPoolExecutor(_LOOKS) as pool:
            ranges = pool.map(read_again, cuts, [*cuts[1:], None])
            found = [one for many in ranges for one in many]
    except _UnsortedError:
        return None
    return found[1:] if found and found[0].url.key == after else None


def _pages(url: ObjectUrl, after: str = "") -> Iterator[list[StoredObject]]:
    """Yield the objects below a URL in the storage's order, a page for each request."""
    with _errors_named(url):
        import obstore

        for page in obstore.list(_client(url), url.key or None, offset=after or None):
            yield [
                _stored(ObjectUrl(url.scheme, url.bucket, str(meta["path"])), meta) for meta in page
            ]


def _stored(url: ObjectUrl, meta: Mapping[str, Any]) -> StoredObject:
    etag = meta.get("e_tag") or meta["last_modified"].isoformat()
    return StoredObject(
        url=url, size=int(meta["size"]), etag=str(etag), version=meta.get("version")
    )


def find_objects(urls: Sequence[ObjectUrl]) -> list[list[StoredObject]]:
    """Return the object that each URL names, or those that it matches if it is a glob.

    A glob's ``*`` does not cross ``/``; its matches are sorted.
    """
    with ThreadPoolExecutor(_LOOKS) as pool:
        return list(pool.map(_find_object, urls))


def _find_object(url: ObjectUrl) -> list[StoredObject]:
    if not any(mark in url.key for mark in "*?["):
        found = StoredObject.look(url)
        return [] if found is None else [found]
    names = url.key.split("/")
    plain = list(itertools.takewhile(lambda name: not any(m in name for m in "*?["), names))
    above = ObjectUrl(url.scheme, url.bucket, "/".join(plain))
    return [one for one in StoredObject.list(above) if _matches(one.url.key.split("/"), names)]


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


class ObjectFolder(Folder):
    """All objects whose keys begin with a prefix. A commit is one conditional PUT."""

    def __init__(self, url: ObjectUrl) -> None:
        super().__init__(str(url))
        self._url = url

    def read_bytes(self, path: str, at_most: int = MAX_FILE_BYTES) -> bytes:
        """Return an object's bytes; see ``Folder``."""
        url = self._url.child(path)

        def read() -> bytes:
            import obstore

            found = obstore.get(_client(url), url.key)
            check_size(str(url), int(found.meta["size"]), at_most)
            return bytes(found.bytes())

        return _read_object(url, read)

    def is_a_file(self) -> bool:
        """Return whether an object has the folder's own name: a store in one file."""
        try:
            return self._url.key.endswith(".parquet") and StoredObject.look(self._url) is not None
        except _RefusedError:
            return False  # so a bucket that may not be listed answers for what is not there

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """Return a part of an object by one ranged request; see ``Folder``."""
        url = self._url.child(path) if path else self._url
        if size <= 0:
            return b""

        def read() -> bytes:
            import obstore

            # Servers cut a range that ends after the object.
            return bytes(obstore.get_range(_client(url), url.key, start=offset, end=offset + size))

        return _read_object(url, read)

    def size(self, path: str) -> int:
        """Return an object's bytes; see ``Folder``."""
        url = self._url.child(path) if path else self._url
        found = StoredObject.look(url)
        if found is None:
            raise _MissingObjectError(f"{url}: no such object")
        return found.size

    def exists(self, path: str = "") -> bool:
        """Return whether this object exists; see ``Folder``."""
        if path:
            return StoredObject.look(self._url.child(path)) is not None
        return _asked_again(lambda: any(map(len, _pages(self._url)))) or self.is_a_file()

    def sizes(self, prefix: str = "") -> Mapping[str, int]:
        """Return the paths that begin with ``prefix``, with their bytes; see ``Folder``."""
        above = prefix.rpartition("/")[0]
        try:
            found = self._all_sizes(self._url.child(above) if above else self._url)
        except _RefusedError as error:
            raise UnlistableError(str(error)) from None
        return {
            path: size
            for path, size in found.items()
            if path.startswith(prefix) and not _is_hidden(path[len(above) :])
        }

    def _all_sizes(self, url: ObjectUrl) -> dict[str, int]:
        start = len(self._url.key) + 1 if self._url.key else 0
        return {one.url.key[start:]: one.size for one in StoredObject.list(url)}

    def remove(self, path: str) -> None:
        """Remove an object that is there."""
        url = self._url.child(path)
        with _errors_named(url):
            import obstore

            obstore.delete(_client(url), url.key)

    def clear(self, last: str) -> None:
        """Remove all objects, hidden ones too, and ``last`` after all others."""
        for path in sorted(self._all_sizes(self._url), key=lambda path: path == last):
            self.remove(path)

    def commit_new(self, path: str, data: bytes) -> bool:
        """Write a new object with ``If-None-Match: *``; see ``Folder``."""
        url = self._url.child(path)
        with _errors_named(url):
            import obstore
            from obstore.exceptions import AlreadyExistsError

            for attempt in range(_CONFLICTS):
                try:
                    obstore.put(_client(url), url.key, data, mode="create", use_multipart=False)
                    return True
                except AlreadyExistsError:
                    if StoredObject.look(url) is not None:
                        return False
                _log.info("%s: another writer is at work, trying again", url)
                time.sleep(0.1 * 2**attempt)
        raise PipelineError(
            f"{url}: {_CONFLICTS} writes collided with another writer's; run again when the other "
            "job is done"
        )

    @contextmanager
    def write_file(self, path: str) -> Iterator[BinaryIO]:
        """Give a file that is sent when it is whole; see ``Folder``."""
        url = self._url.child(path) if path else self._url
        with tempfile.TemporaryFile() as file:
            yield file
            _send(url, file)

    def send(self, path: str, file: Path, require_owned: Callable[[], None]) -> None:
        """Write a file of this machine over the object that may be there, in one step.

        ``require_owned`` raises if others may write there by now. It is asked after the look at
        what is to be replaced, and nothing else is: a write that was begun by a former owner, and
        comes late, does not land on what a later one wrote.
        """
        url, size = self._url.child(path), file.stat().st_size
        if size > _MOST:
            raise PipelineError(
                f"{url} would have {size:,} bytes, and storage takes {_MOST:,} at most in one "
                "request; write to a file system"
            )
        for attempt in range(_CONFLICTS):
            found = StoredObject.look(url)
            require_owned()
            if _replaced(url, found, file, size):
                return
            _log.info("%s: no answer, or another object was there; trying again", url)
            time.sleep(0.1 * 2**attempt)
        raise PipelineError(
            f"{url}: {_CONFLICTS} writes failed, without an answer or since others write there "
            "too; check the network and run again"
        )

    def fetch(self, path: str, file: Path) -> None:
        """Write an object to a file of this machine; raises ``FileNotFoundError`` for none."""
        url = self._url.child(path)
        found = StoredObject.look(url)
        if found is None:
            raise _MissingObjectError(f"{url}: no such object")
        with file.open("wb") as opened:
            opened.writelines(found.stream())

    def copy(self, path: str, to: str) -> None:
        """Write an object's bytes over another's, in one step and without fetching them."""
        url, other = self._url.child(path), self._url.child(to)
        with _errors_named(url):
            import obstore

            obstore.copy(_client(url), url.key, other.key, overwrite=True)

    def replace(self, path: str, data: bytes) -> None:
        """Write an object over the one that may be there; see ``Folder``."""
        url = self._url.child(path)
        with _errors_named(url):
            import obstore

            obstore.put(_client(url), url.key, data, use_multipart=False)


def _replaced(url: ObjectUrl, found: StoredObject | None, file: Path, size: int) -> bool:
    """Write a file over an object as it was found; return whether it is there now."""
    mode: PutMode = "create"
    if found is not None:
        version = {"version": found.version} if found.version is not None else {}
        mode = cast("PutMode", {"e_tag": found.etag, **version})
    with _errors_named(url):
        import obstore
        from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError

        try:
            obstore.put(_client(url, _READ_SECONDS + size // _SLOWEST), url.key, file, mode=mode)
            return True
        except (AlreadyExistsError, PreconditionError):
            pass
        except GenericError as error:  # which obstore repeats only of writes without a condition
            if _STATUS.search(str(error)):
                raise
    # The answer to the write may have been lost.
    there = StoredObject.look(url)
    if there is None or there.size != size:
        return False
    with file.open("rb") as opened:
        return all(chunk == opened.read(len(chunk)) for chunk in there.stream())


def _send(url: ObjectUrl, file: BinaryIO) -> None:
    """Write an object from a file, in parts if it is large; it is there when all parts are."""
    with _errors_named(url):
        import obstore
        from obstore.exceptions import BaseError

        for last in (*[False] * (_ANSWERS - 1), True):
            file.seek(0)
            try:
                obstore.put(_client(url), url.key, file)
                return
            except (BaseError, FileNotFoundError) as error:
                # The last request of the parts' was asked again after its answer was lost: it was
                # done then, or never will be.
                if last or _code_of(error) != "NoSuchUpload":
                    raise
                _log.info("%s: an answer was lost, sending it again", url)


def _read_object(url: ObjectUrl, read: Callable[[], bytes]) -> bytes:
    """Return an object's bytes; raises ``FileNotFoundError`` if there is none."""

    def named() -> bytes:
        with _errors_named(url):
            try:
                return read()
            except FileNotFoundError as error:
                if _code_of(error) in _NO_BUCKET:
                    raise
                raise _MissingObjectError(f"{url}: no such object") from None

    return _asked_again(named)


class _MissingObjectError(FileNotFoundError):
    """An object that is not there, of a bucket that is."""


class _RefusedError(PipelineError):
    """The storage knows who asks, or not, and refuses."""


class _BrokenAnswerError(PipelineError):
    """The storage's answer ended before its end."""


def _is_hidden(path: str) -> bool:
    return any(name.startswith(".") for name in path.split("/"))


@contextmanager
def _errors_named(url: ObjectUrl) -> Iterator[None]:
    """Turn the network's and the server's refusals into errors that name URL and cure."""
    require_package("obstore", "cloud", f"{url}: object storage")
    from obstore.exceptions import (
        BaseError,
        InvalidPathError,
        PermissionDeniedError,
        UnauthenticatedError,
    )

    try:
        yield
    except _MissingObjectError:
        raise
    except InvalidPathError as error:  # in a listing; what is asked for was checked before
        raise PipelineError(
            f"{url}: an object there has a name that is no path of a file "
            f"({str(error).splitlines()[0]!r:.300}); remove it, or if what is there came from "
            "others, trust none of it and get it anew"
        ) from None
    except (BaseError, FileNotFoundError, ValueError, OSError) as error:
        code, text = _code_of(error), str(error)
        status = found[1] if (found := _STATUS.search(text)) else ""
        told = code or (f"status {status}" if status else "")
        bucket = f"{url.scheme}://{url.bucket}"
        if code in _WRONG_REGION or "without LOCATION" in text:
            raise PipelineError(
                f"{url}: the bucket {bucket} is in another region than the one that was asked "
                f"({told or 'a redirect'}); set AWS_REGION to the bucket's region, and check "
                "AWS_ENDPOINT_URL"
            ) from None
        if code in _EXPIRED:
            raise PipelineError(
                f"{url}: the credentials are no longer valid ({told}); get new ones (aws sso "
                "login, or a new AWS_SESSION_TOKEN), check the clock, and run again: what is "
                "committed stays"
            ) from None
        where = _WHERE[url.scheme]
        if code in _NO_BUCKET or isinstance(error, FileNotFoundError):
            raise PipelineError(
                f"{url}: there is no bucket {bucket}; check the name, {where}, or make the bucket"
            ) from None
        refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        if refused or status in ("401", "403"):  # listings lack the type
            raise _RefusedError(
                f"{url}: access was refused ({told or 'no valid credentials'}); check the "
                "credentials in the environment, profile or role, and that they may list, read "
                f"and write in {bucket}"
            ) from None
        if "redential" in text.split("Debug source")[0] or "169.254." in text:
            raise PipelineError(
                f"{url}: no credentials were found; {_TO_GIVE[url.scheme]}"
            ) from None
        if status == "400":  # the answer to a HEAD has no body that would say why
            raise PipelineError(
                f"{url}: the storage does not take the request ({told}); check {where}, and that "
                "the credentials have not expired"
            ) from None
        kind = _BrokenAnswerError if "body error" in text else PipelineError
        raise kind(
            f"{url}: the storage cannot be reached or answers with errors "
            f"({told or 'no answer'}), also when asked again; check the network and {where}, then "
            "run again: what is committed stays"
        ) from None


def _code_of(error: BaseException) -> str:
    match = _CODE.search(str(error))
    return match[1] if match else ""


def _client(url: ObjectUrl, read_seconds: int = _READ_SECONDS) -> Any:
    """Return this process's client of a bucket; connects to nothing."""
    global _started_in
    if _started_in is not None and _started_in != os.getpid():
        # obstore's threads do not live on in a fork, and it would wait for them for ever.
        raise RuntimeError("object storage was in use when this process was forked: spawn it")
    settings = tuple(
        sorted((name, value) for name, value in os.environ.items() if name.startswith(_PREFIXES))
    )
    client = _make_client(url.scheme, url.bucket, settings, read_seconds)
    _started_in = os.getpid()
    return client


_SOURCES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)
_TO_GIVE = {  # how credentials are given
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or "
    "AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the path of a key file, or use the machine's role",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or a role",
}
_PREFIXES = ("AWS_", "GOOGLE_", "AZURE_")


@lru_cache(maxsize=16)
def _make_client(
    scheme: str, bucket: str, settings: tuple[tuple[str, str], ...], read_seconds: int
) -> Any:
    environment = dict(settings)
    if scheme == "s3":
        return _s3_client(bucket, environment, read_seconds)
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore

    options, retry = _options(read_seconds, allow_http=False), _retry(environment)
    try:
        if scheme == "gs":
            return GCSStore(bucket, client_options=options, retry_config=retry)
        return AzureStore(bucket, client_options=options, retry_config=retry)
    except (BaseError, ValueError):
        raise ConfigError(
            f"{scheme}://{bucket}: the environment's settings are not enough; {_TO_GIVE[scheme]}"
        ) from None


def _s3_client(bucket: str, environment: Mapping[str, str], read_seconds: int) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    endpoint = next(
        (
            environment[name]
            for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
            if environment.get(name)
        ),
        None,
    )
    if endpoint is not None and ("@" in endpoint or not endpoint.startswith(("http://", "https:"))):
        raise ConfigError(
            "AWS_ENDPOINT_URL must be http://HOST[:PORT] or https://HOST[:PORT], without "
            "credentials"
        )
    provider, region = _profile(environment)
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or region
    if region is None and endpoint is None:
        raise ConfigError(
            f"s3://{bucket}: the region is not known; set AWS_REGION to the bucket's region, or "
            "AWS_ENDPOINT_URL to a server of your own"
        )
    no_role = environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
    if provider is None and no_role and not any(environment.get(name) for name in _SOURCES):
        raise ConfigError(f"s3://{bucket}: no credentials were found; {_TO_GIVE['s3']}")
    try:
        return S3Store(
            bucket,
            region=region or "us-east-1",
            conditional_put="etag",
            credential_provider=provider,
            client_options=_options(
                read_seconds, allow_http=(endpoint or "").startswith("http://")
            ),
            retry_config=_retry(environment),
        )
    except (BaseError, ValueError):
        raise ConfigError(
            f"s3://{bucket}: the settings in the environment's AWS_ variables do not fit; unset "
            "those that are not needed, and check the others' spelling"
        ) from None


def _profile(environment: Mapping[str, str]) -> tuple[Any, str | None]:
    """Return the credentials and region of AWS_PROFILE, if it is set and no keys are."""
    profile = environment.get("AWS_PROFILE")
    if not profile or environment.get("AWS_ACCESS_KEY_ID"):
        return None, None
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise ConfigError(
            f"AWS_PROFILE is {profile}, and profiles need boto3: pip install boto3, or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    try:
        session = boto3.Session(profile_name=profile)
        return Boto3CredentialProvider(session), session.region_name
    except (BotoCoreError, ValueError):
        raise ConfigError(
            f"AWS_PROFILE is {profile}, which gives no credentials; check ~/.aws/config and "
            "~/.aws/credentials"
        ) from None


def _options(read_seconds: int, *, allow_http: bool) -> ClientConfig:
    return {
        "allow_http": allow_http,
        "connect_timeout": timedelta(seconds=10),
        "read_timeout": timedelta(seconds=read_seconds),
        "timeout": timedelta(hours=2),  # of a whole shard
    }


def _retry(environment: Mapping[str, str]) -> RetryConfig:
    text = environment.get("AWS_MAX_ATTEMPTS", "")
    attempts = int(text) if text.isdecimal() and int(text) > 0 else _ATTEMPTS
    return {
        "max_retries": attempts - 1,
        "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
        "backoff": {"max_backoff": timedelta(seconds=5)},
    }
