"""The augmentation operations: each file here is one, and is found by lying here."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from pipeline.views.operation import Operation

__all__ = ["OPERATIONS"]

_MODULES = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]

OPERATIONS: Mapping[str, Operation] = {
    module.OPERATION.name: module.OPERATION for module in _MODULES
}
"""All operations, by name. ``draw.py`` says which of them a policy has."""
