"""Machines that join are used, and each teacher's share is that of its own machine."""

from __future__ import annotations

import signal
from pathlib import Path

from jobs.run import EXIT_DRAINED
from tests.jobs.conftest import Job
from tests.jobs.processes import (
    PATIENCE_SECONDS,
    Node,
    named,
    part_paths,
    ray_nodes,
    start_job,
    wait_for,
)


def test_a_machine_that_joins_while_the_job_runs_gets_a_teacher(job: Job, tmp_path: Path) -> None:
    out, log = tmp_path / "x.parquet", tmp_path / "log"
    node = Node(tmp_path, cpus=1)
    with ray_nodes(Node(tmp_path, cpus=1), node) as cluster:
        process = start_job(job.to(out, "--views", "600"), address=cluster.address, log=log)

        def teachers() -> list[int]:
            assert process.poll() is None, log.read_text()
            return named(cluster.pid, "ray::TeacherActor")

        wait_for(lambda: len(part_paths(out)) >= 1 and teachers(), "a part", log=log)
        assert len(teachers()) == 1
        cluster.add(node)
        wait_for(lambda: len(teachers()) == 2, "the second teacher", log=log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == EXIT_DRAINED, log.read_text()
    assert "the cluster has no GPU now, so the teacher runs on CPUs" in log.read_text()
