from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.commands import label_store
from pipeline.errors import ChecksumError, IdentityError, ShardError, StoreError
from pipeline.identity import MixConfig
from pipeline.shards.index import open_shard
from pipeline.store import ParquetStore, claim_store, commit_part, finish_store, open_store
from pipeline.store.manifest import MANIFEST_PATH, seal, unseal, write_manifest
from pipeline.tools.show import ViewChoice, draw_views
from pipeline.tools.verify import verify_store
from pipeline.tools.views import write_views
from pipeline.views.fingerprints import fingerprints
from tests.factories import digit_samples, digits, encode, write_shard
from tests.labelling import digit_shard, hash_identity, label_with_hashes, part_of, write_hash_store


@pytest.fixture
def shards(hash_store: ParquetStore) -> list[str]:
    return [str(hash_store.root.path.parent / "digits-{0..1}.tar")]


@pytest.fixture
def torn_store(tmp_path: Path) -> tuple[ParquetStore, list[str]]:
    """A store of 64 views of 17 samples, one of them rejected: one digest a sample."""
    path = digit_shard(tmp_path / "torn.tar", 17, broken=(11,))
    return write_hash_store(tmp_path / "t.parquet", [path], views=64, per_part=40), [str(path)]


def test_a_whole_store_passes(torn_store: tuple[ParquetStore, list[str]]) -> None:
    store, shards = torn_store
    report = verify_store(store.root, shards, every_digest=True)
    assert report.mismatches == ()
    assert (report.parts, report.labels, report.samples, report.rejected) == (2, 16 * 64, 17, 1)
    assert report.digests == report.redrawn == 32  # view 0, and one of 64
    assert report.without_digest == 0


def test_without_shards_nothing_is_redrawn(hash_store: ParquetStore) -> None:
    report = verify_store(hash_store.root.path)
    assert report.redrawn == 0
    assert report.digests > 0


@pytest.mark.parametrize("what", ["pixels", "mixing"])
def test_a_digest_of_another_view_is_reported(tmp_path: Path, what: str) -> None:
    """Store rows that were drawn from another seed, or with other mixing, as if ours."""
    shard = open_shard(digit_shard(tmp_path / "a.tar", 8), 0)
    identity = hash_identity()
    other = replace(identity, root_seed=6) if what == "pixels" else hash_identity(mix=OTHER_MIX)
    ours = label_with_hashes(shard, part_of(0, 64), identity)
    theirs = label_with_hashes(shard, part_of(0, 64), other)
    if what == "pixels":
        # Digests are stored where the sample's seed says, so put theirs in our places.
        digest = np.where(ours.has_digest, np.uint32(0xABCD1234), np.uint32(0))
    else:
        digest = theirs.digest
    root = tmp_path / "s.parquet"
    claim_store(root, identity, fingerprints(identity))
    commit_part(root, replace(ours, digest=digest))
    finish_store(root, identity, fingerprints(identity), [shard.info], lambda _: "")
    report = verify_store(root, [str(shard.path)], every_digest=True)
    # All eight pixels differ; of the mixings, those that mixup draws from another Beta.
    assert len(report.mismatches) >= (8 if what == "pixels" else 2)
    assert {one.key for one in report.mismatches} <= {sample.key for sample in shard.samples}


OTHER_MIX = MixConfig(mixup_alpha=0.3)


@pytest.mark.parametrize("use", ["verify", "views", "show"])
@pytest.mark.parametrize("field", ["another key", "a key twice", "an escape", "target"])
def test_rows_with_other_keys_or_targets_than_the_shards_are_refused(
    tmp_path: Path, field: str, use: str
) -> None:
    """No hash of the shard says anything of them, and digests nothing of targets."""
    shard = open_shard(digit_shard(tmp_path / "a.tar", 8), 0)
    identity, root = hash_identity(), tmp_path / "s.parquet"
    rows = label_with_hashes(shard, part_of(0, 64), identity)
    other = {
        "another key": {"keys": (*rows.keys[:-1], "../x")},
        "a key twice": {"keys": (rows.keys[1], *rows.keys[1:])},
        "an escape": {"keys": (rows.keys[0] + "\x1b[31m", *rows.keys[1:])},
        "target": {"target": (rows.target + 1) % 10},
    }[field]
    claim_store(root, identity, fingerprints(identity))
    commit_part(root, replace(rows, **other))
    finish_store(root, identity, fingerprints(identity), [shard.info], lambda _: "")
    store, shards = open_store(root), [str(shard.path)]
    uses = {
        "verify": lambda: verify_store(root, shards),
        "views": lambda: write_views(store, shards, tmp_path / "views.parquet"),
        "show": lambda: draw_views(store, shards, ViewChoice(count=8)),
    }
    with pytest.raises(ShardError, match=r"a.tar: sample .* has target \d, the store says"):
        uses[use]()
    assert not (tmp_path / "views.parquet").exists()


