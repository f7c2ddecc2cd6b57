"""A file system that does not answer is waited for out loud, and holds nobody who wants to end."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import BinaryIO

import pytest

from jobs import entry
from pipeline.shards import index
from tests.jobs.conftest import Job
from tests.jobs.processes import forked, wait_for

PIPE = "THE_PIPE"


def open_what_hangs(path: object) -> BinaryIO:
    """Wait in a call of the system for a writer, who never comes."""
    return os.fdopen(os.open(os.environ[PIPE], os.O_RDONLY), "rb")


def label() -> None:
    """Label with a file system that hangs."""
    index._open = open_what_hangs  # type: ignore[assignment]
    index.SAY_SECONDS = 0.2
    # A shell has what it starts in the background ignore Ctrl-C, and tests too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    entry.label_teacher()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_shard_that_cannot_be_read_is_named_and_a_signal_ends_the_wait(
    number: signal.Signals, status: int, job: Job, tmp_path: Path
) -> None:
    pipe, log = tmp_path / "pipe", tmp_path / "log"
    os.mkfifo(pipe)
    words = ["label-teacher", *job.to(tmp_path / "labels.parquet", "--serial")]
    environment = {**os.environ, PIPE: str(pipe)}
    process = forked(f"{__name__}:label", words, environment, log, None)
    said = f"warning: {job.shard} was not read in 0 s; does its file system answer?"
    wait_for(lambda: process.poll() is not None or said in log.read_text(), said, log=log)
    process.send_signal(number)
    assert process.wait(30) == status, log.read_text()
    assert "Traceback" not in log.read_text()
