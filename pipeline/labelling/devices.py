"""Where tensors live, and the switches that make their arithmetic repeatable."""

from __future__ import annotations

import os

import torch

from pipeline.errors import ConfigError

__all__ = ["choose_device", "set_threads"]


def choose_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` means here."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("`device` is cuda, but PyTorch sees no GPU here; use cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def set_threads(threads: int | None = None) -> None:
    """Fix PyTorch's CPU threads (all cores by default) and its exactness switches.

    Ray and containers set ``OMP_NUM_THREADS``, so nothing is left to the environment.
    """
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
