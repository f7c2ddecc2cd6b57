"""How kernels are compiled: by numba, without the interpreter's lock, and kept between runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core import event

__all__ = ["kept_in", "kernel"]

_log = logging.getLogger(__name__)
_kept: dict[str, str] = {}  # where each kernel is kept, by name; empty where it cannot be


class _Compiling(event.Listener):  # type: ignore[misc]
    """Says once that kernels are compiled, which they are not where they are kept already."""

    said = False

    def on_start(self, event: Any) -> None:
        """Look at a function of which numba has nothing, and begins to compile."""
        ours = event.data["dispatcher"].py_func.__module__.startswith("pipeline.")
        if ours and not self.said:
            self.said = True
            _log.info("compiling kernels, for the first time here: that takes some 20 s")

    def on_end(self, event: Any) -> None:
        """Take no interest in its end."""


_compiling = _Compiling()
event.register("numba:compile", _compiling)


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function at its first call, and keep what comes out where that is possible.

    numba keeps it beside the code, or else below the home directory or ``NUMBA_CACHE_DIR``. Where
    none of these can be written, as in a container with a read-only root, each process compiles
    anew.
    """
    if function is None:
        return lambda later: kernel(later, **options)
    try:
        compiled = njit(cache=True, nogil=True, **options)(function)
        _kept[function.__name__] = compiled._cache.cache_path
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
