from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
from pathlib import Path
from time import process_time

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_iterator

from pipeline.errors import ShardError
from pipeline.records import Sample, ShardInfo
from pipeline.shards import index
from pipeline.shards.index import _split, open_shard
from tests.factories import digit_samples, digits, encode, write_members, write_shard


def keys_of(path: Path) -> list[str]:
    return [sample.key for sample in open_shard(path, 0).samples]


def info_of(path: Path) -> ShardInfo:
    return open_shard(path, 0).info


@pytest.fixture
def write(tmp_path):
    """Return a function that writes (name, bytes) members to a tar."""
    return lambda *members: write_members(tmp_path / "x.tar", members)


def test_formats_are_those_of_the_bytes_whatever_the_names_say(write):
    kinds = {"a": "WEBP", "b": "JPEG", "c": "PNG", "d": "JPEG"}
    images = [(f"{key}.png", encode(digits()[0][0], kind)) for key, kind in kinds.items()]
    members = [*images, ("e.jpg", b"GIF89a")]
    targets = [(f"{name[0]}.cls", b"1") for name, _ in members]
    pairs = [one for pair in zip(members, targets, strict=True) for one in pair]
    assert open_shard(write(*pairs), 0).contents.formats == ("jpeg", "png", "webp")
    assert open_shard(write(*pairs[2:4], *pairs[-2:]), 0).contents.formats == ("jpeg",)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_shard_gives_the_samples_that_were_written(make_shard, count):
    written = digit_samples(count)
    path = make_shard("digits-000000.tar", written)
    shard = open_shard(path, 7)
    assert [
        (sample.key, bytes(shard.image_bytes(index)), sample.target)
        for index, sample in enumerate(shard.samples)
    ] == written
    assert shard.info.number == 7
    assert shard.info.name == "digits-000000.tar"
    assert shard.info.samples == count
    assert shard.info.bytes == path.stat().st_size


def test_offsets_point_into_the_file(make_shard):
    path = make_shard("x.tar", digit_samples(3))
    for sample in open_shard(path, 0).samples:
        assert isinstance(sample, Sample)
        with path.open("rb") as file:
            file.seek(sample.image_offset)
            assert file.read(sample.image_bytes)[:2] == b"\xff\xd8"


# ------------------------------------------------------------------- WebDataset's rule


def webdataset_keys(path: Path) -> list[str]:
    """Return the keys that WebDataset itself finds."""
    with path.open("rb") as stream:
        files = [{**file, "__url__": "x"} for file in tar_file_iterator(stream)]
    return [sample["__key__"] for sample in group_by_keys(files)]


@pytest.mark.parametrize(
    "bases",
    [
        ["plain", "with-dash_and_underscore", "UPPER"],
        ["dir/a", "dir/b", "other/a", "a"],
        ["n01/deep/er/x", "n01.2/x", "./y", "dots.in.directory/z"],
        ["été", "猫/犬", "spa ce"],
        ["x" * 150, "d" * 80 + "/" + "y" * 90],
    ],
)
def test_keys_are_webdatasets_own(write, bases):
    path = write(*((f"{base}.{extension}", b"1") for base in bases for extension in ("jpg", "cls")))
    assert keys_of(path) == webdataset_keys(path)
    assert len(keys_of(path)) == len(bases)


directories = st.lists(st.text("ab._-", min_size=1, max_size=4), max_size=2)
stems = st.text("ab_-", min_size=1, max_size=4)


@given(st.lists(st.tuples(directories, stems), min_size=1, max_size=5))
def test_keys_are_webdatasets_own_for_any_name(tmp_path_factory, names):
    bases = dict.fromkeys("/".join([*parents, stem]) for parents, stem in names)
    members = [(f"{base}.{extension}", b"1") for base in bases for extension in ("cls", "jpg")]
    path = write_members(tmp_path_factory.mktemp("any") / "x.tar", members)
    assert keys_of(path) == webdataset_keys(path)


@given(st.text("ab./_\n", max_size=12))
def test_a_name_is_split_as_by_webdatasets_regular_expression(name):
    match = re.match(r"((?:.*/|)[^.]+)[.]([^/]*)\Z", name, re.DOTALL)
    assert _split(name) == (None if match is None else match.groups())


