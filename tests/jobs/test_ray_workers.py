"""Ray's workers in tests are forked from a process that has loaded what they need, if theirs."""

from __future__ import annotations

import json

import pytest

from tests.jobs.ray_workers import worker_of

WORKER = ["default_worker.py", "--node-id=1"]


@pytest.mark.parametrize(
    ("context", "environment", "is_forked"),
    [
        ({}, {}, True),
        ({"env_vars": {"OTHER": "x"}}, {"RAY_JOB_ID": "01"}, True),
        ({"env_vars": {"PYTHONPATH": "/a/wheel"}}, {}, False),  # of a submitted job
        ({}, {"PYTHONPATH": "/a/working/directory"}, False),
        ({"env_vars": {"OMP_WAIT_POLICY": "ACTIVE"}}, {}, False),
        ({"command_prefix": ["nice"]}, {}, False),
    ],
)
def test_only_workers_of_the_same_code_and_settings_are_forked(
    monkeypatch: pytest.MonkeyPatch,
    context: dict[str, object],
    environment: dict[str, str],
    is_forked: bool,
) -> None:
    same = {"PATH": "/bin", "OMP_WAIT_POLICY": "PASSIVE"}
    for name, value in same.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    given = [f"--serialized-runtime-env-context={json.dumps(context)}", "--language=PYTHON"]
    words = ["setup_worker.py", *WORKER, *given]
    assert worker_of(words, {**same, **environment}) == (WORKER if is_forked else None)
