"""Models of timm as students: one of each kind that was refused or crashed once.

`python -m benchmarks.zoo` takes a step with every family.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.zoo import smallest, try_family, try_model
from pipeline.errors import ConfigError
from student.model import StudentSpec, create_student, create_student_of


@pytest.mark.parametrize(
    ("name", "side", "heads"),
    [
        ("xcit_nano_12_p16_224", 32, 1),  # a patch_size that is one number
        ("pvt_v2_b0", 40, 1),  # patches of 7 pixels that overlap
        ("test_vit", 32, 1),
        ("test_resnet", 32, 1),
        ("levit_128s", 32, 2),
        ("deit_tiny_distilled_patch16_224", 32, 2),
    ],
)
def test_a_model_takes_a_step_as_it_is(name: str, side: int, heads: int) -> None:
    tried = try_model(name, side)
    assert (tried.heads, tried.words) == (heads, "")


@pytest.mark.parametrize(
    ("name", "side", "heads", "args"),
    [
        ("vgg11", 32, 1, {"mlp_ratio": 0.05}),
        ("densenet121", 32, 1, {}),
        ("inception_v3", 80, 1, {}),
        ("ghostnet_050", 32, 1, {}),
        ("repvit_m0_9", 32, 2, {}),
        ("efficientvit_m0", 64, 1, {}),  # a patch_size that is one number
    ],
)
def test_a_model_without_drop_path_takes_a_step_and_says_so(name, side, heads, args) -> None:
    tried = try_model(name, side, args)
    assert tried.heads == heads
    assert tried.words == f"`model` {name} has no drop path: `drop_path` does nothing"


def test_images_that_are_too_small_for_a_model_are_refused_in_one_line() -> None:
    tried = try_model("inception_v3", 32)
    assert tried.heads == 0
    assert "cannot be built for images of 32 pixels" in tried.words
    assert "\n" not in tried.words


def test_patches_side_by_side_that_leave_a_rim_are_refused() -> None:
    assert "leave a rim" in try_model("test_vit", 40).words


def test_a_familys_smallest_model_is_tried() -> None:
    assert smallest("visformer") == "visformer_tiny"
    assert try_family("visformer").heads == 1


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        (
            "vit_tiny_patch16_224",
            {"pretrained": True},
            "cannot fetch or read what",
        ),
        ("hf-hub:timm/vit_tiny_patch16_224", {}, "is a source to fetch from"),
        ("local-dir:weights", {}, "is a source to fetch from"),
        ("timm/vit_tiny_patch16_224.augreg_in21k", {}, "is a source to fetch from"),
        ("../vit", {}, "is a source to fetch from"),
    ],
)
def test_what_would_be_fetched_is_refused_in_one_line(
    name: str, args: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=words) as caught:
        create_student(StudentSpec(name=name, classes=10, image_size=32, model_args=args))
    assert "\n" not in str(caught.value)
    assert "with `finetune`" in str(caught.value)


def test_weights_of_a_file_take_the_place_of_those_that_a_student_began_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So a student that began with pretrained weights is evaluated where there is no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = StudentSpec(name="resnet18", classes=10, image_size=32, heads=1)
    state = create_student(spec).state_dict()
    named = replace(spec, model_args={"pretrained": True})
    made = create_student_of(named, state).state_dict()
    assert all(torch.equal(made[name], values) for name, values in state.items())
