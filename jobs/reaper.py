"""Ends whatever is left of the Ray that a label job started, once the job's process is gone.

Run by path with nothing but the standard library. It reads lines until its input ends, which
happens whatever the job dies of: first the mark that all processes of that Ray have in their
environment, then the directory of its session, and "now" if Ray was told to end. Then it kills.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

GRACE_SECONDS = 2.0  # in which Ray ends its own processes
PATIENCE_SECONDS = 8.0


def family(mark: bytes, session: str) -> Iterator[int]:
    """Yield the processes with a mark in their environment, or files open in a directory.

    Ray's agents write their titles over their environment; their logs are in the session.
    """
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib takes long to import
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError):
                if _has_mark(name, mark) or (session and _is_in(name, session)):
                    yield int(name)


def _has_mark(pid: str, mark: bytes) -> bool:
    with open(f"/proc/{pid}/environ", "rb") as environment:  # noqa: PTH123
        return mark in environment.read().split(b"\0")


def _is_in(pid: str, directory: str) -> bool:
    files = f"/proc/{pid}/fd"
    for name in os.listdir(files):  # noqa: PTH208
        with suppress(OSError):
            if os.readlink(f"{files}/{name}").startswith(f"{directory}/"):  # noqa: PTH115
                return True
    return False


def reap(mark: bytes, session: str, job: int, *, grace: float) -> None:
    """Kill the family until nobody is left of it, the job's own process aside."""
    ended = time.monotonic() + PATIENCE_SECONDS
    spared = time.monotonic() + grace
    while left := [pid for pid in family(mark, session) if pid != job]:
        if time.monotonic() > ended:
            return
        if time.monotonic() > spared:
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def main() -> None:
    """Wait for the job's end."""
    job = os.getppid()
    lines = [line.rstrip("\n") for line in sys.stdin] + ["", "", ""]
    reap(lines[0].encode(), lines[1], job, grace=0.0 if "now" in lines else GRACE_SECONDS)


if __name__ == "__main__":
    main()
