"""The table of views says what the library draws."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import ConfigError, DecodeError, ShardError, StoreError
from pipeline.records import FIXED_ONE, NO_PARTNER, MixKind
from pipeline.shards.index import open_shard
from pipeline.store import LabelStore, open_store
from pipeline.tools import KeptSamples, thin_store, write_views
from pipeline.views.apply import decode, image_size, read_size
from pipeline.views.draw import draw_view
from pipeline.views.pairing import Pairing
from tests.labelling import digit_shard, write_hash_store
from tests.pipeline.store.test_card import run_cli

PIXELS = 1 << 26


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    paths = [
        digit_shard(tmp_path / "digits-0.tar", 17, broken=(3,)),
        digit_shard(tmp_path / "digits-1.tar", 6, first=17),
    ]
    return write_hash_store(tmp_path / "s.parquet", paths, views=8, per_part=3)


def rows_of(path: Path) -> dict[tuple[int, str, int], dict[str, Any]]:
    rows = pq.read_table(path).to_pylist()
    found = {(row["shard"], row["key"], row["view"]): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("subset", [False, True])
def test_every_row_is_what_the_library_draws(
    tmp_path: Path, store: LabelStore, subset: bool
) -> None:
    if subset:
        thin_store(store, tmp_path / "thin.parquet", kept=KeptSamples(sample_share=0.6))
        store = open_store(tmp_path / "thin.parquet")
    report = write_views(store, [str(tmp_path / "digits-*.tar")], tmp_path / "views.parquet")
    found = rows_of(tmp_path / "views.parquet")
    assert report.rows == len(found) == store.manifest.rows
    identity, kinds = store.identity, set()
    for info in store.manifest.shards:
        shard = open_shard(tmp_path / info.name, info.number)
        rejected = frozenset(one.index for one in store.manifest.rejections.get(info.number, ()))
        pairing = Pairing(
            root_seed=identity.root_seed, shard=info, rejected=rejected, config=identity.mix
        )
        for view in range(8):
            stored, partners = store.read_view(info.number, view), pairing.of_shard(view)
            for index in np.flatnonzero(stored.accepted).tolist():
                row, sample = found[info.number, stored.keys[index], view], shard.samples[index]
                size = image_size(decode(shard.image_bytes(index), sample.image_name, PIXELS))
                drawn = draw_view(int(stored.seed[index]), view, size, identity.augment)
                assert row["crop_box"] == asdict(drawn.crop)
                assert row["hflip"] == drawn.hflip
                assert row["ops"] == [asdict(one) for one in drawn.ops]
                assert row["erase_box"] == (drawn.erase and asdict(drawn.erase))
                partner = partners[index]
                mix = pairing.draw_mix(view, (index, partner), identity.augment.image_size)
                assert (row["mix"], row["lam"]) == (mix.kind.value, mix.lam / FIXED_ONE)
                assert row["mix_box"] == (mix.box and asdict(mix.box))
                mixed = mix.kind is not MixKind.NONE
                assert mixed == (partner != NO_PARTNER)
                other = shard.samples[partner] if mixed else None
                assert row["partner"] == (other and other.key)
                assert row["partner_target"] == (other and other.target)
                assert (row["label"], row["target"]) == (stored.label[index], sample.target)
                assert row["sample"] == index
                digest = int(stored.digest[index]) if stored.has_digest[index] else None
                assert row["digest"] == digest
                kinds.add(row["mix"])
    assert kinds == {"none", "mixup", "cutmix"}


def test_some_views_and_shards_are_written_if_asked_for(
    tmp_path: Path, store: LabelStore, caplog: pytest.LogCaptureFixture
) -> None:
    every = [str(tmp_path / "digits-*.tar")]
    write_views(store, every, tmp_path / "all.parquet")
    write_views(store, every, tmp_path / "some.parquet", views=range(2, 7))
    whole, some = rows_of(tmp_path / "all.parquet"), rows_of(tmp_path / "some.parquet")
    assert some == {name: row for name, row in whole.items() if 2 <= name[2] < 7}
    # A row group is a part's.
    assert pq.read_metadata(tmp_path / "all.parquet").num_row_groups == 6
    one = [str(tmp_path / "digits-1.tar")]
    with pytest.raises(ShardError, match="`subset`"):
        write_views(store, one, tmp_path / "one.parquet")
    report = write_views(store, one, tmp_path / "one.parquet", subset=True)
    assert rows_of(tmp_path / "one.parquet") == {n: row for n, row in whole.items() if n[0] == 1}
    assert "without digits-0.tar" in report.left_out


def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    every, out = [str(tmp_path / "digits-*.tar")], tmp_path / "views.parquet"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="`views` names none"):
        write_views(store, every, out, views=range(50, 60))
    with pytest.raises(StoreError, match="lies in the store"):
        write_views(store, every, store.root.path / "views.parquet")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.tools.views.draw_view", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_views(store, every, out)
    assert sorted(tmp_path.iterdir()) == before
    write_views(store, every, out)
    with pytest.raises(StoreError, match="exists already"):
        write_views(store, every, out)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGBA", {}),
    ],
)
def test_a_header_says_the_size_that_decoding_gives(
    tmp_path: Path, kind: str, mode: str, options: dict[str, Any]
) -> None:
    for size in ((31, 17), (1, 40), (300, 2)):
        path = tmp_path / "image"
        Image.new(mode, size).save(path, kind, **options)
        data = path.read_bytes()
        assert read_size(data, "x") == image_size(decode(data, "x", PIXELS))
    for data in (b"", b"GIF89a", b"\xff\xd8", b"RIFF1234WEBP"):
        with pytest.raises(DecodeError, match="x: undecodable"):
            read_size(data, "x")


def test_the_command_writes_a_table_that_duckdb_reads(
    tmp_path: Path,
    store: LabelStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "views.parquet"
    arguments = [store.root.path, "--shards", tmp_path / "digits-{0..1}.tar", "--out", out]
    assert run_cli(monkeypatch, "views", *arguments, "--views", "0:3") == 0
    assert f"| rows | {22 * 3} |" in capsys.readouterr().out
    counted = duckdb.sql(
        f"select count(*), count(partner), max(crop_box.height), sum(len(ops)) from '{out}'"
    ).fetchall()
    assert counted[0][0] == 22 * 3
    assert 0 < counted[0][1] < 22 * 3
