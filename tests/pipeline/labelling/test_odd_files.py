from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.store import open_store
from pipeline.tools.verify import verify_store
from tests.factories import write_members
from tests.odd_images import odd_files

_LABEL = """
import sys
from pathlib import Path
from pipeline.store.card import card_text
from tests.labelling import write_hash_store
shard, out = map(Path, sys.argv[1:])
write_hash_store(out, [shard], views=8, per_part=4, card=card_text)
"""


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of odd files, all named .jpg."""
    members = [
        (f"{key}.{extension}", data)
        for key, image in odd_files().items()
        for extension, data in (("jpg", image), ("cls", b"3"))
    ]
    return write_members(tmp_path_factory.mktemp("odd") / "odd.tar", members)


def bytes_of(root: Path) -> dict[str, bytes]:
    """Return a store's files by path."""
    found = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items()}


def test_equal_runs_over_odd_files_write_equal_bytes(shard: Path, tmp_path: Path) -> None:
    stores = []
    for run in ("1", "2"):
        out = tmp_path / run / "labels.parquet"
        out.parent.mkdir()
        command = [sys.executable, "-c", _LABEL, str(shard), str(out)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": run})
        stores.append(bytes_of(out))
    assert stores[0] == stores[1]
    assert {"_manifest.json", "_README.md", "shard=0/view-00000-00004.parquet"} <= stores[0].keys()

    store = open_store(tmp_path / "1" / "labels.parquet")
    rejected = {one.key: one.reason for one in store.manifest.rejections[0]}
    assert rejected == {
        "empty": "empty",
        **dict.fromkeys(("html", "gif", "bmp", "tiff", "zeros"), "unknown-format"),
        **dict.fromkeys(("mark", "torn-jpeg", "torn-png", "torn-webp"), "undecodable"),
        **dict.fromkeys(("zero-png", "zero-jpeg"), "undecodable"),
        **dict.fromkeys(("bomb-jpeg", "bomb-png", "bomb-webp"), "too-many-pixels"),
    }
    labelled = store.read_part(store.manifest.parts[0]).keys
    assert labelled == tuple(key for key in odd_files() if key.startswith("good"))
    assert verify_store(store.root.at(""), [str(shard)], every_digest=True).mismatches == ()
