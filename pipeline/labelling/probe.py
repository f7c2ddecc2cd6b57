"""Finds the images whose decoding ends the process that does it, in processes of their own.

A decoder written in C may crash on a crafted or damaged image. That it does is a function of the
image's bytes, as a refusal is; but nobody can catch it. So a child process decodes, and tells after
each image that it lives.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError

__all__ = ["CRASHES", "Fate", "crashes_decoder", "decode_apart", "fates"]

CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS}
)
"""What a process raises by itself. SIGKILL comes from outside, most often for want of memory."""

TRIES = 3
DECODE_SECONDS = 120.0  # of an image alone
_SIZE = struct.Struct("<q")


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a process that decoded an image."""

    signal: int = 0  # that ended it, 0 if it lived
    hung: bool = False

    @property
    def is_crash(self) -> bool:
        """Whether the image itself ended it."""
        return self.signal in CRASHES


def fates(images: Sequence[bytes], max_pixels: int) -> dict[int, Fate]:
    """Return the images that end a process, by index, and what became of it each time.

    An image counts if ``TRIES`` processes that decode it alone end in the same way.
    """
    found: dict[int, Fate] = {}
    start = 0
    while start < len(images):
        done, _ = decode_apart(images[start:], max_pixels)
        start += done
        if start == len(images):
            break
        again = {decode_apart(images[start : start + 1], max_pixels) for _ in range(TRIES)}
        if len(again) == 1 and again != {(1, Fate())}:
            found[start] = again.pop()[1]
        start += 1
    return found


def crashes_decoder(image: bytes, max_pixels: int) -> bool:
    """Return whether an image ends whatever decodes it."""
    found = fates([image], max_pixels).get(0)
    return found is not None and found.is_crash


def decode_apart(images: Sequence[bytes], max_pixels: int) -> tuple[int, Fate]:
    """Decode in a child process; return how many images it survived, and its fate."""
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline.labelling.probe", str(max_pixels)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"},
    )
    data = b"".join(_SIZE.pack(len(one)) + one for one in images)
    hung = False
    try:
        written, _ = child.communicate(data, DECODE_SECONDS * len(images))
    except subprocess.TimeoutExpired:
        child.kill()
        written, _ = child.communicate()
        hung = True
    if child.returncode > 0:
        raise PipelineError(
            f"a process that decodes images apart ended with status {child.returncode}; is memory "
            "short there? run again"
        )
    return len(written), Fate(signal=-child.returncode, hung=hung)


def _decode_all(max_pixels: int) -> None:
    """Decode what comes in on stdin, and write a byte for each image."""
    from pipeline.errors import DecodeError
    from pipeline.views.apply import decode

    while size := sys.stdin.buffer.read(_SIZE.size):
        data = sys.stdin.buffer.read(*_SIZE.unpack(size))
        with contextlib.suppress(DecodeError):  # refused, which is no matter here
            decode(data, "", max_pixels)
        os.write(1, b".")


if __name__ == "__main__":
    _decode_all(int(sys.argv[1]))
