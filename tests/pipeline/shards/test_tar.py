from __future__ import annotations

import io
import mmap
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ShardError
from pipeline.shards.index import open_shard
from pipeline.shards.tar import first_set, regular_members
from tests.factories import digit_samples, write_shard


def keys_of(path: Path) -> list[str]:
    return [sample.key for sample in open_shard(path, 0).samples]


def add(tar: tarfile.TarFile, name: str, data: bytes, **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


HEADERS = {
    "times of webdataset": {"mtime": 1_700_000_000.25},
    "names in extended headers": {"pax_headers": {"path": "other/NAME"}},
    "one for the whole archive": {"pax_headers": {"comment": "x"}},
    "gnu": {"format": tarfile.GNU_FORMAT},
    "pax": {"format": tarfile.PAX_FORMAT},
}
LONG = ["a", "d" * 60 + "/" + "e" * 60, "d" * 60 + "/" + "f" * 90, "ü/猫"]


def write(path: Path, header: str) -> Path:
    """Write samples of one byte under the keys ``LONG``, with headers of some kind."""
    options = dict(HEADERS[header])
    fields = {"mtime": options.pop("mtime")} if "mtime" in options else {}
    renamed = options.pop("pax_headers") if header.startswith("names") else None
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name in (f"{key}.{extension}" for key in LONG for extension in ("jpg", "cls")):
            if renamed is not None:
                fields["pax_headers"] = {"path": f"other/{name}"}
            add(tar, name, b"1", **fields)
    return path


@pytest.mark.parametrize("header", HEADERS)
def test_members_lie_where_tarfile_finds_them(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "x.tar", header)
    with tarfile.open(path, encoding="utf-8") as tar:
        found = [(one.name, one.offset_data, one.size) for one in tar if one.name.endswith("jpg")]
    ours = [
        (one.image_name, one.image_offset, one.image_bytes) for one in open_shard(path, 0).samples
    ]
    assert ours == found
    assert len(ours) == len(LONG)


def test_shards_joined_by_cat_are_read_whole(tmp_path: Path) -> None:
    samples = digit_samples(7)
    pieces = [write_shard(tmp_path / f"{n}.tar", samples[n : n + 3]) for n in (0, 3)]
    pieces.append(write(tmp_path / "6.tar", "pax"))
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    shard = open_shard(joined, 0)
    assert [one.key for one in shard.samples] == [key for key, _, _ in samples[:6]] + LONG
    for index, (_, image, _) in enumerate(samples[:6]):
        assert bytes(shard.image_bytes(index)) == image
    # A key of both is a key that comes twice, and a cut second shard is a cut one.
    joined.write_bytes(2 * pieces[0].read_bytes())
    with pytest.raises(ShardError, match=r"joined\.tar: two samples have the key"):
        open_shard(joined, 0)
    whole = pieces[0].read_bytes() + pieces[1].read_bytes()
    joined.write_bytes(whole[:-9000])
    with pytest.raises(ShardError, match=r"joined\.tar: .*truncated"):
        open_shard(joined, 0)


def test_an_end_mark_behind_each_sample_costs_no_more_than_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(1024) + b"x" * (1 << 20))
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    began = process_time()
    assert {first_set(data, 0, path) for _ in range(5_000)} == {1024}
    assert process_time() - began < 1  # it took 6 s, a megabyte each time


@pytest.mark.parametrize(
    "tail", [b"x", b"x" * 512, b"\0" * 700 + b"left over", b"\1" + bytes(9999)]
)
def test_what_follows_the_end_mark_and_is_no_archive_is_refused(
    tmp_path: Path, tail: bytes
) -> None:
    path = write_shard(tmp_path / "x.tar", digit_samples(2))
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(ShardError, match=r"x\.tar: .*follows the end-of-archive mark is no"):
        open_shard(path, 0)
    path.write_bytes(path.read_bytes()[: -len(tail)] + bytes(len(tail)))
    assert len(keys_of(path)) == 2


@pytest.mark.timeout(60)
def test_zeros_behind_an_archive_are_read_for_a_second_at_most(
    tmp_path: Path,
) -> None:
    path = write_shard(tmp_path / "x.tar", digit_samples(2))
    size = path.stat().st_size
    os.truncate(path, size + (1 << 24))
    assert len(keys_of(path)) == 2
    os.truncate(path, 1 << 40)  # it takes no disk
    with pytest.raises(ShardError, match=r"x\.tar: .*more than 268435456 zeros"):
        open_shard(path, 0)


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"a\nb.jpg", b"a\x1b[2J.jpg", b"a\xc2\x85.jpg"])
def test_a_name_that_can_be_no_key_is_refused_at_once(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "x.tar"
    options = {"encoding": "utf-8", "errors": "surrogateescape", "format": tarfile.USTAR_FORMAT}
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        add(tar, name.decode("utf-8", "surrogateescape"), b"x")
        add(tar, "a.cls", b"1")
    with pytest.raises(ShardError, match=r"x\.tar: the member '.*rename the file") as error:
        open_shard(path, 0)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE])
def test_a_name_longer_than_a_path_can_be_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "k" * 5000 + ".jpg", b"1", type=kind)
    with pytest.raises(ShardError, match=r"a name of 5004 characters, 'kkk.* and on") as error:
        open_shard(path, 0)
    assert len(str(error.value)) < 1000


