"""Ray's workers in tests are forked from a process that has loaded what they need."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.jobs.ray_workers import ROOT, Worker, worker_of

WORKER = ["default_worker.py", "--node-id=1"]


@pytest.mark.parametrize(
    ("context", "environment", "ours"),
    [
        ({}, {}, True),
        ({"env_vars": {"OTHER": "x"}}, {"RAY_JOB_ID": "01"}, True),
        ({"env_vars": {"PYTHONPATH": "/a/wheel"}}, {}, False),  # of a submitted job
        ({}, {"PYTHONPATH": "/a/working/directory"}, False),
        ({"env_vars": {"OMP_WAIT_POLICY": "ACTIVE"}}, {}, None),
        ({"command_prefix": ["nice"]}, {}, None),
        ({"command_prefix": ["cd", "/a/directory", "&&"]}, {}, True),
        ({"command_prefix": ["cd", "/a/directory", "&&", "nice"]}, {}, None),
    ],
)
def test_workers_of_settings_that_are_read_as_libraries_load_are_not_forked(
    monkeypatch: pytest.MonkeyPatch,
    context: dict[str, dict[str, str]],
    environment: dict[str, str],
    ours: bool | None,
) -> None:
    same = {"PATH": "/bin", "OMP_WAIT_POLICY": "PASSIVE"}
    for name, value in same.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    given = [f"--serialized-runtime-env-context={json.dumps(context)}", "--language=PYTHON"]
    words = ["setup_worker.py", *WORKER, *given]
    found = worker_of(words, {**same, **environment}, "/here")
    if ours is None:
        assert found is None
        return
    cwd = "/a/directory" if "command_prefix" in context else "/here"
    mine = {**same, **environment, **context.get("env_vars", {})}
    assert found == Worker(WORKER, mine, cwd, ours)


_BECOME = """
import ctypes, os, sys
from tests.jobs.ray_workers import become

def first():
    return ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")[0]

before, given = first(), {"FIRST": "stays", "SECOND": "changed", "FOURTH": "new"}
become([os.dup(number) for number in range(3)], given, "/")
print(first() == before, dict(os.environ) == given, os.getcwd())
"""


def test_a_forked_worker_gets_its_environment_and_its_title_can_be_set() -> None:
    """Ray 2.49 finds the memory of its title before that of the first variable."""
    variables = {"FIRST": "stays", "SECOND": "before", "THIRD": "goes", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", _BECOME],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "True True /\n"


_FORGET = """
import sys
from tests.jobs.ray_workers import LIBRARIES, forget_us
forget_us()
ours = {"pipeline", "student", "jobs", "tests"}
print(*ours.intersection(name.partition(".")[0] for name in (*sys.modules, *LIBRARIES)))
"""


def test_workers_of_other_code_are_forked_where_none_of_ours_is_loaded() -> None:
    """Kernels that are compiled in a process stay in it, and another's would be linked to them."""
    found = subprocess.run(
        [sys.executable, "-c", _FORGET], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == "\n"
