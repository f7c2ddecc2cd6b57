"""The index beside a shard spares reading it, and is never believed against it."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError, ShardError
from pipeline.labelling.job import index_shards
from pipeline.records import ShardInfo
from pipeline.shards import index
from pipeline.shards.index import (
    Shard,
    index_bytes,
    match_shards,
    open_indexed_shard,
    open_known_shard,
    open_shard,
    read_index,
)
from pipeline.shards.packing import PackConfig, pack_shards
from tests.factories import digit_samples, encode, synthetic_image, write_shard

IMAGES = 7


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A directory of packed shards, with an index beside each."""
    for name in ("ape", "b.c"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(IMAGES):
            picture = encode(synthetic_image(6, 9, number), "JPEG")
            (tmp_path / "images" / name / f"{number}.jpg").write_bytes(picture)
    out = tmp_path / "packed"
    pack_shards(PackConfig(images=tmp_path / "images", out=str(out), per_shard=5))
    return out


def shard_of(packed: Path) -> Path:
    return packed / "shard-000000.tar"


def side_of(packed: Path) -> Path:
    return packed / "shard-000000.tar.idx"


def info_by_index(packed: Path) -> ShardInfo:
    found = read_index(shard_of(packed), 0)
    assert found is not None
    return found.info


def change(packed: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(side_of(packed).read_bytes())
    how(values)
    side_of(packed).write_text(json.dumps(values))


def test_a_job_indexes_packed_shards_without_opening_them(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = [str(packed / "*.tar")]
    bare = packed.parent / "bare"
    bare.mkdir()
    for path in packed.glob("*.tar"):
        shutil.copy(path, bare)
    opened = index_shards([str(bare / "*.tar")])
    with monkeypatch.context() as patch:
        patch.delattr(index, "open_shard")
        indexed = index_shards(pattern)
    assert indexed.infos == opened.infos
    assert indexed.max_target == opened.max_target == 1
    assert indexed.samples == 2 * IMAGES


def test_an_index_says_where_images_lie(packed: Path) -> None:
    data = shard_of(packed).read_bytes()
    shard = open_shard(shard_of(packed), 0)
    rows = json.loads(side_of(packed).read_bytes())["samples"]
    assert [row[0] for row in rows] == [one.key for one in shard.samples]
    for number, (_, target, offset, size, members) in enumerate(rows):
        assert data[offset : offset + size] == shard.image_bytes(number)
        assert target == shard.samples[number].target
        assert dict(members)["jpg"] == size


def test_the_index_of_a_shard_of_another_size_is_refused(packed: Path) -> None:
    with shard_of(packed).open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ShardError, match=r"tar\.idx is the index of a shard of .*delete it"):
        index_shards([str(packed / "*.tar")])


def rename(values: dict[str, Any]) -> None:
    values["samples"][0][0] = "another"


def target(values: dict[str, Any]) -> None:
    values["samples"][0][1] ^= 1


def lengths(values: dict[str, Any]) -> None:
    values["samples"][0][4][0][1] += 1


def swap(values: dict[str, Any]) -> None:
    values["samples"].reverse()


def cut(values: dict[str, Any]) -> None:
    values["samples"].pop()


@pytest.mark.parametrize("how", [rename, target, lengths, swap, cut])
def test_an_index_that_lies_is_refused_where_its_shard_is_opened(
    packed: Path, how: Callable[[dict[str, Any]], Any]
) -> None:
    assert open_known_shard(shard_of(packed), info_by_index(packed)).samples
    change(packed, how)
    with pytest.raises(ShardError, match=r"tar\.idx says of .* what is not so.*delete it"):
        open_known_shard(shard_of(packed), info_by_index(packed))


def known_by(packed: Path) -> tuple[Path, ShardInfo]:
    return shard_of(packed), open_shard(shard_of(packed), 0).info


def test_a_shard_is_opened_by_its_index_without_reading_it(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, known = known_by(packed)
    plain = open_shard(path, 0)
    monkeypatch.delattr(index, "regular_members")
    shard = open_indexed_shard(path, known)
    assert (shard.info, shard.samples) == (plain.info, plain.samples)
    for number in (3, 0, 3):
        assert shard.image_bytes(number) == plain.image_bytes(number)
    renamed = path.rename(packed / "renamed.tar")
    side_of(packed).rename(packed / "renamed.tar.idx")
    assert match_shards([known], [renamed]) == {0: renamed}


@pytest.mark.parametrize("subset", [False, True, None])
def test_a_cure_speaks_of_the_choice_that_there_is(tmp_path: Path, subset: bool | None) -> None:
    samples = digit_samples(6)
    paths = [write_shard(tmp_path / f"{n}.tar", samples[2 * n : 2 * n + 2]) for n in range(3)]
    known = [open_shard(path, number).info for number, path in enumerate(paths[:2])]
    with pytest.raises(ShardError, match=r"2\.tar is none of them: its contents differ") as none:
        match_shards(known, paths[2:], subset=subset)
    assert "2 of the 2 shards that were labelled are not among `shards`" in str(none.value)
    assert "cure: give the very files that were labelled" in str(none.value)
    assert ("all or some of them" in str(none.value)) == (subset is True)
    assert "`subset`" not in str(none.value)  # which is of no use without any
    if subset:
        assert match_shards(known, paths[:1], subset=True) == {0: paths[0]}
        return
    with pytest.raises(ShardError, match="cure: give them too") as one:
        match_shards(known, paths[:1], subset=subset)
    assert ("or set `subset`" in str(one.value)) == (subset is False)


def shift(values: dict[str, Any]) -> None:
    values["samples"][1][2] += 512


def shorten(values: dict[str, Any]) -> None:
    values["samples"][1][3] -= 1


def exchange(values: dict[str, Any]) -> None:
    one, other = values["samples"][1], values["samples"][2]
    one[2], other[2] = other[2], one[2]


def beyond(values: dict[str, Any]) -> None:
    values["samples"][1][2] = 1 << 40


@pytest.mark.parametrize("how", [shift, shorten, exchange, beyond])
def test_an_index_that_lies_of_an_image_is_refused_where_the_shard_is_opened(
    packed: Path, how: Callable[[dict[str, Any]], Any]
) -> None:
    path, known = known_by(packed)
    change(packed, how)
    with pytest.raises(
        ShardError, match=r"tar\.idx (says of .* what is not so|is no index).*delete"
    ):
        open_indexed_shard(path, known)


def leave_out(values: dict[str, Any]) -> None:
    del values["samples"][1]


def reverse(values: dict[str, Any]) -> None:
    values["samples"].reverse()


@pytest.mark.parametrize("how", [rename, target, lengths, leave_out, cut, reverse])
def test_an_index_alone_leaves_no_sample_out_and_in_no_other_order(
    packed: Path, how: Callable[[dict[str, Any]], Any]
) -> None:
    """Validation knows of a shard what its index says: numbers of samples are those of labels."""
    change(packed, how)
    with pytest.raises(ShardError, match=r"tar\.idx says of .* what is not so.*delete it"):
        images_of(open_indexed_shard(shard_of(packed), info_by_index(packed)))


def images_of(shard: Shard) -> list[bytes]:
    return [bytes(shard.image_bytes(number)) for number in range(len(shard.samples))]


@pytest.mark.parametrize("members", [[], [["cls", 1]], [["jpg", -1]], [["jpg", "1"]], 3, ["jpg"]])
def test_an_index_of_members_that_no_sample_has_is_none(packed: Path, members: Any) -> None:
    def change_members(values: dict[str, Any]) -> None:
        values["samples"][1][4] = members

    change(packed, change_members)
    with pytest.raises(ShardError, match="is no index of a shard"):
        info_by_index(packed)


def test_a_class_that_was_changed_behind_an_index_is_refused(packed: Path) -> None:
    path, known = known_by(packed)
    data = bytearray(path.read_bytes())
    sample = open_shard(path, 0).samples[2]
    at = data.index(b"%s.cls" % sample.key.encode()) + 512
    data[at : at + 1] = b"%d" % (1 - sample.target)
    path.write_bytes(data)
    shard = open_indexed_shard(path, known)
    with pytest.raises(ShardError, match="what is not so"):
        shard.image_bytes(2)


def test_a_shard_with_extended_headers_is_read_whole_once(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed / "long.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(4):
            image = encode(synthetic_image(6, 9, number), "JPEG")
            for extension, content in (("jpg", image), ("cls", b"%d" % number)):
                member = tarfile.TarInfo(f"{'long' * 60}-{number}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with path.open("rb") as file:
        Path(f"{path}.idx").write_bytes(index_bytes(file, path.name))
    plain = open_shard(path, 0)
    opened: list[Any] = []
    monkeypatch.setattr(index, "open_shard", lambda *given: opened.append(given) or plain)
    shard = open_indexed_shard(path, plain.info)
    for number in range(4):
        assert shard.image_bytes(number) == plain.image_bytes(number)
    assert len(opened) == 1


def test_a_shard_without_an_index_or_with_another_ones_is_read_whole(packed: Path) -> None:
    path, known = known_by(packed)
    side_of(packed).unlink()
    assert type(open_indexed_shard(path, known)) is Shard
    other = packed / "shard-000001.tar"
    with pytest.raises(ShardError, match="with other keys than"):
        open_indexed_shard(other, replace(known, bytes=other.stat().st_size))


def test_a_lying_index_is_not_blamed_for_a_shard_that_a_store_does_not_know(packed: Path) -> None:
    known = info_by_index(packed)
    other = packed / "shard-000001.tar"
    with pytest.raises(ShardError, match="other keys than"):
        open_known_shard(other, known)


@pytest.mark.parametrize(
    "how",
    [
        lambda values: values.pop("bytes"),
        lambda values: values.pop("samples"),
        lambda values: values["samples"].clear(),
        lambda values: values.update(bytes="10240"),
        lambda values: values.update(samples=5),
        lambda values: values["samples"][0].pop(),
        lambda values: values["samples"][0].__setitem__(0, ["a"]),
        lambda values: values["samples"][0].__setitem__(0, "a\n"),
        lambda values: values["samples"][0].__setitem__(0, "a.b"),
        lambda values: values["samples"][0].__setitem__(0, ""),
        lambda values: values["samples"][0].__setitem__(1, -1),
        lambda values: values["samples"][0].__setitem__(1, 1.0),
        lambda values: values["samples"][0].__setitem__(1, True),
        lambda values: values["samples"].append(values["samples"][0]),
        lambda values: values.update(more=[[]]),
    ],
)
def test_a_malformed_index_is_refused_by_name(
    packed: Path, how: Callable[[dict[str, Any]], Any]
) -> None:
    change(packed, how)
    with pytest.raises(ShardError, match=r"tar\.idx is no index of a shard .*delete it"):
        index_shards([str(packed / "*.tar")])


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\x00\x01", b"v1.2 5\njpg 512 10 a.jpg\n", b"[" * 9999]
)
def test_another_file_of_that_name_is_refused(packed: Path, data: bytes) -> None:
    side_of(packed).write_bytes(data)
    with pytest.raises(ShardError, match=r"tar\.idx is no index of a shard"):
        index_shards([str(packed / "*.tar")])


def test_an_index_has_a_size_at_most(packed: Path) -> None:
    os.truncate(shard_of(packed), 1 << 40)
    os.truncate(side_of(packed), (1 << 28) + 1)
    with pytest.raises(PipelineError, match="268435457 bytes, and such a file has at most"):
        index_shards([str(packed / "*.tar")])


def test_an_index_is_written_from_what_lies_in_the_file(packed: Path) -> None:
    with shard_of(packed).open("rb") as file:
        assert index_bytes(file, "x") == side_of(packed).read_bytes()


def test_an_index_larger_than_its_shard_is_refused_unread(packed: Path) -> None:
    change(packed, lambda values: values.update(more=[[]] * shard_of(packed).stat().st_size))
    with pytest.raises(PipelineError, match=r"tar\.idx has \d+ bytes, and such a file has at most"):
        index_shards([str(packed / "*.tar")])


def test_an_index_with_more_rows_than_samples_is_refused_where_its_keys_are_compared(
    packed: Path,
) -> None:
    (key, *row), *_ = json.loads((packed / "shard-000001.tar.idx").read_bytes())["samples"]
    more = [[f"{number}", *row] for number in range(30)]
    change(packed, lambda values: values["samples"].extend([*more, [key, *row]]))
    with pytest.raises(ShardError, match=r"tar\.idx says of .* what is not so.*delete the index"):
        index_shards([str(packed / "*.tar")])
