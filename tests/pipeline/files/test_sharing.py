from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.files.sharing import offered_paths, require_shared, unseen_path


def test_a_machine_that_sees_the_same_is_accepted_and_nothing_is_left(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(b"12345")
    for out in (tmp_path / "new" / "labels.parquet", tmp_path):
        with offered_paths(str(out), [(shard, 5)]) as paths:
            unseen = unseen_path(paths, "n")
            require_shared(paths, "n", "node n", unseen)
        assert unseen is None
        assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_what_a_machine_does_not_see_is_named_with_the_machine(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(b"12345")
    with offered_paths(str(tmp_path), [(shard, 5)]) as paths:
        assert paths.probe is not None
        with pytest.raises(ConfigError, match=r"node host does not .* is not seen here; use paths"):
            require_shared(paths, "n", "host", None)  # it says it wrote, elsewhere
        shard.write_bytes(b"1234")
        unseen = unseen_path(paths, "n")
        with pytest.raises(ConfigError, match=r"host .*a\.tar has 4 bytes there and 5 here;"):
            require_shared(paths, "n", "host", unseen)
        shard.unlink()
        assert re.search(r"a\.tar cannot be read there \(No such", unseen_path(paths, "n") or "")
        shard.write_bytes(b"12345")
        paths.probe.unlink()
        assert unseen_path(paths, "n") == f"{tmp_path} is another directory there"


def test_a_store_in_object_storage_needs_no_probe(tmp_path: Path) -> None:
    with offered_paths("s3://bucket/labels.parquet", []) as paths:
        assert unseen_path(paths, "n") is None
        require_shared(paths, "n", "host", None)
