"""The commands ``label-store`` and ``pack-shards``: parse, call, print."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import tyro
from tqdm import tqdm

from pipeline import packing
from pipeline.errors import PipelineError

__all__ = ["pack_shards"]

_LISTED = 20  # names printed before "and N more"


def pack_shards() -> None:
    """Pack a folder of images, one directory per class, into shuffled WebDataset shards."""
    with _errors_of("pack-shards"):
        config = tyro.cli(packing.PackConfig, prog="pack-shards", description=pack_shards.__doc__)
        with _Progress("pack-shards") as progress:
            report = packing.pack_shards(config, progress.show)
        for path in report.passed_over[:_LISTED]:
            print(f"pack-shards: passed over, no image: {path}")
        if len(report.passed_over) > _LISTED:
            print(f"pack-shards: and {len(report.passed_over) - _LISTED} more")
        print(
            f"pack-shards: {report.read} files read = {report.packed} packed "
            f"+ {len(report.passed_over)} passed over; {len(report.classes)} classes, "
            f"{report.shrunk} images shrunk; {len(report.shards)} shards of "
            f"{report.bytes / 1e6:.1f} MB in {config.out}"
        )


@contextmanager
def _errors_of(command: str) -> Iterator[None]:
    """Print what the user can cure as ``<command>: error: ...`` and exit with status 1."""
    try:
        yield
    except PipelineError as error:
        print(f"{command}: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


class _Progress:
    """Shows a count on stderr: a bar on a terminal, elsewhere a line at each tenth."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._bar: tqdm | None = None
        self._tenths = 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are through."""
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(total=total, desc=self._command, unit="images")
            self._bar.update(done - self._bar.n)
        elif done * 10 // total > self._tenths:
            self._tenths = done * 10 // total
            print(f"{self._command}: {done} of {total}", file=sys.stderr, flush=True)
