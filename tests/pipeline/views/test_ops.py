"""Each operation against its plain twin, against timm's and Pillow's, and what all must keep."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numba.core.dispatcher import Dispatcher
from numpy.testing import assert_array_equal
from PIL import Image
from timm.data import auto_augment

from pipeline.identity import PRESETS, AugmentConfig
from pipeline.records import FIXED_ONE, AppliedOp, ImageSize, Pixels
from pipeline.views import ops as room
from pipeline.views.apply import apply_op, apply_view
from pipeline.views.draw import JITTER, RAND_AUGMENT, THREE_AUGMENT, draw_view
from pipeline.views.fingerprints import different_fingerprints, fingerprints
from pipeline.views.operation import TEN, Operation, no_argument
from pipeline.views.ops import OPERATIONS
from pipeline.views.rng import stream
from tests.factories import photographs, synthetic_image
from tests.labelling import hash_identity
from tests.pipeline.views.plain import FILL, PLAIN, levels_apart

DEIT = PRESETS["deit"]

GOLDEN = {  # an argument, and the CRC-32 of the pixels that it gives
    "auto-contrast": (0, 3168857262),
    "equalize": (0, 868866439),
    "invert": (0, 1549494536),
    "rotate": (-1_769_472, 2930264976),
    "posterize": (2, 535706750),
    "solarize": (100, 494815926),
    "solarize-add": (90, 255833593),
    "color": (21_845, 2303465934),
    "contrast": (111_411, 3067604508),
    "brightness": (98_304, 4071496761),
    "sharpness": (117_964, 3819201064),
    "shear-x": (16_384, 3754067267),
    "shear-y": (-16_384, 1076230310),
    "translate-x": (26_291, 228166564),
    "translate-y": (-26_138, 888191637),
    "grayscale": (0, 3196975847),
    "gaussian-blur": (98_304, 4238983463),
}

FILES = {path.stem: path for path in Path(room.__file__).parent.glob("[!_]*.py")}

images = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(
    lambda shape: arrays(np.uint8, (*shape, 3))
)


@pytest.fixture(params=[0, 1], ids=["china", "flower"])
def square(request: pytest.FixtureRequest) -> Pixels:
    return np.ascontiguousarray(photographs()[request.param][40:264, 100:324])


def apply(image: Pixels, op: str, argument: int = 0) -> Pixels:
    return apply_op(image, AppliedOp(op=op, argument=argument), DEIT)


# --------------------------------------------------------- what each operation must have


def test_each_operation_is_the_file_of_its_name():
    assert {name.replace("-", "_") for name in OPERATIONS} == set(FILES)
    assert all(name == operation.name for name, operation in OPERATIONS.items())


def test_each_operation_has_a_plain_twin_and_golden_pixels():
    assert set(PLAIN) == set(GOLDEN) == set(OPERATIONS)


def test_each_operation_is_in_a_policy_and_each_policy_has_operations_that_are_there():
    named = {*THREE_AUGMENT, *JITTER, *(name for names in RAND_AUGMENT.values() for name in names)}
    assert named == set(OPERATIONS)
    policies = get_args(get_type_hints(AugmentConfig)["policy"])
    assert {"none", "three-augment", *RAND_AUGMENT} == set(policies)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_a_probe_sees_the_operation_and_its_argument(name):
    image, operation = synthetic_image(41, 31), OPERATIONS[name]
    probed = apply_op(image, operation.probed, DEIT)
    assert (probed != image).any()
    if operation.draw is not no_argument:
        assert (probed != apply(image, name, operation.probe + operation.probe // 2 + 1)).any()


def compiled_in(name: str) -> list[Dispatcher]:
    """Return the kernels of an operation's file."""
    module = sys.modules[f"{room.__name__}.{name}"]
    return [
        value
        for value in vars(module).values()
        if isinstance(value, Dispatcher) and value.py_func.__module__ == module.__name__
    ]


