"""Programs in processes of their own, forked from one that has loaded what they need.

To load PyTorch, timm and Ray takes longer than what most tests have a program do. Such a process
is one like any other: it has its own arguments, environment, directory and signals, and is killed
like any other. What is about how a program begins (its imports, Ctrl-C during them, the installed
script) starts the script itself.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import IO

from jobs.entry import leave

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run, as a shell would be told."""

    function: str  # as in pyproject.toml: module:name
    words: Sequence[str]  # the program and its arguments
    environment: Mapping[str, str]
    cwd: str
    log: str  # gets what it prints, after what is in it


class Source:
    """A process in which no thread of ours ran, and from which others are forked."""

    def __init__(self, loaded: Iterable[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forking", *loaded],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, question: object) -> int | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Forked:
    """A running program, with the part of ``subprocess.Popen`` that tests use."""

    def __init__(self, source: Source, order: Order) -> None:
        self._source = source
        self.returncode: int | None = None
        Path(order.log).touch()  # who looks into it at once finds it
        self.pid: int = source.ask(asdict(order))

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._source.ask(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (timeout or float("inf"))
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # nobody else has this number until it is asked for
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def serve(orders: IO[str], answers: IO[str]) -> Order:
    """Fork a process for each order, in which this returns, and say how they ended."""
    for line in orders:
        question = json.loads(line)
        if isinstance(question, int):
            pid, status = os.waitpid(question, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return Order(**question)
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # all that was loaded has much to say at its end


def become(order: Order) -> None:
    """Make this process what a shell would have started."""
    os.environ.clear()
    os.environ.update(order.environment)
    os.chdir(order.cwd)
    files = [os.open(os.devnull, os.O_RDONLY)]
    files += [os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)] * 2
    for stream, file in enumerate(files):
        os.dup2(file, stream)
    sys.stdin, sys.stdout, sys.stderr = (
        open(stream, mode, buffering, closefd=False)  # noqa: SIM115 - until it ends
        for stream, (mode, buffering) in enumerate((("r", -1), ("w", -1), ("w", 1)))
    )
    sys.argv[:] = order.words
    sys.path[0] = str(Path(order.words[0]).parent)


def called(name: str) -> None:
    """Load a module, and call its function if one is named too: ``module:function``."""
    module, _, function = name.partition(":")
    loaded = import_module(module)
    if function:
        getattr(loaded, function)()


def load(names: Iterable[str]) -> None:
    """Load what forked processes need, and let none of them look through it for garbage.

    That would take each longer than most have to do, and copy the memory that they share.
    """
    gc.disable()
    for name in names:
        called(name)
    gc.freeze()
    atexit.register(gc.unfreeze)  # modules that count what they leave behind would complain
    gc.enable()


def main() -> None:
    load(sys.argv[1:])
    order = serve(sys.stdin, sys.stdout)
    become(order)
    status: object = 0
    try:
        called(order.function)
    except SystemExit as ended:
        status = ended.code
    leave(status)


if __name__ == "__main__":
    main()
