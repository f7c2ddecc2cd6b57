from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import fcntl
import hashlib
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, PipelineError, ShardError
from pipeline.files import cache as cache_module
from pipeline.files.cache import CacheConfig, RemoteShard
from pipeline.files.local import expand_shards
from pipeline.shards.index import open_shard
from tests.labelling import digit_shard
from tests.object_storage import S3Server

SIZE = 3_000_000


def remote(s3: S3Server, cache: Path, *names: str, gigabytes: float = 1.0) -> list[RemoteShard]:
    """Put shards of SIZE bytes of their own, and return them as a job would see them."""
    bucket = s3.make_bucket()
    for name in names:
        s3.put(f"{bucket}/t/{name}", contents(name))
    config = CacheConfig(directory=cache, gigabytes=gigabytes)
    return [*expand_shards([f"{bucket}/t/{name}" for name in names], config)]


def contents(name: str) -> bytes:
    return (name.encode() * (SIZE // len(name) + 1))[:SIZE]


def read(shard: RemoteShard) -> bytes:
    with shard.open() as file:
        return file.read()


def whole_files(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if not path.name.startswith(".")]


def partial_files(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.name.endswith(".part")]


def test_a_shard_is_fetched_when_first_opened_and_once(s3: S3Server, tmp_path: Path) -> None:
    (shard,) = remote(s3, tmp_path / "cache", "a.tar")
    assert s3.asked("GET", "a.tar") == 0
    assert not (tmp_path / "cache").exists()
    for _ in range(3):
        assert read(shard) == contents("a.tar")
    assert s3.asked("GET", "a.tar") == 1
    assert (shard.name, shard.size) == ("a.tar", SIZE)


def test_a_changed_object_is_fetched_anew(s3: S3Server, tmp_path: Path) -> None:
    (before,) = remote(s3, tmp_path, "a.tar")
    read(before)
    s3.put(str(before), contents("b.tar"))
    (after,) = expand_shards([str(before)], before.cache)
    assert read(after) == contents("b.tar")
    assert read(before) == contents("a.tar")  # its own run may still be at work


def test_an_object_replaced_while_a_run_is_at_work_is_refused(s3: S3Server, tmp_path: Path) -> None:
    (shard,) = remote(s3, tmp_path, "a.tar")
    s3.put(str(shard), contents("b.tar"))
    with pytest.raises(PipelineError, match="replaced by another object"):
        shard.open()
    assert whole_files(tmp_path) == partial_files(tmp_path) == []


def test_the_least_recently_used_shards_make_room(s3: S3Server, tmp_path: Path) -> None:
    a, b, c = remote(s3, tmp_path, "a.tar", "b.tar", "c.tar", gigabytes=2.5 * SIZE / 1e9)
    read(a)
    time.sleep(0.02)
    read(b)
    time.sleep(0.02)
    read(a)
    time.sleep(0.02)
    read(c)
    assert len(whole_files(tmp_path)) == 2
    s3.requests.clear()
    read(a)
    read(c)
    assert s3.requests == []
    read(b)
    assert s3.asked("GET", "b.tar") == 1
    assert sum(path.stat().st_size for path in whole_files(tmp_path)) == 2 * SIZE


def test_a_shard_in_use_stays_readable_when_it_is_evicted(s3: S3Server, tmp_path: Path) -> None:
    bucket, cache = s3.make_bucket(), tmp_path / "cache"
    for number in range(2):
        path = digit_shard(tmp_path / f"{number}.tar", 5, first=5 * number)
        s3.put(f"{bucket}/{number}.tar", path.read_bytes())
    size = (tmp_path / "0.tar").stat().st_size
    config = CacheConfig(directory=cache, gigabytes=1.1 * size / 1e9)
    first, second = (
        open_shard(file, number)
        for number, file in enumerate(expand_shards([bucket + "/{0..1}.tar"], config))
    )
    assert len(whole_files(cache)) == 1
    local = [open_shard(tmp_path / f"{number}.tar", number) for number in range(2)]
    for ours, theirs in zip((first, second), local, strict=True):
        assert ours.info == theirs.info
        assert ours.contents == theirs.contents


def test_a_shard_larger_than_the_cache_is_refused(s3: S3Server, tmp_path: Path) -> None:
    (shard,) = remote(s3, tmp_path, "a.tar", gigabytes=0.5 * SIZE / 1e9)
    with pytest.raises(ConfigError, match=r"a\.tar has 3000000 bytes, more than .*`gigabytes`"):
        shard.open()
    with pytest.raises(ConfigError, match="`gigabytes` is 0"):
        CacheConfig(gigabytes=0)


def start(shards: list[RemoteShard]) -> subprocess.Popen[bytes]:
    """Read shards in a process of its own, which prints the hashes of what it read."""
    code = (
        "import base64, hashlib, pickle, sys\n"
        "for shard in pickle.loads(base64.b64decode(sys.argv[1])):\n"
        "    print(hashlib.sha256(shard.open().read()).hexdigest())\n"
    )
    text = base64.b64encode(pickle.dumps(shards)).decode()
    return subprocess.Popen([sys.executable, "-c", code, text], stdout=subprocess.PIPE)


def test_processes_that_want_one_shard_fetch_it_once(s3: S3Server, tmp_path: Path) -> None:
    shards = remote(s3, tmp_path, "a.tar", "b.tar")
    s3.requests.clear()

    def slow(request: object) -> None:
        time.sleep(0.5)

    s3.fault = slow
    hashes = [hashlib.sha256(contents(shard.name)).hexdigest() for shard in shards]
    for process in [start(shards) for _ in range(4)]:
        assert process.communicate(timeout=60)[0].decode().split() == hashes
    assert s3.asked("GET", "a.tar") == s3.asked("GET", "b.tar") == 1
    assert len(s3.requests) == 2


def _bytes_used(cache: Path) -> int:
    """Sum the files while nobody may reserve or evict."""
    with (cache / ".lock-room").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = {}
        for path in (*partial_files(cache), *whole_files(cache)):
            with contextlib.suppress(FileNotFoundError):  # renamed in between: seen as the other
                status = path.stat()
                found[status.st_ino] = status.st_size
        return sum(found.values())


def test_fetches_under_way_count_and_the_cache_never_exceeds_its_size(
    s3: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pipeline")
    limit = int(1.5 * SIZE)
    names = [f"{letter}.tar" for letter in "abcd"]
    shards = remote(s3, tmp_path, *names, gigabytes=limit / 1e9)

    def slow(request: object) -> None:
        time.sleep(0.1)

    s3.fault = slow
    seen = []
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(read, shard) for shard in shards]
        while not all(one.done() for one in reads):
            seen.append(_bytes_used(tmp_path))
    assert [one.result() for one in reads] == [contents(name) for name in names]
    assert max(seen) == SIZE
    said = [record.getMessage().split()[:2] for record in caplog.records]
    waits = [url for url, word in said if word == "waits:"]
    assert len(waits) == len(set(waits)) > 0  # said once, however long it takes
    assert sorted(word for word, _ in said if word.endswith("ing")) == (
        ["evicting"] * 3 + ["fetching"] * 4
    )


def test_a_killed_fetch_leaves_no_lock_no_bad_file_and_in_the_end_no_half(
    s3: S3Server, tmp_path: Path
) -> None:
    (a,) = remote(s3, tmp_path, "a.tar")
    s3.fault = lambda request: "stall" if request.method == "GET" else None
    process = start([a])
    for _ in range(600):
        if partial_files(tmp_path):
            break
        time.sleep(0.05)
    time.sleep(0.2)
    assert len(partial_files(tmp_path)) == 1
    process.kill()
    process.communicate()
    s3.fault = None
    assert whole_files(tmp_path) == []
    assert read(a) == contents("a.tar")
    assert partial_files(tmp_path) == []


def test_a_torn_fetch_is_not_committed(s3: S3Server, tmp_path: Path) -> None:
    (shard,) = remote(s3, tmp_path, "a.tar")
    s3.fault = lambda request: "torn" if request.method == "GET" else None
    with pytest.raises(PipelineError, match=r"a\.tar"):
        shard.open()
    assert whole_files(tmp_path) == partial_files(tmp_path) == []
    s3.fault = None
    assert read(shard) == contents("a.tar")


def test_an_object_of_another_length_than_listed_is_not_committed(
    s3: S3Server, tmp_path: Path
) -> None:
    (shard,) = remote(s3, tmp_path, "a.tar")
    for size in (SIZE - 1, SIZE + 1):
        other = replace(shard, stored=replace(shard.stored, size=size))
        with pytest.raises(PipelineError, match=f"and has {size}; run again"):
            other.open()
    assert whole_files(tmp_path) == partial_files(tmp_path) == []


def test_a_link_to_nowhere_in_the_cache_is_waited_for_by_nobody(
    s3: S3Server, tmp_path: Path
) -> None:
    (tmp_path / "old.tar").symlink_to(tmp_path / "absent")
    (shard,) = remote(s3, tmp_path, "a.tar")
    assert read(shard) == contents("a.tar")


def test_a_cut_cache_file_is_fetched_again(s3: S3Server, tmp_path: Path) -> None:
    (shard,) = remote(s3, tmp_path, "a.tar")
    read(shard)
    os.truncate(whole_files(tmp_path)[0], 1000)
    assert read(shard) == contents("a.tar")
    assert s3.asked("GET", "a.tar") == 2


def flip(path: Path, offset: int = SIZE // 2) -> None:
    """Change a byte of a file as a failing disk would: size, times and inode stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Know no more of the cache than a process that has just been started."""
    monkeypatch.setattr(cache_module, "_compared", set())


@pytest.mark.parametrize("offset", [0, SIZE // 2, SIZE - 1])
def test_a_damaged_cache_file_is_fetched_again(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    (shard,) = remote(s3, tmp_path, "a.tar")
    read(shard)
    flip(whole_files(tmp_path)[0], offset)
    forget(monkeypatch)
    assert read(shard) == contents("a.tar")
    assert s3.asked("GET", "a.tar") == 2
    assert read(shard) == contents("a.tar")
    assert s3.asked("GET", "a.tar") == 2


@pytest.mark.parametrize("text", [None, "", "no number", "00000000"])
def test_a_cache_file_without_its_checksum_is_fetched_again(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    (shard,) = remote(s3, tmp_path, "a.tar")
    read(shard)
    (checksum,) = tmp_path.glob(".*.crc32")
    checksum.unlink() if text is None else checksum.write_text(text)
    forget(monkeypatch)
    assert read(shard) == contents("a.tar")
    assert s3.asked("GET", "a.tar") == 2
    assert checksum.read_text() == f"{binascii.crc32(contents('a.tar')):08x}"


def test_a_disk_that_damages_what_it_is_given_is_named(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = remote(s3, tmp_path, "a.tar")
    fetch = cache_module._ShardCache._fetch

    def damaging(self: object, stored: object, path: Path) -> object:
        found = fetch(self, stored, path)  # type: ignore[arg-type]
        flip(path)
        return found

    monkeypatch.setattr(cache_module._ShardCache, "_fetch", damaging)
    with pytest.raises(PipelineError, match=rf"{tmp_path}/\w+\.tar: the bytes of .*a\.tar are not"):
        shard.open()
    assert s3.asked("GET", "a.tar") == 2
    assert [path.name for path in tmp_path.iterdir() if "lock" not in path.name] == []


def test_a_process_compares_a_cache_file_once(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = remote(s3, tmp_path, "a.tar")
    compared = []
    crc32 = binascii.crc32

    def counting(data: bytes, start: int = 0) -> int:
        compared.append(len(data))
        return crc32(data, start)

    monkeypatch.setattr(cache_module.binascii, "crc32", counting)
    read(shard)
    assert sum(compared) == 2 * SIZE  # as it comes, and as it lies there
    for _ in range(3):
        read(shard)
    assert sum(compared) == 2 * SIZE


def test_an_evicted_shard_leaves_no_checksum(s3: S3Server, tmp_path: Path) -> None:
    for shard in remote(s3, tmp_path, "a.tar", "b.tar", gigabytes=1.5 * SIZE / 1e9):
        read(shard)
    assert len(whole_files(tmp_path)) == len(list(tmp_path.glob(".*.crc32"))) == 1


def test_missing_shards_are_named_all_together(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.make_bucket()
    s3.put(f"{bucket}/t-1.tar", b"x")
    with pytest.raises(
        ShardError, match=r"3 of 4 names match no file: .*/t-0.tar', .*/t-2.tar', .*/t-3.tar'"
    ):
        expand_shards([f"{bucket}/t-{{0..3}}.tar"])
    with pytest.raises(ShardError, match="1 of 1 names match no file"):
        expand_shards([f"{bucket}/u-*.tar"])
    with pytest.raises(ShardError, match="named twice"):
        expand_shards([f"{bucket}/t-1.tar", f"{bucket}/t-*.tar"])


def test_an_unwritable_cache_is_named_with_its_cure(s3: S3Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (shard,) = remote(s3, tmp_path / "file" / "cache", "a.tar")
    with pytest.raises(
        PipelineError, match=r"cache .*/file/cache failed .*give another `directory`"
    ):
        shard.open()


def test_a_cache_without_room_is_named_with_its_cure(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # of no file: it is a write's

    (shard,) = remote(s3, tmp_path / "cache", "a.tar")
    monkeypatch.setattr(cache_module, "_open_whole", refuse)
    with pytest.raises(PipelineError, match=r"cache .*/cache failed \(No space.*free space or"):
        shard.open()


def test_the_default_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert CacheConfig().directory_path == tmp_path / "teacher-labels" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert CacheConfig().directory_path == Path.home() / ".cache" / "teacher-labels" / "shards"


def test_a_fetch_that_ends_while_the_cache_is_counted_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / ".a.tar.1-ff.part"
    partial.write_bytes(b"0123456789")
    looked = cache_module._unlink_if_left

    def ending(path: Path) -> bool:
        path.rename(tmp_path / "a.tar")
        return looked(path)

    monkeypatch.setattr(cache_module, "_unlink_if_left", ending)
    store = cache_module._ShardCache(CacheConfig(directory=tmp_path))
    fetching, whole = store._contents()
    assert (fetching, [(size, path.name) for _, size, path in whole]) == (0, [(10, "a.tar")])
