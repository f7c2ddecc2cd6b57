"""Which of timm's models can be students: one step of training of every family's smallest.

Run `python -m benchmarks.zoo`; it takes some 20 minutes of one core. A family is a module of timm.
Each is tried at the smallest of a few sizes that its smallest model takes; a model that
`train-student` refuses is listed with the reason, and an error that is no refusal ends the command
with exit status 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import tyro
from torch import nn

from pipeline.errors import ConfigError
from student.config import TrainConfig
from student.losses import MixedTarget, TeacherSignal
from student.losses.hard import HardLoss
from student.model import StudentSpec, create_student, split_heads
from student.optimization import Optimization

__all__ = ["Tried", "smallest", "try_family", "try_model"]

SIDES = (32, 64, 128, 224, 240, 256, 384)

_ROWS, _CLASSES = 2, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What became of a model as a student."""

    model: str
    side: int  # of its images in pixels
    heads: int  # 0 if it was refused
    words: str  # what was said of it: the refusal, or warnings


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooBenchmark:
    """Take one training step with the smallest model of each family of timm's."""

    families: tuple[str, ...] = ()
    """Modules of timm; all by default."""


def smallest(family: str) -> str:
    """Return a family's model with the fewest weights."""

    def weights(name: str) -> int:
        with torch.device("meta"):
            try:
                return sum(one.numel() for one in timm.create_model(name).parameters())
            except (NotImplementedError, RuntimeError):  # reads its own weights as it is built
                return 1 << 62

    names: list[str] = timm.list_models(module=family)
    return min(names, key=weights)


def try_family(family: str) -> Tried:
    """Return what becomes of a family's smallest model at the smallest side that it takes."""
    name = smallest(family)
    for side in SIDES:
        tried = try_model(name, side)
        if tried.heads:
            break
    return tried


def try_model(name: str, side: int, model_args: Mapping[str, Any] | None = None) -> Tried:
    """Take one step with a model as `train-student` builds it by default, of any heads."""
    said: list[str] = []
    spec = StudentSpec(
        name=name,
        classes=_CLASSES,
        image_size=side,
        heads=None,
        drop_path=0.1,
        model_args=model_args or {},
    )
    try:
        model = create_student(spec, said.append)
    except ConfigError as error:
        return Tried(model=name, side=side, heads=0, words=str(error))
    heads = _step(model, side)
    return Tried(model=name, side=side, heads=heads, words="; ".join(said))


def _step(model: nn.Module, side: int) -> int:
    """Change a model by one step on noise; return how many heads it has."""
    config = TrainConfig.of_settings(labels="l", shards=("s",), output=Path("o"), lr=1e-3)
    optimization = Optimization(model, config, torch.device("cpu"))
    before = [one.clone() for one in model.parameters()]
    optimization.begin(1e-3)
    heads = split_heads(model.train()(torch.randn(_ROWS, 3, side, side)))
    label = torch.arange(_ROWS)
    truth = MixedTarget(target=label, partner_target=label, lam=torch.ones(_ROWS))
    optimization.backward(HardLoss()(heads, truth, TeacherSignal(label=label)).loss)
    optimization.finish()
    after = model.parameters()
    if all(torch.equal(one, other) for one, other in zip(before, after, strict=True)):
        raise AssertionError("the step changed no weight")
    return 1 if heads[0] is heads[1] else 2


def _rows(families: tuple[str, ...]) -> Iterator[Tried]:
    for family in families or timm.list_modules():
        tried = try_family(family)
        outcome = f"{tried.heads} heads" if tried.heads else "refused"
        print(f"{family:24} {tried.model:36} {tried.side:4} {outcome:8} {tried.words}", flush=True)
        yield tried


def main() -> None:
    """Try families, and print a line for each."""
    config = tyro.cli(ZooBenchmark, description=ZooBenchmark.__doc__)
    warnings.filterwarnings("ignore")  # of timm, about names that it renamed
    torch.manual_seed(0)
    tried = list(_rows(config.families))
    trained = sum(bool(one.heads) for one in tried)
    print(f"{trained} of {len(tried)} families train")


if __name__ == "__main__":
    main()
