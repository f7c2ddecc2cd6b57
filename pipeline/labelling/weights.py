"""Weights: read from files without running code, and named by their digest."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import TeacherError

__all__ = ["leaves", "load_tensors", "read_teacher_checkpoint", "state_digest"]


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of a state dict, by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_tensors(path: Path) -> Any:
    """Return what a file of ``torch.save`` holds: tensors and plain values, no code run.

    Raises what PyTorch does, and ``ValueError`` for a file that claims more than it holds.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        # As PyTorch decides; its older files are no archives.
        if file.read(4) == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                if sum(one.file_size for one in archive.infolist()) > size:
                    raise ValueError(f"it unpacks to more than its {size} bytes")
    values = torch.load(path, map_location="cpu", weights_only=True)
    for name, one in leaves(values):
        if isinstance(one, Tensor) and not _is_stored(one, size):
            raise ValueError(f"{name.strip('/')} is no tensor that is stored in full")
    return values


def leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all that mappings and sequences hold, by path."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from leaves(value, f"{path}/{name}")
    elif isinstance(values, list | tuple):
        for place, value in enumerate(values):
            yield from leaves(value, f"{path}/{place}")
    else:
        yield path, values


def _is_stored(tensor: Tensor, size: int) -> bool:
    """Return whether a tensor is plain, and no larger than its file of ``size`` bytes."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return plain and not tensor.is_quantized and tensor.numel() * tensor.element_size() <= size


def read_teacher_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a .safetensors file, or in a .pth that holds tensors alone.

    A state dict under ``state_dict`` or ``model`` is found, ``module.`` before names is
    dropped. Raises ``TeacherError`` naming the file.
    """
    if not path.is_file():
        raise TeacherError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = load_tensors(path)
    except Exception as error:  # each loader raises its own kinds, with advice of its own
        raise TeacherError(
            f"{path} cannot be read ({type(error).__name__}); "
            "give a .safetensors file, or a .pth that holds tensors alone"
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(one, Tensor) for name, one in loaded.items()
    ):
        raise TeacherError(f"{path} holds no state dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
