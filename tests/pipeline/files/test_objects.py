from __future__ import annotations

import base64
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from pipeline.errors import ConfigError, PipelineError
from pipeline.files import objects
from pipeline.files.local import open_folder
from pipeline.files.objects import ObjectFolder, ObjectUrl, StoredObject, find_objects
from tests.object_storage import KEY, SECRET, Request, S3Server


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let later tests without object storage fork, as runs without it do."""
    monkeypatch.setattr(objects, "_started_in", None)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("s3://bucket/a/b.tar", ("s3", "bucket", "a/b.tar")),
        ("gs://bucket/labels.parquet/", ("gs", "bucket", "labels.parquet")),
        ("az://container", ("az", "container", "")),
        ("s3://bucket/train-?.tar", ("s3", "bucket", "train-?.tar")),
        ("s3://bucket/shard=0/x y+é.tar", ("s3", "bucket", "shard=0/x y+é.tar")),
    ],
)
def test_a_url_is_a_scheme_a_bucket_and_a_key(text: str, parts: tuple[str, str, str]) -> None:
    url = ObjectUrl.parse(text)
    assert (url.scheme, url.bucket, url.key) == parts
    assert str(url) == text.rstrip("/")


@pytest.mark.parametrize(
    "text",
    [
        f"s3://user:{SECRET}@bucket/key",
        f"s3://bucket/key?X-Amz-Credential={SECRET}",
        f"gs://bucket/key?X-Goog-Signature={SECRET}",
        f"az://container/key?sv=2020&sig={SECRET}",
        f"https://user:{SECRET}@host/key",
    ],
)
def test_a_url_with_credentials_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError, match="credentials or a signed query") as caught:
        open_folder(text)
    assert SECRET not in str(caught.value)
    assert "bucket/key" not in str(caught.value)


@pytest.mark.parametrize("text", ["s3://", "s3:///key", "s3://b//a", "s3://b/../a", "s3://b/./a"])
def test_a_malformed_url_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write s3://BUCKET/KEY"):
        ObjectUrl.parse(text)


@pytest.mark.parametrize("text", ["https://host/x", "s4://bucket/x", "file:///x"])
def test_an_unknown_scheme_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="use s3://, gs://, az:// or a path"):
        open_folder(text)


def test_local_places_do_not_load_obstore() -> None:
    code = (
        "import sys\nfrom pipeline.store import find_parts\nfrom pipeline.files.local import *\n"
        "find_parts('nowhere.parquet')\nopen_folder('s3://bucket/x')\n"
        "assert 'obstore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


_BUILD = (
    "import sys\nfrom pipeline.files.objects import ObjectUrl, _client\n"
    "print(type(_client(ObjectUrl.parse(sys.argv[1]))).__name__)"
)


@pytest.mark.parametrize(
    ("url", "environment", "client"),
    [
        ("s3://bucket/x", {"AWS_REGION": "eu-north-1"}, "S3Store"),
        ("s3://bucket/x", {"AWS_ENDPOINT_URL": "HERE"}, "S3Store"),
        ("az://container/x", {"AZURE_STORAGE_ACCOUNT_NAME": "name"}, "AzureStore"),
        ("gs://bucket/x", {}, "GCSStore"),
    ],
)
def test_building_a_client_asks_the_network_nothing(
    url: str, environment: dict[str, str], client: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = f"http://127.0.0.1:{listener.getsockname()[1]}"
        proxies = {"HTTP_PROXY": here, "HTTPS_PROXY": here, "AWS_METADATA_ENDPOINT": here}
        given = {name: value.replace("HERE", here) for name, value in environment.items()}
        done = subprocess.run(
            [sys.executable, "-c", _BUILD, url],
            env={**_clean_environment(), **proxies, **given},
            capture_output=True,
            text=True,
            timeout=20,
        )
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert done.stdout.strip() == client, done.stderr


def test_an_azure_account_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigError, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        open_folder("az://container/x").list()


def _clean_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "GOOGLE_", "AZURE_"))
    }


def test_a_missing_region_is_an_error_unless_the_endpoint_is_given(
    monkeypatch: pytest.MonkeyPatch, s3: S3Server
) -> None:
    bucket = s3.make_bucket()
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    assert open_folder(bucket).list() == []
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(ConfigError, match="set AWS_REGION to the bucket's region"):
        open_folder(bucket).list()


def test_credentials_in_the_endpoint_are_refused(
    monkeypatch: pytest.MonkeyPatch, s3: S3Server
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:1")
    with pytest.raises(ConfigError, match="without credentials") as caught:
        open_folder("s3://bucket/x").list()
    assert SECRET not in str(caught.value)


def test_no_credentials_at_all_is_said_so(monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match="no credentials were found; set AWS_ACCESS_KEY_ID"):
        open_folder(s3.make_bucket()).list()


def test_a_profile_gives_credentials_and_region(
    monkeypatch: pytest.MonkeyPatch, s3: S3Server, tmp_path: Path
) -> None:
    bucket = s3.make_bucket()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        f"[mine]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    )
    (tmp_path / "config").write_text("[profile mine]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    folder = open_folder(bucket)
    folder.replace("a", b"x")
    assert folder.read_bytes("a") == b"x"
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigError, match="AWS_PROFILE is nobody, which gives no credentials"):
        folder.read_bytes("a")


READS: list[Callable[[str], object]] = [
    lambda url: open_folder(url).read_bytes("a"),
    lambda url: open_folder(url).list(),
    lambda url: open_folder(url).commit_new("a", b"x"),
    lambda url: open_folder(url).replace("a", b"x"),
]


@pytest.mark.parametrize("act", READS)
def test_a_missing_bucket_is_named(s3: S3Server, act: Callable[[str], object]) -> None:
    with pytest.raises(PipelineError, match=r"s3://not-there/x.*there is no bucket s3://not-there"):
        act("s3://not-there/x")


@pytest.mark.parametrize("act", READS)
def test_refused_access_is_named_without_what_the_server_says(
    s3: S3Server, act: Callable[[str], object]
) -> None:
    url = s3.make_bucket() + "/x"
    s3.fault = lambda _: "403"
    with pytest.raises(PipelineError, match=r"bucket-\d+/x.*access was refused") as caught:
        act(url)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("act", READS)
def test_a_server_that_fails_for_a_while_is_asked_again(
    s3: S3Server, act: Callable[[str], object]
) -> None:
    url = s3.make_bucket() + "/x"
    s3.put(url + "/a", b"y")
    failures = iter([True, True])
    s3.fault = lambda _: "503" if next(failures, False) else None
    act(url)
    assert next(failures, None) is None


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("expired", "no longer valid|have not expired"),
        ("region", "another region"),
        ("signed for another region", "another region|check AWS_REGION"),
    ],
)
@pytest.mark.parametrize("act", [*READS, lambda url: open_folder(url).size("a")])
def test_an_old_token_and_another_region_are_told_apart(
    s3: S3Server, act: Callable[[str], object], fault: str, words: str
) -> None:
    url = s3.make_bucket() + "/x"
    s3.put(url + "/a", b"y")
    s3.fault = lambda _: fault
    with pytest.raises(PipelineError, match=words) as caught:
        act(url)
    assert KEY not in str(caught.value)


BROKEN: list[Callable[[str], object]] = [
    lambda url: open_folder(url).list(),
    lambda url: open_folder(url).read_bytes("a"),
    lambda url: open_folder(url).read_range("a", 0, 4),
    lambda url: open_folder(url).exists(),
]


@pytest.mark.parametrize("act", BROKEN)
def test_an_answer_that_breaks_off_is_asked_for_again(
    s3: S3Server, act: Callable[[str], object]
) -> None:
    url = s3.make_bucket() + "/x"
    s3.put(url + "/a", b"some bytes")
    whole = act(url)
    failures = iter([True, True])
    s3.fault = lambda _: "torn" if next(failures, False) else None
    assert act(url) == whole
    assert next(failures, None) is None
    s3.fault = lambda _: "torn"
    with pytest.raises(PipelineError, match="cannot be reached or answers with errors"):
        act(url)


@pytest.mark.parametrize("act", READS)
def test_a_server_that_fails_for_ever_is_given_up(
    s3: S3Server, act: Callable[[str], object]
) -> None:
    url = s3.make_bucket() + "/x"
    s3.requests.clear()
    s3.fault = lambda _: "503"
    with pytest.raises(PipelineError, match=r"bucket-\d+/x.*answers with errors .*check the net"):
        act(url)
    assert len(s3.requests) == 4  # AWS_MAX_ATTEMPTS


@pytest.mark.parametrize("act", READS)
def test_a_server_that_is_gone_is_given_up_within_seconds(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, act: Callable[[str], object]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    started = time.monotonic()
    with pytest.raises(PipelineError, match=r"s3://bucket/x.*cannot be reached"):
        act("s3://bucket/x")
    assert time.monotonic() - started < 10


def test_plain_http_is_refused_but_for_an_s3_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "name")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"key").decode())
        monkeypatch.setenv(
            "AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}"
        )
        with pytest.raises(PipelineError, match="az://container/x: the storage cannot be reached"):
            open_folder("az://container/x").list()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_commit_is_one_conditional_put(s3: S3Server) -> None:
    folder = open_folder(s3.make_bucket() + "/x")
    s3.requests.clear()
    assert folder.commit_new("a", b"first")
    assert s3.requests == [
        Request(method="PUT", path=s3.requests[0].path, if_none_match="*", range=None)
    ]
    assert not folder.commit_new("a", b"second")
    folder.replace("a", b"third")
    assert [one.if_none_match for one in s3.requests if one.method == "PUT"] == ["*", "*", None]
    assert folder.read_bytes("a") == b"third"


LARGE = 12 << 20  # bytes; more than one part of an upload


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize(
    ("method", "faults"),
    [
        *(("PUT", ["503"]), ("PUT", ["lost"]), ("GET", ["torn"]), ("GET", ["503"])),
        ("POST", ["lost"]),  # the request that begins an upload in parts
        ("POST", ["", "lost"]),  # the one that ends it
        ("POST", ["", "lost", "no upload"]),  # storage that has forgotten it then
    ],
)
def test_files_are_sent_and_fetched_whole_whatever_answers_are_lost(
    s3: S3Server, tmp_path: Path, size: int, method: str, faults: list[str]
) -> None:
    folder = open_folder(s3.make_bucket())
    assert isinstance(folder, ObjectFolder)
    data = os.urandom(size)
    (tmp_path / "sent").write_bytes(data)
    folder.replace("a", b"old")
    asked: list[str] = []

    def once(request: Request) -> str | None:
        if request.method != method:
            return None
        asked.append(request.path)
        count = asked.count(request.path)
        return faults[count - 1] or None if count <= len(faults) else None

    s3.fault = once
    folder.send("a", tmp_path / "sent", lambda: None)
    with folder.write_file("b") as file:
        file.write(data)
    for name in "ab":
        folder.fetch(name, tmp_path / f"fetched-{name}")
        assert (tmp_path / f"fetched-{name}").read_bytes() == data
    folder.copy("a", "c")
    assert folder.read_bytes("c") == data
    s3.fault = None
    assert sorted(folder.sizes()) == ["a", "b", "c"]
    with pytest.raises(FileNotFoundError, match="no such object"):
        folder.fetch("none", tmp_path / "none")


@pytest.mark.parametrize("first", [None, b"old"])
def test_a_file_replaces_only_what_was_there_before_its_sender_was_allowed(
    s3: S3Server, tmp_path: Path, first: bytes | None
) -> None:
    folder = open_folder(s3.make_bucket())
    assert isinstance(folder, ObjectFolder)
    (tmp_path / "mine").write_bytes(b"mine")
    if first is not None:
        folder.replace("a", first)
    asked = []

    def allow_once() -> None:
        if asked:
            raise ConfigError("another owner")
        asked.append(1)
        folder.replace("a", b"theirs")

    with pytest.raises(ConfigError, match="another owner"):
        folder.send("a", tmp_path / "mine", allow_once)
    assert folder.read_bytes("a") == b"theirs"
    with pytest.raises(PipelineError, match=r"5 writes failed, .* others write there"):
        folder.send("a", tmp_path / "mine", lambda: folder.replace("a", os.urandom(8)))
    assert folder.read_bytes("a") != b"mine"


@pytest.mark.parametrize(("slowest", "requests"), [(1 << 20, 2), (2, 1)])
def test_a_file_has_the_time_that_its_bytes_may_take_and_is_sent_again(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slowest: int, requests: int
) -> None:
    """obstore does not repeat a write with a condition that has no answer in time."""
    monkeypatch.setattr(objects, "_READ_SECONDS", 1)
    monkeypatch.setattr(objects, "_SLOWEST", slowest)
    folder = open_folder(s3.make_bucket())
    assert isinstance(folder, ObjectFolder)
    (tmp_path / "mine").write_bytes(b"a few bytes")
    slow = iter(["slow"])
    s3.fault = lambda one: next(slow, None) if one.method == "PUT" else None
    folder.send("a", tmp_path / "mine", lambda: None)
    assert s3.asked("PUT", "/a") == requests
    assert folder.read_bytes("a") == b"a few bytes"
    monkeypatch.setattr(objects, "_MOST", 3)
    with pytest.raises(PipelineError, match="would have 11 bytes, and storage takes 3 at most"):
        folder.send("a", tmp_path / "mine", lambda: None)


def test_globs_and_names_are_looked_at_together(s3: S3Server) -> None:
    bucket = s3.make_bucket()
    for name in ("t/a-1.tar", "t/a-2.tar", "t/b-1.tar", "t/sub/a-3.tar", "a-4.tar"):
        s3.put(f"{bucket}/{name}", name.encode())
    urls = [f"{bucket}/{key}" for key in ("t/a-*.tar", "t/?-1.tar", "t/b-1.tar", "t/none.tar")]
    found = find_objects([ObjectUrl.parse(url) for url in urls])
    keys = [[one.url.key for one in many] for many in found]
    assert keys == [
        ["t/a-1.tar", "t/a-2.tar"],
        ["t/a-1.tar", "t/b-1.tar"],
        ["t/b-1.tar"],
        [],
    ]
    assert found[0][0].size == len("t/a-1.tar")


def test_a_stream_gives_the_object_that_was_looked_at_or_an_error(s3: S3Server) -> None:
    url = f"{s3.make_bucket()}/a"
    s3.put(url, bytes(range(256)) * 5000)
    stored = StoredObject.look(ObjectUrl.parse(url))
    assert stored is not None
    assert b"".join(stored.stream(chunk_bytes=1 << 18)) == bytes(range(256)) * 5000
    s3.put(url, bytes(256 * 5000))
    with pytest.raises(PipelineError, match="replaced by another object while this run"):
        list(stored.stream())
    bucket, _, key = url.removeprefix("s3://").partition("/")
    s3.client().delete_object(Bucket=bucket, Key=key)
    with pytest.raises(PipelineError, match="was there when this run began and is gone"):
        list(stored.stream())


def test_a_fork_of_a_process_that_used_storage_is_refused_and_does_not_hang(s3: S3Server) -> None:
    url = s3.make_bucket()
    assert open_folder(url).list() == []
    assert objects.started_here()
    child = os.fork()
    if child == 0:
        try:
            open_folder(url).list()
        except RuntimeError as error:
            os._exit(0 if "spawn it" in str(error) and not objects.started_here() else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_secrets_are_in_no_log(s3: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        folder = open_folder(s3.make_bucket())
        folder.replace("a", b"x")
        s3.fault = lambda _: "503"
        with pytest.raises(PipelineError) as caught:
            folder.read_bytes("a")
    for text in (caplog.text, str(caught.value), repr(folder.__dict__)):
        assert SECRET not in text


@pytest.fixture
def many(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Objects of a store with 130 shards, and foreign ones whose names are near to theirs."""
    monkeypatch.setattr(objects, "_AT_ONCE", 10)
    url = f"{s3.make_bucket()}/s.parquet"
    names = ["_manifest.json", "a", "shard=1", "shard=10", "shard=45x", "shard=9/z", "zzz"]
    names += [f"shard={number}/view-00000-00003.parquet" for number in range(130)]
    for name in names:
        s3.put(f"{url}/{name}", b"x" * len(name))
    s3.put(f"{url}-2/shard=5", b"of another store")
    return url


