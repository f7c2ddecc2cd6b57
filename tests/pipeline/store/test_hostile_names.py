"""Received stores that name files outside of themselves: nothing is read or written there."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import patch

import pytest

from pipeline.errors import PipelineError, StoreError
from pipeline.files.local import sha256
from pipeline.identity import memory_of_json, read_json
from pipeline.store import (
    claim_store,
    commit_part,
    export_store,
    find_parts,
    finish_store,
    open_store,
)
from pipeline.store.card import card_text, inspect_store
from pipeline.store.manifest import IDENTITY_PATH
from pipeline.store.provenance import read_runs
from pipeline.store.single import write_single_file
from pipeline.tools import extend_command, merge_stores, relabelled_store, thin_store
from pipeline.tools.verify import verify_store
from tests.pipeline.store.test_crafted_stores import little_memory
from tests.storing import IDENTITY, PRINTS, info_of, rows_of, write_store

RUN = b'{"finished":"2026-01-01","settings":{"shards":["x.tar"]}}\n'
OUTSIDE = "leads out of .*put the file itself there|is no file of the store"
BESIDE = "is no name of a file beside the labels"
NAMES = {"directory": "s.parquet", "zarr": "s.zarr", "file": "one.parquet"}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest")
    store = write_store(folder / "s.parquet", [info_of(0), info_of(1)], [(0, 3)])
    store.root.commit_new("_meta/runs/20260101.json", RUN)
    export_store(folder / "s.parquet", folder / "s.zarr")
    export_store(folder / "s.parquet", folder / "one.parquet", single_file=True)
    write_store(folder / "other.parquet", [info_of(2)], [(0, 3)])
    return folder


def copy_of(honest: Path, kind: str, to: Path) -> Path:
    source, target = honest / NAMES[kind], to / "received" / NAMES[kind]
    target.parent.mkdir()
    if source.is_dir():
        return Path(shutil.copytree(source, target))
    return Path(shutil.copy(source, target))


def forged(honest: Path, to: Path, companions: Mapping[str, bytes]) -> Path:
    """Write a store in one file whose footer is true, with these files more beside it."""
    source = open_store(honest / "s.parquet")
    path = to / "received" / "one.parquet"
    path.parent.mkdir()
    with patch.object(type(source), "companions", lambda _: {**honest_files, **companions}):
        honest_files = {path: source.root.read_bytes(path) for path in ("_README.md",)}
        honest_files[IDENTITY_PATH] = source.root.read_bytes(IDENTITY_PATH)
        write_single_file(source, path)
    return path


def thin(store: Path, out: Path, _: Path) -> None:
    thin_store(open_store(store), out / "t.parquet", views=range(2))


def merge(store: Path, out: Path, honest: Path) -> None:
    merge_stores([open_store(honest / "other.parquet"), open_store(store)], out / "m.parquet")


def derive(store: Path, out: Path, honest: Path) -> None:
    ours = open_store(honest / "s.parquet")
    relabelled_store(ours, open_store(store), out / "d.parquet", note="a note")


USES: dict[str, Callable[[Path, Path, Path], object]] = {
    "verify": lambda store, out, _: verify_store(store),
    "inspect": lambda store, out, _: inspect_store(open_store(store)).to_markdown(),
    "extend": lambda store, out, _: extend_command(open_store(store), 2),
    "to a directory": lambda store, out, _: export_store(store, out / "x.parquet"),
    "to zarr": lambda store, out, _: export_store(store, out / "x.zarr"),
    "to a file": lambda store, out, _: export_store(store, out / "x.parquet", single_file=True),
    "thin": thin,
    "merge": merge,
    "derive": derive,
}


def files_outside(tmp_path: Path) -> dict[str, bytes]:
    """Return all files but those of targets."""
    return {
        path.as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and "out" not in path.relative_to(tmp_path).parts
    }


COMPANIONS = [
    "_meta/../../../victim/authorized_keys",
    "../victim/authorized_keys",
    "/tmp/victim",
    "_meta/runs/../../../victim/authorized_keys",
    "_meta/runs/..\\..\\victim.json",
    "_meta/runs/a\0.json",
    "_meta//runs/a.json",
    "_meta/runs/.json",
    "_meta/runs/.hidden.json",
    "_meta/runs/a.json\n",
    "_meta/runs/\x1b[31mred.json",
    "_meta/runs/\u202egro.json",
    "_meta/runs/deeper/a.json",
    "_meta/runs",
    "_meta/other.json",
    "_meta/user",
    "_meta/user/",
    "_meta/user/.hidden",
    "_meta/user/deeper/NOTES.md",
    "_meta/user/../../victim",
    "_meta/user/a b",
    "_meta/user/\x1b[31mLICENSE",
    "_meta/user/" + "n" * 129,
    "_META/identity.json",
    "_readme.md",
    "_manifest.json",
    "shard=0/view-00000-00003.parquet",
    "label/c/0/0",
    "zarr.json",
    "",
    ".",
]


@pytest.mark.parametrize("name", COMPANIONS)
def test_a_footer_names_no_file_but_those_beside_the_labels(
    honest: Path, tmp_path: Path, name: str
) -> None:
    store = forged(honest, tmp_path, {name: b"evil"})
    with pytest.raises(StoreError) as error:
        open_store(store)
    assert f"{store}: {name!r} {BESIDE}" in str(error.value)
    assert "get it anew" in str(error.value)


def test_two_names_in_a_footer_that_differ_by_case_are_refused(
    honest: Path, tmp_path: Path
) -> None:
    store = forged(honest, tmp_path, {f"_meta/runs/{name}.json": RUN for name in ("a", "A")})
    with pytest.raises(StoreError, match=BESIDE):
        open_store(store)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", COMPANIONS[:2])
def test_no_use_of_a_forged_file_writes_beside_its_target(
    honest: Path, tmp_path: Path, name: str, use: str
) -> None:
    store = forged(honest, tmp_path, {name: b"evil"})
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "authorized_keys").write_bytes(b"old")
    (tmp_path / "out" / "deeper").mkdir(parents=True)
    before = files_outside(tmp_path)
    with pytest.raises(StoreError, match=BESIDE):
        USES[use](store, tmp_path / "out" / "deeper", honest)
    assert files_outside(tmp_path) == before
    assert not (tmp_path / "out" / "victim").exists()


@pytest.mark.parametrize("kind", ["directory", "zarr"])
@pytest.mark.parametrize(
    "name", ["_meta/other.json", "_meta/runs/a\\b.json", "_meta/runs/\x1b[31m.json", "_meta/runs/x"]
)
def test_other_files_beside_the_labels_of_a_directory_are_refused(
    honest: Path, tmp_path: Path, kind: str, name: str
) -> None:
    store = copy_of(honest, kind, tmp_path)
    (store / name).write_bytes(RUN)
    for use in USES.keys() - {"inspect", "extend", "derive", "merge"}:
        with pytest.raises(StoreError) as error:
            USES[use](store, tmp_path / "out", honest)
        assert f"{store}: {name!r} {BESIDE}" in str(error.value)


@pytest.mark.parametrize("kind", ["directory", "zarr"])
@pytest.mark.parametrize("link", ["_meta", "_meta/runs", "_meta/runs/20260101.json"])
def test_links_out_of_a_received_store_are_not_read(
    honest: Path, tmp_path: Path, kind: str, link: str
) -> None:
    store = copy_of(honest, kind, tmp_path)
    (store / link).rename(tmp_path / "secret")
    (store / link).symlink_to(tmp_path / "secret")
    for use in ("to a directory", "to zarr", "to a file", "thin"):
        with pytest.raises(PipelineError, match=f"{OUTSIDE}|'_meta/runs' {BESIDE}"):
            USES[use](store, tmp_path / "out", honest)
    copied = [path for path in (tmp_path / "out").rglob("*") if path.name == "20260101.json"]
    assert copied == []


@pytest.mark.parametrize("link", ["_meta", "_meta/runs", "shard=0", "shard=1"])
@pytest.mark.parametrize("use", ["thin", "merge", "label"])
def test_links_in_a_target_are_not_followed(
    honest: Path, tmp_path: Path, link: str, use: str
) -> None:
    target, victim = tmp_path / f"{use[0]}.parquet", tmp_path / "victim"
    claim_store(target, IDENTITY, PRINTS)
    victim.mkdir()
    if link == "_meta":
        shutil.rmtree(target / link)
    (target / link).symlink_to(victim)
    write = USES.get(use, lambda *_: label(target))
    with pytest.raises(PipelineError, match=OUTSIDE):
        write(honest / "s.parquet", tmp_path, honest)
    assert list(victim.iterdir()) == []


def label(target: Path) -> None:
    """Do what a label job does to its store."""
    claim_store(target, IDENTITY, PRINTS)
    for number in range(2):
        commit_part(target, rows_of(IDENTITY, info_of(number), 0, 2))
    finish_store(target, IDENTITY, PRINTS, [info_of(0), info_of(1)], card_text)
    read_runs(open_store(target).root)


def test_links_with_the_names_of_a_targets_files_are_replaced(tmp_path: Path) -> None:
    target, victim = tmp_path / "s.parquet", tmp_path / "victim"
    claim_store(target, IDENTITY, PRINTS)
    victim.write_bytes(b"old")
    (target / "_README.md").symlink_to(victim)
    label(target)
    assert victim.read_bytes() == b"old"
    assert not (target / "_README.md").is_symlink()


def test_a_store_whose_root_is_a_link_is_read_and_added_to(honest: Path, tmp_path: Path) -> None:
    for kind, name in NAMES.items():
        (tmp_path / name).symlink_to(honest / name)
        assert verify_store(tmp_path / name).labels == verify_store(honest / name).labels, kind
    (tmp_path / "real.parquet").mkdir()
    (tmp_path / "link.parquet").symlink_to(tmp_path / "real.parquet")
    label(tmp_path / "link.parquet")
    assert verify_store(tmp_path / "real.parquet").parts == 2


def test_a_second_spelling_of_a_parts_path_is_no_part(honest: Path, tmp_path: Path) -> None:
    store = copy_of(honest, "directory", tmp_path)
    for alias in ("shard=00", "shard=\u0660"):
        shutil.copytree(store / "shard=0", store / alias)
        for look in (find_parts, verify_store):
            with pytest.raises(StoreError, match=r"'shard=.* is no file of the store, and"):
                look(store)
        shutil.rmtree(store / alias)


@pytest.mark.parametrize("kind", ["directory", "zarr"])
@pytest.mark.parametrize("path", ["_manifest.json", "_README.md", IDENTITY_PATH, "data"])
def test_a_pipe_in_the_place_of_a_stores_file_is_refused(
    honest: Path, tmp_path: Path, kind: str, path: str
) -> None:
    store = copy_of(honest, kind, tmp_path)
    if path == "data":
        path = "label/c/0/0" if kind == "zarr" else "shard=0/view-00000-00003.parquet"
    (store / path).unlink()
    os.mkfifo(store / path)
    with pytest.raises(PipelineError, match="is no file, but a pipe or a device"):
        verify_store(store)


def test_a_pipe_is_no_store_in_one_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "one.parquet")
    with pytest.raises(PipelineError, match="is no file, but a pipe or a device"):
        open_store(tmp_path / "one.parquet")


@pytest.mark.parametrize("kind", ["directory", "zarr"])
@pytest.mark.parametrize(
    "path", ["_manifest.json", "_README.md", IDENTITY_PATH, "_meta/runs/20260101.json"]
)
def test_a_file_of_terabytes_is_refused_unread(
    honest: Path, tmp_path: Path, kind: str, path: str
) -> None:
    store = copy_of(honest, kind, tmp_path)
    os.truncate(store / path, 1 << 40)
    with little_memory(), pytest.raises(PipelineError, match="1099511627776 bytes, and such a"):
        export_store(store, tmp_path / "x.parquet")


BOUNDS = {
    "_manifest.json": 1 << 30,
    "_README.md": 1 << 26,
    IDENTITY_PATH: 1 << 26,
    "_meta/runs/20260101.json": 1 << 26,
    "_meta/user/NOTES.md": 1 << 20,
}


@pytest.mark.parametrize("path", BOUNDS)
def test_a_file_of_a_byte_more_than_its_kind_has_is_refused_unread(
    honest: Path, tmp_path: Path, path: str
) -> None:
    store = copy_of(honest, "directory", tmp_path)
    (store / "_meta/user").mkdir()
    (store / path).touch()
    os.truncate(store / path, BOUNDS[path] + 1)
    with little_memory(), pytest.raises(PipelineError, match=f"has at most {BOUNDS[path]};"):
        export_store(store, tmp_path / "x.parquet")


NUMBERS = ["Infinity", "-Infinity", "NaN", "1e999", "1" * 41, "9" * 5000]


@pytest.mark.parametrize("text", [*NUMBERS, "[" * 40 + "]" * 40, "[" * 990 + "]" * 990])
@pytest.mark.parametrize("field", ["format_version", "notes"])
def test_json_that_no_release_writes_is_refused_by_name(
    honest: Path, tmp_path: Path, text: str, field: str
) -> None:
    """In the manifest, the identity, and the records of runs."""
    store = copy_of(honest, "directory", tmp_path)
    record = f'{{"{field}":{text}}}\n'.encode()
    (store / "_meta/runs/20260101.json").write_bytes(record)
    (run,) = read_runs(open_store(store).root)
    assert "the number" in run.error or "nested more than 32 deep" in run.error
    (store / IDENTITY_PATH).write_bytes(record)
    with pytest.raises(StoreError, match="is damaged"):
        claim_store(store, IDENTITY, PRINTS)
    sealed = b'{"sha256":"' + sha256(record).encode() + b'",' + record[1:]
    (store / "_manifest.json").write_bytes(sealed)
    with pytest.raises(StoreError, match="is no manifest"):
        open_store(store)


VALUES = {
    "lists": b"[]",
    "objects": b"{}",
    "objects of one value": b'{"":0}',
    "lists in lists": b"[" * 29 + b"]" * 29,
    "objects in objects": b'{"":' * 29 + b"0" + b"}" * 29,
    "short texts": b'"ab"',
    "texts": b'"' + b"a" * (1 << 20) + b'"',
    "wide texts": ('"' + "a" * (1 << 20) + '\U0001f600"').encode(),
    "texts with an escape": b'"' + b"a" * (1 << 20) + b'\\ud83d\\ude00"',
}


@pytest.mark.parametrize("one", VALUES.values(), ids=VALUES)
def test_json_is_refused_before_it_takes_much_memory(one: bytes) -> None:
    """At the bound it takes no more than was reckoned, and no tenth of it."""
    most = 1 << 25
    few, many = (memory_of_json(b"[" + b",".join([one] * count) + b"]") for count in (1, 2))
    count = most // (many - few) - 1
    text, larger = (b"[" + b",".join([one] * many) + b"]" for many in (count, count + 3))
    tracemalloc.start()
    try:
        read_json(text, most)
        assert most / 10 < tracemalloc.get_traced_memory()[1] < most
        tracemalloc.reset_peak()
        with pytest.raises(ValueError, match="may take more than 32 MiB of memory"):
            read_json(larger, most)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


def test_json_of_very_many_values_is_refused_in_a_record_and_a_manifest(
    honest: Path, tmp_path: Path
) -> None:
    assert read_json("[" + "[]," * (1 << 20) + "1]")[-1] == 1
    store = copy_of(honest, "directory", tmp_path)
    record = b'{"notes":[' + b"[]," * (1 << 21) + b"1]}\n"
    (store / "_meta/runs/20260101.json").write_bytes(record)
    with little_memory():
        (run,) = read_runs(open_store(store).root)
    assert "may take more than 256 MiB of memory" in run.error
    body = b'{"notes":[' + b"[]," * 8_000_000 + b"1]}\n"
    (store / "_manifest.json").write_bytes(_sealed(body))
    with pytest.raises(StoreError, match=r"is no manifest .*take more than 1280 MiB"):
        open_store(store)


def _sealed(body: bytes) -> bytes:
    return b'{"sha256":"' + sha256(body).encode() + b'",' + body[1:]


def test_of_a_manifests_unknown_fields_one_is_named_and_none_kept(
    honest: Path, tmp_path: Path
) -> None:
    store = copy_of(honest, "directory", tmp_path)
    manifest = store / "_manifest.json"
    body = b"{" + manifest.read_bytes().partition(b",")[2]
    more = ",".join(f'"x{number:06}":0' for number in range(1 << 17)).encode()
    manifest.write_bytes(_sealed(b"{" + more + b"," + body[1:]))
    with little_memory(), pytest.raises(StoreError, match="field 'x000000' is not known to this"):
        open_store(store)
    manifest.write_bytes(_sealed(b'{"' + b"\x7f\xc2\x9b`" * 5000 + b'":0,' + body[1:]))
    with pytest.raises(StoreError, match=r"'\\x7f\\x9b`") as caught:
        open_store(store)
    assert len(str(caught.value)) < 1000


def test_values_of_the_wrong_kind_in_a_footers_files_are_refused(
    honest: Path, tmp_path: Path
) -> None:
    with patch("pipeline.store.single._text_of", lambda *_: ["no text"]):
        store = forged(honest, tmp_path, {})
    with pytest.raises(StoreError, match="is no text of at most"):
        open_store(store)


def test_a_record_that_is_no_text_is_named_when_a_footer_would_hold_it(
    honest: Path, tmp_path: Path
) -> None:
    store = copy_of(honest, "directory", tmp_path)
    (store / "_meta/runs/20260101.json").write_bytes(b"\xff")
    with pytest.raises(StoreError, match=r"runs/20260101.json is no text"):
        export_store(store, tmp_path / "x.parquet", single_file=True)


@pytest.mark.parametrize("settings", ["[1]", "5", '{"shards":5}', '{"shards":"x.tar"}'])
def test_a_record_whose_settings_are_none_says_so(
    honest: Path, tmp_path: Path, settings: str
) -> None:
    store = copy_of(honest, "directory", tmp_path)
    (store / "_meta/runs/20260101.json").write_text(f'{{"settings":{settings}}}')
    (run,) = read_runs(open_store(store).root)
    assert "Error" in run.error
    with pytest.raises(PipelineError, match="the records of 0 label jobs"):
        extend_command(open_store(store), 2)


def test_what_a_terminal_would_act_upon_is_shown_as_an_escape(tmp_path: Path) -> None:
    """In the names of shards, the keys of rejections, and the records of runs."""
    evil = "\x1b[31m\u202e"
    shard = dataclasses.replace(info_of(0), name=f"{evil}.tar")
    store = write_store(tmp_path / "s.parquet", [shard], [(0, 2)])
    record = {"finished": evil, "tool": evil, "versions": {evil: evil}}
    store.root.commit_new("_meta/runs/a.json", json.dumps(record).encode())
    shown = inspect_store(store).to_markdown()
    assert shown.count("\\x1b[31m\\u202e") == 7
    assert all(one.isprintable() for one in shown.split("\n"))
