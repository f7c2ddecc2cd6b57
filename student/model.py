"""Builds students: timm's models, or the user's own, with one head or two."""

from __future__ import annotations

import logging
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from pipeline.errors import ConfigError
from pipeline.files.hub import hub_if_reached
from pipeline.growth import settle
from pipeline.views.rng import stream
from student.config import not_fetched, require_own_name

__all__ = [
    "StudentSpec",
    "create_student",
    "create_student_of",
    "heads_of",
    "reseed",
    "reseed_step",
    "set_mode",
    "split_heads",
    "two_headed",
]

_CANNOT_BUILD = (
    *(TypeError, ValueError, RuntimeError, AssertionError),
    *(ArithmeticError, LookupError, AttributeError, MemoryError),
)
"""What arguments that do not fit a model make it raise."""

_SPARE_ELEMENTS = 1 << 20
"""Of buffers that are not stored, and of weights that are given up while a model is built."""

_log = logging.getLogger(__name__)

_DECIDES = "decides_heads"
"""The attribute of modules whose training mode decides whether both heads' logits are given."""


def reseed(purpose: str, *identity: int | str) -> None:
    """Set PyTorch's generators, on all devices in use, to the words owned by one identity."""
    _seed_generators(_seed_of(purpose, *identity))


def reseed_step(seed: int, step: int, rank: int, piece: int) -> None:
    """Do what ``reseed`` does with "step" and these numbers, in less time for steps in a row."""
    block, index = divmod(step, _BLOCK)
    _seed_generators(_seeds_of_block(seed, block, rank, piece)[index])


_BLOCK = 64  # steps; a hash between two of them takes several times as long as after another hash


@lru_cache(maxsize=256)
def _seeds_of_block(seed: int, block: int, rank: int, piece: int) -> tuple[int, ...]:
    steps = range(block * _BLOCK, (block + 1) * _BLOCK)
    return tuple(_seed_of("step", seed, step, rank, piece) for step in steps)


def _seed_of(purpose: str, *identity: int | str) -> int:
    return stream(purpose, *identity).word() >> 1


def _seed_generators(seed: int) -> None:
    # torch.manual_seed would note a seed, with a stack, for each device that is not in use yet.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSpec:
    """Which student to build."""

    name: str  # timm's, or 'package.module:function'
    classes: int
    image_size: int  # side of its images in pixels, whatever the name says
    heads: Literal[1, 2] | None = 2  # with 2 it has a distillation head; None: any
    drop_path: float = 0.0
    seed: int = 0  # of the weights
    model_args: Mapping[str, Any] = field(default_factory=dict)  # over timm's arguments

    def __post_init__(self) -> None:
        settle(self)


def create_student(spec: StudentSpec, warn: Callable[[str], None] = _log.warning) -> nn.Module:
    """Return an untrained student, whose output in training ``split_heads`` takes apart.

    A function of the user's own is called with ``num_classes``, ``img_size`` (left out if it
    has no such argument), ``drop_path_rate`` (likewise) and the model arguments; its
    module returns in training the logits (B, C), or those of the class head and of the
    distillation head, in one of the forms of ``heads_of``; in evaluation it may join them.
    Raises ``ConfigError`` for a name that is not known, another number of heads, or a model
    that cannot be built for these images.
    """
    require_own_name(spec.name)
    build = _function(spec.name) if ":" in spec.name else _timm_builder(spec)
    fetching, why = bool(spec.model_args.get("pretrained")), ""
    with torch.random.fork_rng(devices=[]):
        try:
            with hub_if_reached() if fetching else nullcontext("") as why:
                model = _build(build, spec, warn)
        except OSError as error:
            raise not_fetched(spec.name, why or _first_line(error)) from error
        except _CANNOT_BUILD as error:
            raise _misfit(spec, error) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"`model` {spec.name} gives a {type(model).__name__}, not a module")
    if hasattr(model, "set_distilled_training"):
        model.set_distilled_training(True)  # type: ignore[operator]
    _require_whole_patches(model, spec)
    _try_out(model, spec)
    return model


def create_student_of(spec: StudentSpec, state: Mapping[str, Tensor]) -> nn.Module:
    """Return the student that weights from a file are of, with these weights.

    What the file says of its model may ask for any size, so none is built that is larger than the
    weights: before that costs memory, a model of timm's is built without any and compared. Raises
    ``ConfigError`` for a model that is larger, and as ``create_student``; ``RuntimeError`` for
    weights that do not fit.
    """
    _require_moderate(spec, state)
    if timm.is_model(spec.name):
        # Weights that it began with would be fetched, and give way to these.
        kept = {name: value for name, value in spec.model_args.items() if name != "pretrained"}
        spec = replace(spec, model_args=kept)
        _require_fits(spec, state)
    with _no_larger_than(state, spec):
        model = create_student(spec)
    model.load_state_dict(state)
    return model


