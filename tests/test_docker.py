"""The files in docker/: every command, flag and path in them is one that exists, and parses."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

from tests.commands import require_command

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
FILES = sorted(path for path in DOCKER.rglob("*") if path.is_file())
KUBERNETES = "1.32"
PROGRAMS = ("label-teacher", "ray", "torchrun", "train-student")


@pytest.mark.parametrize(
    "command",
    [
        "label-teacher --shards x.tar --out o.parquet --no-such-flag",
        "train-student --labels x --no-such-flag",
        "torchrun --no-such-flag -m student.cli",
        "ray start --head --no-such-flag",
        "ray job submit --no-such-flag -- label-teacher --help",
        "ray job submit -- label-teacher --shards x.tar --out o.parquet --no-such-flag",
        "label-teachers --help",
        "python -c 'no code'",
    ],
)
def test_a_wrong_flag_is_found(command: str) -> None:
    with pytest.raises(BaseException):  # noqa: B017, PT011 - each parser ends in its own way
        require_command(shlex.split(command))


def commands_in_comments(text: str) -> Iterator[list[str]]:
    """Yield the commands that a file's head shows: lines after a mark and three blanks, joined."""
    shown = "\n".join(line[4:] for line in text.splitlines() if line.startswith("#   "))
    for line in re.sub(r"\\\n\s*", " ", shown).splitlines():
        words = shlex.split(line.partition(" # ")[0].rstrip(" &"))
        if words[:1] == ["sbatch"]:
            assert words[1] == "docker/label.sbatch"
            yield ["label-teacher", *words[2:]]
        for index, word in enumerate(words):
            if word in PROGRAMS and words[0] != "export":
                yield words[index:]
                break


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_a_file_says_about_itself_can_be_done(path: Path) -> None:
    text = path.read_text()
    for command in commands_in_comments(text):
        require_command(command)
    for named in re.findall(r"\bdocker/[\w./-]+\w", text):
        assert (ROOT / named).exists(), named


def test_commands_in_comments_are_found() -> None:
    found = [list(commands_in_comments(path.read_text())) for path in FILES]
    assert sum(map(len, found)) >= 3


# The image


def docker_lines() -> list[str]:
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    return re.sub(r"\\\n\s*", " ", text).splitlines()


