"""Joins a Ray cluster or starts one of our own, and leaves it; nothing here waits for ever.

What Ray raises comes out as one line with its cure, and the traceback as its cause.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from jobs.sizing import Machine, Machines
from jobs.supervisor import Death, Resource
from pipeline.errors import ConfigError, PipelineError, TryAgainError

__all__ = [
    "ClusterState",
    "RayConnection",
    "Waiting",
    "death_of",
    "fault_of",
    "in_one_line",
    "why_not",
    "within",
]

_log = logging.getLogger(__name__)

CONNECT_SECONDS = 25.0
START_SECONDS = 120.0  # of a Ray of our own, on a machine that is busy
PROBE_SECONDS = 5.0
HEAD_SECONDS = 40.0  # without the head; Ray itself ends a driver after 60, as no fault of anybody's
LEAVE_SECONDS = 10.0
RESOURCES_SECONDS = 3.0  # between two looks at what the cluster has
SAY_SECONDS = 10.0  # between two words about what is waited for
MARK = "TEACHER_LABELS_RAY"  # in the environment of every process that our Ray starts

_IMPORT = re.compile(r"(ModuleNotFoundError|ImportError): .")
_RAISED = re.compile(r"[\w.]+(Error|Exception|Exit|Interrupt): .")
_IN_PROCESS = "(pid="
_ADDRESS = re.compile(r"\(pid=\d+, ip=([^,)]+)")

Result = TypeVar("Result")


def within(
    seconds: float,
    what: str,
    call: Callable[[], Result],
    *,
    stay: bool = False,
    look: Callable[[], None] = lambda: None,
) -> Result:
    """Return a call's result; raise ``TryAgainError`` if it takes longer.

    Ray's calls may wait for ever, and signals are not heard meanwhile: so they wait in a thread.
    With ``stay`` that lives on, since Linux ends processes with the thread that started them.
    ``look`` is called now and then, and what it raises ends the wait.
    """
    answer: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((call(), None))
        except BaseException as error:
            answer.put((None, error))
        if stay:
            threading.Event().wait()

    threading.Thread(target=run, daemon=True, name="ray-call").start()
    end = time.monotonic() + seconds
    while True:
        with suppress(queue.Empty):
            result, error = answer.get(timeout=0.2)
            if error is not None:
                raise error
            return result  # type: ignore[return-value]
        look()
        if time.monotonic() > end:
            raise TryAgainError(
                f"{what} took more than {seconds:.0f} s; run the same command again"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """What the cluster has, in all and by machine."""

    resources: Mapping[str, Resource]  # CPU and GPU
    machines: Machines


class HeadWatch:
    """Tries in a thread whether the cluster's head answers, which may be on a machine that is lost.

    A head that keeps its state outside of it may be started again, and then all goes on.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._lost: tuple[float, str] | None = None  # since when, and why
        threading.Thread(target=self._watch, daemon=True, name="ray-head").start()

    def _watch(self) -> None:
        host, _, port = self.address.rpartition(":")
        while True:
            try:
                socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS).close()
                self._lost = None
            except OSError as error:
                self._lost = self._lost or (time.monotonic(), str(error))
            time.sleep(RESOURCES_SECONDS)

    def check(self) -> None:
        """Raise ``TryAgainError`` once the head has been lost for too long."""
        since, why = self._lost or (math.inf, "")
        if time.monotonic() - since > HEAD_SECONDS:
            raise TryAgainError(
                f"the head of the Ray cluster, at {self.address}, has not answered for "
                f"{HEAD_SECONDS:.0f} s ({why}); it was stopped, or its machine is lost. Start it, "
                "and run the same command again: committed parts stay"
            )

    @property
    def is_lost(self) -> bool:
        """Whether the head did not answer when it was tried last."""
        return self._lost is not None