def _require_moderate(spec: StudentSpec, state: Mapping[str, Tensor]) -> None:
    """Refuse arguments that make a builder count for minutes before it registers a weight."""
    weights = sum(one.numel() for one in state.values())
    for name, value in spec.model_args.items():
        if any(abs(one) > max(_SPARE_ELEMENTS, weights) for one in _numbers_in(value)):
            raise ConfigError(
                f"`model_args` {name}={value}: the file has only {weights} weights, so it is not "
                f"of this {spec.name}"
            )


def _numbers_in(value: Any) -> Iterator[float]:
    """Yield the numbers of a model's argument, as those of its stages are in a tuple."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, Mapping):
        yield from _numbers_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _numbers_in(one)


def _require_fits(spec: StudentSpec, state: Mapping[str, Tensor]) -> None:
    try:
        with _no_larger_than(state, spec), torch.random.fork_rng(devices=[]), torch.device("meta"):
            outline = _build(_timm_builder(spec), spec, lambda _text: None)
    except (OSError, *_CANNOT_BUILD):
        return  # the real one says why, if it cannot be built either
    outline.load_state_dict(state, assign=True)  # without a copy


@contextmanager
def _no_larger_than(state: Mapping[str, Tensor], spec: StudentSpec) -> Iterator[None]:
    """Raise ``ConfigError`` as soon as a model is built inside that has more than these weights.

    Models may give up weights again while they are built, so twice as many are let through.
    """
    stored = {one.untyped_storage().data_ptr(): one for one in state.values()}
    elements = sum(one.untyped_storage().nbytes() // one.element_size() for one in stored.values())
    most = 2 * elements + _SPARE_ELEMENTS
    used = 0

    def count(_module: nn.Module, name: str, weight: Tensor | None) -> None:
        nonlocal used
        used += 0 if weight is None else weight.numel()
        if used > most:
            raise ConfigError(
                f"`model` {spec.name} as the file describes it has more weights than the "
                f"{elements} that are in the file (at {name!r})"
            )

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def heads_of(output: Any) -> tuple[Tensor, ...]:
    """Return what a student gives: its logits, or those of class head and distillation head.

    It gives a tensor, a tuple, or an object or mapping with ``cls_logits`` and
    ``distillation_logits``, or for one head ``logits``, as Hugging Face's DeiT does.
    """
    if isinstance(output, Tensor):
        return (output,)
    for names in (("cls_logits", "distillation_logits"), ("logits",)):
        found = tuple(_named(output, name) for name in names)
        if all(isinstance(one, Tensor) for one in found):
            return found
    return tuple(output) if isinstance(output, tuple | list) else (output,)


def _named(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def split_heads(output: Any) -> tuple[Tensor, Tensor]:
    """Return (class logits, distillation logits), each (B, C); the same for one head."""
    heads = heads_of(output)
    class_logits, distillation_logits = heads * 2 if len(heads) == 1 else heads
    return class_logits, distillation_logits


def _function(name: str) -> Callable[..., Any]:
    """Return the function that a name means, from the working directory or as installed."""
    module_name, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # a console script does not look where it is started
        sys.path.append(here)
    try:
        found: Callable[..., Any] = getattr(import_module(module_name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"`model` {name!r} cannot be imported ({error}); write 'package.module:function', "
            "and put the package in the working directory or install it"
        ) from error
    return found


def _timm_builder(spec: StudentSpec) -> Callable[..., Any]:
    if not timm.is_model(spec.name):
        close = get_close_matches(spec.name, timm.list_models(), n=5)
        raise ConfigError(
            f"`model` {spec.name!r} is no model of timm {timm.__version__}; "
            + (f"similar names: {', '.join(close)}" if close else _advice())
        )

    def build(**arguments: Any) -> Any:
        model = timm.create_model(spec.name, **arguments)
        if spec.name.startswith("deit_") and isinstance(model.cls_token, nn.Parameter):
            # timm draws it with a deviation of 1e-6, DeiT like all its weights.
            trunc_normal_(model.cls_token, std=0.02)
        return model

    return build


def _build(build: Callable[..., Any], spec: StudentSpec, warn: Callable[[str], None]) -> Any:
    """Call a builder, without arguments that it does not have and need not have."""
    arguments: dict[str, Any] = {"num_classes": spec.classes, "img_size": spec.image_size}
    if spec.drop_path or ":" in spec.name:
        arguments["drop_path_rate"] = spec.drop_path
    arguments.update(spec.model_args)
    while True:
        reseed("init", spec.seed)
        try:
            model = build(**arguments)
        except TypeError as error:
            optional = ("img_size", "drop_path_rate")
            unknown = next((one for one in optional if f"'{one}'" in str(error)), None)
            if unknown in spec.model_args or arguments.pop(unknown or "", None) is None:
                raise
        else:
            if spec.drop_path and "drop_path_rate" not in arguments:
                warn(f"`model` {spec.name} has no drop path: `drop_path` does nothing")
            return model


def set_mode(model: nn.Module, *, training: bool) -> None:
    """Put a student in training or evaluation mode; in either it gives both heads' logits."""
    model.train(training)
    for module in model.modules():
        if hasattr(module, _DECIDES):
            module.training = True  # this module's own flag, not its layers'


