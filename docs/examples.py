"""An extension of griffe, which reads docstrings for the site: examples at their end are code."""

from __future__ import annotations

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Puts what follows the first ``>>>`` of a docstring between fences."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of a class, function or module."""
        if obj.docstring is None:
            return
        text, mark, example = obj.docstring.value.partition("\n\n>>> ")
        if mark:
            obj.docstring.value = f"{text}\n\n```python\n>>> {example}\n```"
