"""The identity's fields, and the table of them in the document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.identity import (
    AugmentConfig,
    MixConfig,
    StoreIdentity,
    TeacherIdentity,
)
from pipeline.records import ImageSize
from pipeline.views.draw import draw_view
from pipeline.views.rng import stream

FORMAT = Path(__file__).parents[2] / "docs" / "FORMAT.md"
TEACHER = TeacherIdentity(
    architecture="regnety_160", weights="0" * 64, classes=1000, precision="bf16", batch_views=15
)
DEIT = StoreIdentity(root_seed=0, augment=AugmentConfig(), mix=MixConfig(), teacher=TEACHER)
QUOTIENT = re.compile(r"([\d.]+)/([\d.]+)")


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield name and value of each field, as the document names them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def documented() -> dict[str, str]:
    """Return the table's last column by its first."""
    chapter = FORMAT.read_text().split("### Identity\n")[1].split("\n### ")[0]
    rows = [line.split(" | ") for line in chapter.splitlines() if line.startswith("| `")]
    assert all(len(cells) == 3 for cells in rows)
    return {cells[0].strip("| `"): cells[2].strip("| ") for cells in rows}


def test_the_document_lists_every_field_of_the_identity_and_no_other() -> None:
    assert list(documented()) == ["format_version", "root_seed"] + [
        name for name, _ in leaves(DEIT.to_json()) if "." in name
    ]


def test_the_document_has_deits_settings() -> None:
    def decimal(quotient: re.Match[str]) -> str:
        return repr(float(quotient[1]) / float(quotient[2]))

    table = documented()
    of_views = {
        name: value for name, value in leaves(DEIT.to_json()) if name.startswith(("augment", "mix"))
    }
    found = {name: json.loads(QUOTIENT.sub(decimal, table[name])) for name in of_views}
    assert found == of_views
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in of_views.items()
    }


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 258])
def test_groups_are_even_and_of_four_at_least_as_the_cut_of_a_shard_needs(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"`group_size` is {size}; use an even number in 4..256"):
        MixConfig(group_size=size)


def test_mixing_that_could_be_of_no_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="both 0; set `probability` to 0"):
        MixConfig(mixup_alpha=0.0, cutmix_alpha=0.0)
    assert MixConfig(mixup_alpha=0.0, cutmix_alpha=0.0, probability=0.0).group_size == 16


NEAR_NOTHING, FAR = 5e-324, 1e308
BEYOND = [
    ("crop_ratio", (NEAR_NOTHING, 1.0)),
    ("crop_ratio", (1.0, FAR)),
    ("erase_ratio", (NEAR_NOTHING, 1.0)),
    ("erase_ratio", (0.3, 1001.0)),
    ("rand_magnitude_std", FAR),
    ("std", (NEAR_NOTHING, 0.2, 0.2)),
    ("std", (0.2, FAR, 0.2)),
    ("mixup_alpha", NEAR_NOTHING),
    ("cutmix_alpha", 0.0099),
    ("block_views", 3 << 60),
]


@pytest.mark.parametrize(("name", "value"), BEYOND)
def test_numbers_with_which_no_view_could_be_drawn_are_refused(name: str, value: Any) -> None:
    """They would divide by nothing, overflow, or draw for ever, in whoever reads the store."""
    kind = AugmentConfig if name in AugmentConfig.__dataclass_fields__ else MixConfig
    with pytest.raises(ConfigError, match=f"`{name}`"):
        kind(**{name: value})


EXTREMES: list[dict[str, Any]] = [
    {"crop_ratio": (0.001, 0.001), "erase_ratio": (1000.0, 1000.0)},
    {"crop_ratio": (1000.0, 1000.0), "erase_ratio": (0.001, 0.001)},
    {"crop_scale": (NEAR_NOTHING, NEAR_NOTHING), "erase_area": (NEAR_NOTHING, NEAR_NOTHING)},
    {"crop": "center", "center_fraction": NEAR_NOTHING},
    {"rand_magnitude": 0, "rand_magnitude_std": 10.0, "rand_ops": 16, "rand_probability": 1.0},
    {"policy": "three-augment", "color_jitter": NEAR_NOTHING},
    {"image_size": 1},
    {"image_size": 4096},
]


@pytest.mark.parametrize("size", [ImageSize(height=1, width=1), ImageSize(height=1, width=60_000)])
@pytest.mark.parametrize("settings", EXTREMES)
def test_views_can_be_drawn_with_all_settings_in_range(
    settings: Mapping[str, Any], size: ImageSize
) -> None:
    config = AugmentConfig(**{"erase_probability": 1.0, **settings})
    for view in range(50):
        crop = draw_view(1, view, size, config).crop
        assert 0 < crop.height <= size.height
        assert 0 < crop.width <= size.width


def test_the_smallest_alpha_needs_few_words() -> None:
    words = stream("test")
    assert {words.beta(0.01) for _ in range(500)} >= {0, 1 << 16}
    assert words._blocks < 1000


def test_a_batch_of_the_teacher_has_bounded_memory() -> None:
    """A received store would otherwise choose how much whoever labels again with it needs."""
    most = replace(TEACHER, batch_views=(1 << 28) // (16 * 128**2))
    small = replace(DEIT, augment=AugmentConfig(image_size=128), teacher=most)
    assert small.teacher.batch_views == 1024
    for beyond in (
        {"augment": AugmentConfig(image_size=129)},
        {"mix": MixConfig(group_size=18)},
        {"teacher": replace(most, batch_views=1025)},
        {"teacher": replace(most, batch_views=10**30)},
    ):
        with pytest.raises(ConfigError, match=r"`batch_views` is \d+: with `group_size`"):
            replace(small, **beyond)
