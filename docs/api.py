#!/usr/bin/env python
"""Writes docs/API.md from the docstrings behind the doors of `pipeline` and `student`."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "API.md"
DOORS = ("pipeline", "student")

Documented: TypeAlias = ast.ClassDef | ast.FunctionDef


def page() -> str:
    """Return the page; modules are read and not run, so PyTorch is not loaded."""
    parts = ["# API", "Made from docstrings by `make docs`; the suite runs the examples."]
    for door in DOORS:
        package = importlib.import_module(door)
        parts += [f"## {door}", inspect.getdoc(package) or ""]
        for name in package.__all__:
            parts += described(found(package._MODULES[name], name))
    return "\n\n".join(parts) + "\n"


def found(module: str, name: str) -> Documented:
    """Return a module's definition of a class or function."""
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    source = file.read_text(encoding="utf-8")
    return next(
        node
        for node in ast.parse(source).body
        if isinstance(node, Documented) and node.name == name
    )


def described(node: Documented) -> Iterator[str]:
    """Yield the paragraphs of a class or function."""
    yield f"### {node.name}"
    if isinstance(node, ast.FunctionDef):
        yield f"```python\n{signature(node)}\n```"
    text, _, example = (ast.get_docstring(node) or "").partition("\n\n>>> ")
    yield text
    if example:
        yield f"```python\n>>> {example}\n```"
    if isinstance(node, ast.ClassDef):
        lines = [*fields(node), *methods(node)]
        if lines:
            yield "\n".join(lines)


def signature(node: ast.FunctionDef) -> str:
    """Return how a function or method is called."""
    arguments = ast.unparse(node.args).removeprefix("self").removeprefix(", ")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return f"{node.name}({arguments}){returns}"


def fields(node: ast.ClassDef) -> Iterator[str]:
    """Yield a line for each field of a record, with the docstring below it."""
    for one, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(one, ast.AnnAssign) and not ast.unparse(one.target).startswith("_"):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield f"- `{ast.unparse(one)}`: {' '.join(text.split())}"
                case _:
                    yield f"- `{ast.unparse(one)}`"


def methods(node: ast.ClassDef) -> Iterator[str]:
    """Yield a line for each public method, with the first sentence of its docstring."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
            is_property = any(ast.unparse(mark) == "property" for mark in one.decorator_list)
            call = one.name if is_property else signature(one)
            text = (ast.get_docstring(one) or "").partition("\n\n")[0]
            yield f"- `{call}`: {' '.join(text.split())}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