@contextmanager
def two_headed(model: nn.Module) -> Iterator[None]:
    """Put a student of ``create_student`` in evaluation mode, but let it give both heads' logits.

    Where it joins its heads in evaluation, the modules that decide it are in training mode; their
    layers are not.
    """
    before = model.training
    set_mode(model, training=False)
    try:
        yield
    finally:
        model.train(before)


def _try_out(model: nn.Module, spec: StudentSpec) -> None:
    """Run black images through the model, so that a misfit shows before training.

    It is in training mode, as the heads of many are given in no other.
    """
    side = spec.image_size
    images = torch.zeros(2, 3, side, side)  # batch norm takes no mean over one
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _buffers_kept(model):
        model.train()
        try:
            heads = heads_of(model(images))
            _require_heads(heads, spec)
            if len(heads) == 2:
                for module in _deciding(model, images):
                    setattr(module, _DECIDES, True)
        except _CANNOT_BUILD as error:
            raise _misfit(spec, error) from error
        model.train()


def _require_heads(heads: tuple[Any, ...], spec: StudentSpec) -> None:
    """Raise ``ConfigError`` if two images' logits are not those of the heads that are wanted."""
    shapes = [tuple(head.shape) if isinstance(head, Tensor) else None for head in heads]
    if len(shapes) > 2 or any(shape != (2, spec.classes) for shape in shapes):
        raise ConfigError(
            f"`model` {spec.name} gives {shapes} for two images in training, not one or two "
            f"heads of {spec.classes} classes; {_advice()}"
        )
    if spec.heads == 1 and len(shapes) == 2:
        raise ConfigError(
            f"`model` {spec.name} has a distillation head, which `distillation_kind` classical "
            "leaves untrained; use `distillation_kind` token, or a model of one head "
            "(deit_tiny_patch16_224)"
        )
    if spec.heads == 2 and len(shapes) == 1:
        own = (
            "return in training the logits of class head and distillation head, as a tuple or as "
            "an object's cls_logits and distillation_logits"
        )
        raise ConfigError(
            f"`model` {spec.name} has no distillation head; "
            f"{own if ':' in spec.name else _advice()}; or teach its one head both with "
            "`distillation_kind` classical"
        )


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a pass in training mode does to buffers, such as batch norm's means."""
    kept = [(one, one.clone()) for one in model.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)


def _deciding(model: nn.Module, images: Tensor) -> list[nn.Module]:
    """Return the fewest modules in whose training mode a model of two heads gives both.

    timm's and DeiT's decide it in the model itself, others in a module of both heads.
    """
    modules, found = list(model.modules()), list[nn.Module]()

    def gives_both(training: Sequence[nn.Module]) -> bool:
        model.eval()
        for module in training:
            module.training = True
        return len(heads_of(model(images))) == 2

    if not gives_both([]) and gives_both([model]):
        return [model]  # a search would find it too, after more passes
    while not gives_both(found):
        # All before a module are not enough, and with it they are: it is one of them.
        ends = range(1, len(modules) + 1)
        index = bisect_left(ends, True, key=lambda end: gives_both([*found, *modules[:end]]))
        found.append(modules[index])
    return found


def _require_whole_patches(model: nn.Module, spec: StudentSpec) -> None:
    """Raise ``ConfigError`` if patches that lie side by side leave a rim of the images unseen."""
    layer = getattr(getattr(model, "patch_embed", None), "proj", None)
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != layer.stride:
        return  # patches that overlap reach over the rim
    height, width = layer.stride
    if spec.image_size % height or spec.image_size % width:
        raise _misfit(spec, f"patches of {height} pixels leave a rim of them unseen")


def _misfit(spec: StudentSpec, error: Exception | str) -> ConfigError:
    return ConfigError(
        f"`model` {spec.name} cannot be built for images of {spec.image_size} pixels: "
        f"{_first_line(error)}; check `model_args` (a patch_size that divides the image's side, an "
        "embed_dim that num_heads divides)"
    )


def _first_line(error: Exception | str) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _advice() -> str:
    names = timm.list_models("*distilled*")
    return f"models that have one: {', '.join(names)}"
