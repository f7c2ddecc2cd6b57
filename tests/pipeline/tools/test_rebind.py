"""A store bound to shards of other bytes: only where every pixel is the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, IdentityError, ShardError
from pipeline.records import ImageSize, Pixels
from pipeline.store import LabelStore, export_store, open_store
from pipeline.tools import KeptSamples, rebind_store, thin_store
from pipeline.tools.verify import verify_store
from pipeline.views.draw import draw_view
from tests.factories import encode, photographs, write_shard
from tests.labelling import write_hash_store
from tests.pipeline.store.test_card import run_cli
from tests.storing import bytes_of

SIZES = (9, 8)
VIEWS, PER_PART = 6, 4
BROKEN = (0, 3)  # shard and sample of an image that does not decode
HEIGHT, WIDTH = 96, 128


def image_of(number: int) -> Pixels:
    return photographs()[number % 2][7 * number :][:HEIGHT, :WIDTH]


def encoded(image: Pixels, *, marked: bool) -> bytes:
    return encode(image, quality=70, optimize=marked, restart_marker_blocks=4 * marked)


def write_shards(
    directory: Path, *, marked: bool, images: dict[int, Pixels] | None = None
) -> list[Path]:
    """Write the shards, with restart markers or without; ``images`` are others, by number."""
    directory.mkdir()
    paths, first = [], 0
    for shard, size in enumerate(SIZES):
        samples = []
        for number in range(first, first + size):
            data = encoded((images or {}).get(number, image_of(number)), marked=marked)
            if (shard, number - first) == BROKEN:
                data = b"\xff\xd8 no image"
            samples.append((f"photo_{number:02d}", data, number % 5))
        name = f"marked-{1 - shard}.tar" if marked else f"plain-{shard}.tar"  # in another order
        paths.append(write_shard(directory / name, samples))
        first += size
    return paths


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_shards(tmp_path_factory.mktemp("plain") / "shards", marked=False)


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_shards(tmp_path_factory.mktemp("marked") / "shards", marked=True)


@pytest.fixture(scope="module")
def store(plain: list[Path], tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    path = tmp_path_factory.mktemp("store") / "labels.parquet"
    return write_hash_store(path, plain, views=VIEWS, per_part=PER_PART)


def texts(paths: Sequence[Path]) -> list[str]:
    return [str(path) for path in paths]


def labels_of(path: Path) -> dict[str, bytes]:
    """Return all of a store's files but those that say how it came about."""
    return {
        name: data
        for name, data in bytes_of(path).items()
        if not name.startswith(("_meta/runs", "_README"))
    }


@pytest.mark.parametrize("originals", [False, True])
def test_a_rebound_store_has_the_parts_of_one_labelled_on_the_new_shards(
    tmp_path, store, plain, marked, originals
):
    given = texts(plain) if originals else []
    report = rebind_store(store, texts(marked), tmp_path / "new.parquet", originals=given)
    again = write_hash_store(tmp_path / "again.parquet", marked, views=VIEWS, per_part=PER_PART)
    ours, theirs = labels_of(tmp_path / "new.parquet"), labels_of(again.root.path)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} <= {"_manifest.json"}  # the card
    new = open_store(tmp_path / "new.parquet").manifest
    for name in ("shards", "parts", "image_hashes", "formats", "rejections", "fingerprints"):
        assert getattr(new, name) == getattr(again.manifest, name), name
    assert (report.shards, report.images) == (2, sum(SIZES) - 1 if originals else 0)
    assert report.digests >= sum(SIZES) - 1
    words = (*map(str, report.to_json().values()), report.to_markdown())
    assert ("`originals` were not given" in words[-1]) is not originals


def test_it_passes_with_the_new_shards_and_no_longer_with_the_old_ones(
    tmp_path, store, plain, marked
):
    rebind_store(store, texts(marked), tmp_path / "new.parquet")
    new = open_store(tmp_path / "new.parquet")
    report = verify_store(new, texts(marked), every_digest=True)
    assert report.mismatches == ()
    assert report.mixed_redrawn == report.mixed_digests > 0
    with pytest.raises(ShardError):
        verify_store(new, texts(plain))
    with pytest.raises(ShardError):
        verify_store(store, texts(marked))
    assert new.manifest.agreement == store.manifest.agreement


@pytest.mark.parametrize("name", ["s.zarr", "s.one.parquet"])
def test_stores_of_every_format_can_be_bound_anew(tmp_path, store, marked, name):
    export_store(store.root, tmp_path / name)
    rebind_store(open_store(tmp_path / name), texts(marked), tmp_path / "a.parquet")
    rebind_store(store, texts(marked), tmp_path / "b.parquet")
    assert labels_of(tmp_path / "a.parquet") == labels_of(tmp_path / "b.parquet")


def refused(
    tmp_path: Path, store: LabelStore, shards: list[Path], originals: Sequence[Path] = ()
) -> str:
    """Return why shards are refused; nothing is written then."""
    out = tmp_path / "refused.parquet"
    with pytest.raises(ShardError) as error:
        rebind_store(store, texts(shards), out, originals=texts(originals))
    assert not out.exists()
    return str(error.value)


