"""Compiled kernels are kept by what they come from, and found wherever the code lies then.

numba keeps them by the path of the code, so whatever comes to a new place (a clone's code that
`ray job submit` sends, a container, another environment) is compiled again, for seconds on each
machine. Here a kernel's file is named by a hash of all that its machine code follows from: the
code of its function and of what that calls, their constants, the compiler's versions and the
processor. So another's or an older one is never taken, in whatever order files are written.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba.core import config, types
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic
from numba.core.serialize import dumps

__all__ = ["KeptKernel", "UnknownPartError", "content_of", "kernels_folder"]

_OURS = "pipeline"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_HASH_BYTES = 32


class UnknownPartError(Exception):
    """A kernel uses something of which no hash is known that says all."""


@cache
def kernels_folder() -> Path | None:
    """Return the directory of compiled kernels, None without one that is this user's alone.

    What is read there is run. One that the user names by ``NUMBA_CACHE_DIR`` is taken as it is.
    """
    if config.CACHE_DIR:
        return _writable(Path(config.CACHE_DIR) / "teacher-labels")
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # this user has no home
        return None
    folder = _writable(home.absolute() / "teacher-labels" / "kernels")
    return folder if folder is not None and _is_mine(folder) else None


def _writable(folder: Path) -> Path | None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return None
    return folder


def _is_mine(folder: Path) -> bool:
    found = folder.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and not found.st_mode & _OTHERS_WRITE
    )


class KeptKernel:
    """A kernel's files, one for each of its signatures; takes the place of numba's index of them.

    Two processes that compile two signatures at a time may write one's code under the other's
    name in numba's own.
    """

    def __init__(self, folder: Path, compiled: Any) -> None:
        self._folder, self._function = folder, compiled.py_func
        self._options = sorted(compiled.targetoptions.items())
        self._usual = compiled._cache._cache_file  # for a kernel that is not looked through

    def save(self, key: Any, data: Any) -> None:
        """Keep what was compiled; where that fails, it is compiled again next time."""
        path, body = self._path(key), dumps(data)
        if path is None:
            self._usual.save(key, data)
            return
        aside = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
        try:
            aside.write_bytes(hashlib.sha256(body).digest() + body)
            aside.replace(path)
        except OSError:
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    def load(self, key: Any) -> Any:
        """Return what was kept, None if there is nothing, or it is damaged."""
        path = self._path(key)
        if path is None:
            return self._usual.load(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        body = data[_HASH_BYTES:]
        if hashlib.sha256(body).digest() != data[:_HASH_BYTES]:
            return None
        return pickle.loads(body)

    def flush(self) -> None:
        """Do nothing: what is kept stays true."""

    def _path(self, key: Any) -> Path | None:
        if not self._content:
            return None
        signature, processor, _ = key  # the last tells the function, less well than its content
        function = self._function
        # What is kept names its function by its module, and is loaded with that.
        named = (function.__module__, function.__qualname__)
        told = (named, self._content, repr(signature), processor, self._options, *_versions())
        name = hashlib.sha256(repr(told).encode()).hexdigest()
        return self._folder / f"{function.__name__}-{name[:40]}.kernel"

    @cached_property
    def _content(self) -> str:
        # At the first call: what a kernel calls may be defined below it.
        try:
            return content_of(self._function)
        except UnknownPartError:
            return ""


@cache
def _versions() -> tuple[str, ...]:
    compiler = (numba.__version__, llvmlite.__version__, np.__version__)
    return (*compiler, str(sys.implementation.cache_tag), *platform.libc_ver())


def content_of(function: FunctionType) -> str:
    """Return a hash of a function's code, of its constants, and of all that it calls.

    It follows from what is loaded, and neither from the file, which may be another by now, nor from
    where it lies. Raises ``UnknownPartError`` for what it cannot look into.
    """
    digest, seen = hashlib.sha256(), list[object]()
    for part in _parts(function, seen):
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


def _parts(value: Any, seen: list[object]) -> Iterator[str]:
    """Yield in words all that a value is, each function once."""
    if isinstance(value, Dispatcher):
        yield repr(sorted(value.targetoptions.items()))
        value = value.py_func
    elif isinstance(value, _Intrinsic):
        value = value._defn
    if isinstance(value, FunctionType):
        known = next((number for number, one in enumerate(seen) if one is value), None)
        yield f"function {len(seen) if known is None else known}"
        if known is None:
            seen.append(value)
            yield from _parts_of_function(value, seen)
    elif isinstance(value, CodeType):
        yield from _parts_of_code(value, seen)
    elif isinstance(value, tuple | list):
        yield f"{type(value).__name__} of {len(value)}"
        for one in value:
            yield from _parts(one, seen)
    elif isinstance(value, frozenset):
        yield f"set {sorted(map(repr, value))}"
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"array {value.dtype.str} {value.shape} {value.tobytes().hex()}"
    elif isinstance(value, bool | int | float | complex | str | bytes | np.generic | None):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, ir.Type | types.Type):  # as LLVM and numba write them
        yield f"{type(value).__name__} {value}"
    else:
        yield _named(value)


def _parts_of_function(function: FunctionType, seen: list[object]) -> Iterator[str]:
    yield from _parts(function.__code__, seen)
    yield from _parts(function.__defaults__, seen)
    yield from _parts(tuple((function.__kwdefaults__ or {}).items()), seen)
    for cell in function.__closure__ or ():
        yield from _parts(cell.cell_contents, seen)
    for name in sorted(set(_names(function.__code__))):
        if name in function.__globals__:
            yield f"global {name}"
            yield from _parts(function.__globals__[name], seen)


def _parts_of_code(code: CodeType, seen: list[object]) -> Iterator[str]:
    yield code.co_code.hex()
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    yield repr((counts, names, code.co_name))
    yield from _parts(code.co_consts, seen)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _names(one)


def _named(value: Any) -> str:
    """Return the name of what a version tells well enough: a module, type or function of others."""
    if isinstance(value, ModuleType):
        name = value.__name__
    elif isinstance(value, type | BuiltinFunctionType | np.ufunc):
        name = f"{getattr(value, '__module__', 'numpy')}.{value.__name__}"
    else:
        raise UnknownPartError(f"{type(value).__name__}: {value!r:.80}")
    if name.partition(".")[0] == _OURS:
        raise UnknownPartError(name)
    return name
