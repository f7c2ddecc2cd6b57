"""A student trainer that replays a label store's views.

The names below are the library's door; each is loaded when it is first asked for, so that
importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from student.config import EvaluateConfig, TrainConfig
    from student.engine import Outcome, train
    from student.evaluation.evaluate import Evaluation
    from student.evaluation.report import CheckpointReport, evaluate_checkpoint, load_student
    from student.inputs import Inputs, open_inputs, open_replay
    from student.losses import DistillationConfig, Loss, MixedTarget, TeacherSignal
    from student.losses.hard import HardLoss
    from student.losses.none import NoDistillation
    from student.losses.soft import SoftLoss
    from student.model import StudentSpec, create_student
    from student.order import PlanConfig
    from student.replay import ReplayDataset, StudentBatch, replay_loader
    from student.task import StoredLabelTask

__all__ = [
    "CheckpointReport",
    "DistillationConfig",
    "EvaluateConfig",
    "Evaluation",
    "HardLoss",
    "Inputs",
    "Loss",
    "MixedTarget",
    "NoDistillation",
    "Outcome",
    "PlanConfig",
    "ReplayDataset",
    "SoftLoss",
    "StoredLabelTask",
    "StudentBatch",
    "StudentSpec",
    "TeacherSignal",
    "TrainConfig",
    "create_student",
    "evaluate_checkpoint",
    "load_student",
    "open_inputs",
    "open_replay",
    "replay_loader",
    "train",
]

_MODULES = {
    "CheckpointReport": "student.evaluation.report",
    "DistillationConfig": "student.losses",
    "EvaluateConfig": "student.config",
    "Evaluation": "student.evaluation.evaluate",
    "HardLoss": "student.losses.hard",
    "Inputs": "student.inputs",
    "Loss": "student.losses.base",
    "MixedTarget": "student.losses.base",
    "NoDistillation": "student.losses.none",
    "Outcome": "student.engine",
    "PlanConfig": "student.order",
    "ReplayDataset": "student.replay",
    "SoftLoss": "student.losses.soft",
    "StoredLabelTask": "student.task",
    "StudentBatch": "student.replay",
    "StudentSpec": "student.model",
    "TeacherSignal": "student.losses.base",
    "TrainConfig": "student.config",
    "create_student": "student.model",
    "evaluate_checkpoint": "student.evaluation.report",
    "load_student": "student.evaluation.report",
    "open_inputs": "student.inputs",
    "open_replay": "student.inputs",
    "replay_loader": "student.replay",
    "train": "student.engine",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'student' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
