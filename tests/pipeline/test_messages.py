"""The library speaks Python: what it raises names parameters and values, and no flags."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import pipeline

ROOMS = ("columns.py", "store", "tools")
FLAG = re.compile(r"(^|[^\w-])--[a-z]|`label-store |`label-teacher")


def raised_texts(file: Path) -> list[str]:
    """Return all texts in the raise statements of a module, each with its line."""
    return [
        f"{file.name}:{part.lineno}: {part.value}"
        for statement in ast.walk(ast.parse(file.read_text()))
        if isinstance(statement, ast.Raise)
        for part in ast.walk(statement)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_no_error_below_the_command_line_names_a_flag_or_a_command(room: str) -> None:
    root = Path(pipeline.__file__).parent / room
    files = [root] if root.suffix else sorted(root.rglob("*.py"))
    texts = [text for file in files for text in raised_texts(file)]
    assert len(texts) > 3
    assert [text for text in texts if FLAG.search(text)] == []
