"""A student trainer that replays a label store's views.

The names below are the library's door; each is loaded when it is first asked for, so that
importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from student.config import TrainConfig
    from student.engine import Outcome, train
    from student.evaluate import Evaluation
    from student.inputs import Inputs, open_inputs
    from student.losses import MixedTarget, hard_distillation_loss
    from student.model import StudentSpec, create_student
    from student.replay import ReplayDataset, StudentBatch, replay_loader

__all__ = [
    "Evaluation",
    "Inputs",
    "MixedTarget",
    "Outcome",
    "ReplayDataset",
    "StudentBatch",
    "StudentSpec",
    "TrainConfig",
    "create_student",
    "hard_distillation_loss",
    "open_inputs",
    "replay_loader",
    "train",
]

_MODULES = {
    "Evaluation": "evaluate",
    "Inputs": "inputs",
    "MixedTarget": "losses",
    "Outcome": "engine",
    "ReplayDataset": "replay",
    "StudentBatch": "replay",
    "StudentSpec": "model",
    "TrainConfig": "config",
    "create_student": "model",
    "hard_distillation_loss": "losses",
    "open_inputs": "inputs",
    "replay_loader": "replay",
    "train": "engine",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'student' has no attribute {name!r}")
    return getattr(import_module(f"student.{_MODULES[name]}"), name)