@dataclass(slots=True)
class RayConnection:
    """The node of this process in a cluster."""

    joined: bool  # a cluster that was there
    head: HeadWatch
    _raylet: str  # the socket of this machine's part of Ray
    _reaper: subprocess.Popen[bytes] | None
    _seen: queue.SimpleQueue[ClusterState] = field(default_factory=queue.SimpleQueue)
    _asked: float = 0.0

    @staticmethod
    def open() -> RayConnection:
        """Join the cluster of ``RAY_ADDRESS``, or start a Ray of our own.

        ``jobs.label_teacher.prepare_environment`` keeps one of our own on 127.0.0.1.
        """
        address = os.environ.get("RAY_ADDRESS", "")
        joined = address not in ("", "local")
        reaper = None
        if joined:
            _require_reachable(address)
        else:
            os.environ[MARK] = secrets.token_hex(16)
            reaper = _start_reaper()
            _tell(reaper, f"{MARK}={os.environ[MARK]}")
        heard = signal.getsignal(signal.SIGTERM)
        try:
            with _silence(joined):
                within(
                    CONNECT_SECONDS if joined else START_SECONDS,
                    f"joining the cluster at {address}" if joined else "starting Ray",
                    lambda: ray.init(
                        address=None if joined else "local",
                        include_dashboard=None if joined else False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                    ),
                    stay=True,
                )
        except PipelineError:
            raise
        except Exception as error:
            raise why_not(address, error) from error
        signal.signal(signal.SIGTERM, heard)  # Ray's own handler prints a stack
        # Ray prints faults of any node on stdout, in many lines; those that matter are said here.
        worker: Any = ray._private.worker
        worker.print_to_stdstream = lambda *_, **__: None
        node = worker._global_node
        if reaper is not None:
            _tell(reaper, str(node.get_session_dir_path()))
        head = HeadWatch(ray.get_runtime_context().gcs_address)
        return RayConnection(joined, head, node.raylet_socket_name, reaper)

    def require_raylet(self) -> None:
        """Raise ``TryAgainError`` once this machine's part of Ray, or the head, is gone.

        Calls that wait for it would wait for ever.
        """
        self.head.check()
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PROBE_SECONDS)
            try:
                probe.connect(self._raylet)
            except TimeoutError:
                return  # it is there, and busy
            except OSError as error:
                raise TryAgainError(
                    f"this machine's part of Ray is gone ({error.strerror}); it was killed, maybe "
                    "for want of memory, or stopped. Run the same command again: committed parts "
                    "stay"
                ) from error

    def state(self) -> ClusterState | None:
        """Return what the cluster has where that is news; asks anew at times, and never waits."""
        now = time.monotonic()
        if now - self._asked > RESOURCES_SECONDS:
            self._asked = now
            threading.Thread(target=self._look, daemon=True, name="ray-resources").start()
        found = None
        with suppress(queue.Empty):
            while True:
                found = self._seen.get_nowait()
        return found

    def _look(self) -> None:
        with suppress(Exception):  # the next look may be luckier
            self._seen.put(_state())

    def close(self) -> None:
        """Leave Ray, and end all that we started."""
        with suppress(Exception):
            within(LEAVE_SECONDS, "leaving Ray", ray.shutdown)
        if self._reaper is not None:
            _tell(self._reaper, "now")
            with suppress(OSError, subprocess.TimeoutExpired):
                self._reaper.communicate(timeout=LEAVE_SECONDS)


class Waiting:
    """A wait for one thing that needs CPUs or GPUs: it is said, and has an end."""

    def __init__(
        self,
        connection: RayConnection,
        what: str,
        seconds: float,
        *,
        kind: str = "CPU",
        need: float = 1.0,
    ) -> None:
        self._connection, self._what, self._seconds = connection, what, seconds
        self._kind, self._need = kind, need
        self._resources: Mapping[str, Resource] = {}
        self.begin()

    def begin(self) -> None:
        """Begin to wait, or begin anew as something has come."""
        self._began = self._said = time.monotonic()

    def look(self) -> None:
        """Say what is waited for where that is long; raise ``TryAgainError`` if it is too long."""
        self._connection.require_raylet()
        state, now = self._connection.state(), time.monotonic()
        if state is not None:
            self._resources = state.resources
        there, kind, has = self._resources.get(self._kind), self._kind, ""
        if there is not None:
            has = f": {self._need:g} {kind}, of {there.total:g} in the cluster {there.free:g} free"
        if now - self._began > self._seconds:
            raise TryAgainError(
                f"{self._what} took more than {self._seconds:.0f} s{has}; free some, or see "
                "that the nodes reach the files, and run the same command again"
            )
        if now - self._said < SAY_SECONDS:
            return
        if there is None or there.free < self._need:
            self._said = now
            _log.warning(f"{self._what} has to wait, for {now - self._began:.0f} s by now{has}")


@contextmanager
def _silence(wanted: bool) -> Iterator[None]:
    """Keep stderr from what Ray's client writes there on its own while it tries to join."""
    if not wanted:
        yield
        return
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    os.close(nothing)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def shared_memory_bytes() -> float:
    """Return the size of this machine's shared memory, of which Ray's objects take a part."""
    try:
        return float(shutil.disk_usage("/dev/shm").total)
    except OSError:  # not on this system
        return math.inf


def state_now() -> ClusterState:
    """Return what the cluster has."""
    return within(CONNECT_SECONDS, "asking what the cluster has", _state)


def _state() -> ClusterState:
    machines = {node["NodeID"]: _machine_of(node["Resources"]) for node in _nodes()}
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    total = {
        "CPU": sum(one.cpus for one in machines.values()),
        "GPU": sum(one.gpus for one in machines.values()),
    }
    return ClusterState(
        machines=machines,
        resources={
            name: Resource(total=count, free=free.get(name, 0.0)) for name, count in total.items()
        },
    )


