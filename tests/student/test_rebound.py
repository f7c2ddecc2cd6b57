"""A student learns the same from the originals and from shards that were marked without loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import ShardError
from pipeline.shards.packing import PackConfig, pack_shards
from pipeline.store import open_store
from pipeline.tools import rebind_store
from pipeline.views import regions
from student.config import TrainConfig
from student.engine import train
from student.inputs import open_inputs
from tests.factories import encode, install_jpegtran, photographs
from tests.student.factories import TINY, make_store

IMAGES = 12


def write_folder(root: Path) -> dict[bytes, bytes]:
    """Write images of two classes; return each file with what jpegtran would make of it."""
    answers = {}
    for number in range(IMAGES):
        image = photographs()[number % 2][number : number + 200, :256]
        path = root / ("cat", "dog")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image, quality=70))
        answer = encode(image, quality=70, optimize=True, restart_marker_blocks=4)
        answers[path.read_bytes()] = answer
    return answers


def train_on(labels: Path, shards: Path, output: Path) -> dict[str, torch.Tensor]:
    config = TrainConfig.of_settings(
        labels=str(labels),
        shards=(str(shards),),
        output=output,
        model_args=TINY,
        epochs=3,
        batch_size=6,
        lr=1e-3,
        workers=0,
        threads=1,
        device="cpu",
    )
    train(config, open_inputs(config))
    weights: dict[str, torch.Tensor] = torch.load(output / "last.pt", weights_only=True)["model"]
    return weights


def test_weights_are_equal_whichever_shards_a_student_reads(tmp_path, monkeypatch):
    answers = write_folder(tmp_path / "images")
    install_jpegtran(tmp_path, monkeypatch, answers)
    plain, marked = tmp_path / "plain", tmp_path / "marked"
    shards = pack_shards(PackConfig(images=tmp_path / "images", out=str(plain), per_shard=6)).shards
    report = pack_shards(
        PackConfig(images=tmp_path / "images", out=str(marked), per_shard=6, lossless=True)
    )
    assert report.marked == IMAGES
    make_store(tmp_path / "labels.parquet", shards, views=3)
    rebind_store(
        open_store(tmp_path / "labels.parquet"),
        [str(marked)],
        tmp_path / "marked.parquet",
        originals=[str(plain)],
    )
    joined = []
    original = regions.join_pieces

    def watched(data, header, box, spare):
        found = original(data, header, box, spare)
        if spare:  # fingerprints spare nothing
            joined.append(found is not None)
        return found

    monkeypatch.setattr(regions, "join_pieces", watched)
    one = train_on(tmp_path / "labels.parquet", plain, tmp_path / "one")
    assert joined == []
    other = train_on(tmp_path / "marked.parquet", marked, tmp_path / "other")
    assert any(joined)
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert torch.equal(values, other[name]), name
    with pytest.raises(ShardError, match=r"encoded again .* `label-store rebind`"):
        train_on(tmp_path / "labels.parquet", marked, tmp_path / "third")
