"""A few of ``make chaos``'s faults, in an order that is fixed."""

from __future__ import annotations

from pathlib import Path

from tests.crash.chaos import Report, disturb, make_work, markdown_of
from tests.object_storage import S3Server

KINDS = ("driver_killed", "teacher_killed", "augmenter_killed", "node_lost")


def test_a_job_that_loses_each_of_its_processes_in_turn_ends_with_the_same_bytes(
    tmp_path: Path, s3_server: S3Server
) -> None:
    work, report = make_work(tmp_path, samples=12, views=120), Report()

    def done() -> bool:
        return report.same + report.other > 0

    disturb(
        tmp_path,
        [work],
        iter(KINDS),
        report,
        server=s3_server,
        seed=1,
        forked=True,
        over=done,
        pause=0.5,
    )
    assert (report.same, report.other) == (1, 0)
    assert [fault.kind for fault in report.faults] == list(KINDS)
    assert "| jobs with the bytes of a run that nobody disturbed | 1 |" in markdown_of(report, 1)