def test_other_shards_are_refused(hash_store: ParquetStore, tmp_path: Path) -> None:
    other = digit_shard(tmp_path / "digits-0.tar", 17, first=50)
    mine = hash_store.root.path.parent / "digits-1.tar"
    with pytest.raises(ShardError, match=r"digits-0\.tar.*use the very shards"):
        verify_store(hash_store.root, [str(other), str(mine)])
    with pytest.raises(
        ShardError, match=r"1 of the 2 shards .*`shards`:\n  digits-0\.tar \(17 samples\)\n"
    ):
        verify_store(hash_store.root, [str(mine)])


def test_renamed_and_moved_shards_are_recognized(hash_store: ParquetStore, tmp_path: Path) -> None:
    names = ["digits-1.tar", "elsewhere.tar"]  # one takes the other's name
    for number, name in enumerate(names):
        shutil.copy(hash_store.root.path.parent / f"digits-{number}.tar", tmp_path / name)
    report = verify_store(hash_store.root, [str(tmp_path / "*.tar")], every_digest=True)
    assert report.redrawn == report.digests > 0
    assert report.mismatches == ()


def test_a_relabelled_shard_is_refused(hash_store: ParquetStore, tmp_path: Path) -> None:
    paths = [tmp_path / f"digits-{number}.tar" for number in range(2)]
    for path in paths:
        shutil.copy(hash_store.root.path.parent / path.name, path)
    data = bytearray(paths[1].read_bytes())
    sample = open_shard(paths[1], 1).samples[0]
    # The target's block lies before the image's header; its first byte is the digit.
    offset = sample.image_offset - 2 * 512
    assert chr(data[offset]) == str(sample.target)
    data[offset] = ord(str((sample.target + 1) % 10))
    paths[1].write_bytes(data)
    with pytest.raises(ShardError, match="its images were encoded again or its targets changed"):
        verify_store(hash_store.root, [str(path) for path in paths])


def test_a_damaged_image_of_the_same_length_is_refused(
    hash_store: ParquetStore, tmp_path: Path
) -> None:
    paths = [tmp_path / f"digits-{number}.tar" for number in range(2)]
    for path in paths:
        shutil.copy(hash_store.root.path.parent / path.name, path)
    sample = open_shard(paths[1], 1).samples[3]
    data = bytearray(paths[1].read_bytes())
    data[sample.image_offset + sample.image_bytes // 2] ^= 1
    paths[1].write_bytes(data)
    with pytest.raises(ShardError, match=r"digits-1\.tar: the bytes of its images are not those"):
        verify_store(hash_store.root, [str(path) for path in paths])


def test_a_stray_part_is_an_unfinished_job(hash_store: ParquetStore, tmp_path: Path) -> None:
    root = tmp_path / "copy.parquet"
    shutil.copytree(hash_store.root.path, root)
    (root / "shard=0" / "view-00006-00007.parquet").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"not in the manifest.*run it again"):
        verify_store(root)


def test_other_fingerprints_are_refused_with_the_operations(tmp_path: Path) -> None:
    shard = open_shard(digit_shard(tmp_path / "a.tar", 4), 0)
    root, identity = tmp_path / "s.parquet", hash_identity()
    prints = {**fingerprints(identity), "decode.jpeg-gray": 5, "op.shear-x": 6}
    claim_store(root, identity, prints)
    commit_part(root, label_with_hashes(shard, part_of(0, 3), identity))
    finish_store(root, identity, prints, [shard.info], lambda _: "")
    verify_store(root)
    with pytest.raises(
        IdentityError, match=r"other pixels .* decode\.jpeg-gray \(decoding jpeg, gray\), op\.s"
    ):
        verify_store(root, [str(shard.path)])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_decoding_is_compared_for_the_formats_that_the_shards_hold(
    tmp_path: Path, kind: str
) -> None:
    """What the files are called does not matter, as it does not to the decoder."""
    samples = digit_samples(4)
    other = (samples[3][0], encode(digits()[0][3], kind), samples[3][2])
    for name, there in (("jpegs", samples), ("mixed", [*samples[:3], other])):
        shard = open_shard(write_shard(tmp_path / f"{name}.tar", there), 0)
        root, identity = tmp_path / f"{name}.parquet", hash_identity()
        prints = {**fingerprints(identity), f"decode.{kind.lower()}": 5}
        claim_store(root, identity, prints)
        commit_part(root, label_with_hashes(shard, part_of(0, 3), identity))
        finish_store(root, identity, prints, [shard.info], lambda _: "")
    verify_store(tmp_path / "jpegs.parquet", [str(tmp_path / "jpegs.tar")])
    assert open_store(tmp_path / "mixed.parquet").manifest.formats == {
        0: tuple(sorted(("jpeg", kind.lower())))
    }
    with pytest.raises(IdentityError, match=rf"other pixels .* in decode\.{kind.lower()} \("):
        verify_store(tmp_path / "mixed.parquet", [str(tmp_path / "mixed.tar")])