def test_the_image_is_made_of_files_that_are_there_and_of_wheels_that_are_pinned() -> None:
    lines = docker_lines()
    allowed = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    sources = [
        word
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    assert {"pipeline", "student", "jobs"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for pattern in packages["tool"]["setuptools"]["packages"]["find"]["include"]:
        assert pattern.rstrip("*") in sources
    text = "\n".join(lines)
    assert "PIP_CONSTRAINT=/src/constraints.txt" in text
    assert "--only-binary :all:" in text
    assert "USER 1000:1000" in lines  # a number, which Kubernetes can see not to be root
    stages = [line for line in lines if line.startswith("FROM ")]
    assert stages == ["FROM ${BASE} AS build", "FROM ${BASE}"]
    (base,) = [line for line in lines if line.startswith("ARG BASE=")]
    assert re.fullmatch(r"ARG BASE=python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}", base)


def test_the_code_in_the_image_compiles_and_its_command_runs() -> None:
    codes = re.findall(r"python -c '([^']*)'", "\n".join(docker_lines()))
    assert len(codes) == 2
    for code in codes:
        compile(code, "Dockerfile", "exec")
    requirements = subprocess.run(
        [sys.executable, "-c", codes[0]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [one for name in ("cloud", "hub", "jobs", "zarr") for one in extras[name]]
    assert requirements == [*project["dependencies"], *wanted]
    for line in docker_lines():
        if line.startswith("CMD "):
            words = yaml.safe_load(line.removeprefix("CMD "))
            require_command(words)
            assert words[0] in project["scripts"]


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([BIN / "hadolint", DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


# Compose


# What the specification of Compose has of what is used here.
SERVICE_FIELDS = {
    "image": str,
    "user": str,
    "init": bool,
    "read_only": bool,
    "cap_drop": list,
    "security_opt": list,
    "shm_size": str,
    "tmpfs": list,
    "volumes": list,
    "secrets": list,
    "environment": dict,
    "command": (str, list),
    "ports": list,
    "healthcheck": dict,
    "depends_on": dict,
    "profiles": list,
    "stop_grace_period": str,
    "restart": str,
}


def compose() -> dict[str, Any]:
    def interpolated(match: re.Match[str]) -> str:
        name, kind, text = match.groups()
        return text if kind == ":-" else f"/{name}"

    text = (DOCKER / "compose.yaml").read_text()
    found: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", interpolated, text))
    return found


def test_the_services_run_commands_that_exist_with_a_root_that_is_read_only() -> None:
    services = compose()["services"]
    assert set(services) == {"head", "worker", "label"}
    for service in services.values():
        for name, value in service.items():
            assert isinstance(value, SERVICE_FIELDS[name]), name
        command = service["command"]
        require_command(shlex.split(command) if isinstance(command, str) else command)
        if "healthcheck" in service:
            kind, *words = service["healthcheck"]["test"]
            assert kind == "CMD"
            require_command(words)
        assert service["read_only"]
        assert [one.partition(":")[0] for one in service["tmpfs"]] == ["/tmp"]
        assert {one.partition(":")[2] for one in service["volumes"]} == {"/data", "/cache"}
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        for name, needed in service.get("depends_on", {}).items():
            assert needed["condition"] == "service_healthy"
            assert "healthcheck" in services[name]
    assert "--num-cpus=0" in services["head"]["command"]
    assert services["head"]["ports"] == ["127.0.0.1:8265:8265"]


def test_the_object_store_fits_into_the_shared_memory() -> None:
    for name in ("head", "worker"):
        service = compose()["services"][name]
        store = int(re.search(r"--object-store-memory=(\d+)", service["command"])[1])  # type: ignore[index]
        assert store < int(service["shm_size"].removesuffix("m")) * 2**20 * 0.95


# Kubernetes

# What KubeRay's resources may have of what is used here, as of KubeRay 1.5.
CLUSTER_FIELDS = {
    "rayVersion": str,
    "authOptions": dict,
    "headGroupSpec": dict,
    "workerGroupSpecs": list,
    "enableInTreeAutoscaling": bool,
}
JOB_FIELDS = {
    "entrypoint": str,
    "submissionMode": str,
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "runtimeEnvYAML": str,
    "rayClusterSpec": dict,
}
HEAD_FIELDS = {"rayStartParams": dict, "template": dict, "serviceType": str}
GROUP_FIELDS = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "rayStartParams": dict,
    "template": dict,
}


def require_fields(values: Mapping[str, Any], known: Mapping[str, type]) -> None:
    for name, value in values.items():
        assert name in known, f"KubeRay knows no {name}"
        assert type(value) is known[name], f"{name} is {value!r}"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DOCKER / "kuberay" / name).read_text()))


def require_pod(template: Mapping[str, Any]) -> None:
    """Raise unless a template makes a pod that is not root, and writes to its volumes alone."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    spec = template["spec"]
    assert spec["securityContext"]["runAsUser"] == 1000
    volumes = {one["name"]: one for one in spec["volumes"]}
    (container,) = spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounts = {one["mountPath"]: volumes[one["name"]] for one in container["volumeMounts"]}
    assert set(volumes) == {one["name"] for one in container["volumeMounts"]}
    assert {"/tmp", "/cache", "/dev/shm"} <= set(mounts)
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"


def require_ray_group(group: Mapping[str, Any]) -> None:
    flags = [f"--{name}={value}" for name, value in group["rayStartParams"].items()]
    assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    require_command(["ray", "start", *flags])
    require_pod(group["template"])
    (container,) = group["template"]["spec"]["containers"]
    for name in ("livenessProbe", "readinessProbe"):
        probe = container[name]["httpGet"]
        assert probe["path"] in PUBLIC_EXACT_PATHS  # which need no token
        assert probe["port"] == DEFAULT_DASHBOARD_AGENT_LISTEN_PORT


def cluster_specs() -> dict[str, dict[str, Any]]:
    (job,), (cluster,) = documents("rayjob.yaml"), documents("raycluster.yaml")
    return {"rayjob": job["spec"]["rayClusterSpec"], "raycluster": cluster["spec"]}


@pytest.mark.parametrize("name", ["rayjob", "raycluster"])
def test_a_ray_cluster_is_one_for_kuberay(name: str) -> None:
    spec = cluster_specs()[name]
    require_fields(spec, CLUSTER_FIELDS)
    require_fields(spec["headGroupSpec"], HEAD_FIELDS)
    require_ray_group(spec["headGroupSpec"])
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        require_fields(group, GROUP_FIELDS)
        require_ray_group(group)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert [one["groupName"] for one in spec["workerGroupSpecs"]] == ["gpu", "cpu"]
    assert f"ray=={spec['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def test_the_cluster_of_the_job_and_the_one_that_stays_are_alike() -> None:
    specs = cluster_specs()
    assert specs["rayjob"] == specs["raycluster"]


def test_the_ray_job_labels_and_goes() -> None:
    (job,) = documents("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    require_fields(job["spec"], JOB_FIELDS)
    require_command(shlex.split(job["spec"]["entrypoint"]))
    assert job["spec"]["shutdownAfterJobFinishes"]
    assert job["spec"]["backoffLimit"] > 0


def test_an_unknown_field_is_found() -> None:
    (job,) = documents("rayjob.yaml")
    with pytest.raises(AssertionError, match="KubeRay knows no entryPoint"):
        require_fields({"entryPoint": "x"}, JOB_FIELDS)
    template = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    template["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        require_pod(template)


def test_the_trainers_job_is_kubernetes_and_its_command_trains() -> None:
    service, job = documents("train-student.yaml")
    for document in (service, job):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    template = job["spec"]["template"]
    require_pod(template)
    (container,) = template["spec"]["containers"]
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in container["command"]]
    require_command(words)
    given = dict(word.split("=") for word in words if word.startswith("--n"))
    assert int(given["--nnodes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == given["--nproc-per-node"]
    host, port = words[words.index("-m") - 3].partition("=")[2].split(":")
    name = job["metadata"]["name"]
    assert host == f"{name}-0.{template['spec']['subdomain']}"
    assert service["metadata"]["name"] == template["spec"]["subdomain"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["ports"][0]["port"] == int(port)


# SLURM

BATCH = DOCKER / "label.sbatch"


def test_shellcheck_finds_nothing_in_the_batch_script() -> None:
    done = subprocess.run([BIN / "shellcheck", BATCH], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


STAND_INS = {
    "ray": 'echo "ray $*" >> "$LOG"; [[ $1 == health-check ]] || sleep 1',
    "srun": 'echo "srun $*" >> "$LOG"',
    "scontrol": 'echo "scontrol $*" >> "$LOG"',
    "label-teacher": """
        echo "label-teacher $* at $RAY_ADDRESS" >> "$LOG"
        [[ $STATUS == 143 ]] || exit "$STATUS"
        trap 'exit 143' TERM
        kill -TERM "$PPID"
        for _ in $(seq 100); do sleep 0.1; done
    """,
}


@pytest.mark.parametrize(("status", "again"), [(0, False), (1, False), (75, True), (143, True)])
def test_the_batch_script_runs_and_queues_again_what_may_do_better(
    tmp_path: Path, status: int, again: bool
) -> None:
    folder, log = tmp_path / "venv" / "bin", tmp_path / "log"
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(sys.executable)
    for name, text in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    variables = {"VENV": str(tmp_path / "venv"), "LOG": str(log), "STATUS": str(status)}
    slurm = {"JOB_ID": "7", "JOB_NUM_NODES": "2", "CPUS_PER_TASK": "16", "GPUS_ON_NODE": "1"}
    variables |= {f"SLURM_{name}": value for name, value in slurm.items()}
    done = subprocess.run(
        ["bash", BATCH, "--shards", "/data/*.tar", "--out", "/data/t.parquet"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    lines = log.read_text().splitlines()
    for line in lines:
        program, *words = line.split()
        if program == "srun":
            while words[0].startswith("--"):
                words.pop(0)
            require_command(words)
        elif program == "ray":
            require_command([program, *words])
    assert sum(line.startswith("srun ") for line in lines) == 1
    (started,) = [line for line in lines if line.startswith("label-teacher")]
    command, _, address = started.partition(" at ")
    require_command(command.split())
    assert address.endswith(":20007")
    assert ("scontrol requeue 7" in lines) == again


class _Registry(BaseHTTPRequestHandler):
    """Gives a token, and the digest of one tag to who has it."""

    kind = "application/vnd.oci.image.index.v1+json"

    def do_GET(self) -> None:
        assert "scope=repository:library/python:pull" in self.path
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"token": "t"}')

    def do_HEAD(self) -> None:
        known = self.path == "/v2/library/python/manifests/3.11-slim-bookworm"
        self.send_response(200 if known and self.headers["Authorization"] == "Bearer t" else 404)
        self.send_header("Content-Type", self.kind)
        self.send_header("Docker-Content-Digest", f"sha256:{'a' * 64}")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def pin(path: Path, port: int) -> subprocess.CompletedProcess[str]:
    address = f"http://127.0.0.1:{port}"
    words = ["--registry", address, "--login", f"{address}/token?service=x", "--file", str(path)]
    return subprocess.run(
        [sys.executable, str(DOCKER / "pin.py"), *words], capture_output=True, text=True
    )


def test_the_base_is_pinned_by_the_digest_that_a_registry_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before = tmp_path / "Dockerfile", (DOCKER / "Dockerfile").read_text()
    path.write_text(before)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    line = "ARG BASE=python:3.11-slim-bookworm"
    older = re.escape(line) + "@sha256:[0-9a-f]{64}"
    for _ in range(2):  # and again, as when the tag has moved
        assert pin(path, server.server_port).returncode == 0
        assert path.read_text() == re.sub(older, f"{line}@sha256:{'a' * 64}", before)
    monkeypatch.setattr(_Registry, "kind", "text/html")
    refused = pin(path, server.server_port)
    server.shutdown()
    server.server_close()
    for answer in (refused, pin(path, server.server_port)):
        assert answer.returncode == 1
        assert "python:3.11-slim-bookworm was not found" in answer.stderr
        assert "Traceback" not in answer.stderr
