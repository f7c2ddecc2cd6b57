"""Starts and finds processes for tests: a real Ray head on loopback, and label jobs."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import IO, TypeAlias

from tests.forking import BIN, Forked, Order, Source
from tests.forking import ROOT as ROOT

Process: TypeAlias = subprocess.Popen[bytes] | Forked
PATIENCE_SECONDS = 150

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # so that all listens on 127.0.0.1 alone
    "OMP_WAIT_POLICY": "PASSIVE",
    "PATH": f"{BIN}:{os.environ['PATH']}",  # submitted jobs run the head's `python`
    # A lost node is noticed after five of these, of which each may take as long as ever.
    "RAY_health_check_period_ms": "1000",
    "RAY_metrics_report_interval_ms": "2000",
    # What nobody holds any more leaves shared memory at once, not a hundred objects at a time.
    "RAY_free_objects_batch_size": "1",
    # Processes that a node keeps though they are idle for a second: two jobs need as many.
    "RAY_num_workers_soft_limit": "8",
    # `ray job stop` waits this long before it kills.
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
}


@dataclass(frozen=True, slots=True)
class RayHead:
    """A running head: its address for drivers, for submissions, its process and directory."""

    address: str
    dashboard: str
    pid: int
    cwd: Path
    metrics: str  # where Prometheus would look


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


_RAY = """
import sys
folder = sys.argv.pop(2)
sys.path.insert(0, sys.argv.pop(1))
from tests.jobs.ray_workers import fork_workers
from ray.scripts.scripts import main

fork_workers(folder)
sys.argv[0] = "ray"
main()
"""


_RUNS = "Ray runtime started"


@contextmanager
def ray_head(environment: Mapping[str, str] = MappingProxyType({})) -> Iterator[RayHead]:
    """Run a Ray head on 127.0.0.1, and end its own processes alone afterwards."""
    port, dashboard, client, agent, agent_grpc, env_agent, metrics = free_ports(7)
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets' paths are limited
    command = [
        *(sys.executable, "-c", _RAY, str(ROOT), str(folder)),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        "--no-monitor",  # of a cloud's machines, of which there are none
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--runtime-env-agent-port={env_agent}",
        f"--metrics-export-port={metrics}",
        "--num-cpus=2",
        "--object-store-memory=300000000",
        f"--temp-dir={folder}",
    ]
    log, cwd = folder / "head.log", folder / "cwd"
    cwd.mkdir()  # a cluster is seldom started from where its jobs are

    def begin() -> subprocess.Popen[bytes]:
        with log.open("wb") as out:
            begun = subprocess.Popen(
                command,
                env={**os.environ, **RAY_ENVIRONMENT, **environment},
                cwd=cwd,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # Its dashboard listens before the node is there, for which it waits, and then says so.
        wait_for(
            lambda: begun.poll() is not None or (_RUNS in log.read_text() and _listens(dashboard)),
            "Ray's head",
            log=log,
        )
        return begun

    process = begin()
    try:
        if process.poll() is not None:  # it waits 30 s, which a busy machine may not have
            process = begin()
        assert process.poll() is None, log.read_text()
        yield RayHead(
            f"127.0.0.1:{port}",
            f"http://127.0.0.1:{dashboard}",
            process.pid,
            cwd,
            f"127.0.0.1:{metrics}",
        )
    finally:
        _end_family(process)
        shutil.rmtree(folder, ignore_errors=True)


_CLUSTER = """
import json, os, sys
from ray.cluster_utils import Cluster
from tests.jobs.ray_workers import fork_workers

fork_workers(sys.argv[2])
cluster = Cluster()

def add(node):
    os.chdir(node["directory"])
    os.environ.update(node["environment"])
    cluster.add_node(
        num_cpus=node["cpus"], num_gpus=node["gpus"], node_ip_address="127.0.0.1",
        object_store_memory=100_000_000, include_dashboard=False, no_monitor=True,
    )
    for name in node["environment"]:
        del os.environ[name]

for node in json.loads(sys.argv[1]):
    add(node)
print(cluster.address, flush=True)
for line in sys.stdin:
    add(json.loads(line))
"""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a made-up cluster. The first one is the head, where drivers are."""

    directory: Path
    cpus: int = 1
    gpus: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RayNodes:
    """A cluster of several nodes on loopback."""

    address: str
    pid: int
    orders: IO[bytes]

    def add(self, node: Node) -> None:
        """Let one more machine join, a little later."""
        self.orders.write(json.dumps(asdict(node), default=str).encode() + b"\n")
        self.orders.flush()

    def raylet(self, number: int) -> int:
        """Return the process of a node, in the order in which they were started."""
        found = [one for one in descendants(self.pid) if "/raylet/raylet" in command_of(one)]
        return sorted(found, key=started)[number]


