from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from functools import partial
from statistics import NormalDist

import numpy as np
import PIL
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from packaging.version import Version
from PIL import Image

from pipeline.errors import REJECTION_WORDS, DecodeError, PipelineError
from pipeline.identity import PRESETS, AugmentConfig
from pipeline.records import (
    FIXED_ONE,
    AppliedOp,
    Box,
    ImageSize,
    MixKind,
    MixParams,
    Pixels,
    ViewParams,
)
from pipeline.views import apply as augment
from pipeline.views.apply import apply_op, apply_view, image_size, read_size, resize, view_digest
from pipeline.views.draw import draw_view
from tests import odd_images
from tests.factories import encode, photographs, synthetic_image
from tests.pipeline.views.plain import levels_apart

DEIT = PRESETS["deit"]
decode = partial(augment.decode, max_pixels=DEIT.max_pixels)


@pytest.fixture(params=[0, 1], ids=["china", "flower"])
def photograph(request: pytest.FixtureRequest) -> Pixels:
    return photographs()[request.param]


@pytest.fixture
def square(photograph: Pixels) -> Pixels:
    return np.ascontiguousarray(photograph[40:264, 100:324])


def whole(image: Pixels) -> Box:
    return Box(top=0, left=0, height=image.shape[0], width=image.shape[1])


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
def test_pngs_decode_to_their_colors_without_alpha(photograph, mode):
    data = encode(photograph[:40, :30], "PNG", mode=mode)
    with Image.open(io.BytesIO(data)) as image:
        assert_array_equal(decode(data, "x.png"), np.asarray(image.convert("RGB")))


def test_transparent_palette_entries_keep_their_colors():
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


def reason_of(data: bytes, max_pixels: int = DEIT.max_pixels) -> str:
    """Return the code for which an image is rejected."""
    with pytest.raises(DecodeError) as raised:
        augment.decode(data, "x", max_pixels)
    assert REJECTION_WORDS[raised.value.reason] in str(raised.value)
    assert "0x" not in str(raised.value)  # a memory address
    return raised.value.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"mode": "L"}])
def test_the_header_decides_whether_an_image_has_too_many_pixels(kind, options):
    data = encode(synthetic_image(17, 30), kind, **options)
    assert augment.decode(data, "x", 17 * 30).shape == (17, 30, 3)
    assert reason_of(data, 17 * 30 - 1) == "too-many-pixels"


def test_an_animated_image_gives_its_first_frame():
    frames = [Image.fromarray(synthetic_image(12, 14, seed)) for seed in (1, 2, 3)]
    for kind in ("WEBP", "PNG"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:], lossless=True)
        assert_array_equal(decode(file.getvalue(), "x"), np.asarray(frames[0]))
        assert reason_of(file.getvalue(), 12 * 14 - 1) == "too-many-pixels"


BOMBS = {
    "jpeg": odd_images.jpeg_of_size(13_000, 13_000),
    "jpeg of 4:4:1": odd_images.with_sampling(odd_images.jpeg_of_size(13_000, 13_000), 1, 4),
    "progressive jpeg": odd_images.jpeg_of_size(13_000, 13_000, progressive=True),
    "png": odd_images.png_of_size(20_000, 20_000),
    "lossless webp": odd_images.webp_of_size(16_384, 16_384),
    "webp's canvas": odd_images.webp_canvas(65_000, 65_000),
}

_PEAK = """
import pathlib, re, sys
from pipeline.errors import REJECTION_WORDS, DecodeError, PipelineError
from pipeline.views.apply import decode
status = pathlib.Path("/proc/self/status")  # a child's ru_maxrss begins at its parent's
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) >> 10
decode(pathlib.Path(sys.argv[1]).read_bytes(), "good", 64_000_000)
before = peak()
try:
    decode(pathlib.Path(sys.argv[2]).read_bytes(), "bomb", 64_000_000)
except DecodeError as error:
    print(error.reason, peak() - before)
"""


