from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.storing import bytes_of

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import locale, os, sys
from dataclasses import replace
from pipeline.records import Rejection
from pipeline.tools import merge_stores, thin_store
from pipeline.store import open_store
from tests.storing import ALL_COLUMNS, info_of, ranges, write_store

umask, out = sys.argv[1:]
os.umask(int(umask, 8))
try:
    locale.setlocale(locale.LC_ALL, "")
except locale.Error:
    pass

def named(rows):
    keys = tuple(f"Jöhnk/{key}/ı" for key in rows.keys)
    torn = Rejection(index=2, key="Jöhnk/torn", reason="undecodable")
    return replace(rows, keys=keys, rejections=(torn,))

shards = [replace(info_of(n), name=f"Ünit-{n}.tar") for n in range(2)]
store = write_store(out + "/whole.parquet", shards, ranges(range(6), 4), ALL_COLUMNS, named)
for name, views in (("a", range(4)), ("b", range(4, 6))):
    thin_store(store, f"{out}/{name}.parquet", views=views)
merge_stores([open_store(f"{out}/{name}.parquet") for name in "ba"], out + "/merged.parquet")
"""


def written_under(folder: Path, cwd: Path, umask: str, location: str, **variables: str) -> Path:
    """Write stores in a process of another environment."""
    (folder / "out").mkdir(parents=True)
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    finished = subprocess.run(
        [sys.executable, str(script), umask, location],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return folder / "out"


def test_the_bytes_of_a_store_do_not_depend_on_locale_umask_clock_or_directory(
    tmp_path: Path,
) -> None:
    one = written_under(
        tmp_path / "one",
        ROOT,
        "022",
        str(tmp_path / "one" / "out"),
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        PYTHONHASHSEED="1",
        TZ="UTC",
    )
    (tmp_path / "two").mkdir()
    other = written_under(
        tmp_path / "two" / "deep",
        tmp_path / "two",
        "077",
        "deep/out",
        LC_ALL="tr_TR.UTF-8",
        LANG="tr_TR.UTF-8",
        PYTHONUTF8="1",
        PYTHONHASHSEED="2",
        TZ="Asia/Kathmandu",
    )
    for name in ("whole", "a", "b", "merged"):
        assert bytes_of(one / f"{name}.parquet") == bytes_of(other / f"{name}.parquet")
    assert bytes_of(one / "whole.parquet") == bytes_of(one / "merged.parquet")
