from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.identity import AugmentConfig, MixConfig
from pipeline.views import floats, mixing
from pipeline.views.fingerprints import BITS, fingerprints, what_they_watch
from pipeline.views.floats import fingerprints_on, float_fingerprints
from tests.labelling import SMALL, hash_identity

GOLDEN = {
    "normalized.values": 4073517879,
    "normalized.bits": 3960077515,
    "mixed.values": 1530098720,
    "mixed.bits": 1026530306,
}

shares = st.floats(0.01, 1, allow_subnormal=False)
triples = st.tuples(shares, shares, shares)


def test_fingerprints_of_floats_are_golden() -> None:
    """IEEE 754 fixes every bit of them, so they are the same on all machines."""
    assert float_fingerprints(SMALL, MixConfig(), "cpu") == GOLDEN


def test_mixing_is_watched_where_it_is_on() -> None:
    off = float_fingerprints(SMALL, MixConfig(probability=0.0), "cpu")
    assert off.keys() == {"normalized.values", "normalized.bits"}
    assert off.items() <= GOLDEN.items()


def test_all_fingerprints_are_both_kinds_and_say_what_they_watch() -> None:
    identity = hash_identity()
    found = fingerprints_on(identity, "cpu")
    assert found == {**fingerprints(identity), **GOLDEN}
    assert "unknown here" not in what_they_watch(identity, found)
    assert {name for name in found if name.endswith(BITS)} == {"normalized.bits", "mixed.bits"}


@given(mean=triples, std=triples, seed=st.integers(0, 100))
def test_a_device_that_rounds_otherwise_has_other_bits_and_the_same_values(
    mean: tuple[float, float, float], std: tuple[float, float, float], seed: int
) -> None:
    augment = AugmentConfig(mean=mean, std=std)

    def nearly(pixels: Tensor, mean: object, std: object) -> Tensor:
        images = normalize(pixels, mean, std)
        noise = np.random.default_rng(seed).uniform(-1, 1, images.shape).astype(np.float32)
        return images * (1 + 3e-7 * torch.from_numpy(noise))

    normalize = floats.normalize
    sound = float_fingerprints(augment, MixConfig(), "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(floats, "normalize", nearly)
        patch.setattr(mixing, "normalize", nearly)
        patch.setattr(mixing, "_IN_ONE_PASS", ())
        other = float_fingerprints(augment, MixConfig(), "cpu")
    assert {name for name in sound if sound[name] != other[name]} == {
        "normalized.bits",
        "mixed.bits",
    }


@pytest.mark.parametrize("name", ["mean", "std"])
def test_other_settings_have_other_bits(name: str) -> None:
    ours = float_fingerprints(SMALL, MixConfig(), "cpu")
    theirs = float_fingerprints(replace(SMALL, **{name: (0.485, 0.456, 0.41)}), MixConfig(), "cpu")
    assert all(ours[one] != theirs[one] for one in ours if one.endswith(BITS))