@pytest.mark.parametrize("name", ["/" * 10**6, "a/" * 10**6, "a/" * 10**6 + ".", "." * 10**6])
def test_a_long_name_is_split_in_a_moment(name):
    began = process_time()
    _split(name)
    assert process_time() - began < 1


def test_the_extension_begins_at_the_first_dot_and_its_case_does_not_matter(write):
    path = write(("a.seg.png", b"mask"), ("a.JPG", b"image"), ("a.json", b'{"label": 3, "x": []}'))
    shard = open_shard(path, 0)
    assert [(sample.key, sample.target) for sample in shard.samples] == [("a", 3)]
    assert bytes(shard.image_bytes(0)) == b"image"


def test_directories_and_metadata_are_no_samples(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("__meta__", "__m__/x.jpg", "__m__/x.cls", "README", "a.jpg", "a.cls"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"4"))
    assert keys_of(path) == ["a"] == webdataset_keys(path)


def test_every_tar_dialect_reads_the_same(tmp_path):
    infos = set()
    for dialect in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w", format=dialect) as tar:
            for key, image, target in digit_samples(2):
                for extension, data in (("cls", b"%d" % target), ("jpg", image)):
                    info = tarfile.TarInfo(f"{'long/' * 25}{key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        shard = open_shard(path, 0)
        assert bytes(shard.image_bytes(1)) == digit_samples(2)[1][1]
        infos.add((shard.info.key_hash, shard.info.content_hash))
    assert len(infos) == 1


def test_webdatasets_writer_and_ours_agree(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as tar:
        for key, image, target in digit_samples(3):
            tar.write({"__key__": key, "jpg": image, "cls": target})
    ours = write_shard(tmp_path / "y.tar", digit_samples(3))
    assert info_of(tmp_path / "x.tar").content_hash == info_of(ours).content_hash


# --------------------------------------------------------------------------- damage


def boundaries(data: bytes) -> tuple[list[int], int]:
    """Return where members, their data and their padding begin, and where the last one ends."""
    cuts = []
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            padded = info.offset_data + -(-info.size // 512) * 512
            cuts += [info.offset, info.offset_data, info.offset_data + info.size, padded]
    return cuts, cuts[-1]


def test_a_cut_shard_never_gives_fewer_samples(tmp_path, make_shard):
    data = make_shard("whole.tar", digit_samples(3)).read_bytes()
    cuts, end = boundaries(data)
    near = {cut + step for cut in cuts for step in (-1, 0, 1)}
    for length in sorted(near | set(range(0, end + 512, 97))):
        if not 0 <= length < end + 512:
            continue
        path = tmp_path / "cut.tar"
        path.write_bytes(data[:length])
        with pytest.raises(ShardError, match=r"cut\.tar: "):
            open_shard(path, 0)


def test_a_shard_cut_after_its_last_sample_is_whole(tmp_path, make_shard):
    # One empty block marks the end; the padding behind it carries nothing.
    whole = make_shard("whole.tar", digit_samples(3))
    data = whole.read_bytes()
    _, end = boundaries(data)
    for length in (end + 512, end + 513, end + 1024, len(data)):
        path = tmp_path / "cut.tar"
        path.write_bytes(data[:length])
        assert info_of(path).content_hash == info_of(whole).content_hash


def test_a_destroyed_header_is_not_taken_for_the_end(tmp_path, make_shard):
    data = bytearray(make_shard("whole.tar", digit_samples(3)).read_bytes())
    cuts, _ = boundaries(bytes(data))
    for start in cuts[::4]:
        damaged = bytearray(data)
        damaged[start + 148] ^= 0x15  # the header's checksum
        path = tmp_path / "damaged.tar"
        path.write_bytes(damaged)
        with pytest.raises(ShardError):
            open_shard(path, 0)


@pytest.mark.parametrize("data", [b"", b"x", b"not a tar" * 1000, bytes(1024)])
def test_what_is_no_shard_is_refused_by_name(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ShardError, match=r"x\.tar"):
        open_shard(tmp_path / "x.tar", 0)


def test_a_missing_shard_and_a_directory_are_refused_by_name(tmp_path):
    with pytest.raises(ShardError, match=r"absent\.tar: cannot read"):
        open_shard(tmp_path / "absent.tar", 0)
    with pytest.raises(ShardError, match="cannot read"):
        open_shard(tmp_path, 0)


def test_a_compressed_tar_is_refused(tmp_path, make_shard):
    import gzip

    data = make_shard("x.tar", digit_samples(2)).read_bytes()
    (tmp_path / "x.tgz").write_bytes(gzip.compress(data))
    with pytest.raises(ShardError, match="is compressed by gzip; unpack it"):
        open_shard(tmp_path / "x.tgz", 0)


# ------------------------------------------------------------------ malformed samples


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.cls", "b.jpg", "b.cls", "a.jpg", "a.cls"],  # apart
        ["a.jpg", "a.cls", "a.jpg", "a.cls"],  # in a row
        ["a.jpg", "a.cls", "b.jpg", "b.cls", "a.json"],  # the rest of one, later
        ["a.jpg", "a.JPG", "a.cls"],
    ],
)
def test_a_key_that_comes_twice_is_refused_by_name(write, names):
    with pytest.raises(ShardError, match=r"x\.tar: two .* a?.*unique keys"):
        open_shard(write(*((name, b"1") for name in names)), 0)


@pytest.mark.parametrize(
    ("names", "apart"),
    [
        (["a.jpg", "b.jpg", "a.cls", "b.cls"], "a.cls"),  # as of `tar *.jpg *.cls`
        (["a.cls", "b.cls", "a.jpg", "b.jpg"], "a.jpg"),
        (["a.txt", "b.jpg", "b.cls", "a.jpg", "a.cls"], "a.jpg"),
    ],
)
def test_members_that_lie_apart_are_said_to(write, names, apart):
    with pytest.raises(ShardError, match=f"of sample 'a' lie apart, '{apart}' is not beside"):
        open_shard(write(*((name, b"1") for name in names)), 0)


@pytest.mark.parametrize("name", ["train/.DS_Store", "train/._a.jpg", "train/._a.cls"])
def test_a_hidden_file_is_named_as_what_it_is(write, name):
    members = ((name, b"x"), ("train/a.jpg", b"x"), ("train/a.cls", b"1"))
    with pytest.raises(ShardError, match=re.escape(f"{name!r} is a hidden file")):
        open_shard(write(*members), 0)


def test_a_sample_without_a_target_is_named(write):
    with pytest.raises(ShardError, match=r"'b' has no \.cls and no \.json"):
        open_shard(write(("a.jpg", b"x"), ("a.cls", b"1"), ("b.jpg", b"x")), 0)


@pytest.mark.parametrize("text", [b"", b"cat", b"1.5", b"-1", b"65536", b"\xff", b"1 2", b"0x1"])
def test_a_bad_cls_is_named(write, text):
    with pytest.raises(ShardError, match=r"a\.cls holds"):
        open_shard(write(("a.jpg", b"x"), ("a.cls", text)), 0)


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"3", b"[3]", b"null", b"{}", b'{"label": "3"}', b'{"label": 1.0}'),
        *(b'{"label": true}', b'{"label": null}', b'{"label": -1}', b'{"label": 65536}', b"\xff"),
        b"[" * 10**5,
    ],
)
def test_a_bad_json_is_named(write, text):
    with pytest.raises(ShardError, match=r"a\.json holds"):
        open_shard(write(("a.jpg", b"x"), ("a.json", text)), 0)


