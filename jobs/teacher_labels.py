"""The command ``teacher-labels``: all commands of the project under one name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module

from pipeline.cli.console import require_command, running, say_lines, words_given

__all__ = ["COMMANDS", "main"]

COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "pack": ("pack-shards", "pipeline.cli.commands:pack_shards", "images to shuffled shards"),
    "label": ("label-teacher", "jobs.label_teacher:main", "shards to a store of teacher labels"),
    "store": (
        "label-store",
        "student.cli:store_main",
        "show, inspect, verify, merge, ...",
    ),
    "train": ("train-student", "student.cli:main", "a student from a store"),
    "evaluate": ("evaluate-student", "student.cli:evaluate_main", "a student's checkpoint"),
    "runs": ("student-report", "student.cli:report_main", "runs beside each other, as a page"),
    "export": (
        "export-student",
        "student.cli:export_main",
        "a student for timm, the hub or ONNX",
    ),
    "demo": ("", "jobs.demo:main", "all of it on images that it draws, in two minutes"),
    "doctor": ("", "jobs.doctor:main", "whether this machine is fit, and what to mend"),
}
"""Each command's older name, the function that runs it, and what it is for."""


def main(arguments: Sequence[str] | None = None, program: str = "teacher-labels") -> None:
    """Run the command that the first argument names."""
    arguments = words_given(arguments)
    names = {old: f"{program} {name}" for name, (old, *_) in COMMANDS.items() if old}
    with running(program, {}, arguments=arguments, names=names):
        if not arguments or arguments[0] in ("-h", "--help"):
            say_lines(_help(program))
            raise SystemExit(0 if arguments else 2)
        name, *rest = arguments
        require_command(name, COMMANDS)
        module, _, function = COMMANDS[name][1].partition(":")
        getattr(import_module(module), function)(rest, f"{program} {name}")


def _help(program: str) -> str:
    """Return the commands, each with a line."""
    lines = [
        f"usage: {program} {{{','.join(COMMANDS)}}} ...",
        "",
        "Runs a teacher once over the augmented views that students see, and keeps its labels.",
        "",
        *(
            f"  {name:10} {what}" + f"  (also: {old})" * bool(old)
            for name, (old, _, what) in COMMANDS.items()
        ),
        "",
        f"{program} COMMAND --help explains a command; --version says which release this is.",
        "",
        "From a folder of images, one directory per class, to pictures of its labels:",
        "",
        f"  {program} pack --images photos --out shards",
        f"  {program} label --shards shards --out labels.parquet --views 8 \\",
        "      --teacher NAME --teacher-checkpoint WEIGHTS.safetensors",
        f"  {program} store show labels.parquet --shards shards --disagree --out wrong.png",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
