from __future__ import annotations

import io
import math
import struct
import zlib
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from timm.data import auto_augment

from pipeline.errors import DecodeError
from pipeline.identity import PRESETS, AugmentConfig
from pipeline.records import (
    FIXED_ONE,
    AppliedOp,
    Box,
    ImageSize,
    MixKind,
    MixParams,
    Op,
    Pixels,
    ViewParams,
)
from pipeline.views import apply as augment
from pipeline.views.apply import apply_op, apply_view, decode, image_size, resize, view_digest
from pipeline.views.draw import draw_view
from tests.factories import encode, photographs, synthetic_image

DEIT = PRESETS["deit"]
FILL = (124, 116, 104)  # ImageNet's mean, as timm rounds it


@pytest.fixture(params=[0, 1], ids=["china", "flower"])
def photograph(request: pytest.FixtureRequest) -> Pixels:
    return photographs()[request.param]


@pytest.fixture
def square(photograph: Pixels) -> Pixels:
    return np.ascontiguousarray(photograph[40:264, 100:324])


def apply(image: Pixels, op: Op, argument: int = 0) -> Pixels:
    return apply_op(image, AppliedOp(op=op, argument=argument), DEIT)


def whole(image: Pixels) -> Box:
    return Box(top=0, left=0, height=image.shape[0], width=image.shape[1])


def levels_apart(one: Pixels, other: object) -> np.ndarray:
    return np.abs(one.astype(int) - np.asarray(other).astype(int))


# ------------------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 95, "subsampling": "4:4:4"},
        {"quality": 75, "subsampling": "4:2:2"},
        {"quality": 50, "subsampling": "4:2:0"},
        {"progressive": True},
        {"optimize": True, "restart_marker_rows": 1},
        {"keep_rgb": True},
        {"mode": "L"},
        {"mode": "CMYK"},
    ],
)
def test_jpegs_decode_as_pillow_decodes_them(photograph, options):
    data = encode(photograph[:99, :77], **options)
    with Image.open(io.BytesIO(data)) as image:
        # Both are libjpeg-turbo with the exact integer transform.
        assert_array_equal(decode(data, "x"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1"])
def test_pngs_decode_to_their_colours_without_alpha(photograph, mode):
    data = encode(photograph[:40, :30], "PNG", mode=mode)
    with Image.open(io.BytesIO(data)) as image:
        assert_array_equal(decode(data, "x.png"), np.asarray(image.convert("RGB")))


def test_transparent_palette_entries_keep_their_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=1)
    assert decode(file.getvalue(), "x").tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_alpha_is_dropped_and_not_blended():
    image = np.full((3, 3, 4), (10, 20, 30, 0), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    assert (decode(file.getvalue(), "x") == (10, 20, 30)).all()


def test_webp_decodes(photograph):
    pixels = photograph[:33, :44]
    assert_array_equal(decode(encode(pixels, "WEBP", lossless=True), "x"), pixels)


def test_the_contents_decide_and_not_the_name(photograph):
    assert_array_equal(decode(encode(photograph, "PNG"), "photo.JPEG"), photograph)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored(photograph, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = photograph[:40, :60]
    for kind in ("JPEG", "PNG", "WEBP"):
        turned = decode(encode(pixels, kind, exif=exif), "x")
        assert turned.shape == (40, 60, 3)
        assert_array_equal(turned, decode(encode(pixels, kind), "x"))


def test_decoded_images_are_contiguous_rgb(photograph):
    for data in (encode(photograph), encode(photograph, "PNG"), encode(photograph, mode="CMYK")):
        for given_as in (data, memoryview(data)):
            pixels = decode(given_as, "x")
            assert pixels.dtype == np.uint8
            assert pixels.flags.c_contiguous
            assert image_size(pixels) == ImageSize(height=427, width=640)


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}, {"restart_marker_rows": 1}],
)
def test_a_cut_jpeg_is_rejected_at_every_length(photograph, options):
    data = encode(photograph[100:148, 200:240], **options)
    full = decode(data, "x")
    for length in range(len(data)):
        try:
            pixels = decode(data[:length], "cut.jpg")
        except DecodeError:
            continue
        # Only the end mark is missing, and every pixel is there.
        assert length >= len(data) - 2
        assert_array_equal(pixels, full)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_cut_png_or_webp_gives_all_pixels_or_an_error(photograph, kind):
    data = encode(photograph[100:148, 200:240], kind)
    full = decode(data, "x")
    for length in range(len(data)):
        try:
            pixels = decode(data[:length], "cut")
        except DecodeError:
            continue
        assert_array_equal(pixels, full)
        assert length >= len(data) - 32  # PNG: checksums and the empty last chunk


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"no image" * 100, bytes(1000)]
)
def test_garbage_is_rejected_by_name(data):
    with pytest.raises(DecodeError, match=r"^n01/cat\.jpg: "):
        decode(data, "n01/cat.jpg")