@contextmanager
def ray_nodes(
    *nodes: Node, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[RayNodes]:
    """Run a cluster with a node started in each directory."""
    folder = tempfile.mkdtemp(prefix="ray-")
    given = json.dumps([asdict(one) for one in nodes], default=str)
    process = subprocess.Popen(
        [sys.executable, "-c", _CLUSTER, given, folder],
        env={**os.environ, **RAY_ENVIRONMENT, **environment},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        address = process.stdout.readline().decode().strip()
        yield RayNodes(address, process.pid, process.stdin)
    finally:
        _end_family(process)
        shutil.rmtree(folder, ignore_errors=True)


def command_of(pid: int) -> str:
    """Return a process's command line, nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def started(pid: int) -> int:
    """Return when a process was started, in ticks since the machine was; numbers begin anew."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def cwd_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/cwd").readlink()


def _end_family(process: subprocess.Popen[bytes]) -> None:
    family = [process.pid, *descendants(process.pid)]
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(2)  # a head that waits for workers of its own may take 20 s
    for pid in {*family, *descendants(process.pid)}:
        kill(pid)
    process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], object], what: str, *, log: Path | None = None) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: waited in vain; {log.read_text() if log else ''}")
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    """Return all processes below one, found in /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def named(pid: int, title: str) -> list[int]:
    """Return the descendants of a process whose command line begins with ``title``."""
    return [one for one in descendants(pid) if command_of(one).startswith(title)]


def alive(pids: Iterable[int]) -> list[int]:
    """Return which processes run; those that nobody has waited for yet are over."""
    found = []
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@cache
def _source() -> Source:
    """Return what processes of jobs are forked from, in the environment of those on Ray."""
    loaded = ("jobs.cluster", "jobs.serial", "jobs.train_student", "student.engine", "pandas")
    return Source((*loaded, "pipeline.views.apply:warm_up"), RAY_ENVIRONMENT)


def forked(
    function: str, words: list[str], variables: Mapping[str, str], log: Path, cwd: Path | None
) -> Forked:
    """Run a program, given as ``module:function``, in a process of its own.

    The first word is its path.
    """
    where = str(cwd or Path.cwd())
    return Forked(_source(), Order(function, words, variables, where, str(log)))


def start_job(
    arguments: list[str],
    *,
    address: str | None,
    log: Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
    function: str = "jobs.entry:label_teacher",
) -> Process:
    """Start ``label-teacher`` in a process of its own; its output goes to ``log``.

    ``function`` may run it with other constants.
    """
    variables = {**os.environ}
    variables.pop("RAY_ADDRESS", None)
    if address is not None:
        variables |= {**RAY_ENVIRONMENT, "RAY_ADDRESS": address}
    variables |= environment
    words = [str(BIN / "label-teacher"), *arguments]
    if address is not None or "--serial" in arguments:
        return forked(function, words, variables, log, cwd)
    # A Ray of its own is told by the environment, as Ray loads, where to listen.
    with log.open("ab") as out:
        return subprocess.Popen(words, env=variables, cwd=cwd, stdout=out, stderr=subprocess.STDOUT)


def run_job(
    arguments: list[str], *, address: str | None, log: Path, cwd: Path | None = None
) -> str:
    """Run ``label-teacher`` to its good end and return what it printed."""
    process = start_job(arguments, address=address, log=log, cwd=cwd)
    status = process.wait(PATIENCE_SECONDS)
    text = log.read_text()
    assert status == 0, text
    return text


def require_one_line(log: Path, message: str) -> None:
    """Require that a job said one error of its own, and no traceback; Ray's core may say more."""
    text = log.read_text()
    own = [line for line in text.splitlines() if line.startswith("label-teacher: error: ")]
    assert len(own) == 1, text
    assert message in own[0], text
    assert "Traceback" not in text, text


def part_paths(store: Path) -> list[Path]:
    return sorted(store.glob("shard=*/*.parquet"))


def part_hashes(store: Path) -> dict[str, str]:
    """Return the SHA-256 of every part, and of the manifest."""
    paths = [*part_paths(store), store / "_manifest.json"]
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def listening_addresses(pid: int) -> set[str]:
    """Return the IPv4 addresses on which a process listens, from /proc."""
    try:
        links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    except OSError:
        return set()
    sockets = {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for line in "".join(table.partition("\n")[2] for table in tables).splitlines():
        fields = line.split()
        if fields[3] == "0A" and fields[9] in sockets:  # LISTEN
            # Each group of four bytes is little end first; IPv4 is the last one.
            last = bytes.fromhex(fields[1].split(":")[0][-8:])[::-1]
            found.add(".".join(map(str, last)))
    return found
