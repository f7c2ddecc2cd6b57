"""Losses: the class head learns the truth, the distillation head from the teacher.

Each file of this folder that defines a ``Loss`` adds one: its name is a word for
``distillation``, its fields are settings. Nothing else lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pipeline.growth import grown, require, settle
from student.losses.base import Heads, Loss, LossTerms, MixedTarget, TeacherSignal

__all__ = [
    "LOSSES",
    "DistillationConfig",
    "Heads",
    "Loss",
    "LossName",
    "LossTerms",
    "MixedTarget",
    "TeacherSignal",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

LOSSES: Mapping[str, type[Loss]] = {kind.name: kind for kind in Loss.__subclasses__()}
"""All losses by name."""

if TYPE_CHECKING:
    LossName: TypeAlias = str
    _Parameters: TypeAlias = Any
else:
    LossName = Literal[tuple(LOSSES)]
    _Parameters = make_dataclass(
        "_Parameters",
        [(name, kind, field(default_factory=kind)) for name, kind in LOSSES.items()],
        frozen=True,
        slots=True,
        kw_only=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationConfig(_Parameters):  # type: ignore[misc]  # one field for each loss
    """Which loss a student is trained with, and the parameters of each, under its name."""

    distillation: LossName = "hard"
    """What to learn of the teacher: hard, its label; soft, its top-k probabilities (of a store
    that has them); none, nothing."""
    distillation_kind: Literal["token", "classical"] = "token"
    """token: a distillation head learns from the teacher; classical: a student of one head
    learns both from it."""
    smoothing: float = 0.1
    """Label smoothing of the truth; teacher labels are not smoothed."""
    bce_loss: bool = grown(founding=False, since="0.1.0")
    """Learn the truth by binary cross-entropy, each class for itself, as DeiT III. What is learned
    of the teacher stays as it is."""
    bce_targets: Literal["present", "shares"] = grown(founding="present", since="0.1.0")
    """present: both classes of a mixed image are true, as in DeiT III, where smoothing must be 0;
    shares: each as far as it is mixed in, and smoothed, as timm's default."""

    def __post_init__(self) -> None:
        settle(self)
        require(self, "smoothing", 0 <= self.smoothing < 1, "use 0 or more, less than 1")
        # Smoothing gives every class a share, and so every class would be true.
        fits = not (self.bce_loss and self.smoothing and self.bce_targets == "present")
        require(self, "smoothing", fits, "with `bce_loss` use 0, or `bce_targets` shares")

    @property
    def learned(self) -> Mapping[str, Any]:
        """How the truth is learned: fields of ``MixedTarget``."""
        binary = self.bce_targets if self.bce_loss else None
        return {"smoothing": self.smoothing, "binary": binary}

    @property
    def loss(self) -> Loss:
        """The chosen loss."""
        chosen: Loss = getattr(self, self.distillation)
        return chosen
