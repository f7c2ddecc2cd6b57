"""The commands as functions, for scripts and notebooks: one call each.

Settings have the names and defaults of the flags, with ``_`` for ``-``: ``--image-size 64`` is
``image_size=64``, and those of mixing are a mapping, ``mixing={"group_size": 8}``. What commands
say is printed, what goes wrong is raised as a ``PipelineError``; nothing exits or takes a signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipeline.shards.packing import PackReport
    from pipeline.store import LabelStore
    from student import CheckpointReport, Outcome

__all__ = ["evaluate", "label", "pack", "show", "train"]

Shards: TypeAlias = str | Path | Sequence[str | Path]
"""The directory of shards, a file, a pattern, or several of them."""

Call = TypeVar("Call", bound=Callable[..., Any])


class _Signature(Signature):
    """A call's signature with its settings by name: the fields of a record, ``module:name``.

    They are read when somebody asks: the record's module may load libraries.
    """

    def __init__(self, call: Callable[..., Any], kind: str) -> None:
        own = signature(call)
        super().__init__(list(own.parameters.values()), return_annotation=own.return_annotation)
        self._own, self._kind = own.parameters, kind

    @property
    def parameters(self) -> MappingProxyType[str, Parameter]:
        """All parameters, in the order of ``help``."""
        own = {name: one for name, one in self._own.items() if one.kind is not one.VAR_KEYWORD}
        module, _, name = self._kind.partition(":")
        settings = _settings(getattr(import_module(module), name))
        return MappingProxyType(own | {one.name: one for one in settings if one.name not in own})


def _settings(kind: type) -> Iterator[Parameter]:
    """Yield the fields of a record and of the groups in it as parameters, those needed first."""
    for one in fields(kind):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if is_dataclass(default) and one.name not in _TABLES:
            yield from _settings(type(default))
        elif one.init:
            default = Parameter.empty if default is MISSING else default
            yield Parameter(one.name, Parameter.KEYWORD_ONLY, default=default, annotation=one.type)


_TABLES = ("mixing",)
"""Groups that are given as a mapping."""


def _with_settings(kind: str) -> Callable[[Call], Call]:
    """Let ``help`` and editors show the fields of this record for a call's ``settings``."""

    def shown(call: Call) -> Call:
        vars(call)["__signature__"] = _Signature(call, kind)
        return call

    return shown


@_with_settings("pipeline.shards.packing:PackConfig")
def pack(images: str | Path, out: str | Path, **settings: Any) -> PackReport:
    """Pack a folder of images, one directory per class, into shuffled shards; see ``PackConfig``.

    >>> pack("images", "shards").classes
    ('cat', 'dog')
    """
    from pipeline.cli.console import Progress
    from pipeline.shards.packing import PackConfig, pack_shards

    config = _built(PackConfig, {"images": Path(images), "out": str(out), **settings})
    with Progress("images") as progress:
        return pack_shards(config, progress.show)


@_with_settings("pipeline.labelling.config:LabelConfig")
def label(shards: Shards, out: str | Path, **settings: Any) -> LabelStore:
    """Label views of shards with a teacher, or what is missing of a store; see ``LabelConfig``.

    Returns the finished store. Starts Ray on this machine, unless ``serial`` is given.

    >>> store = label(
    ...     "shards",
    ...     "labels.parquet",
    ...     teacher="test_vit",
    ...     teacher_random_weights=0,
    ...     num_classes=2,
    ...     image_size=32,
    ...     views=3,
    ...     serial=True,
    ... )
    1 shard, ...
    >>> store.manifest.view_range
    range(0, 3)
    """
    from jobs.label_teacher import configured, prepare_environment
    from pipeline.store import open_store

    config = configured({"shards": _texts(shards), "out": str(out), **settings})
    prepare_environment()  # before Ray is imported
    from jobs.run import complete_store
    from jobs.teacher_labels import names_below
    from pipeline.cli.console import programs_called

    with programs_called(names_below()):
        complete_store(config)
    return open_store(config.out)


@_with_settings("student.config:TrainConfig")
def train(
    labels: str | Path, shards: Shards, output: str | Path, *, recipe: str = "", **settings: Any
) -> Outcome:
    """Train a student on the views and labels of a store; see ``TrainConfig`` and its groups.

    ``recipe`` is ``deit`` or ``deit-384``; the other settings override it. Continue a run that was
    broken off with ``resume="auto"``.

    >>> train(
    ...     "labels.parquet",
    ...     "shards",
    ...     "run",
    ...     model="deit_tiny_distilled_patch16_224",
    ...     model_args=("patch_size=8", "embed_dim=32", "depth=1", "num_heads=2"),
    ...     epochs=1,
    ...     batch_size=4,
    ...     workers=0,
    ... ).steps
    7
    """
    from pipeline.cli.console import Progress
    from student import TrainConfig, open_inputs
    from student import train as run
    from student.recipes import recipe as settings_of

    given = {"labels": str(labels), "shards": _texts(shards), "output": str(output), **settings}
    for name in ("val_shards",):
        if name in given:
            given[name] = _texts(given[name])
    config = TrainConfig.of_settings(**{**(settings_of(recipe) if recipe else {}), **given})
    inputs = open_inputs(config)
    with Progress("steps") as progress:
        return run(config, inputs, show=progress.show)


@_with_settings("student.config:EvaluateConfig")
def evaluate(checkpoint: str | Path, val_shards: Shards, **settings: Any) -> CheckpointReport:
    """Evaluate a checkpoint's raw and averaged weights; see ``EvaluateConfig``.

    >>> report = evaluate("run/last.pt", "shards")
    >>> report.evaluations["raw"].samples
    30
    """
    from student import EvaluateConfig, evaluate_checkpoint

    given = {"checkpoint": checkpoint, "val_shards": _texts(val_shards), **settings}
    return evaluate_checkpoint(_built(EvaluateConfig, given))


@_with_settings("pipeline.tools.show:ViewChoice")
def show(
    store: str | Path | LabelStore,
    shards: Shards,
    *,
    original: bool = False,
    class_: int | str | None = None,
    **choice: Any,
) -> Image:
    """Return a contact sheet of views as the student sees them; see ``ViewChoice``.

    A notebook shows it; ``.save("views.png")`` writes it. ``class_`` is a true class by name or
    number.

    >>> sheet = show("labels.parquet", "shards", disagree=True, count=4)
    >>> sheet.mode
    'RGB'
    """
    from pipeline.classes import class_number
    from pipeline.store import open_store
    from pipeline.tools import ViewChoice, draw_views, show_views

    opened = open_store(str(store)) if isinstance(store, str | Path) else store
    if class_ is not None:
        choice["target"] = class_number(str(class_), opened.manifest.classes, opened.root)
    views = draw_views(opened, _texts(shards), _built(ViewChoice, choice))
    return show_views(views, original=original)


def _texts(shards: Shards) -> tuple[str, ...]:
    given = (shards,) if isinstance(shards, str | Path) else shards
    return tuple(str(one) for one in given)


def _built(kind: type[Any], settings: Mapping[str, Any]) -> Any:
    """Return a record of settings; raises ``ConfigError`` for a name that it has not."""
    from dataclasses import fields
    from difflib import get_close_matches

    from pipeline.errors import ConfigError

    known = [one.name for one in fields(kind)]
    for name in settings:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            raise ConfigError(
                f"there is no setting `{name}`"
                + (f"; did you mean `{close[0]}`?" if close else f"; {kind.__name__} has them all")
            )
    return kind(**settings)
