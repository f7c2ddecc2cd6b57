"""The whole way on scikit-learn's digits, in minutes on two cores: `make demo`.

Images -> shards -> a teacher -> its labels, by a job on a local Ray cluster -> a student
that replays them, and the same student with its teacher in the loop. Every step is a
command that a user would type; its output is in demo-output/logs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits

PROJECT = Path(__file__).resolve().parent.parent
OUT = PROJECT / "demo-output"
BIN = Path(sys.executable).parent

SIDE = 32  # pixels; the digits have 8
PER_SHARD = 300
VIEWS = 28  # and epochs
# A mirrored digit is another sign, and half of one is none: no flips, mild crops.
TEACHER = shlex.split("--model regnety_002 --epochs 12 --batch-size 64 --lr 8e-3 --hflip 0")
AUGMENTATION = shlex.split("--preset crop-flip --hflip 0 --crop-scale 0.5 1 --image-size 32")
STUDENT = shlex.split(
    "--model deit_tiny_distilled_patch16_224 --drop-path 0 --batch-size 48 --lr 2e-3 --workers 1 "
    "--model-args patch_size=8 embed_dim=128 depth=4 num_heads=4"
)
RAY_PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "ray-client-server-port",
    "metrics-export-port",
    "runtime-env-agent-port",
)
QUIET_SECONDS = 10.0  # off a terminal
COMPARED_EPOCHS = 2  # the second one is timed: the first one also loads


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A running Ray head."""

    address: str  # of its dashboard, for `ray job submit`
    environment: Mapping[str, str]


class StepError(Exception):
    """A step failed; carries its exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def main() -> int:
    """Run the demo and return the exit status."""
    started = time.monotonic()
    signal.signal(signal.SIGTERM, _stop)
    try:
        shutil.rmtree(OUT, ignore_errors=True)
        (OUT / "logs").mkdir(parents=True)
        write_images()
        pack()
        train_teacher()
        label()
        train_student("student", "--epochs", str(VIEWS), *shards_of("val"))
        compared = (f"--epochs={COMPARED_EPOCHS}",)
        train_student("with-store", *compared)
        train_student("in-loop", *compared, "--teacher-in-loop", "--teacher-checkpoint", teacher())
        report(time.monotonic() - started)
    except StepError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def write_images() -> None:
    """Write the digits as one directory of PNG files per class; every sixth is validation."""
    digits = load_digits()
    with timed(f"{len(digits.images)} digits as PNG files of {SIDE}x{SIDE} pixels"):
        for number, (digit, target) in enumerate(zip(digits.images, digits.target, strict=True)):
            split = "val" if number % 6 == 5 else "train"
            path = OUT / "images" / split / str(target) / f"digit-{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            gray = np.minimum(digit * 16, 255).astype(np.uint8)
            large = Image.fromarray(gray).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            large.save(path)


def pack() -> None:
    """Pack both splits into shards."""
    for split in ("train", "val"):
        images, out = str(OUT / "images" / split), str(OUT / "shards" / split)
        command = [tool("pack-shards"), "--images", images, "--out", out]
        run(f"pack-{split}", [*command, "--per-shard", str(PER_SHARD)])


def train_teacher() -> None:
    """Train the teacher on views of its own."""
    options = ["--image-size", str(SIDE), "--out", teacher(), *TEACHER]
    command = [tool("teacher-labels"), "train-teacher", *options]
    run("teacher", [*command, *shards_of("train"), *shards_of("val")])


def label() -> None:
    """Label all views by a job on a Ray cluster of this machine."""
    job = [
        *("python", "jobs/label_teacher.py", *shards_of("train"), "--out", store()),
        *("--teacher", "regnety_002", "--teacher-checkpoint", teacher()),
        *("--views", str(VIEWS), "--precision", "fp32", "--device", "cpu", *AUGMENTATION),
    ]
    with ray_head() as head:
        submit = [tool("ray"), "job", "submit", "--address", head.address]
        submit += ["--working-dir", str(PROJECT), "--", *job]
        run("label", submit, head.environment)
    run("verify", [tool("label-store"), "verify", store(), *shards_of("train"), "--all"])


def train_student(name: str, *options: str) -> None:
    """Train a student from the store; see ``STUDENT`` for what they share."""
    common = ["--labels", store(), *shards_of("train"), "--output", str(OUT / name)]
    run(name, [tool("train-student"), *common, "--device", "cpu", *STUDENT, *options])


def report(seconds: float) -> None:
    """Print what came out."""
    manifest = json.loads((Path(store()) / "_manifest.json").read_bytes())
    labels = pd.read_parquet(store())
    job = json.loads(next(Path(store()).glob("_meta/runs/*.json")).read_bytes())
    size = sum(part["bytes"] for part in manifest["parts"])
    heads = last_epoch("student")["evaluation"]
    alone, loop = (last_epoch(name)["seconds"]["total"] for name in ("with-store", "in-loop"))
    weights = [found_in(name, r"sha256 (\w+)") for name in ("with-store", "in-loop")]
    agreement = (labels["label"] == labels["target"]).mean()
    rows = {
        "labels": f"{len(labels)} = {labels['key'].nunique()} images x {VIEWS} views",
        "labels per second": f"{job['labels_per_second']:.0f}",
        "bytes per view": f"{size / len(labels):.2f}",
        "teacher right, plain validation images": found_in("teacher", r"([\d.]+%) of"),
        "teacher's label = own class, mixed views": f"{agreement:.1%}",
        **{
            f"student right, {name.replace('_', ' ')}": f"{heads[name]['top1']:.1%}"
            for name in ("class_head", "distillation_head", "mean_of_logits", "sum_of_softmaxes")
        },
        "seconds per epoch, labels from the store": f"{alone:.2f}",
        "seconds per epoch, teacher in the loop": f"{loop:.2f}",
        "weights after both ways": "the same, bit for bit"
        if weights[0] == weights[1]
        else "DIFFERENT",
        "time of the whole demo": f"{seconds:.0f} s",
    }
    print()
    for name, value in rows.items():
        print(f"  {name:42} {value}")
    if weights[0] != weights[1]:
        raise StepError("the store and the teacher in the loop gave different students", 1)
    out = OUT.relative_to(PROJECT)
    print(f"\nlook at {out / Path(store()).name}/_README.md, and at the logs beside it")
    print(f"open {out / 'student' / 'report.html'} in a browser; then, with a folder of images:")
    print("next: python examples/shapes.py images")


def last_epoch(name: str) -> Any:
    """Return the metrics of a student's last epoch."""
    lines = (OUT / name / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "epoch"][-1]


