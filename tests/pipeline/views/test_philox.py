from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from pipeline.views.philox import philox_words

words = st.integers(0, 2**64 - 1)


@given(lower=words, upper=words, skipped=st.integers(0, 50), blocks=st.integers(0, 50))
def test_words_are_numpys(lower, upper, skipped, blocks):
    plain = np.random.Philox(key=lower + (upper << 64)).random_raw(4 * (skipped + blocks))
    found = philox_words(np.array([lower, upper], np.uint64), skipped, blocks)
    assert found.dtype == np.uint64
    assert_array_equal(found, plain[4 * skipped :])
