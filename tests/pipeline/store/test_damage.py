"""Every byte of a store is watched: whatever is flipped or cut off, no wrong label is used."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.store import ParquetStore, check_store, open_store
from pipeline.tools.verify import verify_store
from tests.golden.make import identity_of, store_path

FLIPS = 100  # single bits a file, of all files together 500
CUTS = 20
WATCHED_BY_READERS = ("_manifest.json", "view-00000-00009.parquet", "view-00009-00018.parquet")
WATCHED_BY_VERIFY = ("_README.md", "identity.json")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of a golden store that may be damaged."""
    root = tmp_path / "copy.parquet"
    shutil.copytree(store_path("soft"), root)
    return root


def damaged(path: Path, seed: int) -> Iterator[bytes]:
    """Write single flipped bits and shorter lengths to a file, one after the other."""
    random = np.random.default_rng(seed)
    whole = path.read_bytes()
    for offset in random.integers(0, len(whole), FLIPS).tolist():
        torn = bytearray(whole)
        torn[offset] ^= 1 << int(random.integers(8))
        path.write_bytes(torn)
        yield bytes(torn)
    for length in {0, len(whole) - 1, *random.integers(0, len(whole), CUTS - 2).tolist()}:
        path.write_bytes(whole[:length])
        yield whole[:length]
    path.write_bytes(whole)


def all_labels(store: ParquetStore) -> NDArray[np.int64]:
    """Return all that a student may use of a store, as one array."""
    found = []
    for view in store.manifest.view_range:
        read = store.read_view(0, view)
        columns = [read.label, read.seed, read.target, read.digest]
        columns += read.columns.values()
        found += [column.reshape(-1).astype(np.int64) for column in columns]
    return np.concatenate(found)


def test_damage_to_any_file_is_refused_or_touches_no_label_and_is_found_by_verify(
    copy: Path,
) -> None:
    labels = all_labels(open_store(copy))
    verify_store(copy)
    outcomes: Counter[tuple[str, str]] = Counter()
    for number, path in enumerate(sorted(path for path in copy.rglob("*") if path.is_file())):
        for _ in damaged(path, number):
            try:
                used = all_labels(open_store(copy))
            except StoreError:
                outcomes[path.name, "refused"] += 1
                continue
            assert (used == labels).all()
            with pytest.raises(StoreError):
                verify_store(copy)
            outcomes[path.name, "found by verify"] += 1
    assert {name for name, what in outcomes if what == "refused"} == set(WATCHED_BY_READERS)
    assert {name for name, what in outcomes if what != "refused"} == set(WATCHED_BY_VERIFY)
    files = len(WATCHED_BY_READERS) + len(WATCHED_BY_VERIFY)
    assert FLIPS * files + 2 * files < outcomes.total() <= (FLIPS + CUTS) * files
    verify_store(copy)
    assert (all_labels(open_store(copy)) == labels).all()


def test_a_damaged_identity_stops_a_label_job_or_says_the_same(copy: Path) -> None:
    identity, path = identity_of("soft"), copy / "_meta" / "identity.json"
    before = json.loads(path.read_bytes())
    outcomes: Counter[str] = Counter()
    for torn in damaged(path, 5):
        try:
            prints = check_store(copy, identity)
        except StoreError:
            outcomes["refused"] += 1
            continue
        # The job compares fingerprints, and names the operation of one that differs.
        same = json.loads(torn) == before
        assert same or prints != before["fingerprints"]
        outcomes["harmless" if same else "fingerprint"] += 1
    assert outcomes["refused"] > FLIPS / 2
    assert outcomes["fingerprint"] > 0
    assert outcomes.total() <= FLIPS + CUTS
