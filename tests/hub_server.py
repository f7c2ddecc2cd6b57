"""A server of the part of Hugging Face's hub that stores need, on loopback, over a directory."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPOSITORY = "somebody/labels"


@dataclass
class Hub:
    """Commits of one data set, each a directory; branches name them."""

    commits: dict[str, Path] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    endpoint: str = ""

    def push(self, root: Path) -> str:
        """Make a directory the newest commit of main, and return the commit."""
        commit = hashlib.sha1(f"{root}{len(self.commits)}".encode()).hexdigest()
        self.commits[commit] = root
        self.branches["main"] = commit
        return commit

    def environment(self, home: Path) -> dict[str, str]:
        """Return what a process needs to use the server and a cache of its own."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run a server until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.requests.append((self.command, path))
            api, plain = f"api/datasets/{REPOSITORY}/", f"datasets/{REPOSITORY}/resolve/"
            if path.startswith(api):
                kind, revision, *below = path.removeprefix(api).split("/")
                commit = hub.branches.get(revision, revision)
                if commit not in hub.commits:
                    return self.refuse("RevisionNotFound")
                if kind == "revision":
                    return self.tell({"id": REPOSITORY, "sha": commit, "siblings": []})
                return self.tree(hub.commits[commit], "/".join(below))
            if path.startswith(plain):
                revision, _, name = path.removeprefix(plain).partition("/")
                commit = hub.branches.get(revision, revision)
                file = hub.commits[commit] / name
                return self.send(file, commit) if file.is_file() else self.refuse("EntryNotFound")
            return self.refuse("RepoNotFound")

        def tree(self, root: Path, below: str) -> None:
            if not (root / below).is_dir():
                return self.refuse("EntryNotFound")
            entries = [
                {
                    "type": "file" if path.is_file() else "directory",
                    "path": path.relative_to(root).as_posix(),
                    "size": path.stat().st_size if path.is_file() else 0,
                    "oid": "0" * 40,
                }
                for path in sorted((root / below).rglob("*"))
            ]
            return self.tell(entries)

        def tell(self, values: object) -> None:
            self.answer(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

        def refuse(self, code: str) -> None:
            self.answer(404, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

        def send(self, file: Path, commit: str) -> None:
            data = file.read_bytes()
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            self.answer(200, data, {"ETag": etag, "X-Repo-Commit": commit})

        def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
