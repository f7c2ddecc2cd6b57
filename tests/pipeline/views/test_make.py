"""The one way to a view, for labelling, verification and replay."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from pipeline.identity import PRESETS, MixConfig
from pipeline.records import NO_PARTNER, MixKind, MixParams, Sample, ShardInfo
from pipeline.views.apply import apply_view, image_size, view_digest
from pipeline.views.draw import draw_view
from pipeline.views.make import ShardViews, make_view
from pipeline.views.pairing import Pairing, draw_mix
from pipeline.views.regions import EncodedImage
from tests.factories import encode, synthetic_image

ROOT = Path(__file__).resolve().parents[3]
CONFIG = replace(PRESETS["deit"], image_size=8)
IMAGE = synthetic_image(20, 30)
SHARD = ShardInfo(number=0, name="a.tar", key_hash="5e" * 32, content_hash="", samples=9, bytes=0)
SAMPLES = [
    Sample(key=f"key-{index}", target=0, image_name="", image_offset=0, image_bytes=0)
    for index in range(9)
]

views = st.integers(0, 10_000)
indices = st.integers(0, 8)


def shard_views(mix: MixConfig | None = None) -> ShardViews:
    pairing = Pairing(
        root_seed=3, shard=SHARD, rejected=frozenset(), config=mix or MixConfig(probability=0.7)
    )
    return ShardViews(pairing=pairing, samples=SAMPLES, augment=CONFIG)


@given(seed=st.integers(0, 2**63 - 1), view=views)
def test_a_view_is_what_is_drawn_and_then_applied(seed, view):
    params = draw_view(seed, view, image_size(IMAGE), CONFIG)
    assert_array_equal(make_view(IMAGE, seed, view, CONFIG), apply_view(IMAGE, params, CONFIG))


@pytest.mark.parametrize("blocks", [1, 0])
@given(seed=st.integers(0, 2**63 - 1), view=views)
def test_a_view_of_an_encoded_image_is_that_of_the_decoded_one(blocks, seed, view):
    data = encode(synthetic_image(80, 96), restart_marker_blocks=blocks)
    image = EncodedImage(data=data, name="a.jpg", max_pixels=CONFIG.max_pixels, worth=0)
    whole = make_view(image.decode(), seed, view, CONFIG)
    assert_array_equal(make_view(image, seed, view, CONFIG), whole)
    made = shard_views().make(image, seed, view, (4, 1), digest=True)
    assert made.digest == shard_views().make(image.decode(), seed, view, (4, 1), digest=True).digest


@given(view=views, pair=st.tuples(indices, indices).filter(lambda pair: pair[0] != pair[1]))
def test_a_shards_view_has_its_mix_and_the_digest_of_both(view, pair):
    made = shard_views().make(IMAGE, 5, view, pair, digest=True)
    assert_array_equal(made.pixels, make_view(IMAGE, 5, view, CONFIG))
    config = shard_views().pairing.config
    assert made.mix == draw_mix(3, SHARD.key_hash, view, pair, CONFIG.image_size, config)
    partner = None if made.mix.kind is MixKind.NONE else f"key-{pair[1]}"
    assert made.digest == view_digest(made.pixels, partner, made.mix)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_view_without_a_partner_is_unmixed(probability):
    made = shard_views(MixConfig(probability=probability)).make(
        IMAGE, 5, 2, (4, NO_PARTNER), digest=True
    )
    assert made.mix == MixParams.none()
    assert made.digest == view_digest(made.pixels, None, MixParams.none())


def test_a_digest_is_made_only_if_asked_for():
    asked, unasked = (
        shard_views().make(IMAGE, 5, 2, (4, 1), digest=digest) for digest in (True, False)
    )
    assert isinstance(asked.digest, int)
    assert unasked.digest is None
    assert np.array_equal(asked.pixels, unasked.pixels)
    assert asked.mix == unasked.mix


def callers_of(*names):
    """Return the files that call one of these functions, or define it."""
    return {
        str(path.relative_to(ROOT))
        for folder in ("pipeline", "student", "jobs")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(rf"\b({'|'.join(names)})\(", path.read_text())
    }


def test_no_other_code_makes_or_digests_a_view():
    """Fingerprints alone look at each step by itself; two tools tell what was drawn."""
    views = {f"pipeline/views/{name}.py" for name in ("make", "fingerprints")}
    assert callers_of("apply_view", "view_digest") == views | {"pipeline/views/apply.py"}
    tools = {f"pipeline/tools/{name}.py" for name in ("show", "views")}
    assert callers_of("draw_view") == views | tools | {"pipeline/views/draw.py"}
