from __future__ import annotations

import binascii
import struct
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.data.mixup import Mixup

from pipeline.identity import IMAGENET_MEAN, IMAGENET_STD, MixConfig
from pipeline.records import FIXED_ONE, Box, MixKind, MixParams, ViewMix
from pipeline.views import mixing
from pipeline.views.mixing import MixRows, mix_images, mixed_digests, mixed_views, normalize
from pipeline.views.pairing import draw_mix
from tests.factories import synthetic_image


def views(count: int, size: int = 12) -> torch.Tensor:
    images = np.stack([synthetic_image(size, size, seed) for seed in range(1, count + 1)])
    return normalize(torch.from_numpy(images), IMAGENET_MEAN, IMAGENET_STD)


def pairs(*params: MixParams) -> ViewMix:
    """Mix rows 0 and 1, 2 and 3, ... by one of ``params`` each."""
    mix = ViewMix.unmixed(2 * len(params))
    for pair, one in enumerate(params):
        if one.kind is not MixKind.NONE:
            mix.set_row(2 * pair, 2 * pair + 1, one)
            mix.set_row(2 * pair + 1, 2 * pair, one)
    return mix


def test_normalization_is_torchvisions() -> None:
    from torchvision.transforms import functional

    pixels = synthetic_image(9, 9)
    scaled = functional.to_tensor(pixels)
    expected = functional.normalize(scaled, list(IMAGENET_MEAN), list(IMAGENET_STD))
    actual = normalize(torch.from_numpy(pixels[None]), IMAGENET_MEAN, IMAGENET_STD)[0]
    # Two roundings instead of three; float32 has 7 digits.
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


@given(lam=st.integers(0, FIXED_ONE))
def test_mixup_is_the_plain_formula_and_symmetric(lam: int) -> None:
    images = views(2)
    mixed = mix_images(images, pairs(MixParams(kind=MixKind.MIXUP, lam=lam, box=None)))
    share = np.float32(lam / FIXED_ONE)
    for own, other in ((0, 1), (1, 0)):
        plain = images[own].numpy() * share + images[other].numpy() * (np.float32(1) - share)
        np.testing.assert_array_equal(mixed[own].numpy(), plain)


def test_cutmix_takes_the_partners_box_and_leaves_the_rest() -> None:
    images = views(2)
    box = Box(top=2, left=3, height=4, width=5)
    mixed = mix_images(images, pairs(MixParams(kind=MixKind.CUTMIX, lam=1, box=box)))
    expected = images.clone()
    expected[0, :, 2:6, 3:8], expected[1, :, 2:6, 3:8] = (
        images[1, :, 2:6, 3:8],
        images[0, :, 2:6, 3:8],
    )
    assert torch.equal(mixed, expected)


