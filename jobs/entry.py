"""Where the programs begin: before anything is imported that takes time.

Ctrl-C during imports would end in a traceback through other people's modules, so it ends the
process until the command itself is ready to answer it, and again once the command has ended.
"""

from __future__ import annotations

# `signal` itself loads enum first, which Ctrl-C would break off.
import _signal as signal  # type: ignore[import-not-found]
import atexit
import gc
import os
import sys
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes time to load
    from typing import NoReturn

__all__ = [
    "evaluate_student",
    "export_student",
    "label_store",
    "label_teacher",
    "leave",
    "pack_shards",
    "student_report",
    "teacher_labels",
    "train_student",
]


def teacher_labels() -> None:
    """Run ``teacher-labels``."""
    _run("jobs.teacher_labels", "main")


def pack_shards() -> None:
    """Run ``pack-shards``."""
    _run("pipeline.cli.commands", "pack_shards")


def label_store() -> None:
    """Run ``label-store``."""
    _run("student.cli", "store_main")


def label_teacher() -> None:
    """Run ``label-teacher``."""
    _run("jobs.label_teacher", "main")


def train_student() -> None:
    """Run ``train-student``."""
    _run("student.cli", "main")


def evaluate_student() -> None:
    """Run ``evaluate-student``."""
    _run("student.cli", "evaluate_main")


def export_student() -> None:
    """Run ``export-student``."""
    _run("student.cli", "export_main")


def student_report() -> None:
    """Run ``student-report``."""
    _run("student.cli", "report_main")


def _run(module: str, function: str) -> None:
    answered = signal.getsignal(signal.SIGINT)
    if answered is signal.default_int_handler:  # not where a shell has a job ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()  # imports leave no garbage, and looking for it is a tenth of their time
    main = getattr(import_module(module), function)
    gc.freeze()  # nor do processes that are forked later look there, and copy what they share
    atexit.register(gc.unfreeze)  # modules that count what they leave behind would complain
    gc.enable()
    signal.signal(signal.SIGINT, answered)
    status: object = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code
    finally:
        if answered is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    leave(status)


def leave(status: object) -> NoReturn:
    """End this process as ``sys.exit`` would, but do not take apart what was loaded.

    Of PyTorch, timm and Ray that takes a second or two, in which nothing is done for anybody.
    """
    if not isinstance(status, int | None):  # a message, for the interpreter to print
        sys.exit(status)  # type: ignore[arg-type]
    import threading

    try:
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter waits for threads
        atexit.unregister(gc.unfreeze)
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):  # a closed pipe, which the interpreter knows how to tell
        sys.exit(status)
    os._exit(status or 0)
