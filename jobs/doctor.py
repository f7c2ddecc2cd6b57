"""The command ``teacher-labels doctor``: whether this machine is fit, and what to mend."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.cli.console import (
    counted,
    flags_of,
    in_users_words,
    parse_flags,
    running,
    say,
    say_lines,
    tell_next,
    words_given,
)
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.tools.doctor import Finding

__all__ = ["DoctorFlags", "main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorFlags:
    """Look at this machine: versions, processor, GPU, pixels, room and Ray; say what to mend.

    Ends with status 0 only if all is well.
    """

    ray: bool = False
    """Start Ray on the loopback interface too, as a label job does, and ask it for its CPUs."""
    json: bool = False
    """Print JSON for machines instead."""


def main(arguments: Sequence[str] | None = None, program: str = "doctor") -> None:
    """Run ``teacher-labels doctor``."""
    arguments = words_given(arguments)
    flags_of_cures = {
        one: f"--{one.replace('_', '-')}" for one in ("cache_dir", "serial", "workers")
    }
    with running(program, {**flags_of_cures, **flags_of(DoctorFlags)}, arguments=arguments):
        flags: DoctorFlags = parse_flags(DoctorFlags, program, arguments)
        from pipeline.tools.doctor import examine

        found = []
        for one in examine():
            found.append(_shown(one, quiet=flags.json))
        if flags.ray:
            found += [_shown(one, quiet=flags.json) for one in _try_ray()]
        wrong = [one for one in found if not one.is_well]
        if flags.json:
            say_lines(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
        elif wrong:
            say(f"{counted(len(wrong), 'thing')} to mend: {', '.join(one.name for one in wrong)}")
        else:
            say("all is well" + ("" if flags.ray else "; --ray tries Ray out too"))
            tell_next("teacher-labels", "demo")
        raise SystemExit(1 if wrong else 0)


def _shown(finding: Finding, *, quiet: bool) -> Finding:
    if not quiet:
        mark = "ok" if finding.is_well else "!!"
        say(f"{mark}  {finding.name:16} {finding.found}")
        if finding.cure:
            say(f"    {'':16} -> {in_users_words(finding.cure)}")
    return finding


def _try_ray() -> Iterator[Finding]:
    from jobs.label_teacher import prepare_environment

    prepare_environment()  # Ray reads it when it is imported
    from jobs import joining
    from pipeline.tools.doctor import Finding

    started = time.monotonic()
    try:
        with contextlib.closing(joining.RayConnection.open()):
            cpus = joining.state_now().resources["CPU"].total
            seconds = time.monotonic() - started
            yield Finding(name="Ray", found=f"runs, with {cpus:.0f} CPUs, after {seconds:.0f} s")
    except PipelineError as error:
        yield Finding(
            name="Ray", found=str(error), cure="label with `serial`, which needs no Ray, or mend it"
        )
