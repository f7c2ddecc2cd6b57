"""Compiled kernels are kept by all that they come from, and never mistaken for one another."""

from __future__ import annotations

import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

import pipeline.views
from pipeline.views import kept
from pipeline.views.kept import KeptKernel, UnknownPartError, content_of, kernels_folder

ROOT = Path(__file__).resolve().parents[3]


def kernels() -> Iterator[Dispatcher]:
    """Yield all kernels of the project."""
    for found in pkgutil.walk_packages(pipeline.views.__path__, "pipeline.views."):
        for value in vars(import_module(found.name)).values():
            if isinstance(value, Dispatcher):
                yield value


def test_each_kernel_is_looked_through_and_has_a_content_of_its_own() -> None:
    functions = {one.py_func for one in kernels()}
    assert len(functions) > 25
    assert len({content_of(one) for one in functions}) == len(functions)


LEVEL, TABLE, OTHER = 3, np.arange(4), object()


def called(x: int) -> int:
    return x + 1


def calling(x: int) -> int:
    return called(x) + LEVEL + int(TABLE[0])


def with_options(**options: Any) -> Any:
    return numba.njit(**options)(called)


def changed_constant(x: int) -> int:
    return x + 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEVEL", 4),
        ("LEVEL", 3.0),
        ("TABLE", np.arange(1, 5)),
        ("TABLE", np.arange(4, dtype=np.int32)),
        ("called", changed_constant),
        ("called", with_options()),
        ("called", with_options(boundscheck=True)),
    ],
)
def test_what_a_function_uses_is_part_of_its_content(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content_of(calling)
    monkeypatch.setitem(globals(), name, value)
    assert content_of(calling) != before
    if isinstance(value, Dispatcher):
        other = content_of(calling)
        monkeypatch.setitem(globals(), name, numba.njit(nogil=True)(value.py_func))
        assert content_of(calling) != other


def test_what_cannot_be_looked_into_is_not_taken_for_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (OTHER, pipeline.views, KeptKernel):
        monkeypatch.setitem(globals(), "LEVEL", value)
        with pytest.raises(UnknownPartError):
            content_of(calling)


class _Usual:
    """Numba's own cache."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}

    def save(self, key: Any, data: Any) -> None:
        self.kept[key] = data

    def load(self, key: Any) -> Any:
        return self.kept.get(key)


def kernel_in(folder: Path, function: Callable[..., Any]) -> KeptKernel:
    cache = SimpleNamespace(_cache_file=_Usual())
    return KeptKernel(folder, SimpleNamespace(py_func=function, targetoptions={}, _cache=cache))


KEY = ((numba.int64,), ("x86_64", "a-cpu", "+avx2"), ("", ""))
OTHERS = [
    ((numba.int32,), *KEY[1:]),
    (KEY[0], ("x86_64", "another-cpu", "+avx2"), KEY[2]),
    (KEY[0], ("x86_64", "a-cpu", "+avx512f"), KEY[2]),
]


def test_nothing_is_taken_for_another_signature_processor_version_or_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = kernel_in(tmp_path, calling)
    one.save(KEY, "machine code")
    assert kernel_in(tmp_path, calling).load(KEY) == "machine code"
    for key in OTHERS:
        assert one.load(key) is None
    assert kernel_in(tmp_path, called).load(KEY) is None
    with monkeypatch.context() as patch:
        patch.setattr(calling, "__module__", "pipeline.views.moved")
        assert kernel_in(tmp_path, calling).load(KEY) is None
    monkeypatch.setattr(kept, "_versions", lambda: ("another numba",))
    assert one.load(KEY) is None


@pytest.mark.parametrize("size", [0, 31, 32, 40])
def test_a_damaged_file_is_none_and_is_written_anew(tmp_path: Path, size: int) -> None:
    one = kernel_in(tmp_path, calling)
    one.save(KEY, "machine code")
    (path,) = tmp_path.iterdir()
    os.truncate(path, size)
    assert one.load(KEY) is None
    one.save(KEY, "machine code")
    assert one.load(KEY) == "machine code"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_looked_into_or_written_is_kept_as_ever_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_in(tmp_path / "is not there", called).save(KEY, "machine code")
    monkeypatch.setitem(globals(), "LEVEL", OTHER)
    unknown = kernel_in(tmp_path, calling)
    unknown.save(KEY, "machine code")
    assert unknown.load(KEY) == "machine code"
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_others_may_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    look = kernels_folder.__wrapped__
    folder = look()
    assert folder == tmp_path / "teacher-labels" / "kernels"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    assert look() is None
    folder.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert look() is None
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert look() is None
    monkeypatch.setattr(kept.config, "CACHE_DIR", str(tmp_path / "named"))
    assert look() == tmp_path / "named" / "teacher-labels"


_COUNT = """
from numba.core import event
compiled = []
class Heard(event.Listener):
    def on_start(self, event): compiled.append(event.data["dispatcher"].py_func.__name__)
    def on_end(self, event): pass
event.register("numba:compile", Heard())
from binascii import crc32
import numpy as np
from pipeline.records import Box
from pipeline.views.apply import resize
image = np.arange(41 * 31 * 3, dtype=np.int64).astype(np.uint8).reshape(41, 31, 3)
print(crc32(resize(image, Box(top=3, left=1, height=37, width=29), 13, hflip=False)))
print(len(compiled))
"""


def test_code_in_a_new_place_finds_what_was_compiled_and_changed_code_does_not(
    tmp_path: Path,
) -> None:
    """As `ray job submit` unpacks it; and two at a time compile without harm."""

    def start(root: Path) -> subprocess.Popen[str]:
        variables = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
        command = [sys.executable, "-c", _COUNT]
        return subprocess.Popen(command, cwd=root, env=variables, stdout=subprocess.PIPE, text=True)

    def copied(name: str) -> Path:
        places = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "pipeline", tmp_path / name / "pipeline", ignore=places)
        return tmp_path / name

    def ended(process: subprocess.Popen[str]) -> tuple[int, int]:
        pixels, compiled = map(int, process.communicate(timeout=120)[0].split())
        return pixels, compiled

    first, second = start(copied("first")), start(copied("second"))
    (pixels, compiled), others = ended(first), ended(second)
    assert compiled > 0
    assert others[0] == pixels
    again = copied("third")
    assert ended(start(again)) == (pixels, 0)
    code = again / "pipeline" / "views" / "kernels.py"
    text = code.read_text()
    assert text.count("\nWEIGHT_BITS = ") == 1
    code.write_text(text.replace("\nWEIGHT_BITS = ", "\nWEIGHT_BITS = -1 + "))
    changed = ended(start(again))
    assert changed[1] > 0
    assert changed[0] != pixels
    assert not list(tmp_path.rglob("*.nb[ic]"))
