"""Weights: read from files without running code, and named by their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import TeacherError

__all__ = ["read_teacher_checkpoint", "state_digest"]


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of a state dict, by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_teacher_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a .safetensors file, or in a .pth that holds tensors alone.

    A state dict under ``state_dict`` or ``model`` is found, ``module.`` before names is
    dropped. Raises ``TeacherError`` naming the file.
    """
    if not path.is_file():
        raise TeacherError(f"--teacher-checkpoint {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each loader raises its own kinds, with advice of its own
        raise TeacherError(
            f"--teacher-checkpoint {path} cannot be read ({type(error).__name__}); "
            "give a .safetensors file, or a .pth that holds tensors alone"
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise TeacherError(f"--teacher-checkpoint {path} holds no state dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
