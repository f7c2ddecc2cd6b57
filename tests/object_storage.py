"""A server of the S3 protocol on loopback, which notes all requests and fails when told to."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from pipeline.files import objects

KEY, SECRET = "TESTKEYTESTKEYTESTKE", "a-secret-that-must-never-be-seen-9f2c"
SLOW_SECONDS = 1.5


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # /bucket/key
    if_none_match: str | None
    range: str | None


Fault = Callable[[Request], str | None]
"""What goes wrong with a request: "500" or "503", one of ``_REFUSALS``,
"reset" (the connection is), "slow" (it takes seconds),
"unconditional" (it is done in any case),
"lost" (it is done, and the answer is a 503), "torn" (half of the body comes),
"stall" (nothing after that half), or none."""


_REFUSALS = {
    "403": ("403 Forbidden", b"AccessDenied"),
    "409": ("409 Conflict", b"ConditionalRequestConflict"),
    "no upload": ("404 Not Found", b"NoSuchUpload"),
    "expired": ("400 Bad Request", b"ExpiredToken"),
    "region": ("301 Moved Permanently", b"PermanentRedirect"),
    "signed for another region": ("400 Bad Request", b"AuthorizationHeaderMalformed"),
}


@dataclass
class S3Server:
    """The server's address, what it was asked, and how it is to fail."""

    endpoint: str = ""
    requests: list[Request] = field(default_factory=list)
    fault: Fault | None = None
    _names: Iterator[int] = field(default_factory=itertools.count)

    def make_bucket(self) -> str:
        """Make an empty bucket and return its URL."""
        name = f"bucket-{next(self._names)}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def client(self) -> Any:
        """Return another client than ours, to look at what is there."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def objects(self, url: str) -> dict[str, bytes]:
        """Return all objects below a URL, by their keys from there on."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        client, prefix = self.client(), f"{prefix}/" if prefix else ""
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
        return {
            key.removeprefix(prefix): client.get_object(Bucket=bucket, Key=key)["Body"].read()
            for key in keys
        }

    def put(self, url: str, data: bytes) -> None:
        """Write an object."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        self.client().put_object(Bucket=bucket, Key=key, Body=data)

    def asked(self, method: str, ending: str) -> int:
        """Return how many requests of a method there were for paths that end so."""
        return sum(one.method == method and one.path.endswith(ending) for one in self.requests)

    def __call__(self, app: Any, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        request = Request(
            method=environ["REQUEST_METHOD"],
            path=environ["PATH_INFO"],
            if_none_match=environ.get("HTTP_IF_NONE_MATCH"),
            range=environ.get("HTTP_RANGE"),
        )
        self.requests.append(request)
        fault = self.fault(request) if self.fault is not None else None
        if fault == "reset":
            connection = environ["werkzeug.socket"]
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            raise ConnectionResetError
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        if fault in ("500", "503"):
            start(f"{fault} Slow Down", [("Content-Length", "0")])
            return [b""]
        if fault in _REFUSALS:
            status, code = _REFUSALS[fault]
            body = b"<Error><Code>%s</Code><Message>%s</Message></Error>" % (code, KEY.encode())
            start(status, [("Content-Length", str(len(body)))])
            return [b"" if request.method == "HEAD" else body]
        if fault == "lost":
            b"".join(app(environ, lambda *_: None))
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if fault == "unconditional":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        body_parts = app(environ, start)
        if fault == "stall":
            whole = b"".join(body_parts)
            return itertools.chain([whole[: len(whole) // 2]], self._stall())
        if fault == "torn":
            whole = b"".join(body_parts)
            return [whole[: len(whole) // 2]]
        return body_parts  # type: ignore[no-any-return]

    def _stall(self) -> Iterator[bytes]:
        """Send nothing for as long as the fault lasts."""
        while self.fault is not None:
            time.sleep(0.02)
        yield b""


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """Run one server for the session."""
    with s3_serving() as server:
        yield server


@contextmanager
def s3_serving() -> Iterator[S3Server]:
    """Run a server on a port of its own."""
    server = S3Server()
    app = DomainDispatcherApplication(create_backend_app)

    def serve(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        return server(app, environ, start)

    http = make_server("127.0.0.1", 0, serve, threaded=True, request_handler=_Quiet)
    server.endpoint = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield server
    http.shutdown()
    thread.join()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Give the server to this test, with credentials in the environment."""
    for name, value in storage_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    # Later tests without object storage may fork, as runs without it do.
    monkeypatch.setattr(objects, "_started_in", None)
    s3_server.requests.clear()
    yield s3_server
    s3_server.fault = None


def storage_environment(server: S3Server) -> dict[str, str]:
    """Return what a process needs in its environment to use the server."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "4",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
