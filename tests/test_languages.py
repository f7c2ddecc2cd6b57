"""The library speaks Python: flags, tyro, print and exit statuses are the command line's alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

COMMAND_LINE = ("pipeline/cli", "student/cli.py", "student/habits.py")
SHOW_COMMANDS = ("pipeline/store/card.py", "pipeline/tools/extend.py")
"""They write texts for people, in which commands stand: a store's card, the command to extend."""
FLAG = re.compile(r"(?<![\w-])--[a-z]")


def strange_to_a_library(source: str) -> Iterator[str]:
    """Yield what in a module belongs to the command line, with its line."""
    for node in ast.walk(ast.parse(source)):
        found = None
        match node:
            case ast.Constant(value=str(text)) if FLAG.search(text):
                found = f"a flag in {text!r}"
            case ast.Call(func=ast.Name(id="print" | "exit" | "quit" as name)):
                found = f"{name}()"
            case ast.Name(id="SystemExit"):
                found = "SystemExit"
            case ast.Attribute(value=ast.Name(id="sys"), attr="exit"):
                found = "sys.exit"
            case ast.Import(names=names) if any(one.name.startswith("tyro") for one in names):
                found = "import tyro"
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] == "tyro":
                found = "import tyro"
        if found is not None:
            yield f"{getattr(node, 'lineno', 0)}: {found}"


def modules(*outside: str) -> list[str]:
    paths = [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("student/**/*.py")]
    names = sorted(path.relative_to(ROOT).as_posix() for path in paths)
    return [name for name in names if not name.startswith(outside)]


@pytest.mark.parametrize("name", modules(*COMMAND_LINE, *SHOW_COMMANDS))
def test_no_module_below_the_command_line_speaks_its_language(name: str) -> None:
    assert list(strange_to_a_library((ROOT / name).read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        'raise ConfigError(f"--views {views}: too many")',
        '"""As ``--views`` says."""',
        "print(1)",
        "sys.exit(1)",
        "raise SystemExit(1)",
        "import tyro",
        "from tyro.conf import Positional",
    ],
)
def test_each_word_of_the_command_line_is_recognized(line: str) -> None:
    assert list(strange_to_a_library(line)) != []


def test_a_table_and_a_dash_are_no_flags() -> None:
    assert list(strange_to_a_library('"|---|--|" + "so--called" + "a -- b"')) == []


@pytest.mark.parametrize("name", modules("pipeline/cli/console.py"))
def test_all_is_printed_by_the_console_which_escapes_it(name: str) -> None:
    source = (ROOT / name).read_text()
    assert [line for line in strange_to_a_library(source) if "print()" in line] == []


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.name)
def test_jobs_print_by_the_console_too(path: Path) -> None:
    assert [line for line in strange_to_a_library(path.read_text()) if "print()" in line] == []
