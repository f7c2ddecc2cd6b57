"""The command ``teacher-labels``: all commands of the project under one name."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path

from pipeline.cli.console import require_command, running, say, say_lines, words_given
from pipeline.errors import ConfigError
from pipeline.files.local import replace

__all__ = ["COMMANDS", "main", "names_below"]

_COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")
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
    "train-teacher": ("", "jobs.small_teacher:main", "a small teacher, for want of a better one"),
    "demo": ("", "jobs.demo:main", "all of it on images that it draws, in two minutes"),
    "doctor": ("", "jobs.doctor:main", "whether this machine is fit, and what to mend"),
}
"""Each command's older name, the function that runs it, and what it is for."""


def main(arguments: Sequence[str] | None = None, program: str = "teacher-labels") -> None:
    """Run the command that the first argument names."""
    arguments = words_given(arguments)
    with running(program, {}, arguments=arguments, names=names_below(program)):
        if not arguments or arguments[0] in ("-h", "--help"):
            say_lines(_help(program))
            raise SystemExit(0 if arguments else 2)
        if arguments[0] in _COMPLETION:
            _complete(program, *arguments)
            raise SystemExit(0)
        name, *rest = arguments
        require_command(name, COMMANDS)
        module, _, function = COMMANDS[name][1].partition(":")
        getattr(import_module(module), function)(rest, f"{program} {name}")


def names_below(program: str = "teacher-labels") -> dict[str, str]:
    """Return what commands with names of their own are called below this one."""
    return {old: f"{program} {name}" for name, (old, *_) in COMMANDS.items() if old}


def _complete(program: str, flag: str, shell: str = "", path: str = "") -> None:
    """Print or write completion for bash, as tyro's flags of these names do for one command."""
    if shell != "bash" or bool(path) != (flag == _COMPLETION[1]):
        raise ConfigError(f"use {_COMPLETION[0]} bash, or {_COMPLETION[1]} bash FILE")
    script = _completion(program)
    if path:
        replace(Path(path), script.encode())
        say(f"{path}: read by shells that start from now on")
    else:
        say_lines(script)


def _completion(program: str) -> str:
    """Return a script for bash: commands' names, and then what each command's own completes."""
    scripts, cases = [], []
    for name, (_, target, _) in COMMANDS.items():
        module, _, function = target.partition(":")
        alone = f"{program}-{name}"  # one word, for which tyro makes a function
        printed = io.StringIO()
        with redirect_stdout(printed), suppress(SystemExit):
            getattr(import_module(module), function)([_COMPLETION[0], "bash"], alone)
        scripts.append(printed.getvalue())
        cases.append(f"    {name}) _tyro_{alone.replace('-', '_')} ;;")
    own = f"_{program.replace('-', '_')}"
    lines = (
        f"{own}() {{",
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f"""    COMPREPLY=($(compgen -W "{" ".join(COMMANDS)}" -- "${{COMP_WORDS[1]}}"))""",
        "    return",
        "  fi",
        '  local name="${COMP_WORDS[1]}"',
        f'  local -a COMP_WORDS=("{program}-$name" "${{COMP_WORDS[@]:2}}")',
        "  local COMP_CWORD=$((COMP_CWORD - 1))",
        '  case "$name" in',
        *cases,
        "  esac",
        "}",
        f"complete -F {own} {program}",
    )
    return "".join(scripts) + "\n".join(lines) + "\n"


def _help(program: str) -> str:
    """Return the commands, each with a line."""
    lines = [
        f"usage: {program} {{{','.join(COMMANDS)}}} ...",
        "",
        "Runs a teacher once over the augmented views that students see, and keeps its labels.",
        "",
        *(
            f"  {name:13} {what}" + f"  (also: {old})" * bool(old)
            for name, (old, _, what) in COMMANDS.items()
        ),
        "",
        f"{program} COMMAND --help explains a command; --version says which release this is;",
        f"{_COMPLETION[0]} bash prints what completes all of them in a shell.",
        "",
        "From images, a directory of them for each class, to pictures of what a teacher mistakes:",
        "",
        f"  {program} pack --images photos --part 0 0.8 --out shards/train",
        f"  {program} pack --images photos --part 0.8 1 --out shards/val --classes shards/train",
        f"  {program} train-teacher --shards shards/train --val-shards shards/val \\",
        "      --out teacher.safetensors",
        f"  {program} label --shards shards/val --out val.parquet --views 1 --preset center \\",
        "      --image-size 64 --teacher test_resnet --teacher-checkpoint teacher.safetensors",
        f"  {program} store show val.parquet --shards shards/val --disagree --out wrong.png",
        "",
        "Each says at its end which command comes next, to labels for a student and its training.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
