from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import ShardError
from pipeline.shards.index import open_shard
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


def test_links_and_sparse_files_are_refused_by_what_they_are(tmp_path: Path) -> None:
    for kind, said in ((tarfile.LNKTYPE, "a hard link"), (tarfile.GNUTYPE_SPARSE, "a sparse")):
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
            add(tar, "a.cls", b"1")
            info = tarfile.TarInfo("a.jpg")
            info.type, info.linkname = kind, "b.jpg"
            tar.addfile(info)
        with pytest.raises(ShardError, match=rf"'a\.jpg' is {said}"):
            open_shard(path, 0)


def test_sizes_below_zero_and_endless_headers_are_refused(tmp_path: Path) -> None:
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
