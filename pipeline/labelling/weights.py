"""Weights: read from files without running code, named by their digest, and written."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import torch
from torch import Tensor

from pipeline.classes import check_names
from pipeline.errors import ClassesError
from pipeline.files.kinds import why_no_data

__all__ = [
    "WORDS",
    "Described",
    "FoundWeights",
    "WeightsError",
    "Which",
    "code_in",
    "leaves",
    "load_tensors",
    "read_state",
    "state_digest",
    "tensor_bytes",
    "tensor_file",
    "why_unreadable",
]

Triple: TypeAlias = tuple[float, float, float]

Which: TypeAlias = Literal["raw", "ema"]
"""Weights as the optimizer left them, or their moving average."""

WORDS: Mapping[Which, str] = {"raw": "raw", "ema": "averaged"}
"""What messages call them."""

_BELOW: Mapping[Which, tuple[str, ...]] = {
    "raw": ("state_dict", "model"),
    "ema": ("state_dict_ema", "model_ema", "ema"),
}
"""The names below which timm, DeiT and train-student keep a state dict in a file."""

_AVERAGED = "n_averaged"  # beside the weights of PyTorch's own averaged model

_ZIP = b"PK\x03\x04"
_LEGACY_PICKLES = 5  # of torch.save before it wrote archives: magic, version, sizes, values, keys
_PLAIN_CLASSES = re.compile(
    r"""(__builtin__|builtins)\.(set|complex) | collections\.(OrderedDict|Counter)
    | argparse\.Namespace
    | torch\.(Size|device|\w+Storage|storage\.UntypedStorage|nn\.parameter\.Parameter)
    | torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)
    | torch\._tensor\._rebuild_from_type_v2""",
    re.VERBOSE,
)
"""What files of weights are made of. PyTorch allows more, with which a few bytes take any memory:
codecs that double a text, or a tensor of one value that is enlarged and then converted."""

_LETTERS_PER_BYTE = 100  # of paths: an optimizer's numbers are two bytes below some 30 letters

_LARGEST_SIDE = 512  # in pixels: the trial tries the size that a file says, and holds its images
_HEADER_BYTES = 100_000_000  # the most that safetensors itself reads


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of a state dict, by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's values as they lie in memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def load_tensors(path: Path) -> Any:
    """Return what a file of ``torch.save`` holds: tensors and plain values, no code run.

    Raises what PyTorch does, and ``ValueError`` for a file that is none of ``torch.save`` or claims
    more than it holds.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        # As PyTorch decides; its older files are no archives.
        if file.read(4) == _ZIP:
            with zipfile.ZipFile(file) as archive:
                if sum(one.file_size for one in archive.infolist()) > size:
                    raise ValueError(f"it unpacks to more than its {size} bytes")
    if any(not _is_plain_class(name) for name in _named_in(path)):
        raise ValueError("it holds code that is not run")
    # Training scripts keep their settings beside the weights, timm's among them: a class that
    # holds attributes and runs nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
        values = torch.load(path, map_location="cpu", weights_only=True)
    _check_unfolded(values, size)
    for name, one in leaves(values):
        if isinstance(one, Tensor) and not _is_stored(one, size):
            raise ValueError(f"{name.strip('/')} is no tensor that is stored in full")
    return values


def _check_unfolded(values: Any, size: int) -> None:
    """Raise ``ValueError`` for values that are more, or have longer paths, than a file can hold.

    A list of one list twice, and so on, is a few bytes and would take for ever to walk; a long name
    within itself is one text in the file, and one at each depth in paths.
    """
    count = letters = 0
    pending = [(values, 0)]
    while pending:
        one, length = pending.pop()
        count += 1
        letters += length
        if count > size or letters > _LETTERS_PER_BYTE * size:
            raise ValueError(f"it unfolds to more values than its {size} bytes can hold")
        if isinstance(one, Mapping):
            if not all(isinstance(name, str | int | float | None) for name in one):
                raise ValueError("it has names that are no texts")
            pending += [(value, length + 1 + len(str(name))) for name, value in one.items()]
        elif isinstance(one, list | tuple):
            pending += [(value, length + 4) for value in one]


def leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all that mappings and sequences hold, by path."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from leaves(value, f"{path}/{name}")
    elif isinstance(values, list | tuple):
        for index, value in enumerate(values):
            yield from leaves(value, f"{path}/{index}")
    else:
        yield path, values