def called_in(name: str) -> list[Dispatcher]:
    """Return those that Python calls; what they call in turn is compiled into them."""
    return [one for one in compiled_in(name) if not one.py_func.__name__.startswith("_")]


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_kernel_in_an_operations_file_uses_nothing_of_another_file(name):
    """numba's cache watches a kernel's own file: it would keep what another file's once was."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(FILES[name].read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline")
        for alias in node.names
    }
    for kernel in compiled_in(name):
        assert imported.isdisjoint(kernel.py_func.__code__.co_names), kernel


def test_nothing_is_compiled_after_the_warm_up():
    """In a process of its own, as other tests compile what they call."""
    code = f"import {__name__} as m; m.make_views_after_warm_up()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def make_views_after_warm_up() -> None:
    from pipeline.views import colors, kernels, philox
    from pipeline.views.apply import image_size, warm_up

    warm_up()
    modules = (colors, kernels, philox)
    named = [getattr(module, name) for module in modules for name in module.__all__]
    every = [one for one in named if isinstance(one, Dispatcher)]
    every += [kernel for name in FILES for kernel in called_in(name)]
    before = [len(kernel.signatures) for kernel in every]
    assert 0 not in before
    for image in photographs():
        for operation in OPERATIONS.values():
            apply_op(image[:64, :64].copy(), operation.probed, DEIT)
        for preset in PRESETS.values():
            apply_view(image, draw_view(1, 1, image_size(image), preset), preset)
    assert [len(kernel.signatures) for kernel in every] == before


def test_an_operation_is_its_record_and_its_line_in_a_policy(monkeypatch):
    identity, before = hash_identity(), fingerprints(hash_identity())
    vflip = Operation(
        name="vflip",
        draw=no_argument,
        apply=lambda image, argument, fill, result: np.copyto(result, image[::-1]),
        probe=0,
    )
    monkeypatch.setitem(OPERATIONS, "vflip", vflip)
    policy = (*RAND_AUGMENT["rand-augment"], "vflip")
    monkeypatch.setitem(RAND_AUGMENT, "rand-augment", policy)
    config, image = AugmentConfig(rand_ops=1, image_size=32), synthetic_image(40, 50)
    size = ImageSize(height=40, width=50)
    drawn = [draw_view(seed, 0, size, config) for seed in range(200)]
    flipped = [params for params in drawn if params.ops == (AppliedOp(op="vflip"),)]
    for params in flipped:
        straight = replace(params, erase=None)
        plain = apply_view(image, replace(straight, ops=()), config)
        assert_array_equal(apply_view(image, straight, config), plain[::-1])
    assert flipped
    after = fingerprints(identity)
    assert after.keys() - before.keys() == {"op.vflip"}
    # Stores of the shorter list are refused: a list that stores were made with never changes.
    assert "draw.views" in different_fingerprints(before, after)


# ------------------------------------------------------------------------- plain twins


@pytest.mark.parametrize("name", sorted(OPERATIONS))
@settings(max_examples=60)
@given(image=images, seed=st.integers(0, 10**6), magnitude=st.integers(0, TEN))
def test_an_operation_equals_its_plain_twin(name, image, seed, magnitude):
    operation = OPERATIONS[name]
    for argument in (operation.probe, operation.draw(stream("test", seed), magnitude)):
        assert_array_equal(apply(image, name, argument), PLAIN[name](image, argument))


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_operations_are_golden(name):
    """One that changes means that no stored label fits any more: FORMAT_VERSION has to change."""
    argument, expected = GOLDEN[name]
    assert zlib.crc32(apply(synthetic_image(37, 41), name, argument).tobytes()) == expected


# ------------------------------------------------------------------- timm's and Pillow's

ONE = FIXED_ONE
FACTORS = [ONE // 10, ONE // 2, ONE, ONE * 14 // 10, ONE * 19 // 10]


@pytest.mark.parametrize(
    ("op", "argument"),
    [
        *[("posterize", bits) for bits in (1, 2, 3, 4, 7, 8)],
        *[("solarize", threshold) for threshold in (0, 1, 26, 128, 255, 256)],
        *[("solarize-add", amount) for amount in (0, 50, 110, 128)],
        ("auto-contrast", 0),
        ("equalize", 0),
        ("invert", 0),
    ],
)
def test_table_operations_are_exactly_timms(square, op, argument):
    twin = {
        "posterize": auto_augment.posterize,
        "solarize": auto_augment.solarize,
        "solarize-add": auto_augment.solarize_add,
        "auto-contrast": lambda image, _: auto_augment.auto_contrast(image),
        "equalize": lambda image, _: auto_augment.equalize(image),
        "invert": lambda image, _: auto_augment.invert(image),
    }[op]
    expected = np.asarray(twin(Image.fromarray(square), argument))
    assert_array_equal(apply(square, op, argument), expected)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("op", "twin"),
    [
        ("color", auto_augment.color),
        ("contrast", auto_augment.contrast),
        ("brightness", auto_augment.brightness),
        ("sharpness", auto_augment.sharpness),
    ],
)
def test_blending_operations_are_timms(square, op, twin, factor):
    expected = twin(Image.fromarray(square), factor / ONE)
    # Pillow blends in float32 and cuts: a product at a whole number may fall on either side.
    assert levels_apart(apply(square, op, factor), expected).max() <= 1


GEOMETRIC = [
    *[("rotate", degrees * ONE, auto_augment.rotate) for degrees in (27, -30, 1)],
    *[("shear-x", share * ONE // 100, auto_augment.shear_x) for share in (27, -30)],
    *[("shear-y", share * ONE // 100, auto_augment.shear_y) for share in (27, -30)],
    *[("translate-x", share * ONE // 100, auto_augment.translate_x_rel) for share in (41, -45)],
    *[("translate-y", share * ONE // 100, auto_augment.translate_y_rel) for share in (41, -45)],
]


@pytest.mark.parametrize(("op", "argument", "twin"), GEOMETRIC)
def test_geometric_operations_are_timms(square, op, argument, twin):
    options = {"resample": Image.Resampling.BICUBIC, "fillcolor": FILL}
    expected = np.asarray(twin(Image.fromarray(square), argument / ONE, **options))
    apart = levels_apart(apply(square, op, argument), expected)
    # Pillow computes in floating point; ours cuts positions to 1/1024 pixel and rounds.
    assert apart.max() <= 1
    filled = (expected == FILL).all(axis=2)
    assert filled.sum() > (0 if argument == ONE else 1000)
    assert not apart[filled].any()


def test_a_rotation_is_counter_clockwise_and_translations_look_ahead():
    image = np.zeros((21, 21, 3), np.uint8)
    image[10, 18] = 255  # right of the center
    turned = apply(image, "rotate", 90 * ONE)
    assert turned[2, 10].tolist() == [255] * 3  # is above it now
    moved = apply(image, "translate-x", ONE * 3 // 21 + 1)
    assert moved[10, 15].tolist() == [255] * 3


def test_grayscale_is_pillows_luma(square):
    assert_array_equal(
        apply(square, "grayscale"), Image.fromarray(square).convert("L").convert("RGB")
    )


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_gaussian_blur_is_a_gaussian_cut_at_three_sigma(square, sigma):
    image = np.ascontiguousarray(square[:50, :61])
    blurred = image.astype(float)
    radius = max(1, math.ceil(3 * sigma))
    for axis in (0, 1):
        length = image.shape[axis]
        distance = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
        bell = np.where(distance <= radius, np.exp(-0.5 * (distance / sigma) ** 2), 0)
        matrix = bell / bell.sum(axis=1, keepdims=True)  # borders lose nothing
        blurred = np.moveaxis(np.tensordot(matrix, blurred, axes=(1, axis)), 0, axis)
    # Two roundings to uint8, half a level each, and weights of 14 bits.
    apart = np.abs(apply(image, "gaussian-blur", round(sigma * ONE)) - blurred)
    assert apart.max() < 1.1


def test_posterize_to_no_bits_is_black(square):
    assert not apply(square, "posterize", 0).any()


@pytest.mark.parametrize("op", sorted(OPERATIONS))
@pytest.mark.parametrize("value", [0, 77, 255])
def test_operations_take_flat_and_single_pixel_images(op, value):
    argument = OPERATIONS[op].probe
    for shape in ((1, 1), (1, 9), (9, 1), (2, 2), (20, 20)):
        image = np.full((*shape, 3), value, np.uint8)
        result = apply(image, op, argument)
        assert result.shape == image.shape
        assert result.dtype == np.uint8
        if op in ("auto-contrast", "equalize", "gaussian-blur", "sharpness", "color"):
            assert_array_equal(result, image)


@pytest.mark.parametrize("op", sorted(OPERATIONS))
def test_operations_write_every_pixel_and_leave_their_input_alone(op):
    image = synthetic_image(12, 13)
    before = image.copy()
    results = [np.full_like(image, value) for value in (0, 255)]
    for result in results:
        OPERATIONS[op].apply(image, 3, np.array(FILL, np.uint8), result)
    assert_array_equal(*results)
    assert_array_equal(image, before)