def test_objects_that_are_listed_in_ranges_are_all_there_once_and_in_order(
    s3: S3Server, many: str
) -> None:
    s3.requests.clear()
    keys = [one.url.key for one in StoredObject.list(ObjectUrl.parse(many))]
    assert keys == sorted(f"s.parquet/{name}" for name in s3.objects(many))
    assert len(keys) == 137
    assert sum(one.method == "GET" and one.path.count("/") < 3 for one in s3.requests) > 50
    assert open_folder(many).sizes() == {path: len(data) for path, data in s3.objects(many).items()}


def test_a_storage_that_does_not_list_by_key_is_listed_at_once(
    many: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted_pages = objects._pages

    def pages(url: ObjectUrl, after: str = "") -> Iterator[list[StoredObject]]:
        return reversed([page[::-1] for page in sorted_pages(url)])

    monkeypatch.setattr(objects, "_pages", pages)
    assert len(StoredObject.list(ObjectUrl.parse(many))) == 137


class _Azure(BaseHTTPRequestHandler):
    """Lists blobs as Azure does, where ``way`` is "from" a name on."""

    names: ClassVar[list[str]]
    way: ClassVar[str]
    asked: ClassVar[list[tuple[str, str]]]  # from which name on, and which marker

    def do_GET(self) -> None:
        query = {name: one[0] for name, one in parse_qs(urlsplit(self.path).query).items()}
        start, marker = query.get("startFrom", ""), query.get("marker", "")
        self.asked.append((start, marker))
        found = [one for one in self.names if one.startswith(query.get("prefix", ""))]
        if start and self.way == "nothing":
            found = []
        elif self.way == "from":
            found = [one for one in found if one >= start]
        found = [one for one in found if one >= marker]
        blobs = "".join(
            f"<Blob><Name>{one}</Name><Properties><Content-Length>{len(one)}</Content-Length>"
            "<Last-Modified>Mon, 30 Nov 2026 00:00:00 GMT</Last-Modified><Etag>e</Etag>"
            "<Content-Type>x</Content-Type>"
            "</Properties></Blob>"
            for one in found[:10]
        )
        more = f"<NextMarker>{found[10]}</NextMarker>" if found[10:] else "<NextMarker />"
        body = f"<EnumerationResults><Blobs>{blobs}</Blobs>{more}</EnumerationResults>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def azure(monkeypatch: pytest.MonkeyPatch, handler: type[BaseHTTPRequestHandler]) -> Iterator[None]:
    """Have ``az://`` mean a server here, which plain HTTP is allowed to."""
    options = objects._options
    monkeypatch.setattr(objects, "_options", lambda seconds, **_: options(seconds, allow_http=True))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "name")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"key").decode())
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


