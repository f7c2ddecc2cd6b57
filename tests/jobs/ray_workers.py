"""Ray's workers, forked from a process that has loaded what they need.

To load Ray, PyTorch and timm takes a worker longer than most of what tests have it do. A program
that starts nodes calls ``fork_workers`` before: then whatever Ray starts with Python is started by
a small script, which lets the workers be forked, and all else be as ever. Those of submitted jobs
have other code of this project: they are forked from a process that has only what it imports.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.forking import ROOT, load

LOADED = ("student.engine", "pipeline.labelling.worker", "pipeline.views.apply:warm_up")
"""Not Ray: as it loads it reads for which job this worker is."""
LIBRARIES = (
    "timm",
    "numba",
    "pandas",
    "pyarrow.parquet",
    "safetensors.torch",
    "simplejpeg",
    "zarr",
)
"""Those of the project, and so what workers with other code of it share with all."""
_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG

_PYTHON = """#!/bin/sh
case "$1" in
*/setup_worker.py) exec {python} -ISc '{client}' {path} {python} "$@" ;;
*) exec {python} "$@" ;;
esac
"""

_CLIENT = """
import json, os, socket, sys
path, python, *words = sys.argv[1:]
for end in ("", ".others"):
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(path + end)
        socket.send_fds(asked, [b"f"], [0, 1, 2])
        order = {"words": words, "environment": dict(os.environ), "cwd": os.getcwd()}
        asked.sendall(json.dumps(order).encode() + b"\\n")
        if not asked.recv(1):  # but nothing, when the worker has ended
            sys.exit()
os.execv(python, [python, *words])
"""


def fork_workers(folder: str) -> None:
    """Let the workers of all nodes that this process starts be forked.

    A socket and a script are written to the directory, whose path is short.
    """
    path, script = Path(folder, "socket"), Path(folder, "python")
    script.write_text(
        _PYTHON.format(python=sys.executable, path=path, client=_CLIENT.replace("'", '"'))
    )
    script.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as ours, socket.socket(socket.AF_UNIX) as others:
        for listener, end in ((ours, ""), (others, ".others")):
            Path(f"{path}{end}").unlink(missing_ok=True)  # of a head that did not start
            listener.bind(f"{path}{end}")
            listener.listen(64)
        numbers = [ours.fileno(), others.fileno()]
        subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.ray_workers", *map(str, numbers)],
            cwd=ROOT,
            pass_fds=numbers,
            stdin=subprocess.DEVNULL,
        )
    sys.executable = str(script)


@dataclass(frozen=True, slots=True)
class Worker:
    """What a node would start."""

    program: list[str]  # and its arguments
    environment: dict[str, str]
    cwd: str
    is_ours: bool  # its code is what is loaded here


def worker_of(words: Sequence[str], environment: Mapping[str, str], cwd: str) -> Worker | None:
    """Return a worker that can be forked, None if what is loaded here does not fit."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    given, rest = parser.parse_known_args(words[1:])
    context = json.loads(given.serialized_runtime_env_context)
    prefix = context.get("command_prefix") or []
    if prefix:  # that of a job with a directory of its own
        if len(prefix) != 3 or (prefix[0], prefix[2]) != ("cd", "&&"):
            return None
        cwd = prefix[1]
    mine = {**environment, **context.get("env_vars", {})}
    if mine.get("OMP_WAIT_POLICY") != os.environ.get("OMP_WAIT_POLICY"):
        return None  # PyTorch has read it
    is_ours = mine.get("PYTHONPATH") == os.environ.get("PYTHONPATH")
    return Worker(rest, mine, cwd, is_ours)


def forget_us() -> None:
    """Forget the few modules of this project that are loaded where others' workers are forked."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("jobs", "tests"):
            del sys.modules[name]


def serve(listener: socket.socket, *, ours: bool) -> list[str]:
    """Fork a worker for each that asks; returns in the worker, with its program and arguments.

    ``ours`` says whether this project's code is loaded here.
    """
    while True:
        connection, _ = listener.accept()
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile() as lines:
            order = json.loads(lines.readline())
        worker = worker_of(order["words"], order["environment"], order["cwd"])
        if worker is None or worker.is_ours != ours:
            connection.send(b"n")
        elif os.fork() == 0:
            os.set_inheritable(connection.detach(), False)  # is open until this process ends
            listener.close()
            become(files, worker.environment, worker.cwd)
            if not ours:
                forget_us()
                sys.path[1:1] = worker.environment.get("PYTHONPATH", "").split(":")
            return worker.program
        connection.close()
        for file in files:
            os.close(file)


def become(files: Sequence[int], environment: Mapping[str, str], cwd: str) -> None:
    """Make this process what Ray's node would have started."""
    os.setpgid(0, 0)  # nodes end groups
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for stream, file in enumerate(files):
        os.dup2(file, stream)
        os.close(file)
    # Not all of it anew: by where the first variables lie Ray 2.49 finds the title of its process.
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment.items() - os.environ.items())
    os.chdir(cwd)


def main() -> None:
    """Fork workers for who asks at a socket of this number."""
    ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    listeners = [socket.socket(fileno=int(number)) for number in sys.argv[1:]]
    load(LIBRARIES)
    ours = os.fork() == 0
    if ours:
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
        load(LOADED)
    listeners.pop(0 if not ours else 1).close()
    program = serve(listeners[0], ours=ours)
    sys.argv[:] = program
    sys.path[0] = str(Path(program[0]).parent)
    runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main()