def test_a_manifest_that_hides_a_format_does_not_fit_its_parts(
    hash_store: ParquetStore, tmp_path: Path
) -> None:
    root = tmp_path / "copy.parquet"
    shutil.copytree(hash_store.root.name, root)
    values = unseal((root / MANIFEST_PATH).read_bytes(), "the manifest")
    (root / MANIFEST_PATH).write_bytes(seal({**values, "formats": {"0": ["png"]}}))
    with pytest.raises(ChecksumError, match="does not fit its manifest"):
        verify_store(root)


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["label-store", *map(str, arguments)])
    try:
        label_store()
    except SystemExit as exit_:
        return exit_.code
    return 0


def test_the_command_verifies_and_inspects(
    hash_store: ParquetStore,
    shards: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_cli(monkeypatch, "verify", hash_store.root.path, "--shards", *shards, "--all") == 0
    assert "passed" in capsys.readouterr().out
    assert run_cli(monkeypatch, "inspect", hash_store.root.path) == 0
    assert "| 1: digits-1.tar | 18 | 0 | 6 | 2 |" in capsys.readouterr().out
    assert run_cli(monkeypatch, "inspect", hash_store.root.path, "--json") == 0
    assert '"identity_digest"' in capsys.readouterr().out


def test_the_command_fails_on_damage(
    hash_store: ParquetStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "copy.parquet"
    shutil.copytree(hash_store.root.path, root)
    part = root / open_store(root).manifest.parts[0].part.path
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(ChecksumError, match=r"sha256 is .* the manifest says"):
        verify_store(root)
    assert run_cli(monkeypatch, "verify", root) == 1
    assert "label-store: error:" in capsys.readouterr().err


def test_a_manifest_that_claims_another_agreement_is_refused(tmp_path: Path) -> None:
    paths = [digit_shard(tmp_path / "a.tar", 5)]
    store = write_hash_store(tmp_path / "s.parquet", paths, views=2, per_part=2)
    known = store.manifest.agreement.known
    assert known == 10
    claim = replace(store.manifest.agreement, equal=known)
    write_manifest(store.root, replace(store.manifest, agreement=claim))
    with pytest.raises(ChecksumError, match=r"equal=\d+., the manifest says .*equal=10"):
        verify_store(store.root)


def test_digests_that_are_not_where_they_belong_are_damage(tmp_path: Path) -> None:
    path, root, identity = (
        digit_shard(tmp_path / "a.tar", 9),
        tmp_path / "s.parquet",
        hash_identity(),
    )
    shard = open_shard(path, 0)
    rows = label_with_hashes(shard, part_of(0, 3), identity)
    assert rows.has_digest[:, 0].all()
    claim_store(root, identity, fingerprints(identity))
    none = np.zeros_like(rows.digest)
    commit_part(root, replace(rows, has_digest=none > 0, digest=none, mixed_digest=none))
    finish_store(root, identity, fingerprints(identity), [shard.info], lambda _: "a card\n")
    with pytest.raises(ChecksumError, match=r"view 0 of 'digit_0000' lacks one"):
        verify_store(root)


def test_samples_without_any_digest_are_counted(tmp_path: Path) -> None:
    path = digit_shard(tmp_path / "a.tar", 30)
    root, identity = tmp_path / "s.parquet", hash_identity()
    shard = open_shard(path, 0)
    claim_store(root, identity, fingerprints(identity))
    both = [label_with_hashes(shard, part_of(first, 9), identity) for first in (5, 14)]
    for rows in both:
        commit_part(root, rows)
    finish_store(root, identity, fingerprints(identity), [shard.info], lambda _: "a card\n")
    expected = int((~np.hstack([rows.has_digest for rows in both]).any(axis=1)).sum())
    assert 0 < expected < 30
    assert verify_store(root).without_digest == expected
