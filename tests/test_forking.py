"""What is forked is a program as a shell would have started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.forking import Forked, Order, Source


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(["tests.test_forking"], {"OF_THE_SOURCE": "1"})


def program() -> None:
    """Print what it was given; wait for ever if it was told to."""
    seen = [sys.argv, sys.path[0], str(Path.cwd()), dict(os.environ), sys.stdin.read()]
    print(json.dumps(seen), flush=True)
    if "wait" in sys.argv:
        time.sleep(60)
    print("to the end", file=sys.stderr)
    raise SystemExit(3)


def order(tmp_path: Path, *words: str) -> Order:
    log = str(tmp_path / "log")
    variables = {"OWN": "é"}
    return Order("tests.test_forking:program", ["/bin/it", *words], variables, str(tmp_path), log)


def test_it_has_its_words_directory_environment_output_and_status(
    source: Source, tmp_path: Path
) -> None:
    (tmp_path / "log").write_text("before\n")
    assert Forked(source, order(tmp_path, "a b")).wait(30) == 3
    before, seen, end = (tmp_path / "log").read_text().splitlines()
    own = {"OWN": "é"}
    assert json.loads(seen) == [["/bin/it", "a b"], "/bin", str(tmp_path), own, ""]
    assert (before, end) == ("before", "to the end")


def test_it_is_waited_for_and_killed_and_the_next_is_another(
    source: Source, tmp_path: Path
) -> None:
    first, second = Forked(source, order(tmp_path, "wait")), Forked(source, order(tmp_path))
    assert first.pid != second.pid
    assert second.wait(30) == 3
    assert first.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        first.wait(0.1)
    first.send_signal(signal.SIGKILL)
    assert first.wait(30) == -signal.SIGKILL
    first.kill()  # which is over already
    assert (first.poll(), second.poll()) == (-signal.SIGKILL, 3)
