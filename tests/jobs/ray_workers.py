"""Ray's workers, forked from a process that has loaded what they need.

To load Ray, PyTorch and timm takes a worker longer than most of what tests have it do. A program
that starts nodes calls ``fork_workers`` before: then whatever Ray starts with Python is started by
a small script, which lets the workers be forked, and all else be as ever. So are workers whose
environment has other code than this process: those of submitted jobs.
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
from pathlib import Path

from tests.forking import ROOT, load

LOADED = ("pipeline.labelling.worker", "pipeline.labelling.job", "pipeline.views.apply:warm_up")
"""Not Ray: as it loads it reads for which job this worker is."""
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
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect(path)
    socket.send_fds(asked, [b"f"], [0, 1, 2])
    order = {"words": words, "environment": dict(os.environ), "cwd": os.getcwd()}
    asked.sendall(json.dumps(order).encode() + b"\\n")
    refused = asked.recv(1)  # or nothing, when the worker has ended
if refused:
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
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        number = listener.fileno()
        subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.ray_workers", str(number)],
            cwd=ROOT,
            pass_fds=[number],
            stdin=subprocess.DEVNULL,
        )
    sys.executable = str(script)


def worker_of(words: Sequence[str], environment: Mapping[str, str]) -> list[str] | None:
    """Return a worker's program and arguments, None if its code may be other than ours."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    given, rest = parser.parse_known_args(words[1:])
    context = json.loads(given.serialized_runtime_env_context)
    more = {**environment, **context.get("env_vars", {})}
    same = ("PYTHONPATH", "OMP_WAIT_POLICY", "PATH")
    if context.get("command_prefix") or any(more.get(one) != os.environ.get(one) for one in same):
        return None
    return rest


def serve(listener: socket.socket) -> list[str]:
    """Fork a worker for each that asks; returns in the worker, with its program and arguments."""
    while True:
        connection, _ = listener.accept()
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile() as lines:
            order = json.loads(lines.readline())
        words = worker_of(order["words"], order["environment"])
        if words is None:
            connection.send(b"n")
        elif os.fork() == 0:
            os.set_inheritable(connection.detach(), False)  # is open until this process ends
            listener.close()
            become(files, order["environment"], order["cwd"])
            return words
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
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)


def main() -> None:
    """Fork workers for who asks at a socket of this number."""
    ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    load(LOADED)
    program = serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv[:] = program
    sys.path[0] = str(Path(program[0]).parent)
    runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main()