def test_decompression_bombs_are_rejected_in_little_memory(tmp_path):
    good = tmp_path / "good"
    good.write_bytes(encode(synthetic_image(40, 50), "WEBP"))
    for name, data in BOMBS.items():
        assert len(data) < 1500
        bomb = tmp_path / "bomb"
        bomb.write_bytes(data)
        command = [sys.executable, "-c", _PEAK, str(good), str(bomb)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        reason, megabytes = done.stdout.split()
        assert reason == "too-many-pixels", name
        assert int(megabytes) < 16, name


def test_a_header_that_lies_gives_an_error():
    small = encode(synthetic_image(8, 8), "WEBP", lossless=True)
    data = odd_images.webp_canvas(3, 3, frame=small[12:])
    assert reason_of(data) == "undecodable"
    assert reason_of(odd_images.webp_of_size(300, 300)) == "undecodable"
    assert reason_of(odd_images.png_of_size(300, 300)) == "undecodable"
    assert reason_of(odd_images.png_of_size(0, 0)) == "undecodable"
    assert reason_of(odd_images.jpeg_of_size(0, 0)) == "undecodable"


@pytest.mark.parametrize(
    "error", [KeyError(6), OSError("broken data stream"), EOFError(), struct.error("x")]
)
def test_whatever_a_decoder_raises_is_a_rejection(monkeypatch, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(augment.Image, "open", fail)
    monkeypatch.setattr(augment.simplejpeg, "decode_jpeg", fail)
    for kind in ("JPEG", "PNG", "WEBP"):
        assert reason_of(encode(synthetic_image(8, 8), kind)) == "undecodable"


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files")])
def test_a_machine_that_cannot_decode_rejects_nothing(monkeypatch, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(augment.Image, "open", fail)
    monkeypatch.setattr(augment.simplejpeg, "decode_jpeg", fail)
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encode(synthetic_image(8, 8), kind)
        with pytest.raises(
            PipelineError, match=r"^a\.jpg.*(Too many open|not enough mem)"
        ) as found:
            decode(data, "a.jpg")
        assert not isinstance(found.value, DecodeError)
        if kind != "WEBP":  # whose header is read here
            with pytest.raises(PipelineError) as found:
                read_size(data, "a.jpg")
            assert not isinstance(found.value, DecodeError)


_SHORT = """
import pathlib, re, resource, sys
from PIL import Image
from pipeline.errors import PipelineError
from pipeline.views.apply import decode
Image.init()
data = pathlib.Path(sys.argv[1]).read_bytes()
found = decode(data, "x", 10**7).tobytes()
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
for more in range(0, 96 << 20, 3 << 20):  # a rejection ends it
    # Read each time: libwebp keeps what it got before it failed.
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        pixels = decode(data, "x", 10**7)
    except PipelineError as error:
        assert type(error) is PipelineError, (more, repr(error.__cause__))
        print("short")
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
assert pixels.tobytes() == found
"""


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {"progressive": True}), ("WEBP", {})],
)
def test_too_little_memory_is_never_taken_for_damage(tmp_path, kind, options):
    path = tmp_path / "image"
    path.write_bytes(encode(synthetic_image(1000, 1000), kind, **options))
    command = [sys.executable, "-c", _SHORT, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "short" in done.stdout


@pytest.mark.parametrize(("horizontal", "vertical"), [(1, 4), (1, 2), (4, 1), (2, 1), (2, 2)])
def test_jpegs_of_every_sampling_decode_as_pillow_decodes_them(horizontal, vertical):
    # The samplings that Pillow does not write, 4:4:1 among them, are made by patching a header.
    data = odd_images.with_sampling(encode(synthetic_image(32, 32)), horizontal, vertical)
    with Image.open(io.BytesIO(data)) as image:
        assert_array_equal(decode(data, "x"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["I;16", "RGB;16", "LA;16", "RGBA;16"])
def test_of_16_bits_a_channel_the_upper_8_stay(mode):
    words = synthetic_image(9, 11).astype(np.uint16) * 256 + synthetic_image(9, 11, 2)
    channels = {"I;16": 1, "LA;16": 2, "RGB;16": 3, "RGBA;16": 4}[mode]
    data = odd_images.png_of_16_bits(np.concatenate([words, words], axis=2)[..., :channels])
    expected = words >> 8 if channels > 2 else np.repeat(words[..., :1] >> 8, 3, axis=2)
    assert_array_equal(decode(data, "x"), expected)


def test_images_are_rejected_for_what_their_bytes_are():
    good = encode(synthetic_image(30, 30))
    assert reason_of(b"") == "empty"
    assert reason_of(b"<!DOCTYPE html><html></html>") == "unknown-format"
    assert reason_of(encode(synthetic_image(8, 8), "GIF")) == "unknown-format"
    assert reason_of(good[: len(good) // 2]) == "undecodable"


# ------------------------------------------------------------------------- resizing


# Before Pillow 13 it rounded otherwise there.
LARGER = 0.01 if Version(PIL.__version__) >= Version("13") else 0.19


@pytest.mark.parametrize(
    ("height", "width", "differing"),
    [(427, 640, 0.16), (400, 301, LARGER), (100, 90, 0.04), (30, 20, 0.04), (224, 224, 0.0)],
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


def test_erasing_noise_is_standard_normal_once_normalized():
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
    position=st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2)),
    change=st.integers(1, 255),
    mix=mixes,
)
def test_a_digest_changes_with_any_pixel(pixels, position, change, mix):
    changed = pixels.copy()
    changed[position] ^= change
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
    image, rotation = synthetic_image(9, 9), AppliedOp(op="rotate", argument=FIXED_ONE)
    before = crc(apply_op(image, rotation, DEIT))
    augment.warm_up()
    assert crc(apply_op(image, rotation, DEIT)) == before


@pytest.mark.parametrize("side", [1100, 1000])  # the smaller has less than a megabyte and megapixel
def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    def refuse(_: object) -> None:
        raise ValueError

    file = io.BytesIO()
    Image.new("RGB", (side, 1000), (200, 30, 90)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rfind(b"\xff\xda")
    augment.decode(data[:-2] + data[last:-2] * 50 + data[-2:], "some", 1 << 26)
    bad = data[:-2] + data[last:-2] * 9000 + data[-2:]
    assert len(bad) < 1 << 20
    monkeypatch.setattr(augment.simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decodes"))
    for decoder in (augment.simplejpeg.decode_jpeg_header, None):  # and where Pillow is left
        if decoder is None:
            monkeypatch.setattr(augment.simplejpeg, "decode_jpeg_header", refuse)
        with pytest.raises(DecodeError, match="undecodable") as caught:
            augment.decode(bad, "bad", 1 << 26)
        assert "too many scans" in str(caught.value.__cause__)