def _machine_of(resources: Mapping[str, float]) -> Machine:
    return Machine(
        cpus=int(resources.get("CPU", 0)),
        gpus=int(resources.get("GPU", 0)),
        store_bytes=resources.get("object_store_memory", math.inf),
        is_head="node:__internal_head__" in resources,
    )


def _start_reaper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("reaper.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != MARK},
        start_new_session=True,  # signals for the job's group are not for it
    )


def _tell(reaper: subprocess.Popen[bytes], line: str) -> None:
    assert reaper.stdin is not None
    with suppress(OSError):
        reaper.stdin.write(f"{line}\n".encode())
        reaper.stdin.flush()


def _require_reachable(address: str) -> None:
    """Raise unless something answers at ``RAY_ADDRESS``; Ray itself would try for minutes."""
    if address == "auto":
        return  # Ray looks for one on this machine
    if "://" in address:
        raise ConfigError(
            f"RAY_ADDRESS is {address}: a label job joins the cluster itself, at HOST:PORT of its "
            "head (6379 unless changed), and only from one of its machines; from elsewhere use "
            "`ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(
            f"RAY_ADDRESS is {address}; give HOST:PORT of the cluster's head, or auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise TryAgainError(
            f"no Ray cluster answers at {address} ({error}); start it, correct RAY_ADDRESS, or "
            "unset it to run on this machine alone"
        ) from error


def why_not(address: str, error: Exception) -> PipelineError:
    """Return what to raise where Ray could not be joined or started."""
    text = in_one_line(error)
    if "AF_UNIX" in text:
        return ConfigError(
            "the directory for temporary files has too long a name for Ray's sockets; set "
            "RAY_TMPDIR to a short one, such as /tmp"
        )
    if address == "auto" and isinstance(error, ConnectionError):
        return TryAgainError(
            "RAY_ADDRESS is auto, and no Ray runs on this machine; start one, give HOST:PORT of "
            "the cluster's head, or unset it to run on this machine alone"
        )
    if address:
        return TryAgainError(
            f"the Ray cluster at {address} could not be joined ({text}); correct RAY_ADDRESS and "
            "RAY_AUTH_TOKEN, and use the cluster's release of Ray and of Python"
        )
    return TryAgainError(
        f"Ray could not be started on this machine ({text}); `serial` does without it"
    )


def in_one_line(error: BaseException) -> str:
    """Return what an exception says in the line that says most."""
    cause: BaseException | None = _cause_of(error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    missing = [line for line in lines if _IMPORT.match(line)]
    # Ray's own first line of a traceback names processes and not what was raised, which ends it.
    raised = (
        [line for line in lines if _RAISED.match(line)] if _IN_PROCESS in "".join(lines[:1]) else []
    )
    text = (missing[:1] or raised[-1:] or lines or [""])[0]
    return text or type(cause).__name__


def _cannot_import(cause: BaseException) -> bool:
    """Whether a process could not load this project, as another one on its machine could not."""
    return any(_IMPORT.match(line.strip()) for line in str(cause).splitlines())


def _cause_of(error: BaseException) -> BaseException:
    """Return what was raised in another process."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def death_of(error: BaseException) -> Death | None:
    """Return how a teacher was lost whose call raised ``error``, None if it lives.

    Whatever it raises when the machine below it fails means that it is lost: Ray's errors,
    broken pipes, and those of a device.
    """
    cause = _cause_of(error)
    if isinstance(cause, PipelineError | RuntimeEnvSetupError):
        return None
    text = str(cause)
    if isinstance(cause, OutOfMemoryError | MemoryError) or "running low on memory" in text:
        return Death.MEMORY
    if "CUDA out of memory" in text:
        return Death.MEMORY
    if _cannot_import(cause):
        return None
    device = type(cause).__module__.startswith("torch") or "CUDA" in text
    if isinstance(cause, RayError | OSError | EOFError) or device:
        return Death.PROCESS
    return None


def fault_of(error: BaseException, where: str) -> PipelineError:
    """Return what to raise for an error that another teacher would meet as well."""
    cause = _cause_of(error)
    if isinstance(cause, PipelineError):
        return cause
    text = in_one_line(error)
    if _cannot_import(cause) or isinstance(cause, RuntimeEnvSetupError):
        at = _ADDRESS.search(str(cause))
        return PipelineError(
            f"{where}{f' on {at[1]}' if at else ''} cannot run this project ({text}); install its "
            "dependencies on all nodes, or take the node out of the cluster"
        )
    return PipelineError(
        f"{where} failed: {type(cause).__name__}: {text}; this should not happen, and "
        "TEACHER_LABELS_DEBUG=1 shows where it did"
    )


def nodes() -> list[dict[str, Any]]:
    """Return the cluster's machines that are alive, as Ray describes them."""
    return within(CONNECT_SECONDS, "asking for the cluster's nodes", _nodes)


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