def test_one_pixel_that_a_digest_shows_is_refused_by_name(tmp_path, store):
    crop = draw_view(seed_of(store, "photo_11"), 0, SIZE, store.identity.augment).crop
    other = image_of(11).copy()
    other[crop.top + crop.height // 2, crop.left + crop.width // 2] ^= 0x80
    shards = write_shards(tmp_path / "other", marked=True, images={11: other})
    said = refused(tmp_path, store, shards)
    assert "have not the pixels that were labelled" in said
    assert "'photo_11': digest of view 0 is" in said
    assert "photo_10" not in said


SIZE = ImageSize(height=HEIGHT, width=WIDTH)


def seed_of(store: LabelStore, key: str) -> int:
    for entry in store.manifest.parts:
        rows = store.read_part(entry)
        if key in rows.keys:
            return int(rows.seed[rows.keys.index(key)])
    raise AssertionError(key)


def test_a_pixel_that_no_digest_shows_is_found_by_the_originals(tmp_path, store, plain):
    """Pixels are changed in a corner block that no digested view of any of the samples has."""
    number = next(
        number
        for number in range(SIZES[0], sum(SIZES))
        if corner_is_unseen(store, f"photo_{number:02d}")
    )
    other = image_of(number).copy()
    other[-4:, -4:] ^= 0x80
    shards = write_shards(tmp_path / "other", marked=True, images={number: other})
    rebind_store(store, texts(shards), tmp_path / "unseen.parquet")
    said = refused(tmp_path, store, shards, plain)
    assert f"'photo_{number:02d}' decodes to other pixels" in said


def corner_is_unseen(store: LabelStore, key: str) -> bool:
    digested = []
    for entry in store.manifest.parts:
        rows = store.read_part(entry)
        if key in rows.keys:
            views = np.flatnonzero(rows.has_digest[rows.keys.index(key)]) + entry.part.first_view
            digested += [
                draw_view(seed_of(store, key), view, SIZE, store.identity.augment).crop
                for view in views.tolist()
            ]
    # A changed block reaches two pixels into its neighbors, through their chroma.
    return all(
        one.top + one.height < HEIGHT - 18 or one.left + one.width < WIDTH - 18 for one in digested
    )


def test_other_targets_keys_and_rejections_are_refused(tmp_path, store, marked):
    samples = [(f"photo_{n:02d}", encoded(image_of(n), marked=True), n % 5) for n in range(17)]
    first, second = samples[:9], samples[9:]
    first[3] = ("photo_03", b"\xff\xd8 no image", 3)
    directory = tmp_path / "changed"
    directory.mkdir()

    def changed(name: str, index: int, sample: tuple[str, bytes, int]) -> list[Path]:
        mine = [*first]
        mine[index] = sample
        return [write_shard(directory / f"{name}.tar", mine), marked[1]]

    key, data, _ = first[2]
    assert "'photo_02' has target 4, the store says 'photo_02' has 2" in refused(
        tmp_path, store, changed("target", 2, (key, data, 4))
    )
    said = refused(tmp_path, store, changed("key", 2, ("photo_x", data, 2)))
    assert "none has those of plain-0.tar" in said
    assert "key.tar has others" in said
    sound = ("photo_03", encoded(image_of(3), marked=True), 3)
    assert "'photo_03': rejection of view 0 is decodes" in refused(
        tmp_path, store, changed("sound", 3, sound)
    )
    assert "none has those of plain-0.tar" in refused(tmp_path, store, [marked[1]])
    said = refused(tmp_path, store, [*marked, write_shard(directory / "again.tar", first)])
    assert "have the same keys" in said
    assert len(second) == SIZES[1]


def test_the_target_of_a_rejected_image_is_compared_with_the_originals(tmp_path, store, plain):
    samples = [(f"photo_{n:02d}", encoded(image_of(n), marked=True), n % 5) for n in range(17)]
    samples[3] = ("photo_03", b"\xff\xd8 no image", 1)
    shards = [
        write_shard(tmp_path / "a.tar", samples[:9]),
        write_shard(tmp_path / "b.tar", samples[9:]),
    ]
    assert "'photo_03' has target 1, and had 3" in refused(tmp_path, store, shards, plain)


def test_a_subset_needs_the_originals(tmp_path, store, plain, marked):
    kept = KeptSamples(keys=("photo_00", "photo_12", "photo_13"))
    thin_store(store, tmp_path / "thin.parquet", kept=kept)
    thin = open_store(tmp_path / "thin.parquet")
    with pytest.raises(ConfigError, match=r"is a subset, .* give `originals`"):
        rebind_store(thin, texts(marked), tmp_path / "new.parquet")
    rebind_store(thin, texts(marked), tmp_path / "new.parquet", originals=texts(plain))
    new = open_store(tmp_path / "new.parquet")
    assert new.manifest.counts == thin.manifest.counts
    assert new.manifest.subset_of == thin.manifest.subset_of


def test_a_machine_that_makes_other_pixels_binds_nothing(tmp_path, store, marked, monkeypatch):
    monkeypatch.setattr("pipeline.views.floats.fingerprints_on", lambda *_: {"decode.jpeg": 1})
    with pytest.raises(IdentityError, match="makes other pixels"):
        rebind_store(store, texts(marked), tmp_path / "new.parquet")


def test_the_command_says_what_the_proof_was(tmp_path, store, plain, marked, monkeypatch, capsys):
    arguments = ["rebind", str(store.root.path), "--shards", str(marked[0].parent)]
    arguments += ["--out", str(tmp_path / "new.parquet"), "--originals", str(plain[0].parent)]
    assert run_cli(monkeypatch, *arguments) == 0
    assert f"{sum(SIZES) - 1} images" in capsys.readouterr().out
    assert open_store(tmp_path / "new.parquet").manifest.rows == store.manifest.rows