@pytest.mark.parametrize(("text", "target"), [(b"0", 0), (b"65535", 65535), (b" 7\n", 7)])
def test_class_indices_are_read_from_cls_and_json(write, text, target):
    assert open_shard(write(("a.jpg", b"x"), ("a.cls", text)), 0).samples[0].target == target
    json = b'{"label": %s, "file": "a"}' % text
    assert open_shard(write(("a.jpg", b"x"), ("a.json", json)), 0).samples[0].target == target


@pytest.mark.parametrize("names", [["a.cls"], ["a.gif", "a.cls"], ["a.jpg", "a.png", "a.cls"]])
def test_a_sample_needs_exactly_one_image(write, names):
    with pytest.raises(ShardError, match=r"'a' has (0|2) images \(members: "):
        open_shard(write(*((name, b"1") for name in names)), 0)


def test_many_members_of_one_sample_are_told_in_a_moment_and_a_line(write, monkeypatch):
    path = write(*((f"a.{number:05d}", b"") for number in range(20_000)))
    with pytest.raises(ShardError, match=r"sample 'a' has more than 4096 members; keys end at"):
        open_shard(path, 0)
    monkeypatch.setattr(index, "_MOST_MEMBERS", 20_000)
    began = process_time()
    with pytest.raises(ShardError, match=r"has 0 images \(members: 00000, .* 19992 more") as told:
        open_shard(path, 0)
    assert process_time() - began < 5  # it took a minute, comparing each with all
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp"])
def test_each_image_extension_is_taken(write, extension):
    path = write((f"a.{extension}", b"x"), ("a.cls", b"1"))
    assert open_shard(path, 0).samples[0].image_name == f"a.{extension}"


