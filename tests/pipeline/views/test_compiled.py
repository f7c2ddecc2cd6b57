"""Kernels where what is compiled can be kept, and where it cannot."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import numba
import pytest
from numba.core import event

from pipeline.views import compiled
from pipeline.views.compiled import kept_in

ROOT = Path(__file__).resolve().parents[3]
# What numba does where neither installation nor home can be written; root may write anywhere.
READ_ONLY = """
import os, tempfile
from numba.core import caching
def refuse(self):
    raise OSError(30, "Read-only file system")
caching._CacheLocator.ensure_cache_path = refuse
"""
RESIZE = """
import logging
logging.basicConfig(format="%(message)s")
import numpy as np
from pipeline.records import Box
from pipeline.views.apply import resize
from pipeline.views.compiled import kept_in
image = np.arange(41 * 31 * 3, dtype=np.int64).astype(np.uint8).reshape(41, 31, 3)
print(resize(image, Box(top=3, left=1, height=37, width=29), 13, hflip=False).sum())
print(repr(kept_in()))
"""


def resized(before: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", before + RESIZE], cwd=ROOT, capture_output=True, text=True
    )


def test_what_is_compiled_is_kept() -> None:
    from pipeline.views import kernels

    assert kernels.__file__
    assert kept_in()


def test_a_read_only_installation_and_home_give_the_same_pixels() -> None:
    usual, read_only = resized(""), resized(READ_ONLY)
    assert (usual.returncode, usual.stderr) == (0, "")
    assert read_only.returncode == 0, read_only.stderr
    pixels, kept = read_only.stdout.splitlines()
    assert (pixels, kept) == (usual.stdout.splitlines()[0], "''")
    assert read_only.stderr.count("compiled kernels cannot be kept") == 1
    assert "NUMBA_CACHE_DIR" in read_only.stderr


def test_another_fault_of_a_kernel_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(compiled, "njit", fail)
    with pytest.raises(RuntimeError, match="something else"):
        compiled.kernel(lambda x: x)


def compiled_for(seconds: float, module: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what is said while numba compiles functions one inside the other, and then another."""

    def function() -> None: ...

    function.__module__ = module
    kind = compiled._Compiling()
    heard = event.Event(
        "numba:compile", event.EventStatus.START, {"dispatcher": numba.njit(function)}
    )
    with caplog.at_level(logging.INFO, "pipeline.views.compiled"):
        for depth in (2, 1):
            for _ in range(depth):
                kind.on_start(heard)
            time.sleep(seconds)
            for _ in range(depth):
                kind.on_end(heard)
    return caplog.messages


@pytest.mark.parametrize(
    ("seconds", "module", "said"),
    [(0.0, "pipeline.x", 0), (0.3, "pipeline.x", 1), (0.6, "pipeline.x", 1), (0.6, "another", 0)],
)
def test_that_kernels_are_compiled_is_said_once_where_it_takes_long(
    seconds: float,
    module: str,
    said: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(compiled, "_SHORT_SECONDS", 0.45)
    for kept, more in (("there", ", which are kept for the next time"), ("", "")):
        monkeypatch.setattr(compiled, "_kept", {"one": "there", "two": kept})
        caplog.clear()
        line = f"compiling kernels{more}: that takes some 20 s"
        assert compiled_for(seconds, module, caplog) == [line] * said