@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=6),
)
def test_damage_gives_pixels_or_a_decode_error_and_nothing_else(kind, flips):
    data = bytearray(encode(photographs()[0][100:148, 200:240], kind))
    for position, change in flips:
        data[position % len(data)] ^= change
    try:
        pixels = decode(bytes(data), "x")
    except DecodeError:
        return
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


def png_of_size(height: int, width: int) -> bytes:
    """Return a PNG that claims a size, with hardly any data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_decompression_bombs_are_rejected_unopened():
    with pytest.raises(DecodeError, match="DecompressionBomb"):
        decode(png_of_size(20_000, 20_000), "bomb.png")
    data = bytearray(encode(synthetic_image(8, 8)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(DecodeError, match="DecompressionBomb"):
        decode(bytes(data), "bomb.jpg")


# ------------------------------------------------------------------------- resizing


@pytest.mark.parametrize(
    ("height", "width", "differing"),
    [(427, 640, 0.16), (400, 301, 0.01), (100, 90, 0.04), (30, 20, 0.04), (224, 224, 0.0)],
)
def test_resizing_is_pillows_bicubic(photograph, height, width, differing):
    crop = Box(top=7, left=0, height=min(height, 420), width=width)
    cut = Image.fromarray(photograph[7 : 7 + crop.height, :width])
    apart = levels_apart(
        resize(photograph, crop, 224), cut.resize((224, 224), Image.Resampling.BICUBIC)
    )
    # Pillow goes over columns first, ours over rows, and both round in between; where that
    # rounding clips an overshoot, a few pixels differ by more than one level.
    assert apart.max() <= 4
    assert (apart > 1).mean() < 0.0005
    assert (apart > 0).mean() <= differing


@given(
    seed=st.integers(0, 99),
    top=st.integers(0, 30),
    left=st.integers(0, 30),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    size=st.integers(1, 40),
)
def test_a_resized_crop_sees_nothing_outside_the_crop(seed, top, left, height, width, size):
    image = synthetic_image(60, 60, seed)
    crop = Box(top=top, left=left, height=height, width=width)
    cut = np.ascontiguousarray(image[top : top + height, left : left + width])
    assert_array_equal(resize(image, crop, size), resize(cut, whole(cut), size))


def test_a_flip_mirrors_the_columns(square):
    crop = Box(top=3, left=5, height=111, width=87)
    assert_array_equal(resize(square, crop, 50, hflip=True), resize(square, crop, 50)[:, ::-1])


def test_a_crop_outside_the_image_is_refused():
    with pytest.raises(ValueError, match="does not lie in an image"):
        resize(synthetic_image(10, 10), Box(top=5, left=0, height=6, width=5), 4)


# ------------------------------------------------------------------------ operations

ONE = FIXED_ONE
FACTORS = [ONE // 10, ONE // 2, ONE, ONE * 14 // 10, ONE * 19 // 10]


@pytest.mark.parametrize(
    ("op", "argument"),
    [
        *[(Op.POSTERIZE, bits) for bits in (1, 2, 3, 4, 7, 8)],
        *[(Op.SOLARIZE, threshold) for threshold in (0, 1, 26, 128, 255, 256)],
        *[(Op.SOLARIZE_ADD, amount) for amount in (0, 50, 110, 128)],
        (Op.AUTO_CONTRAST, 0),
        (Op.EQUALIZE, 0),
        (Op.INVERT, 0),
    ],
)
def test_table_operations_are_exactly_timms(square, op, argument):
    twin = {
        Op.POSTERIZE: auto_augment.posterize,
        Op.SOLARIZE: auto_augment.solarize,
        Op.SOLARIZE_ADD: auto_augment.solarize_add,
        Op.AUTO_CONTRAST: lambda image, _: auto_augment.auto_contrast(image),
        Op.EQUALIZE: lambda image, _: auto_augment.equalize(image),
        Op.INVERT: lambda image, _: auto_augment.invert(image),
    }[op]
    expected = np.asarray(twin(Image.fromarray(square), argument))
    assert_array_equal(apply(square, op, argument), expected)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("op", "twin"),
    [
        (Op.COLOR, auto_augment.color),
        (Op.CONTRAST, auto_augment.contrast),
        (Op.BRIGHTNESS, auto_augment.brightness),
        (Op.SHARPNESS, auto_augment.sharpness),
    ],
)
def test_blending_operations_are_timms(square, op, twin, factor):
    expected = twin(Image.fromarray(square), factor / ONE)
    # Pillow blends in float32 and cuts: a product at a whole number may fall on either side.
    assert levels_apart(apply(square, op, factor), expected).max() <= 1


GEOMETRIC = [
    *[(Op.ROTATE, degrees * ONE, auto_augment.rotate) for degrees in (27, -30, 1)],
    *[(Op.SHEAR_X, share * ONE // 100, auto_augment.shear_x) for share in (27, -30)],
    *[(Op.SHEAR_Y, share * ONE // 100, auto_augment.shear_y) for share in (27, -30)],
    *[(Op.TRANSLATE_X, share * ONE // 100, auto_augment.translate_x_rel) for share in (41, -45)],
    *[(Op.TRANSLATE_Y, share * ONE // 100, auto_augment.translate_y_rel) for share in (41, -45)],
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
    image[10, 18] = 255  # right of the centre
    turned = apply(image, Op.ROTATE, 90 * ONE)
    assert turned[2, 10].tolist() == [255] * 3  # is above it now
    moved = apply(image, Op.TRANSLATE_X, ONE * 3 // 21 + 1)
    assert moved[10, 15].tolist() == [255] * 3


def test_grayscale_is_pillows_luma(square):
    assert_array_equal(
        apply(square, Op.GRAYSCALE), Image.fromarray(square).convert("L").convert("RGB")
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
    apart = np.abs(apply(image, Op.GAUSSIAN_BLUR, round(sigma * ONE)) - blurred)
    assert apart.max() < 1.1


def test_posterize_to_no_bits_is_black(square):
    assert not apply(square, Op.POSTERIZE, 0).any()


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("value", [0, 77, 255])
def test_operations_take_flat_and_single_pixel_images(op, value):
    argument = {Op.POSTERIZE: 4, Op.SOLARIZE: 128, Op.SOLARIZE_ADD: 50}.get(op, ONE // 2)
    for shape in ((1, 1), (1, 9), (9, 1), (2, 2), (20, 20)):
        image = np.full((*shape, 3), value, np.uint8)
        result = apply(image, op, argument)
        assert result.shape == image.shape
        assert result.dtype == np.uint8
        if op in (Op.AUTO_CONTRAST, Op.EQUALIZE, Op.GAUSSIAN_BLUR, Op.SHARPNESS, Op.COLOR):
            assert_array_equal(result, image)


@pytest.mark.parametrize("op", list(Op))
def test_operations_leave_their_input_alone(op):
    image = synthetic_image(12, 13)
    before = image.copy()
    result = apply(image, op, 3)
    assert not np.shares_memory(result, image)
    assert_array_equal(image, before)


# ------------------------------------------------------------------------- whole views


def plain_view(pixels: Pixels, params: ViewParams, config: AugmentConfig) -> Pixels:
    """Return the view by the functions tested above, in DeiT's order, without its erasing."""
    view = resize(pixels, params.crop, config.image_size)
    view = np.ascontiguousarray(view[:, ::-1]) if params.hflip else view
    for applied in params.ops:
        view = apply_op(view, applied, config)
    return view


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_view_is_crop_flip_operations_then_erasing(photograph, preset):
    config = replace(PRESETS[preset], image_size=64)
    for view in range(25):
        params = draw_view(77, view, image_size(photograph), config)
        pixels = apply_view(photograph, params, config)
        twin = plain_view(photograph, params, config)
        if params.erase is None:
            assert_array_equal(pixels, twin)
        else:
            box = params.erase
            inside = np.zeros((64, 64), bool)
            inside[box.top : box.top + box.height, box.left : box.left + box.width] = True
            assert_array_equal(pixels[~inside], twin[~inside])
            assert (pixels[inside] != twin[inside]).mean() > 0.9


