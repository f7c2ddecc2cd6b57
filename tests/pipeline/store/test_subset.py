"""Numbers in short, and masks of samples as text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.records import count_masked, decode_mask, encode_mask
from pipeline.store.subset import number_ranges, parse_numbers


@given(st.sets(st.integers(0, 300)))
def test_numbers_come_back_from_their_ranges(numbers: set[int]) -> None:
    text = number_ranges(numbers)
    assert not numbers or parse_numbers(text, "classes") == tuple(sorted(numbers))
    assert text.count(",") == max(0, sum(one - 1 not in numbers for one in numbers) - 1)


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", "0-999999999", "1.5", "1e3"])
def test_what_are_no_numbers_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="`classes` has"):
        parse_numbers(text, "classes")


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_places_come_back_from_their_text(kept: list[bool]) -> None:
    mask = np.array(kept)
    text = encode_mask(mask)
    assert decode_mask(text, len(kept)).tolist() == kept
    assert count_masked(text, len(kept)) == sum(kept)
    assert bool(text) == any(kept)
