"""Students that are the user's own modules: built, trained, resumed, evaluated."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import ConfigError
from student.config import EvaluateConfig, TrainConfig
from student.engine import Outcome, Trainer, train
from student.evaluation.evaluate import FUSIONS
from student.evaluation.report import evaluate_checkpoint
from student.inputs import open_inputs
from student.model import StudentSpec, create_student, heads_of, split_heads, two_headed
from tests.student.worlds import World, make_world

OWN = """
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn


class Own(nn.Module):
    def __init__(self, num_classes, heads, both):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 3))
        self.gate = nn.Parameter(torch.ones(1, 3))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.heads = nn.ModuleList(nn.Linear(3, num_classes) for _ in range(heads))
        self.both = both

    def no_weight_decay(self):
        return {"gate"}

    def forward(self, images):
        features = images.mean((2, 3)) * self.gate + self.pos_embed
        outputs = tuple(head(features) for head in self.heads)
        return outputs if len(outputs) > 1 and (self.training or self.both) else outputs[0]


class Single(Own):
    def forward(self, images):
        return (super().forward(images),)


class Third(Own):
    def forward(self, images):
        return (*super().forward(images), {})


class Joined(nn.Module):
    # As DeiT's own models.py: two outputs in training, their mean in evaluation.

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
        self.norm = nn.BatchNorm1d(3)
        self.head, self.head_dist = nn.Linear(3, num_classes), nn.Linear(3, num_classes)

    def forward(self, images):
        return self.join(self.norm(self.body(images.mean((2, 3)))))

    def join(self, features):
        one, other = self.head(features), self.head_dist(features)
        return (one, other) if self.training else (one + other) / 2


class Head(nn.Module):
    # As glasses' DeiTClassificationHead: a module of its own joins the heads.

    def __init__(self, num_classes):
        super().__init__()
        self.head, self.dist = nn.Linear(3, num_classes), nn.Linear(3, num_classes)

    def forward(self, features):
        one, other = self.head(features), self.dist(features)
        return (one, other) if self.training else (one + other) / 2


class Nested(Joined):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.both = Head(num_classes)
        del self.head, self.head_dist

    def join(self, features):
        return self.both(features)


@dataclass
class Output:
    # As Hugging Face's DeiTForImageClassificationWithTeacherOutput.

    logits: torch.Tensor
    cls_logits: torch.Tensor
    distillation_logits: torch.Tensor
    hidden_states: None = None


class Named(Joined):
    def join(self, features):
        one, other = self.head(features), self.head_dist(features)
        return Output((one + other) / 2, one, other)


class Mapped(Named):
    def join(self, features):
        return OrderedDict(vars(super().join(features)))


class OneNamed(Joined):
    def join(self, features):
        return {"logits": self.head(features)}


def build(num_classes, img_size, drop_path_rate, heads=2, both=True):
    return Own(num_classes, heads, both)


def plain(num_classes):
    return Own(num_classes, 2, True)


def single(num_classes):
    return Single(num_classes, 1, True)


def third(num_classes):
    return Third(num_classes, 2, True)


def nothing(num_classes):
    return 3


def joined(num_classes):
    return Joined(num_classes)


def nested(num_classes):
    return Nested(num_classes)


def named(num_classes):
    return Named(num_classes)


def mapped(num_classes):
    return Mapped(num_classes)


def one_named(num_classes):
    return OneNamed(num_classes)