@pytest.mark.parametrize("way", ["from", "all", "nothing"])
def test_azure_is_listed_in_ranges_where_it_lists_from_a_name_on(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    names = sorted(f"s.parquet/shard={n}/view-00000-00003.parquet" for n in range(130))
    _Azure.names, _Azure.way, _Azure.asked = names, way, []
    monkeypatch.setattr(objects, "_AT_ONCE", 10)
    with azure(monkeypatch, _Azure):
        keys = [one.url.key for one in StoredObject.list(ObjectUrl.parse("az://c/s.parquet"))]
    assert keys == names
    assert len({start for start, _ in _Azure.asked}) > 16  # in each case it was tried
    assert _Azure.asked.count(("", "")) == (1 if way == "from" else 2)


def test_a_range_whose_list_breaks_off_is_asked_for_again(s3: S3Server, many: str) -> None:
    faults = iter(["torn", None, None, "torn", None, "503"])
    s3.fault = lambda _: next(faults, None)
    assert len(StoredObject.list(ObjectUrl.parse(many))) == 137


@pytest.mark.parametrize("name", ["_meta/../../x", "./x", "a//b", "\x1b[31m"])
def test_an_object_whose_name_is_no_path_is_named_where_it_is_listed(
    s3: S3Server, name: str
) -> None:
    """Whoever may write to a bucket may put such there, and the storage is not to blame."""
    folder = open_folder(f"{s3.make_bucket()}/s.parquet")
    s3.put(f"{folder}/{name}", b"{}")
    with pytest.raises(PipelineError, match="has a name that is no path of a file") as error:
        folder.list()
    assert repr(name)[1:-1].split("/")[-1] in str(error.value)
    assert str(error.value).isprintable()


class _NoContainer(BaseHTTPRequestHandler):
    """Answers as Azure does where there is no such container."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b"<Error><Code>ContainerNotFound</Code><Message>no such container</Message></Error>"
        self.send_response(404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        return


@pytest.mark.parametrize("act", READS)
def test_a_missing_container_is_named_by_what_azure_has(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[str], object]
) -> None:
    words = "there is no bucket az://c; check the name, AZURE_STORAGE_ACCOUNT_NAME, or make"
    with azure(monkeypatch, _NoContainer), pytest.raises(PipelineError, match=words):
        act("az://c/x")
