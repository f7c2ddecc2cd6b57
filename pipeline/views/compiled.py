"""How kernels are compiled: by numba, without the interpreter's lock, and kept between runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core import event

from pipeline.views.kept import KeptKernel, kernels_folder

__all__ = ["kept_in", "kernel"]

_log = logging.getLogger(__name__)
_SHORT_SECONDS = 3.0  # of compiling, of which nothing is said
_kept: dict[str, str] = {}  # where each kernel is kept, by name; empty where it cannot be


class _Compiling(event.Listener):  # type: ignore[misc]
    """Says once that kernels are compiled, if that takes long: each command has some of its own.

    numba compiles one at a time, and one inside another where it calls it.
    """

    def __init__(self) -> None:
        self._depth, self._spent, self._began = 0, 0.0, 0.0
        self._later: threading.Timer | None = None

    def on_start(self, event: Any) -> None:
        """Look at a function of which numba has nothing, and begins to compile."""
        if not _is_ours(event):
            return
        self._depth += 1
        if self._depth == 1 and self._spent < _SHORT_SECONDS:
            self._began = time.monotonic()
            self._later = threading.Timer(_SHORT_SECONDS - self._spent, self._tell)
            self._later.daemon = True
            self._later.start()

    def on_end(self, event: Any) -> None:
        """Add up how long it took."""
        if not _is_ours(event):
            return
        self._depth -= 1
        if self._depth == 0 and self._later is not None:
            self._later.cancel()
            self._later = None
            self._spent += time.monotonic() - self._began

    def _tell(self) -> None:
        kept = ", which are kept for the next time" if all(_kept.values()) else ""
        _log.info("compiling kernels%s: that takes some 20 s", kept)


def _is_ours(event: Any) -> bool:
    return str(event.data["dispatcher"].py_func.__module__).startswith("pipeline.")


_compiling = _Compiling()
event.register("numba:compile", _compiling)


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function at its first call, and keep what comes out where that is possible.

    It is kept below the home directory or ``NUMBA_CACHE_DIR``, see ``pipeline.views.kept``, or else
    beside the code, as numba does. Where none of these can be written, as in a container with a
    read-only root, each process compiles anew.
    """
    if function is None:
        return lambda later: kernel(later, **options)
    try:
        compiled = njit(cache=True, nogil=True, **options)(function)
        folder = kernels_folder()
        if folder is not None:
            compiled._cache._cache_file = KeptKernel(folder, compiled)
        _kept[function.__name__] = str(folder or compiled._cache.cache_path)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        if "" not in _kept.values():
            _log.warning(
                "compiled kernels cannot be kept: neither the installation nor the home directory "
                "can be written, so each process compiles them again, for seconds; set "
                "NUMBA_CACHE_DIR to a directory that can"
            )
        compiled = njit(nogil=True, **options)(function)
        _kept[function.__name__] = ""
    return compiled


def kept_in() -> str:
    """Return a directory in which compiled kernels are kept, or nothing if they are not."""
    return next(iter(_kept.values()), "") if all(_kept.values()) else ""
