"""What timm's files say of its models, for what must not wait for timm: it loads for seconds."""

from __future__ import annotations

import ast
import re
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import TeacherError
from pipeline.files.hub import has_model, why_unreached

__all__ = [
    "FETCH_CURE",
    "hub_repositories",
    "no_teacher",
    "require_fetched",
    "require_model",
    "why_not_fetched",
]

FETCH_CURE = (
    "give a local file as `checkpoint`, the seed of untrained weights as `random_weights`, or "
    "connect to the model hub"
)


def no_teacher(name: str, why: str, cure: str = FETCH_CURE) -> TeacherError:
    """Return that there is no such teacher, and why."""
    return TeacherError(f"cannot create the teacher {name!r}: {why}; {cure}")


def require_model(name: str, parameter: str = "teacher") -> None:
    """Raise ``TeacherError`` for the name of an architecture that timm's files do not have.

    They are searched for the word. ``parameter`` is what gave the name, for messages.
    """
    base, text = name.partition(".")[0], "\n".join(_model_files().values())
    if not text or (base.isidentifier() and re.search(rf"\b{base}\b", text) is not None):
        return  # if it is none, whoever loads timm says so
    models = re.findall(r"@register_model\s+def (\w+)", text)
    close = get_close_matches(base.rpartition("/")[2], models, n=5)  # of hf-hub:timm/NAME too
    raise TeacherError(
        f"`{parameter}` {name!r} is no model of timm {version('timm')}"
        + (f"; similar names: {', '.join(close)}" if close else "")
    )


def require_fetched(name: str) -> None:
    """Raise ``TeacherError`` for a teacher whose pretrained weights cannot be had."""
    if why := why_not_fetched(name):
        raise no_teacher(name, why)


def why_not_fetched(name: str) -> str:
    """Return in words why a model's pretrained weights cannot be had.

    Nothing where the hub is reached, where its cache has some of that name, and for weights from
    elsewhere. timm is loaded where its files do not tell.
    """
    if has_model(f"timm/{name}") or not (why := why_unreached()):
        return ""
    known = hub_repositories(name)
    if known is None:
        known = _repository_by_timm(name)
    return why if known and not any(map(has_model, known)) else ""


def hub_repositories(name: str) -> frozenset[str] | None:
    """Return the hub's repositories of a model's weights; without a tag, of those of all its tags.

    Empty where weights are elsewhere. None where they are not written plainly: of some models timm
    makes up the names while it loads.
    """
    base, _, tag = name.partition(".")
    found: set[str] = set()
    for text in _model_files().values():
        if re.search(rf"""["']{re.escape(base)}[."'*]""", text) is None:
            continue
        for key, call in _configurations(text):
            if key == name or (not tag and key.partition(".")[0] == base):
                told = [one.value for one in call.keywords if one.arg == "hf_hub_id"]
                if not (told and isinstance(told[0], ast.Constant)):
                    return frozenset()
                repository = str(told[0].value)
                found.add(repository + key if repository.endswith("/") else repository)
    return frozenset(found) or None


def _repository_by_timm(name: str) -> frozenset[str]:
    import timm

    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # of weights that there are not, as whoever loads them says
        return frozenset()
    return frozenset({config.hf_hub_id} if config and config.hf_hub_id else ())


@lru_cache(maxsize=1)
def _model_files() -> dict[Path, str]:
    """Return the texts of timm's models, without loading it; none where it is not installed."""
    found = find_spec("timm")
    if found is None or not found.submodule_search_locations:
        return {}
    folder = Path(found.submodule_search_locations[0]) / "models"
    return {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.py")}


def _configurations(text: str) -> list[tuple[str, ast.Call]]:
    """Return the entries of tables of weights: ``'resnet18.a1_in1k': _cfg(hf_hub_id=...)``."""
    return [
        (key.value.rstrip("*"), value)  # which marks the tag that a name without one stands for
        for table in ast.walk(ast.parse(text))
        if isinstance(table, ast.Dict)
        for key, value in zip(table.keys, table.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
        if isinstance(value, ast.Call) and "cfg" in ast.unparse(value.func)
    ]