def _is_stored(tensor: Tensor, size: int) -> bool:
    """Return whether a tensor is plain, and no larger than its file of ``size`` bytes."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return plain and not tensor.is_quantized and tensor.numel() * tensor.element_size() <= size


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a model's file says of the pixels that it was made for; None where it says nothing."""

    source: str = ""  # who says it, for messages
    size: int | None = None  # of images, in pixels
    mean: Triple | None = None  # of pixels in [0, 1]
    std: Triple | None = None
    accuracy: float | None = None  # share of validation images, 0 to 1

    @staticmethod
    def of(values: Mapping[str, Any], source: str) -> Described:
        """Return what values say under the names that timm and train-student have for it.

        What is no such value says nothing: other programs may mean something else by a name.
        """
        size = values.get("image_size") or values.get("img_size") or values.get("input_size")
        if isinstance(size, list | tuple) and size:
            size = size[-1]
        return Described(
            source=source,
            size=size if type(size) is int and 0 < size <= _LARGEST_SIDE else None,
            mean=_triple(values.get("mean")),
            std=_triple(values.get("std")),
            accuracy=_share(values.get("accuracy")),
        )


def _triple(values: Any) -> Triple | None:
    numbers = values if isinstance(values, list | tuple) else ()
    if len(numbers) != 3 or not all(type(one) in (int, float) for one in numbers):
        return None
    red, green, blue = map(float, numbers)
    return (red, green, blue) if math.isfinite(red + green + blue) else None


