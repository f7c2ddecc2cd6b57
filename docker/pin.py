#!/usr/bin/env python
"""Pin the image's base: write the digest that its tag has now into docker/Dockerfile.

``make pin`` runs it where a registry of images can be reached. It asks for the list of all
platforms, so one digest is good for each of them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

LISTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_BASE = re.compile(r"^ARG BASE=([a-z0-9./-]+):([\w.-]+)(?:@sha256:[0-9a-f]{64})?$", re.MULTILINE)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def digest_of(registry: str, login: str, name: str, tag: str) -> str:
    """Return the digest of a tag; raises ``ValueError`` for an answer that is none."""
    with urllib.request.urlopen(f"{login}&scope=repository:{name}:pull", timeout=30) as answer:
        token = json.load(answer)["token"]
    asked = urllib.request.Request(
        f"{registry}/v2/{name}/manifests/{tag}",
        method="HEAD",
        headers={"Accept": ", ".join(LISTS), "Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        digest = answer.headers["Docker-Content-Digest"] or ""
        kind = answer.headers.get_content_type()
    if kind not in LISTS or not _DIGEST.fullmatch(digest):
        raise ValueError(f"{name}:{tag} has no list of platforms with a digest")
    return str(digest)


def main() -> None:
    """Write the digest, or end in one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--registry", default="https://registry-1.docker.io")
    parser.add_argument(
        "--login", default="https://auth.docker.io/token?service=registry.docker.io"
    )
    parser.add_argument("--file", type=Path, default=Path(__file__).with_name("Dockerfile"))
    given = parser.parse_args()
    text = given.file.read_text()
    found = _BASE.search(text)
    if found is None:
        sys.exit(f"{given.file} has no line ARG BASE=NAME:TAG")
    name, tag = found.groups()
    try:
        path = name if "/" in name else f"library/{name}"
        digest = digest_of(given.registry, given.login, path, tag)
    except (urllib.error.URLError, OSError, ValueError, KeyError) as error:
        sys.exit(f"the digest of {name}:{tag} was not found ({error}); nothing was changed")
    given.file.write_text(
        text[: found.start()] + f"ARG BASE={name}:{tag}@{digest}" + text[found.end() :]
    )
    print(f"{given.file}: {name}:{tag} is {digest}")


if __name__ == "__main__":
    main()