NO_FILES = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.FIFOTYPE: "no file",
    b"M": "no file",  # the rest of one that another volume begins
}


@pytest.mark.parametrize(("kind", "said"), NO_FILES.items())
def test_members_without_bytes_of_their_own_are_refused_by_what_they_are(
    tmp_path: Path, kind: bytes, said: str
) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "a.cls", b"1")
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "b.jpg"
        tar.addfile(info)
    with pytest.raises(ShardError, match=rf"'a\.jpg' is {said}"):
        open_shard(path, 0)


def extended(name: str, records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """Return a file of 512 bytes with an extended header before it."""
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, len(records)
    info = tarfile.TarInfo(name)
    info.size = 512
    body = records + bytes(-len(records) % 512)
    return header.tobuf() + body + info.tobuf() + b"\1" * 512


def record(key: str, value: str) -> bytes:
    size = len(key) + len(value) + 3
    digits = len(str(size + len(str(size))))
    return f"{size + digits} {key}={value}\n".encode()


FORGED = {
    "is a sparse file": record("GNU.sparse.realsize", "2000"),  # tarfile takes the next header too
    "is a sparse file, ": record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0"),
    "has the size b'-512'": record("size", "-512"),
    "has the size b''": record("size", ""),
    "has the size b'5e2'": record("size", "5e2"),  # 0, says tarfile
    "truncated inside 'a.jpg'": record("size", "9" * 18),
    "no name": record("path", ""),
    "do not add up": b"9 path=b.jpg\n",
    "do not add up, ": b"1 " * 300_000 + b"=",  # tarfile takes gigabytes, and minutes
    "an extended header of 2000020": record("comment", "x" * 2_000_003),
}


@pytest.mark.parametrize("said", FORGED)
def test_headers_that_contradict_themselves_are_refused(tmp_path: Path, said: str) -> None:
    path = tmp_path / "x.tar"
    whole = tarfile.TarInfo("a.cls")
    whole.size = 1
    data = extended("a.jpg", FORGED[said])
    path.write_bytes(data + whole.tobuf() + b"1".ljust(512, b"\0") + bytes(1024))
    with pytest.raises(ShardError, match=re.escape(said.rstrip(", "))):
        open_shard(path, 0)


def test_sizes_below_zero_and_names_given_twice_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 11 + b"\0"  # -256, in base 256
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 0x20)
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(ShardError, match=r"x\.tar: not a whole tar file"):
        open_shard(path, 0)
    one = write(path, "names in extended headers").read_bytes()[:1024]
    path.write_bytes(one * 3000 + bytes(1024))
    with pytest.raises(ShardError, match=r"x\.tar: not a whole tar file"):
        open_shard(path, 0)


@pytest.mark.parametrize("key", ["path", "size"])
def test_a_header_of_the_whole_archive_names_no_member(tmp_path: Path, key: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(extended("a.jpg", record(key, "7"), tarfile.XGLTYPE) + bytes(1024))
    with pytest.raises(ShardError, match=f"x\\.tar: .*a second {key}"):
        open_shard(path, 0)


@settings(max_examples=60)
@given(data=st.data(), header=st.sampled_from(sorted(HEADERS)))
def test_what_is_not_refused_in_damaged_archives_is_what_tarfile_finds(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, header: str
) -> None:
    path = write(tmp_path_factory.mktemp("tar") / "x.tar", header)
    archive = bytearray(path.read_bytes())
    at = 512 * data.draw(st.integers(0, len(archive.rstrip(b"\0")) // 512))
    field = data.draw(st.sampled_from([(0, 99), (124, 135), (148, 155), (156, 156), (345, 400)]))
    for offset in data.draw(st.lists(st.integers(*field), max_size=3)):
        archive[at + offset] = data.draw(st.sampled_from(b"\0 0157Lgx/a.\x80\xff"))
    block = archive[at : at + 512]
    archive[at + 148 : at + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 0x20)
    path.write_bytes(archive)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            ours = list(regular_members(whole, path))
    except ShardError:
        return
    options = {"encoding": "utf-8", "errors": "surrogateescape", "ignore_zeros": True}
    with tarfile.open(path, **options) as tar:  # type: ignore[call-overload]
        assert ours == [(one.name, one.offset_data, one.size) for one in tar if one.isreg()]


_INDEX = """
import re, sys
from pathlib import Path
from pipeline.shards.index import open_shard
status = Path("/proc/self/status")
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) >> 10
before = peak()
print(open_shard(Path(sys.argv[1]), 0).info.samples, peak() - before)
"""


def test_many_tiny_members_take_little_memory(tmp_path: Path) -> None:
    count = 20_000
    path = tmp_path / "many.tar"
    samples = [(f"{n:07d}", bytes(4000), n % 7) for n in range(count)]
    write_shard(path, samples)
    command = [sys.executable, "-c", _INDEX, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found, megabytes = map(int, done.stdout.split())
    assert found == count
    # A shard of 120 MB, of which 64 MB are mapped at a time; 0.5 kB for each sample.
    assert megabytes < 64 + 20