def test_unmixed_rows_are_untouched_and_inputs_never_change() -> None:
    images = views(4)
    before = images.clone()
    mixup = MixParams(kind=MixKind.MIXUP, lam=FIXED_ONE // 3, box=None)
    mixed = mix_images(images, pairs(MixParams.none(), mixup))
    assert torch.equal(mixed[:2], images[:2])
    assert not torch.equal(mixed[2:], images[2:])
    assert torch.equal(images, before)


@given(seed=st.integers(0, 1000))
def test_a_mixed_row_does_not_depend_on_its_batch(seed: int) -> None:
    images = views(6)
    config = MixConfig()
    params = [draw_mix(seed, "shard", 0, (0, pair + 1), 12, config) for pair in range(3)]
    whole = mix_images(images, pairs(*params))
    for pair, one in enumerate(params):
        alone = mix_images(images[2 * pair : 2 * pair + 2].clone(), pairs(one))
        assert torch.equal(alone, whole[2 * pair : 2 * pair + 2])


@given(seed=st.integers(0, 1000))
def test_a_row_is_mixed_alike_where_its_partner_is_none_of_the_batch(seed: int) -> None:
    images, order = views(6), torch.tensor([0, 2, 4, 1, 3, 5])  # partners come last
    params = [draw_mix(seed, "shard", 0, (0, pair + 1), 12, MixConfig()) for pair in range(3)]
    mix = ViewMix.unmixed(3)
    for row, one in enumerate(params):
        mix.set_row(row, row + 3, one)
    alone = mix_images(images[order], mix)
    assert torch.equal(alone, mix_images(images, pairs(*params))[::2])


def test_a_mixed_digest_is_the_crc_of_the_bytes_that_the_format_names() -> None:
    mixup = MixParams(kind=MixKind.MIXUP, lam=5000, box=None)
    mixed = mix_images(views(4), pairs(mixup, MixParams.none()))
    found = mixed_digests(mixed, np.array([False, True, True, False]))
    for row in (1, 2):
        plain = [
            struct.pack("<f", float(mixed[row, channel, y, x]))
            for y in range(12)
            for x in range(12)
            for channel in range(3)
        ]
        assert found[row] == binascii.crc32(b"".join(plain))
    assert found[[0, 3]].tolist() == [0, 0]
    assert found.dtype == np.uint32


def test_a_pair_is_mixed_as_timm_mixes_a_flipped_batch_of_two() -> None:
    images = views(2, size=16)
    for cutmix in (False, True):
        theirs = Mixup(
            mixup_alpha=0.0 if cutmix else 0.8,
            cutmix_alpha=1.0 if cutmix else 0.0,
            label_smoothing=0.0,
            num_classes=2,
        )
        np.random.seed(3)  # noqa: NPY002 - timm draws from the global generator
        expected, target = theirs(images.clone(), torch.tensor([0, 1]))
        lam = round(float(target[0, 0]) * FIXED_ONE)
        if cutmix:
            changed = (expected[0] != images[0]).any(dim=0).nonzero()
            (top, left), (bottom, right) = changed.amin(0).tolist(), changed.amax(0).tolist()
            box = Box(top=top, left=left, height=bottom - top + 1, width=right - left + 1)
            params = MixParams(kind=MixKind.CUTMIX, lam=lam, box=box)
        else:
            params = MixParams(kind=MixKind.MIXUP, lam=lam, box=None)
        actual = mix_images(images, pairs(params))
        # lam is rounded to 2**-16 here, and values reach 2.6.
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


sides = st.integers(0, 11)
boxes = st.builds(Box, top=sides, left=sides, height=sides, width=sides).filter(
    lambda box: max(box.top + box.height, box.left + box.width) <= 12
)
params = st.one_of(
    st.just(MixParams.none()),
    st.builds(MixParams, kind=st.just(MixKind.MIXUP), lam=st.integers(0, FIXED_ONE), box=st.none()),
    st.builds(MixParams, kind=st.just(MixKind.CUTMIX), lam=st.integers(0, FIXED_ONE), box=boxes),
)


@pytest.fixture(params=["one pass", "pieces"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """How views are mixed, a few rows at a time: on a CPU, or by the plain steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixing, "_PIECE", 2)
        if request.param == "pieces":
            patch.setattr(mixing, "_IN_ONE_PASS", ())
        yield request.param


# The way is the same for all examples of a test.
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(params, min_size=1, max_size=5), seed=st.integers(0, 99), data=st.data())
def test_all_ways_give_the_floats_of_the_plain_steps(way, drawn, seed, data):
    rows = len(drawn) + 2  # the last ones are guests
    images = [synthetic_image(12, 12, seed + row) for row in range(rows)]
    pixels, mix = torch.from_numpy(np.stack(images)), ViewMix.unmixed(len(drawn))
    for row, one in enumerate(drawn):
        if one.kind is not MixKind.NONE:
            mix.set_row(row, data.draw(st.integers(0, rows - 1)), one)
    plain = mix_images(normalize(pixels, IMAGENET_MEAN, IMAGENET_STD), mix)
    found = mixed_views(pixels, MixRows.of(mix), IMAGENET_MEAN, IMAGENET_STD)
    assert found.numpy().tobytes() == plain.numpy().tobytes()
    assert found.stride() == plain.stride()
    for dtype in (torch.bfloat16, torch.float16):
        rounded = torch.empty((len(drawn), 12, 12, 3), dtype=dtype).permute(0, 3, 1, 2)
        mixed_views(pixels, MixRows.of(mix), IMAGENET_MEAN, IMAGENET_STD, rounded)
        assert torch.equal(rounded, plain.to(dtype))