# ---------------------------------------------------------------------------- identity


def test_a_moved_and_renamed_shard_keeps_its_hashes(tmp_path, make_shard):
    path = make_shard("a.tar", digit_samples(3))
    (tmp_path / "there").mkdir()
    moved = tmp_path / "there" / "b.tar"
    shutil.copyfile(path, moved)
    os.utime(moved, (1, 1))
    one, other = info_of(path), open_shard(moved, 5).info
    assert (one.key_hash, one.content_hash) == (other.key_hash, other.content_hash)
    assert re.fullmatch("[0-9a-f]{64}", one.key_hash)


def changed(samples, **changes):
    key, image, target = samples[1]
    new = (changes.get("key", key), changes.get("image", image), changes.get("target", target))
    return [samples[0], new, *samples[2:]]


def test_a_relabelled_or_reencoded_shard_changes_its_content_hash_only(make_shard):
    samples = digit_samples(3)
    one = info_of(make_shard("x.tar", samples))
    target, image = samples[1][2], samples[1][1]
    for number, changes in enumerate(({"target": target + 1}, {"image": image + b"\0"})):
        other = info_of(make_shard(f"{number}.tar", changed(samples, **changes)))
        assert other.key_hash == one.key_hash
        assert other.content_hash != one.content_hash


def test_another_key_or_order_makes_another_shard(make_shard):
    samples = digit_samples(3)
    shards = [samples, changed(samples, key="other"), samples[::-1], samples[:2]]
    infos = [info_of(make_shard(f"{number}.tar", one)) for number, one in enumerate(shards)]
    assert len({info.key_hash for info in infos}) == 4
    assert len({info.content_hash for info in infos}) == 4


def test_hashes_are_golden(write):
    path = write(
        ("b.cls", b"7"), ("b.jpg", b"xyz"), ("a/ü.json", b'{"label": 0}'), ("a/ü.png", b"")
    )
    info = info_of(path)
    assert info.key_hash == "fea932b603cebc438e689965facda570f818d3d7f31b95f28a1be0a81635c344"
    assert info.content_hash == "5a4a58c9409f02c3244a30bc8fac7fb6213a7e8abc9fd8bc9f5dc6a43703e76a"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "the shard is a pointer of Git LFS, not the file itself",
        ),
        (b"<!DOCTYPE html><title>Sign in</title>", "the shard is a web page"),
        (None, "Is a directory"),
    ],
)
def test_what_is_given_for_a_shard_and_is_none_is_called_what_it_is(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "a.tar"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ShardError, match=rf"a\.tar: .*{reason}"):
        open_shard(path, 0)


@pytest.mark.parametrize("name", ["a.cls", "a.json"])
def test_a_class_has_a_size_at_most(write, monkeypatch, name):
    text = b'{"label": 1}'.ljust(1000) if name == "a.json" else b"1".ljust(1000)
    path = write(("a.jpg", b"x"), (name, text))
    assert open_shard(path, 0).samples[0].target == 1
    monkeypatch.setattr(index, "_LARGEST_TARGET", 999)
    with pytest.raises(ShardError, match=f"{name} has 1000 bytes"):
        open_shard(path, 0)
