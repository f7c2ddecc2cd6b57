"""Stores that were written once, by format version 2, and must open and replay for ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.columns import COLUMNS as COLUMN_TABLE
from pipeline.errors import IdentityError, StoreError
from pipeline.shards.index import open_shard
from pipeline.store import LabelStore, open_store
from pipeline.store.manifest import IDENTITY_PATH, identity_bytes, seal, unseal
from pipeline.store.parquet import decode_part, encode_part
from pipeline.tools.verify import verify_store
from tests.golden.make import (
    COLUMNS,
    FORMATS,
    HERE,
    PLAIN_SAMPLES,
    PLAIN_SHARD,
    PLAIN_STORE,
    SAMPLES,
    SHARD,
    VIEWS,
    identity_of,
    store_path,
    values_of,
)
from tests.labelling import label_with_hashes

DIGESTS = 13
IDENTITIES = {
    "hard": "b550fe517839284dd2397440969b0769539eb04fd3ff7f44d99e674a5463638b",
    "soft": "1528b3fcdc7232ba7696af74c6b60df073fdd4e2a7822986105513bec34ac317",
}


@pytest.fixture(params=COLUMNS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FORMATS)
def store(name: str, request: pytest.FixtureRequest) -> LabelStore:
    return open_store(store_path(name, request.param))


@pytest.fixture
def directory(name: str) -> LabelStore:
    return open_store(store_path(name))


def frozen_values(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((HERE / "values.json").read_text())[name]
    return values


def test_a_golden_store_opens_with_the_identity_it_was_made_with(
    store: LabelStore, name: str
) -> None:
    assert store.identity == identity_of(name)
    assert store.identity.digest == IDENTITIES[name]
    assert store.manifest.view_range == range(VIEWS)
    assert store.manifest.rows == (SAMPLES - 1) * VIEWS


def test_its_rows_are_the_frozen_values(store: LabelStore, name: str) -> None:
    assert values_of(store) == frozen_values(name)


def test_every_view_of_it_is_read_at_its_samples_index(store: LabelStore, name: str) -> None:
    for path, frozen in frozen_values(name).items():
        first = int(path.split("view-")[1].split("-")[0])
        for column in range(len(frozen["label"][0])):
            read = store.read_view(0, first + column)
            assert [key for key, good in zip(read.keys, read.accepted, strict=True) if good] == (
                frozen["keys"]
            )
            assert read.label[read.accepted].tolist() == [row[column] for row in frozen["label"]]
            assert read.columns.keys() == set(COLUMN_TABLE) & set(frozen)
            for optional, values in read.columns.items():
                assert values[read.accepted].tolist() == [row[column] for row in frozen[optional]]


def test_every_digest_of_it_replays(store: LabelStore) -> None:
    report = verify_store(store.root.name, [str(SHARD)], every_digest=True)
    assert report.mismatches == ()
    assert report.redrawn == report.digests == DIGESTS
    assert report.rejected == 1


def test_every_label_of_it_is_made_again(store: LabelStore) -> None:
    """The teacher hashes mixed pixels, so each label proves its whole view."""
    shard = open_shard(SHARD, 0)
    for entry in store.manifest.parts:
        again, stored = label_with_hashes(shard, entry.part, store.identity), store.read_part(entry)
        for column in ("label", "digest", "has_digest", "mixed_digest", "seed", "target"):
            np.testing.assert_array_equal(getattr(again, column), getattr(stored, column))


def test_its_rows_encoded_anew_are_the_same_rows(store: LabelStore) -> None:
    for entry in store.manifest.parts:
        rows = store.read_part(entry)
        again = decode_part(encode_part(rows), entry.part, "the part")
        assert (again.keys, again.identity, again.rejections) == (
            rows.keys,
            rows.identity,
            rows.rejections,
        )
        assert again.arrays().keys() == rows.arrays().keys()
        for column, values in again.arrays().items():
            np.testing.assert_array_equal(values, rows.arrays()[column])


def edited_copy(store: LabelStore, folder: Path, **changes: Any) -> Path:
    """Return a copy of a store whose manifest has other values, under a true seal."""
    root = folder / "copy.parquet"
    shutil.copytree(Path(store.root.name), root)
    manifest = root / "_manifest.json"
    values = unseal(manifest.read_bytes(), "the manifest")
    manifest.write_bytes(seal({**values, **changes}))
    return root


@pytest.mark.parametrize("version", [0, 1, 3, None, "2"])
def test_an_unknown_format_version_is_refused_with_what_to_install(
    directory: LabelStore, tmp_path: Path, version: object
) -> None:
    root = edited_copy(directory, tmp_path, format_version=version)
    with pytest.raises(StoreError, match=r"format version .* reads 2; install the release that"):
        open_store(root)


@pytest.mark.parametrize("operation", ["op.shear-x", "resize.down", "decode.jpeg"])
def test_another_fingerprint_is_refused_with_the_operation(
    directory: LabelStore, tmp_path: Path, operation: str
) -> None:
    prints = dict(directory.manifest.fingerprints)
    prints[operation] ^= 1
    root = edited_copy(directory, tmp_path, fingerprints=prints)
    (root / IDENTITY_PATH).write_bytes(identity_bytes(directory.identity, prints))
    with pytest.raises(IdentityError, match=rf"other pixels .* in {operation} \(.*; install"):
        verify_store(root, [str(SHARD)])


def test_the_store_of_plain_images_is_labelled_and_digested_as_it_was() -> None:
    store = open_store(PLAIN_STORE)
    shard = open_shard(PLAIN_SHARD, 0)
    assert store.manifest.rows == PLAIN_SAMPLES * 192
    for entry in store.manifest.parts:
        ours = label_with_hashes(shard, entry.part, store.identity)
        theirs = store.read_part(entry)
        assert ours.label.tolist() == theirs.label.tolist()
        assert ours.digest.tolist() == theirs.digest.tolist()
        assert ours.mixed_digest.tolist() == theirs.mixed_digest.tolist()
        assert theirs.has_digest.any()
