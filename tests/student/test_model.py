"""Students of two heads, built at the size of a store's views."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.labelling.weights import state_digest
from student.config import parse_model_args
from student.model import (
    StudentSpec,
    create_student,
    create_student_of,
    reseed,
    reseed_step,
    split_heads,
    two_headed,
)
from tests.student.factories import TINY

NAME = "deit_tiny_distilled_patch16_224"


def spec(**values: Any) -> StudentSpec:
    base = {"name": NAME, "classes": 10, "image_size": 32, "model_args": parse_model_args(TINY)}
    return StudentSpec(**{**base, **values})


def test_a_student_gives_both_heads_in_training_and_when_asked_in_evaluation() -> None:
    model = create_student(spec(drop_path=0.5))
    images = torch.randn(4, 3, 32, 32)
    assert [head.shape for head in model(images)] == [(4, 10)] * 2
    model.eval()
    with torch.no_grad(), two_headed(model):
        class_logits, distillation_logits = model(images)
        again, _ = model(images)  # no drop path: the layers are in evaluation mode
        torch.testing.assert_close(class_logits, again, rtol=0, atol=0)
    assert not model.training
    with torch.no_grad():
        expected = (class_logits + distillation_logits) / 2
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)


def test_weights_follow_from_the_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, third = (create_student(spec(seed=seed)) for seed in (0, 0, 1))
    assert torch.rand(1) == expected
    states = [torch.cat([p.flatten() for p in m.parameters()]) for m in (first, second, third)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_pit_of_two_heads_is_a_student_too() -> None:
    model = create_student(spec(name="pit_ti_distilled_224", image_size=64, model_args={}))
    with two_headed(model), torch.no_grad():
        assert len(model(torch.zeros(1, 3, 64, 64))) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "deit_tiny_distiled_patch16_224"}, f"similar names: .*{NAME}"),
        ({"name": "deit_tiny_patch16_224"}, "no distillation head; .*deit_small_distilled"),
        ({"model_args": {"patch_size": 7}}, "32 pixels: .*patch_size that divides"),
        ({"model_args": {"embed_dim": 50}}, "num_heads"),
        ({"model_args": {"color": 3}}, "color"),
    ],
)
def test_a_model_that_cannot_be_a_student_is_refused(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_student(spec(**values))


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "resnet10t", "vgg11"])
def test_any_classifier_of_one_head_is_a_student_of_classical_distillation(name: str) -> None:
    args = parse_model_args(TINY) if name.startswith("deit") else {}
    model = create_student(spec(name=name, heads=1, model_args=args))
    class_logits, distillation_logits = split_heads(model(torch.randn(2, 3, 32, 32)))
    assert class_logits is distillation_logits
    assert class_logits.shape == (2, 10)


def test_the_kind_of_distillation_and_the_students_heads_must_fit() -> None:
    with pytest.raises(ConfigError, match="`distillation_kind` classical"):
        create_student(spec(name="resnet10t", model_args={}))
    with pytest.raises(ConfigError, match=r"leaves untrained.*a model of one head"):
        create_student(spec(heads=1))
    create_student(spec(heads=None))
    create_student(spec(name="resnet10t", model_args={}, heads=None))


def test_a_deits_class_token_is_drawn_like_its_other_weights() -> None:
    model = create_student(spec())
    assert 0.01 < model.cls_token.std().item() < 0.03
    assert 0.01 < model.head.weight.std().item() < 0.03


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("deit_tiny_distilled_patch16_224", 192),
        ("deit_small_distilled_patch16_224", 384),
        ("deit_base_distilled_patch16_224", 768),
        ("deit_base_distilled_patch16_384", 768),
    ],
)
@pytest.mark.parametrize(("size", "positions"), [(224, 198), (384, 578)])
def test_deits_are_built_at_224_and_384_pixels(name, width, size, positions) -> None:
    model = create_student(spec(name=name, image_size=size, classes=1000, model_args={"depth": 1}))
    assert model.pos_embed.shape == (1, positions, width)
    assert model.head_dist.weight.shape == (1000, width)


def test_seeds_are_pytorchs_own_and_leave_devices_that_are_not_in_use_alone(monkeypatch) -> None:
    reseed("step", 3, 1)
    found = torch.rand(3)
    torch.manual_seed(torch.initial_seed())
    assert torch.equal(found, torch.rand(3))
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    reseed("step", 3, 2)
    assert seeded == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    reseed("step", 3, 3)
    assert seeded == [torch.initial_seed()]


def test_steps_in_a_row_have_the_seeds_that_they_have_alone() -> None:
    for step in (0, 1, 63, 64, 200, 65):
        for identity in ((3, step, 0, 0), (3, step, 1, 0), (3, step, 0, 1), (4, step, 0, 0)):
            reseed("step", *identity)
            alone = torch.initial_seed()
            torch.manual_seed(0)
            reseed_step(*identity)
            assert torch.initial_seed() == alone


def test_a_student_of_many_weights_is_built_of_them() -> None:
    """Neither the outline that is compared nor loading counts with the model's own weights."""
    whole = StudentSpec(name="deit_tiny_patch16_224", classes=10, image_size=224, heads=1)
    state = create_student(whole).state_dict()
    assert state_digest(create_student_of(whole, state).state_dict()) == state_digest(state)