def found_in(name: str, pattern: str) -> str:
    """Return the last match of a pattern in a step's output."""
    return str(re.findall(pattern, log_of(name).read_text())[-1])


def shards_of(split: str) -> list[str]:
    """Return the option that names a split's shards."""
    flag = "--shards" if split == "train" else "--val-shards"
    return [flag, str(OUT / "shards" / split / "*.tar")]


def store() -> str:
    """Return the path of the label store."""
    return str(OUT / "teacher.parquet")


def teacher() -> str:
    """Return the path of the teacher's weights."""
    return str(OUT / "teacher.safetensors")


def tool(name: str) -> str:
    """Return the path of an installed command."""
    return str(BIN / name)


def log_of(name: str) -> Path:
    """Return the file that has a step's output."""
    return OUT / "logs" / f"{name}.log"


@contextlib.contextmanager
def timed(title: str) -> Iterator[None]:
    """Print what is done, and how long it took."""
    print(f"\n{title}", flush=True)
    started = time.monotonic()
    yield
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)


def run(name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run one step to its end. Raises ``StepError`` after printing a failed step's output."""
    log = log_of(name)
    with timed(f"$ {readable(command)}"):
        with log.open("w") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environment if environment is not None else base_environment()),
                cwd=PROJECT,
            )
        try:
            follow(process, log)
        finally:
            stop(process)
        if process.returncode:
            print(log.read_text(), file=sys.stderr)
            status = process.returncode if process.returncode > 0 else 128 - process.returncode
            raise StepError(f"{name} failed with status {status}; its output is above", status)


def follow(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a process, and show the latest line of its log: elsewhere each ten seconds."""
    terminal, shown = sys.stdout.isatty(), time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        if not terminal and time.monotonic() - shown < QUIET_SECONDS:
            continue
        shown = time.monotonic()
        lines = log.read_text(errors="replace").split("\n")
        said = (line for line in reversed(lines) if line.strip() and ": next: " not in line)
        latest = next(said, "...")[: shutil.get_terminal_size().columns - 4]
        print(f"\r\033[K  {latest}" if terminal else f"  {latest}", end="\n" * (not terminal))
        sys.stdout.flush()
    if terminal:
        print("\r\033[K", end="")


def readable(command: Sequence[str]) -> str:
    """Return a command as one would type it here."""
    locations = ((f"{BIN}/", ""), (f"{PROJECT}/", ""), (str(PROJECT), "."))
    words = []
    for word in command:
        for long, short in locations:
            word = word.replace(long, short)
        words.append(shlex.quote(word))
    return " ".join(words)


def base_environment() -> dict[str, str]:
    """Return the environment of all steps, with this interpreter first on the path."""
    # Threads that spin while they wait make shared cores many times slower.
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def ray_head() -> Iterator[Head]:
    """Run a Ray head of our own on 127.0.0.1, for as long as this context lasts.

    Its ports are free ones and its token is new, so it meets no other Ray of this machine,
    and nobody else can use it.
    """
    ports = dict(zip(RAY_PORTS, free_ports(len(RAY_PORTS)), strict=True))
    # Ray's sockets lie in its directory, and a socket's path has about 100 characters.
    location = Path(tempfile.mkdtemp(prefix="demo-ray-", dir="/tmp"))
    environment = {
        name: value for name, value in base_environment().items() if not name.startswith("RAY_")
    }
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    # Ray's switch for systems without clusters: all listens on 127.0.0.1 alone.
    environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    environment |= {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Stopped within a job, it is to end that too at once, and leave no process behind.
    environment |= {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    command = [tool("ray"), "start", "--head", "--block", "--node-ip-address", "127.0.0.1"]
    command += ["--include-dashboard", "true", "--dashboard-host", "127.0.0.1"]
    command += ["--temp-dir", str(location), "--disable-usage-stats"]
    command += [word for name, port in ports.items() for word in (f"--{name}", str(port))]
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    with log_of("ray").open("w") as log:
        # Its own session: Ctrl-C is for the demo, which then stops Ray in good order.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=location,
            start_new_session=True,
        )
        try:
            with timed(f"$ ray start --head ...   (a local cluster at {address})"):
                wait_for(process, address, environment["RAY_AUTH_TOKEN"])
            yield Head(address=address, environment=environment)
        finally:
            stop(process)
            shutil.rmtree(location, ignore_errors=True)


def wait_for(process: subprocess.Popen[bytes], address: str, token: str) -> None:
    """Wait until a Ray head takes jobs."""
    request = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    deadline = time.monotonic() + 90
    while True:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(request, timeout=5).close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            print(log_of("ray").read_text(), file=sys.stderr)
            raise StepError("Ray did not start; its output is above", 1)
        time.sleep(0.5)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process if it still runs. On SIGTERM a Ray head ends all that it started."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Return different ports that are free now."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in taken]


if __name__ == "__main__":
    sys.exit(main())