def _share(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 < value <= 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundWeights:
    """A state dict in a file, its names freed from wrappers."""

    state: dict[str, Tensor]
    which: Which  # those that were taken
    has_both: bool
    class_names: tuple[str, ...] | None = None
    described: Described = Described()


class WeightsError(Exception):
    """Why a file gives no weights, with the cure, in words that follow its name."""


def read_state(path: Path, which: Which | None, parameter: str) -> FoundWeights:
    """Return the raw or the averaged (``ema``) weights in a file.

    None takes those that a checkpoint of train-student calls the winner of its last evaluation;
    of other files the raw ones if there are any.

    It is a .safetensors file, or one of ``torch.save``: a bare state dict, or one below the names
    that timm, DeiT and train-student give it. What torch.compile, DDP and PyTorch's averaged model
    put into names is dropped.
    Raises ``WeightsError``; ``parameter`` is what chooses ``which``, for its message.
    """
    reason = why_no_data(path)
    if reason is not None:
        raise WeightsError(reason)
    try:
        loaded, said = _load(path)
    except Exception as error:  # each loader raises its own kinds, with advice of its own
        raise WeightsError(why_unreadable(path, error)) from error
    if not isinstance(loaded, dict):
        raise WeightsError(f"holds a {type(loaded).__name__}, no state dict of tensors")
    found: dict[Which, dict[str, Tensor]] = {}
    for kind, names in _BELOW.items():
        states = [loaded[name] for name in names if _is_state(loaded.get(name))]
        if states:
            found[kind] = states[0]
    if _is_state(loaded):
        found["raw"] = loaded
    if not found:
        raise WeightsError("holds no state dict of tensors")
    winner: Which = "ema" if loaded.get("winner") == "ema" else "raw"
    taken: Which = winner if winner in found else next(iter(found))
    if which is not None:
        taken = which
    if taken not in found:
        (other,) = found
        raise WeightsError(
            f"holds no {WORDS[taken]} weights, only {WORDS[other]} ones; use `{parameter}` {other}"
        )
    stored = found[taken]
    if _AVERAGED in stored and all(one.startswith(("module.", _AVERAGED)) for one in stored):
        stored = {name: tensor for name, tensor in stored.items() if name != _AVERAGED}
    state = {_own_name(name): tensor for name, tensor in stored.items()}
    if len(state) < len(stored):
        raise WeightsError("has tensors whose names differ by wrappers alone; save one of them")
    return FoundWeights(
        state=state,
        which=taken,
        has_both=len(found) == 2,
        class_names=_class_names(said),
        described=Described.of(said, path.name),
    )


def _class_names(said: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names of classes that train-student and others write beside weights."""
    names = said.get("class_names")
    try:
        return None if names is None else check_names(names, "its class_names")
    except ClassesError as error:
        raise WeightsError(f"is damaged or forged: {error}") from error


def _load(path: Path) -> tuple[Any, Mapping[str, Any]]:
    """Return what a file holds, and what it says of its model."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open
        from safetensors.torch import load_file

        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
        return load_file(path), {name: _from_json(text) for name, text in header.items()}
    loaded = load_tensors(path)
    if not isinstance(loaded, Mapping):
        return loaded, {}
    student, arguments = loaded.get("student"), loaded.get("args")
    if isinstance(student, Mapping):  # of train-student
        views = student.get("views")
        return loaded, {**(views if isinstance(views, Mapping) else {}), **student}
    # timm's train.py keeps its arguments.
    return loaded, vars(arguments) if isinstance(arguments, argparse.Namespace) else {}


def _from_json(text: str) -> Any:
    """Return a value of a header, which holds texts alone."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_state(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and bool(values)
        and all(isinstance(name, str) and isinstance(one, Tensor) for name, one in values.items())
    )


def _own_name(name: str) -> str:
    """Return a tensor's name without what torch.compile (anywhere) and DDP (in front) add to it."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)


def tensor_file(state: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Return a .safetensors file of tensors and, as JSON in its header, what they are.

    The same give the same bytes; safetensors alone has the header's lines in any order.
    """
    from safetensors.torch import save

    whole = {name: one.contiguous() for name, one in state.items()}
    data = save(whole, {name: json.dumps(value) for name, value in about.items()})
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # the tensors behind it are read where they lie
    return len(text).to_bytes(8, "little") + text + data[end:]


def why_unreadable(path: Path, error: Exception) -> str:
    """Return why a loader of tensors failed, with the cure, in words to follow the file's name."""
    with suppress(OSError, ValueError, KeyError, TypeError, RuntimeError):
        if (reason := _cut_short(path)) is not None:
            return reason
    if (names := code_in(path)) is not None:
        return f"cannot be read: it holds {names}, code that is not run; save the state dict alone"
    return (
        f"cannot be read ({type(error).__name__}); "
        "give a .safetensors file, or a .pth that holds tensors alone"
    )


def _cut_short(path: Path) -> str | None:
    """Return that a file ends before the end that its beginning promises, if it does."""
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            if not header <= _HEADER_BYTES or file.read(1) != b"{":
                return None
            file.seek(8)
            promised = 8 + header
            if promised <= size:
                entries = json.loads(file.read(header))
                ends = [one["data_offsets"][1] for one in entries.values() if "data_offsets" in one]
                promised += max(ends, default=0)
        return (
            f"is cut short: {size} of {promised} bytes; fetch it again" if size < promised else None
        )
    with path.open("rb") as file:
        begun = file.read(4) == _ZIP
    if begun and not zipfile.is_zipfile(path):  # an archive's directory is at its end
        return f"is cut short after {size} bytes; fetch it again"
    return None


def code_in(path: Path) -> str | None:
    """Return which functions and classes a file of ``torch.save`` names, None if it names none.

    Those that hold tensors and plain values are not counted. PyTorch says so too, and in the same
    breath how to run them: its words are never repeated.
    """
    try:
        names = {one for one in _named_in(path) if not _is_plain_class(one)}
    except Exception:  # torn files raise a dozen kinds
        return None
    shown = ", ".join(sorted(names)[:3])
    return (shown if shown.isprintable() else repr(shown)) if names else None


def _is_plain_class(name: str) -> bool:
    module, _, last = name.rpartition(".")
    of_torch = module == "torch" and isinstance(getattr(torch, last, None), torch.dtype)
    return of_torch or _PLAIN_CLASSES.fullmatch(name) is not None


def _named_in(path: Path) -> Iterator[str]:
    """Yield the functions and classes that the pickles of a file of ``torch.save`` name.

    Raises ``ValueError`` where they use tuples so often that their hashes would take for ever.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) == _ZIP:
            # By PyTorch's own reader, so that it is what PyTorch unpickles.
            pickles: list[IO[bytes]] = [
                io.BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl"))
            ]
        else:
            file.seek(0)
            pickles = [file] * _LEGACY_PICKLES
        for one in pickles:
            tuples = _Tuples(size)
            for opcode, argument, _ in pickletools.genops(one):
                tuples.follow(opcode, argument)
                if opcode.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    yield "a computed name"


class _Tuples:
    """Follows a pickle's stack, to count the values in tuples that it uses again.

    A tuple of one tuple twice, and so on, is a few bytes; its hash, which a dictionary asks for
    while the file is read, walks all that it unfolds to.
    """

    def __init__(self, size: int) -> None:
        self._stack: list[int] = []  # how many values each one is; 0 stands for a mark
        self._memo: dict[Any, int] = {}
        self._left = size  # no file of weights uses more values again than it has bytes

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Do to the stack what an opcode does. Raises ``IndexError`` where a pickle has none."""
        name = opcode.name
        if name in ("MARK", "DUP"):
            self._push(0 if name == "MARK" else self._stack[-1])
        elif name.endswith("GET"):
            self._push(self._memo.get(argument, 1))
        elif name.endswith("PUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        else:
            before = [one.name for one in opcode.stack_before]
            taken = self._to_mark() if "stackslice" in before else 0
            rest = before.index("mark") if "mark" in before else len(before)
            taken += sum(self._stack.pop() for _ in range(rest))
            is_tuple = "TUPLE" in name
            self._stack += [1 + taken if is_tuple else 1 for _ in opcode.stack_after]

    def _push(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise ValueError("it uses more values again than its bytes can hold")
        self._stack.append(values)

    def _to_mark(self) -> int:
        taken = 0
        while values := self._stack.pop():
            taken += values
        return taken