def test_erasing_noise_is_standard_normal_once_normalised():
    box = Box(top=0, left=0, height=224, width=224)
    params = ViewParams(crop=box, hflip=False, ops=(), erase=box, erase_noise=12345)
    pixels = apply_view(np.zeros((224, 224, 3), np.uint8), params, DEIT)
    normal = NormalDist()
    for channel in range(3):
        mean, std = DEIT.mean[channel], DEIT.std[channel]
        noise = (pixels[..., channel] / 255 - mean) / std
        low, high = -mean / std, (1 - mean) / std  # where pixels end
        assert noise.min() == pytest.approx(low)
        assert noise.max() == pytest.approx(high)
        for sigma in (-1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2):
            # 50,176 draws: 5 standard errors are 0.011; a level is up to 0.0087 wide in CDF.
            assert abs((noise <= sigma).mean() - normal.cdf(sigma)) < 0.02
        assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.025
    assert abs(np.corrcoef(pixels[..., 0].ravel(), pixels[..., 1].ravel())[0, 1]) < 0.025


def test_erasing_noise_follows_its_seed():
    box = Box(top=0, left=0, height=8, width=8)
    config = replace(DEIT, image_size=8)

    def erased(seed: int) -> bytes:
        params = ViewParams(crop=box, hflip=False, ops=(), erase=box, erase_noise=seed)
        return apply_view(synthetic_image(8, 8), params, config).tobytes()

    assert erased(1) == erased(1)
    assert erased(1) != erased(2)


