from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pipeline.errors import IncompleteStoreError, RejectionError, StoreError
from pipeline.store import claim_cut, cut_views, export_store, parts_root
from pipeline.store.card import card_text
from pipeline.store.manifest import IDENTITY_PATH
from pipeline.tools import finalize_store
from tests.labelling import digit_shard, write_hash_store
from tests.storing import bytes_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two shards, one image of which is broken, and their store."""
    folder = tmp_path_factory.mktemp("made")
    paths = [
        digit_shard(folder / "a-0.tar", 20),
        digit_shard(folder / "a-1.tar", 21, first=20, broken=(3,)),
    ]
    write_hash_store(folder / "s.parquet", paths, views=6, per_part=3, card=card_text)
    return folder


def unfinished(made: Path, tmp_path: Path) -> Path:
    root = tmp_path / "s.parquet"
    shutil.copytree(made / "s.parquet", root)
    for name in ("_manifest.json", "_README.md"):
        (root / name).unlink()
    return root


def stored(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in bytes_of(root).items() if "runs/" not in name}


def test_parts_that_are_all_there_get_the_manifest_of_the_job(made: Path, tmp_path: Path) -> None:
    root = unfinished(made, tmp_path)
    report = finalize_store(str(root), [str(made / "a-*.tar")], max_rejected=0.1)
    assert (report.parts, report.samples, report.rejected) == (4, 41, 1)
    assert report.labels == 40 * 6
    assert stored(root) == stored(made / "s.parquet")


def test_parts_of_a_zarr_store_become_one(made: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "s.zarr")
    unfinished(made, tmp_path).rename(parts_root(out))
    finalize_store(out, [str(made / "a-*.tar")], max_rejected=0.1)
    assert not Path(parts_root(out)).exists()
    export_store(out, tmp_path / "back.parquet")
    assert stored(tmp_path / "back.parquet") == stored(made / "s.parquet")


def test_what_is_missing_is_named_and_nothing_written(made: Path, tmp_path: Path) -> None:
    shards = [str(made / "a-*.tar")]
    root = unfinished(made, tmp_path)
    claim_cut(root, cut_views(root, range(9), 3))  # a job wanted three views more
    with pytest.raises(IncompleteStoreError, match=r"shard 0, views 6\.\.8; shard 1, views 6\.\.8"):
        finalize_store(str(root), shards, max_rejected=0.1)
    root = unfinished(made, tmp_path / "again")
    (root / "shard=1" / "view-00003-00006.parquet").unlink()
    with pytest.raises(IncompleteStoreError, match=r"shard 1, views 3\.\.5"):
        finalize_store(str(root), shards, max_rejected=0.1)
    with pytest.raises(RejectionError, match=r"1 of 41 images do not decode"):
        finalize_store(str(root), shards)
    with pytest.raises(IncompleteStoreError, match=r"parts of shards \[1\]"):
        finalize_store(str(root), [str(made / "a-0.tar")], max_rejected=0.1)
    assert not (root / "_manifest.json").exists()


def test_where_no_job_began_there_is_nothing_to_finish(made: Path, tmp_path: Path) -> None:
    (tmp_path / "s.parquet").mkdir()
    with pytest.raises(StoreError, match="no label job has begun a store there"):
        finalize_store(str(tmp_path / "s.parquet"), [str(made / "a-*.tar")])


def test_an_identity_that_is_refused_is_named_by_its_file(made: Path, tmp_path: Path) -> None:
    root = unfinished(made, tmp_path)
    path = root / IDENTITY_PATH
    path.write_bytes(re.sub(rb'"batch_views":\d+', b'"batch_views":99999999', path.read_bytes()))
    with pytest.raises(StoreError, match=f"{path}: identity.`batch_views` is 99999999"):
        finalize_store(str(root), [str(made / "a-*.tar")])