"""


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_students.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_students", raising=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), (14, 10))


def spec(name: str, **values: Any) -> StudentSpec:
    return StudentSpec(
        **{"name": f"own_students:{name}", "classes": 10, "image_size": 32, **values}
    )


@pytest.mark.parametrize("heads", [1, 2])
def test_a_module_of_the_users_own_is_a_student(heads: int) -> None:
    model = create_student(spec("build", heads=heads, model_args={"heads": heads}))
    one, other = split_heads(model(torch.zeros(2, 3, 32, 32)))
    assert one.shape == other.shape == (2, 10)
    assert (one is other) == (heads == 1)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("biuld", {}, "cannot be imported .*package.module:function"),
        ("nothing", {}, "gives a int, not a module"),
        ("build", {"heads": 3}, "not one or two heads"),
        ("build", {"heads": 1}, "no distillation head; return in training .*cls_logits"),
        ("third", {}, "not one or two heads"),
    ],
)
def test_a_function_that_gives_no_student_is_refused(
    name: str, args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        create_student(spec(name, model_args=args))


JOINING = ("joined", "nested", "named", "mapped")


@pytest.mark.parametrize("name", JOINING)
def test_heads_that_a_module_joins_in_evaluation_are_still_told_apart(name: str) -> None:
    model = create_student(spec(name))
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(8, 3, 4, 4, generator=generator)
    before = {key: one.clone() for key, one in model.state_dict().items()}
    with torch.no_grad(), two_headed(model):
        heads = heads_of(model(images))
        again = heads_of(model(images))  # no dropout: its layers are in evaluation mode
        assert len(heads) == 2
        assert all(torch.equal(*pair) for pair in zip(heads, again, strict=True))
        assert not torch.equal(*heads)
    # Neither the trial pass nor this one was a step of training.
    assert all(torch.equal(one, before[key]) for key, one in model.state_dict().items())
    assert not model.state_dict()["norm.num_batches_tracked"]
    with pytest.raises(ConfigError, match="which `distillation_kind` classical leaves untrained"):
        create_student(spec(name, heads=1))


@pytest.mark.parametrize("name", ["one_named", "single"])
def test_an_output_that_holds_logits_alone_is_that_of_one_head(name: str) -> None:
    model = create_student(spec(name, heads=1))
    one, other = split_heads(model(torch.zeros(2, 3, 32, 32)))
    assert one is other
    with pytest.raises(ConfigError, match="has no distillation head"):
        create_student(spec(name))


@pytest.mark.parametrize("name", JOINING)
def test_both_of_its_heads_learn_and_are_evaluated(world, tmp_path, name) -> None:
    config = config_of(world, tmp_path / "run", name, ema_decay=0.5)
    trainer = Trainer(config, open_inputs(config))
    before = {key: one.clone() for key, one in trainer.model.named_parameters()}
    outcome = trainer.run()
    after = dict(trainer.model.named_parameters())
    assert all(not torch.equal(one, after[key]) for key, one in before.items())
    alone = EvaluateConfig(
        checkpoint=tmp_path / "run" / "last.pt",
        model=f"own_students:{name}",
        val_shards=(str(world.root / "digits-1.tar"),),
        workers=0,
        threads=1,
        device="cpu",
    )
    found = evaluate_checkpoint(alone).evaluations
    for which, other in (("raw", outcome.evaluation), ("ema", outcome.ema_evaluation)):
        assert other is not None
        assert other.distillation_head is not None
        for fusion in FUSIONS:
            assert getattr(found[which], fusion) == getattr(other, fusion)


def test_a_package_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be imported"):
        create_student(StudentSpec(name="no_such_package:build", classes=10, image_size=32))


def config_of(world: World, output: Path, name: str, **changes: Any) -> TrainConfig:
    values = {"model": f"own_students:{name}", "model_args": (), "drop_path": 0.0, **changes}
    return world.config(output, val_shards=(str(world.root / "digits-1.tar"),), **values)


def run(config: TrainConfig, stop_after: int | None = None) -> Outcome:
    return train(config, open_inputs(config), stop_after=stop_after)


@pytest.mark.parametrize("heads", [1, 2])
def test_it_trains_resumes_and_is_evaluated_like_any_other(world, tmp_path, heads) -> None:
    kind = {1: "classical", 2: "token"}[heads]
    changes = {"model_args": (f"heads={heads}",), "distillation_kind": kind, "drop_path": 0.1}
    straight = run(config_of(world, tmp_path / "straight", "build", **changes))
    output = tmp_path / "run"
    run(config_of(world, output, "build", **changes), stop_after=2)
    resumed = run(config_of(world, output, "build", resume="auto", **changes))
    assert resumed.weights == straight.weights
    alone = EvaluateConfig(
        checkpoint=output / "last.pt",
        model="own_students:build",
        val_shards=(str(world.root / "digits-1.tar"),),
        workers=0,
        threads=1,
        device="cpu",
    )
    found = evaluate_checkpoint(alone).evaluations["raw"]
    assert straight.evaluation is not None
    assert found.class_head == straight.evaluation.class_head
    assert (found.distillation_head is None) == (heads == 1)


def test_a_function_need_not_take_drop_path(world: World, tmp_path: Path, caplog) -> None:
    without = run(config_of(world, tmp_path / "run", "plain"))
    assert not [one for one in caplog.records if "no drop path" in one.message]
    default = run(config_of(world, tmp_path / "default", "plain", drop_path=0.1))
    assert default.weights == without.weights
    (said,) = [one.message for one in caplog.records if "no drop path" in one.message]
    assert said == "`model` own_students:plain has no drop path: `drop_path` does nothing"


def test_its_tokens_and_what_it_names_do_not_decay(world: World, tmp_path: Path) -> None:
    config = config_of(world, tmp_path / "run", "plain")
    trainer = Trainer(config, open_inputs(config))
    groups = trainer.optimization.optimizer.param_groups
    decayed = {id(one) for group in groups if group["weight_decay"] for one in group["params"]}
    names = {name for name, one in trainer.model.named_parameters() if id(one) in decayed}
    assert names == {"heads.0.weight", "heads.1.weight"}
