"""Whether a command that a text shows is one of ours, Ray's or Python's, with flags that it has."""

from __future__ import annotations

from contextlib import suppress

import ray.dashboard.modules.job.cli
import torch.distributed.run
import tyro
from ray.scripts.scripts import cli as ray_commands

import student.cli
from jobs.label_teacher import parse_arguments
from jobs.small_teacher import TeacherTraining
from jobs.teacher_labels import COMMANDS
from pipeline import PackConfig
from pipeline.cli.commands import StoreCommand
from pipeline.errors import IncompleteStoreError
from student.config import EvaluateConfig

OURS = tuple(old for old, *_ in COMMANDS.values() if old)


def require_command(words: list[str]) -> None:
    """Raise or exit unless a command parses."""
    match words:
        case [name, "--help" | "--version" | "--tyro-write-completion", *_] if (
            name in OURS or name == "teacher-labels"
        ):
            return
        case ["teacher-labels", name, *arguments] if COMMANDS[name][0]:
            require_command([COMMANDS[name][0], *arguments])
        case ["teacher-labels", "doctor" | "demo"]:
            return
        case ["teacher-labels", "demo", "--out", _]:
            return
        case ["label-teacher", *arguments]:
            with suppress(IncompleteStoreError):  # of --extend-to, which reads the store's settings
                parse_arguments(arguments)
        case ["train-student", *arguments]:
            student.cli._parse(arguments)
        case ["pack-shards", *arguments]:
            tyro.cli(PackConfig, args=arguments)
        case ["label-store", *arguments]:
            config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
            tyro.cli(StoreCommand, args=arguments, config=config)
        case ["evaluate-student", *arguments]:
            tyro.cli(EvaluateConfig, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
        case ["export-student", *arguments]:
            tyro.cli(student.cli.ExportFlags, args=arguments)
        case ["student-report", *arguments]:
            tyro.cli(student.cli.ReportFlags, args=arguments)
        case ["torchrun", *arguments]:
            given = torch.distributed.run.get_args_parser().parse_args(arguments)
            assert given.module
            assert given.training_script == "student.cli"
            require_command(["train-student", *given.training_script_args])
        case ["ray", "job", "submit", *arguments]:
            submit = ray.dashboard.modules.job.cli.job_cli_group.commands["submit"]
            given = submit.make_context("submit", arguments).params
            require_command(list(given["entrypoint"]))
        case ["ray", name, *arguments]:
            ray_commands.commands[name].make_context(name, arguments)
        case ["python", "jobs/label_teacher.py", *arguments]:
            require_command(["label-teacher", *arguments])
        case ["teacher-labels", "train-teacher", *arguments]:
            tyro.cli(TeacherTraining, args=arguments)
        case ["python", "-c", code]:
            compile(code, "the command", "exec")
        case _:
            raise AssertionError(f"an unknown command: {words}")
