"""The identity's fields, and the table of them in the document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
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