# ---------------------------------------------------------------------------- digests

pixel_views = st.integers(0, 1000).map(lambda seed: synthetic_image(6, 6, seed))
boxes = st.builds(
    Box,
    top=st.integers(0, 5),
    left=st.integers(0, 5),
    height=st.integers(0, 6),
    width=st.integers(0, 6),
)
mixes = st.builds(
    MixParams,
    kind=st.sampled_from(MixKind),
    lam=st.integers(0, FIXED_ONE),
    box=st.none() | boxes,
)


@given(
    pixels=pixel_views,
    place=st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2)),
    change=st.integers(1, 255),
    mix=mixes,
)
def test_a_digest_changes_with_any_pixel(pixels, place, change, mix):
    changed = pixels.copy()
    changed[place] ^= change
    assert view_digest(changed, "key", mix) != view_digest(pixels, "key", mix)


@given(pixels=pixel_views, mix=mixes, lam=st.integers(0, FIXED_ONE), box=boxes)
def test_a_digest_changes_with_any_mix_parameter(pixels, mix, lam, box):
    digest = view_digest(pixels, "key", mix)
    assert view_digest(pixels, "other", mix) != digest
    assert view_digest(pixels, None, mix) != digest
    for kind in set(MixKind) - {mix.kind}:
        assert view_digest(pixels, "key", replace(mix, kind=kind)) != digest
    if lam != mix.lam:
        assert view_digest(pixels, "key", replace(mix, lam=lam)) != digest
    nothing = Box(top=0, left=0, height=0, width=0)
    assume(box != (mix.box or nothing))
    assert view_digest(pixels, "key", replace(mix, box=box)) != digest


