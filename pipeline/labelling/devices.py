"""Where tensors live, and the switches that make their arithmetic repeatable."""

from __future__ import annotations

import os

import torch

from pipeline.errors import ConfigError

__all__ = ["allow_fast_floats", "choose_device", "set_threads"]


def choose_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` means here."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("`device` is cuda, but PyTorch sees no GPU here; use cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def allow_fast_floats() -> None:
    """Let a GPU multiply fp32 in TF32, and cuDNN try kernels out and take the fastest.

    ``set_threads`` takes it back. A student may have it; labels may not depend on it.
    """
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True


def set_threads(threads: int | None = None) -> None:
    """Fix PyTorch's CPU threads (all cores by default) and its exactness switches.

    Ray and containers set ``OMP_NUM_THREADS``, so nothing is left to the environment.
    """
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
