"""Writes docs/reference/commands.md from what each command's ``--help`` says; for `make site`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path

from jobs.teacher_labels import COMMANDS

PAGE = Path(__file__).parent / "reference" / "commands.md"


def commands_page() -> str:
    """Return the page: each command, with its subcommands, and what its help says."""
    return "# Commands\n\nEach says this itself, with `--help`.\n\n" + "\n".join(
        line
        for name, (old, program, _) in COMMANDS.items()
        for line in described(program, [old] if old else ["teacher-labels", name])
    )


def described(program: str, words: list[str], *below: str) -> Iterator[str]:
    """Yield the lines of a command, and of the commands below it."""
    text = help_of(program, [*below, "--help"])
    yield f"{'#' * (2 + len(below))} {' '.join([*words, *below])}\n\n```text\n{text}\n```\n"
    names = re.search(r"\{([\w,-]+)\}", text.partition("\n\n")[0])  # in the line of usage
    for name in names[1].split(",") if names and not below else ():
        yield from described(program, words, name)


def help_of(program: str, arguments: list[str]) -> str:
    """Return what a command prints."""
    module, _, function = program.partition(":")
    printed = StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        getattr(import_module(module), function)(arguments)
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


if __name__ == "__main__":
    PAGE.write_text(commands_page(), encoding="utf-8")