@pytest.mark.parametrize("field", ["top", "left", "height", "width"])
def test_a_digest_changes_with_each_side_of_the_box(field):
    mix = MixParams(kind=MixKind.CUTMIX, lam=5, box=Box(top=1, left=1, height=1, width=1))
    moved = replace(mix, box=replace(mix.box, **{field: 2}))
    pixels = synthetic_image(4, 4)
    assert view_digest(pixels, "a", moved) != view_digest(pixels, "a", mix)


def test_a_digest_does_not_depend_on_memory_layout():
    pixels = synthetic_image(6, 6)
    mirrored = np.asfortranarray(pixels)
    assert view_digest(mirrored, None, MixParams.none()) == view_digest(
        pixels, None, MixParams.none()
    )


def test_digests_are_golden():
    pixels = synthetic_image(8, 8)
    cutmix = MixParams(kind=MixKind.CUTMIX, lam=40_000, box=Box(top=1, left=2, height=3, width=4))
    assert view_digest(pixels, None, MixParams.none()) == 1816578814
    assert view_digest(pixels, "été", cutmix) == 103199060


# Golden views: CRC-32 of the pixels made of an image that no decoder had a hand in. One
# that changes means that no stored label fits any more: FORMAT_VERSION has to change.


def crc(pixels: Pixels) -> int:
    return zlib.crc32(pixels.tobytes())


def test_the_synthetic_image_is_golden():
    assert crc(synthetic_image(97, 131)) == 4098908921


@pytest.mark.parametrize(
    ("op", "argument", "expected"),
    [
        (Op.AUTO_CONTRAST, 0, 3168857262),
        (Op.EQUALIZE, 0, 868866439),
        (Op.INVERT, 0, 1549494536),
        (Op.ROTATE, -1769472, 2930264976),
        (Op.POSTERIZE, 2, 535706750),
        (Op.SOLARIZE, 100, 494815926),
        (Op.SOLARIZE_ADD, 90, 255833593),
        (Op.COLOR, 21845, 2303465934),
        (Op.CONTRAST, 111411, 3067604508),
        (Op.BRIGHTNESS, 98304, 4071496761),
        (Op.SHARPNESS, 117964, 3819201064),
        (Op.SHEAR_X, 16384, 3754067267),
        (Op.SHEAR_Y, -16384, 1076230310),
        (Op.TRANSLATE_X, 26291, 228166564),
        (Op.TRANSLATE_Y, -26138, 888191637),
        (Op.GRAYSCALE, 0, 3196975847),
        (Op.GAUSSIAN_BLUR, 98304, 4238983463),
    ],
)
def test_operations_are_golden(op, argument, expected):
    assert crc(apply(synthetic_image(37, 41), op, argument)) == expected


@pytest.mark.parametrize(
    ("preset", "view", "expected"),
    [
        ("deit", 0, 2828377639),
        ("deit", 1, 1210378107),
        ("deit", 2, 2270890807),
        ("deit", 3, 1096734277),
        ("deit", 4, 2050034847),
        ("deit", 5, 4146579584),
        ("deit", 6, 214738609),
        ("deit", 7, 723681886),
        ("three-augment", 0, 1375843480),
        ("three-augment", 1, 3106237933),
        ("crop-flip", 0, 493995021),
        ("center", 0, 2330726199),
    ],
)
def test_views_are_golden(preset, view, expected):
    config = replace(PRESETS[preset], image_size=64)
    image = synthetic_image(97, 131)
    params = draw_view(123456789, view, image_size(image), config)
    assert crc(apply_view(image, params, config)) == expected


def test_warm_up_changes_nothing():
    before = crc(apply(synthetic_image(9, 9), Op.ROTATE, ONE))
    augment.warm_up()
    assert crc(apply(synthetic_image(9, 9), Op.ROTATE, ONE)) == before
