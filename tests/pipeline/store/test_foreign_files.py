"""Files that are none of a store's are refused by name; those of people have a place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import StoreError
from pipeline.store import commit_part, export_store, find_parts, finish_store, open_store
from pipeline.store.card import card_text
from pipeline.store.target import unpack_store
from pipeline.tools import merge_stores, relabelled_store, thin_store
from pipeline.tools.verify import verify_store
from tests.pipeline.store.test_card import run_cli
from tests.storing import IDENTITY, PRINTS, info_of, rows_of, write_store

SHARDS = [info_of(0), info_of(1)]
LICENSE, CITATION = b"CC BY 4.0\n", "cff-version: 1.2.0 \u2014\n".encode()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_store(tmp_path / "s.parquet", SHARDS, [(0, 3)])
    return tmp_path / "s.parquet"


def merge(store: Path, out: Path) -> None:
    write_store(out.parent / "other.parquet", [info_of(2)], [(0, 3)])
    merge_stores([open_store(out.parent / "other.parquet"), open_store(store)], out)


def derive(store: Path, out: Path) -> None:
    relabelled_store(open_store(store), open_store(store), out, note="a note")


def thin(store: Path, out: Path) -> None:
    thin_store(open_store(store), out, views=range(2))


def finish(store: Path, _: Path) -> None:
    commit_part(store, rows_of(IDENTITY, SHARDS[0], 0, 3))
    finish_store(store, IDENTITY, PRINTS, SHARDS, card_text)


USES: dict[str, Callable[[Path, Path], object]] = {
    "verify": lambda store, out: verify_store(store),
    "export": lambda store, out: export_store(store, out),
    "thin": thin,
    "merge": merge,
    "derive": derive,
}
TO_A_DIRECTORY = {"finish": finish, "list": lambda store, out: find_parts(store)}


@pytest.mark.parametrize(
    "name",
    [
        "more.parquet",
        "shard=0/more.parquet",
        "shard=7/view-00000-3.parquet",
        "deeper/view-00000-00003.parquet",
        "NOTES.md",
        "label/c/0/0",
    ],
)
@pytest.mark.parametrize("use", [*USES, *TO_A_DIRECTORY])
def test_a_foreign_file_in_a_directory_is_refused_by_name(
    store: Path, tmp_path: Path, name: str, use: str
) -> None:
    rows = len(pd.read_parquet(store))
    (store / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(store / "shard=0" / "view-00000-00003.parquet", store / name)
    if name == "more.parquet":
        assert len(pd.read_parquet(store)) > rows
    with pytest.raises(StoreError) as error:
        {**USES, **TO_A_DIRECTORY}[use](store, tmp_path / "out.parquet")
    assert f"{store}: {name!r} is no file of the store, and" in str(error.value)
    assert not (tmp_path / "out.parquet").exists()
    # Opening needs no listing, and what the manifest lists is read as ever.
    assert open_store(store).read_view(0, 1).label.shape == (7,)


@pytest.mark.parametrize("name", ["more.parquet", "label/c/7/7", "more/zarr.json", "NOTES.md"])
@pytest.mark.parametrize("use", USES)
def test_a_foreign_file_in_a_zarr_store_is_refused_by_name(
    store: Path, tmp_path: Path, name: str, use: str
) -> None:
    root = tmp_path / "s.zarr"
    export_store(store, root)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"{}")
    with pytest.raises(StoreError) as error:
        USES[use](root, tmp_path / "out.parquet")
    assert f"{root}: {name!r} is no file of the store, and" in str(error.value)
    assert not (tmp_path / "out.parquet").exists()


def with_notes(store: Path) -> Path:
    folder = store / "_meta" / "user"
    folder.mkdir()
    (folder / "LICENSE").write_bytes(LICENSE)
    (folder / "CITATION.cff").write_bytes(CITATION)
    return store


def notes_of(store: Path) -> dict[str, bytes]:
    return {path.rpartition("/")[2]: data for path, data in open_store(store).user_files().items()}


NOTES = {"LICENSE": LICENSE, "CITATION.cff": CITATION}


def test_what_people_add_goes_through_all_formats(store: Path, tmp_path: Path) -> None:
    with_notes(store)
    export_store(store, tmp_path / "a.zarr")
    export_store(tmp_path / "a.zarr", tmp_path / "one.parquet", single_file=True)
    export_store(tmp_path / "one.parquet", tmp_path / "back.parquet")
    for name in ("s.parquet", "a.zarr", "one.parquet", "back.parquet"):
        assert notes_of(tmp_path / name) == NOTES
        assert verify_store(tmp_path / name).unwatched == (
            "_meta/user/CITATION.cff",
            "_meta/user/LICENSE",
        )
    unpack_store(tmp_path / "a.zarr")  # as a job does that adds views
    assert notes_of(tmp_path / "a.zarr.parts.parquet") == NOTES


@pytest.mark.parametrize("use", ["thin", "merge", "derive", "finish"])
def test_every_tool_keeps_what_people_add(store: Path, tmp_path: Path, use: str) -> None:
    {**USES, **TO_A_DIRECTORY}[use](with_notes(store), tmp_path / "out.parquet")
    assert notes_of(store if use == "finish" else tmp_path / "out.parquet") == NOTES


def test_two_licenses_are_not_merged(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "more.parquet"
    write_store(other, [info_of(2)], [(0, 3)])
    (with_notes(other) / "_meta" / "user" / "LICENSE").write_bytes(b"another\n")
    stores = [open_store(with_notes(store)), open_store(other)]
    with pytest.raises(StoreError, match="have other contents at _meta/user/LICENSE; make them"):
        merge_stores(stores, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    (other / "_meta" / "user" / "LICENSE").rename(other / "_meta" / "user" / "LICENSE.theirs")
    merge_stores(stores, tmp_path / "out.parquet")
    assert notes_of(tmp_path / "out.parquet") == {**NOTES, "LICENSE.theirs": b"another\n"}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("picture.png", b"\x89PNG\xff", "is no text"),
        ("large", b"a" * ((1 << 20) + 1), "1048577 bytes, and such a file has at most 1048576"),
        ("two words", b"", "is no name of a file beside the labels"),
        ("deeper/NOTES", b"", "is no name of a file beside the labels"),
        ("license", b"", "is no name of a file beside the labels"),
    ],
)
def test_the_place_for_people_holds_a_few_small_texts(
    store: Path, tmp_path: Path, use: str, name: str, data: bytes, message: str
) -> None:
    path = with_notes(store) / "_meta" / "user" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    with pytest.raises(Exception, match=message):
        USES[use](store, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_it_holds_no_more_than_64_files(store: Path) -> None:
    for number in range(63):
        (with_notes(store) if number == 0 else store).joinpath(
            "_meta", "user", f"{number}.txt"
        ).write_text("")
    with pytest.raises(StoreError, match="65 files in _meta/user/, which holds at most 64"):
        verify_store(store)


def test_verify_says_what_it_does_not_watch(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, "verify", with_notes(store)) == 0
    assert "_meta/user/LICENSE is watched by nothing: no checksum knows it" in (
        capsys.readouterr().out
    )
