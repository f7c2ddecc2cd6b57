"""The reader that was written from the documents alone, on the store that needs no decoder."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.independent_reader import main
from pipeline.files.local import sha256
from pipeline.identity import AugmentConfig, MixConfig
from pipeline.records import FIXED_ONE, MixKind, PartRows
from pipeline.store import open_store
from pipeline.store.manifest import MANIFEST_PATH, seal, unseal
from pipeline.store.parquet import encode_part
from pipeline.views.pairing import Pairing
from tests.golden.make import PLAIN_SAMPLES, PLAIN_SHARD, PLAIN_STORE, SHARD, store_path
from tests.labelling import every_column, hash_identity, write_hash_store

Counts = Callable[[Path, Path], dict[str, int]]
READER = Path(__file__).parents[2] / "examples" / "independent_reader.py"
VIEWS = 192
ROWS = PLAIN_SAMPLES * VIEWS
PART = 1
"""Of the two parts, the one that the mutations change."""


@pytest.fixture
def counts(capsys: pytest.CaptureFixture[str]) -> Counts:
    """Return how much of a store and a shard is equal."""

    def of(store: Path, shard: Path) -> dict[str, int]:
        main([str(store), str(shard)])
        return counted(capsys.readouterr().out)

    return of


def counted(output: str) -> dict[str, int]:
    lines = [line.rsplit(maxsplit=2) for line in output.splitlines()]
    assert all(word == "equal" for _, _, word in lines)
    return {name: int(count) for name, count, _ in lines}


def problem(store: Path, shard: Path) -> str:
    """Return the line that names the first difference."""
    with pytest.raises(SystemExit) as found:
        main([str(store), str(shard)])
    text = str(found.value.code)
    assert text.isprintable()
    return text


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PLAIN_STORE, tmp_path / "store.parquet"))


def edit_rows(store: Path, change: Callable[[PartRows], PartRows]) -> None:
    """Change the rows of one part, with true seals and hashes all the way up."""
    opened = open_store(store)
    entry = opened.manifest.parts[PART]
    data = encode_part(change(opened.read_part(entry)))
    (store / entry.part.path).write_bytes(data)
    values = unseal((store / MANIFEST_PATH).read_bytes(), "the manifest")
    values["parts"][PART] |= {"bytes": len(data), "sha256": sha256(data)}
    (store / MANIFEST_PATH).write_bytes(seal(values))


def flip(values: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[Any]:
    """Return values of which the last one that is meant has another lowest bit."""
    changed = values.copy()
    changed[tuple(np.argwhere(where)[-1])] ^= 1
    return changed


def test_it_imports_nothing_but_the_standard_library_numpy_and_pyarrow() -> None:
    names = set()
    for node in ast.walk(ast.parse(READER.read_text())):
        if isinstance(node, ast.Import):
            names |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.Name):
            assert node.id not in ("__import__", "eval", "exec")
    assert names - sys.stdlib_module_names == {"numpy", "pyarrow"}
    assert "importlib" not in names


def test_every_view_of_the_golden_store_is_made_again_as_the_documents_say() -> None:
    command = [sys.executable, READER, PLAIN_STORE, PLAIN_SHARD]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = counted(done.stdout)
    for name in ("key", "view", "target", "seed", "label"):
        assert found[name] == ROWS
    store = open_store(PLAIN_STORE)
    parts = [store.read_part(one) for one in store.manifest.parts]
    assert found["digest"] == sum(int(one.has_digest.sum()) for one in parts) == 36
    assert found["mixed_digest"] == sum(int((one.mixed_digest != 0).sum()) for one in parts) == 2
    assert found["digest"] + found["no digest"] == ROWS
    assert found["mixed_digest"] + found["no mixed_digest"] == ROWS
    assert {name: found[name] for name in ("seal", "shard", "part", "part header")} == {
        "seal": 3,
        "shard": 7,
        "part": 14,
        "part header": 24,
    }


def test_a_store_with_all_columns_is_read_too(tmp_path: Path, counts: Counts) -> None:
    plain = open_store(PLAIN_STORE).identity
    identity = hash_identity(plain.augment, plain.mix, every_column(3))
    write_hash_store(
        tmp_path / "all.parquet", [PLAIN_SHARD], views=6, per_part=6, identity=identity
    )
    found = counts(tmp_path / "all.parquet", PLAIN_SHARD)
    for name in ("label", "margin", "topk_label", "topk_logprob", "topk_rest"):
        assert found[name] == PLAIN_SAMPLES * 6


def test_a_store_that_is_not_mixed_is_read_too(tmp_path: Path, counts: Counts) -> None:
    plain = open_store(PLAIN_STORE).identity
    identity = hash_identity(plain.augment, replace(plain.mix, probability=0.0))
    write_hash_store(
        tmp_path / "own.parquet", [PLAIN_SHARD], views=6, per_part=6, identity=identity
    )
    assert counts(tmp_path / "own.parquet", PLAIN_SHARD)["label"] == PLAIN_SAMPLES * 6


STRANGE: dict[str, tuple[AugmentConfig, MixConfig]] = {
    "strongest, crops too wide for any image, mixup alone": (
        AugmentConfig(
            image_size=33,
            crop_scale=(0.9, 1.0),
            crop_ratio=(3.0, 5.0),
            rand_ops=5,
            rand_probability=0.9,
            rand_magnitude=10.0,
            rand_magnitude_std=3.0,
            erase_probability=0.9,
        ),
        MixConfig(group_size=8, cutmix_alpha=0.0, mixup_alpha=0.3),
    ),
    "weakest, crops too high for any image, boxes too large to erase": (
        AugmentConfig(
            image_size=17,
            crop_scale=(0.9, 1.0),
            crop_ratio=(0.1, 0.2),
            rand_ops=5,
            rand_probability=1.0,
            rand_magnitude=0.0,
            erase_probability=1.0,
            erase_area=(0.5, 1.0),
            erase_ratio=(0.01, 100.0),
        ),
        MixConfig(group_size=6, block_views=3, switch_probability=0.1),
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_settings_far_from_deits_are_read_too(tmp_path: Path, counts: Counts, name: str) -> None:
    identity = hash_identity(*STRANGE[name])
    path = tmp_path / "far.parquet"
    write_hash_store(path, [PLAIN_SHARD], views=18, per_part=9, identity=identity)
    (path / "_meta" / "user").mkdir()
    (path / "_meta" / "user" / "NOTES.md").write_text("what people add is no part of it\n")
    assert counts(path, PLAIN_SHARD)["label"] == PLAIN_SAMPLES * 18


def test_cutmix_whose_box_is_empty_is_digested_as_the_documents_say(
    tmp_path: Path, counts: Counts
) -> None:
    identity = hash_identity(
        AugmentConfig(image_size=4), MixConfig(mixup_alpha=0.0, probability=0.7, group_size=8)
    )
    store = write_hash_store(
        tmp_path / "cut.parquet", [PLAIN_SHARD], views=64, per_part=64, identity=identity
    )
    assert counts(tmp_path / "cut.parquet", PLAIN_SHARD)["digest"] == 2 * PLAIN_SAMPLES
    (shard,) = store.manifest.shards
    pairing = Pairing(root_seed=5, shard=shard, rejected=frozenset(), config=identity.mix)
    drawn = [
        pairing.draw_mix(view, pair, 4)
        for view in range(64)
        for pair in pairing.of_shard(view).items()
        if store.read_view(0, view).has_digest[pair[0]]
    ]
    kinds = [one.kind for one in drawn]
    assert kinds.count(MixKind.CUTMIX) + kinds.count(MixKind.NONE) == 2 * PLAIN_SAMPLES
    assert MixKind.NONE in kinds
    assert [one.lam for one in drawn if one.box and one.box.area == 0].count(FIXED_ONE) > 1


def test_a_rejected_image_takes_its_rows_and_its_partners_mixing(
    tmp_path: Path, counts: Counts
) -> None:
    data = bytearray(PLAIN_SHARD.read_bytes())
    data[data.index(b"IDAT") + 100] ^= 1
    shard = tmp_path / "torn.tar"
    shard.write_bytes(data)
    plain = open_store(PLAIN_STORE).identity
    store = write_hash_store(
        tmp_path / "torn.parquet", [shard], views=30, per_part=15, identity=plain
    )
    assert [len(one) for one in store.manifest.rejections.values()] == [1]
    assert counts(tmp_path / "torn.parquet", shard)["label"] == (PLAIN_SAMPLES - 1) * 30


EDITS: dict[str, tuple[Callable[[PartRows], PartRows], str]] = {
    "a label": (
        lambda rows: replace(rows, label=flip(rows.label, rows.label >= 0)),
        "label, sample 'crop/008' at view 191:",
    ),
    "a digest": (
        lambda rows: replace(rows, digest=flip(rows.digest, rows.has_digest)),
        "digest, sample 'crop/",
    ),
    "a mixed digest": (
        lambda rows: replace(rows, mixed_digest=flip(rows.mixed_digest, rows.mixed_digest != 0)),
        "mixed_digest, sample 'crop/",
    ),
    "a seed": (
        lambda rows: replace(rows, seed=flip(rows.seed, rows.seed >= 0)),
        "seed, sample 'crop/008' at view 96:",
    ),
    "a target": (
        lambda rows: replace(rows, target=flip(rows.target, rows.target >= 0)),
        "target, sample 'crop/008' at view 96:",
    ),
    "a key": (
        lambda rows: replace(rows, keys=(*rows.keys[:-1], "crop/009")),
        "key, sample 'crop/008' at view 96: stored is 'crop/009'",
    ),
    "a hash": (lambda rows: replace(rows, image_hash="0" * 64), "part header, image_hash of view-"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_one_changed_value_under_true_seals_is_named(store: Path, kind: str) -> None:
    change, message = EDITS[kind]
    edit_rows(store, change)
    assert problem(store, PLAIN_SHARD).startswith(message)


def test_a_digest_that_was_taken_away_is_missed(store: Path) -> None:
    def take_away(rows: PartRows) -> PartRows:
        there, digest = rows.has_digest.copy(), rows.digest.copy()
        # One without a mixed digest, whose position follows from it.
        row, view = np.argwhere(there & (rows.mixed_digest == 0))[-1]
        there[row, view], digest[row, view] = False, 0
        return replace(rows, has_digest=there, digest=digest)

    edit_rows(store, take_away)
    assert "stored is None, made again it is" in problem(store, PLAIN_SHARD)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (MANIFEST_PATH, "seal, of the manifest"),
        ("_README.md", "card, SHA-256"),
        ("_meta/identity.json", "identity, "),
        ("shard=0/view-00096-00192.parquet", "part, sha256 of view-00096-00192.parquet"),
    ],
)
def test_a_changed_byte_of_a_file_is_found(store: Path, name: str, message: str) -> None:
    data = bytearray((store / name).read_bytes())
    offset = data.rindex(b"1" if name != "_README.md" else b"a")
    data[offset] ^= 1
    (store / name).write_bytes(data)
    assert problem(store, PLAIN_SHARD).startswith(message)


def test_another_shard_is_refused_and_so_is_one_whose_images_changed(tmp_path: Path) -> None:
    assert "'digits.tar' is no shard of the store" in problem(PLAIN_STORE, SHARD)
    data = bytearray(PLAIN_SHARD.read_bytes())
    data[data.index(b"IDAT") + 100] ^= 1
    other = tmp_path / "plain.tar"
    other.write_bytes(data)
    assert problem(PLAIN_STORE, other).startswith("shard, image_hash of 'plain.tar'")


@pytest.mark.parametrize(
    ("store", "shard", "message"),
    [
        (store_path("hard"), SHARD, "this example reads no images but PNG"),
        (PLAIN_STORE, Path("nowhere.tar"), "nowhere.tar"),
        (Path("nowhere.parquet"), PLAIN_SHARD, "nowhere.parquet"),
    ],
)
def test_what_it_does_not_read_it_says(store: Path, shard: Path, message: str) -> None:
    assert message in problem(store, shard)


def test_a_difference_ends_the_program_with_one_line_and_a_status() -> None:
    command = [sys.executable, READER, PLAIN_STORE, SHARD]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("none has its content_hash\n")
    assert done.stderr.count("\n") == 1
