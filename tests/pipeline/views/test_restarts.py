"""Smaller JPEGs, of pieces or of the upper rows: the same pixels, whatever is in a file."""

from __future__ import annotations

import math
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from pipeline.errors import DecodeError
from pipeline.identity import AugmentConfig
from pipeline.records import Box, ImageSize, Pixels, ViewParams
from pipeline.views import regions
from pipeline.views.apply import decode, image_size
from pipeline.views.regions import EncodedImage
from pipeline.views.restarts import SmallerJpeg, join_pieces, read_header, shorten
from tests.factories import encode, photographs
from tests.odd_images import jpeg_of_size, odd_files, with_sampling

MOST = 1 << 20
SAMPLINGS = ("4:2:0", "4:2:2", "4:4:4", "4:4:0", "4:1:1", "gray")


def marked(height: int, width: int, sampling: str, quality: int, blocks: int) -> bytes:
    """Return a JPEG of a part of a photograph with a restart marker after so many blocks, 0: none.

    Pillow writes no 4:4:0 and 4:1:1. But a block of these has the parts of one of 4:2:2 or 4:2:0:
    under another header that is a picture too, though a jumbled one.
    """
    image = photographs()[0]
    options = {"quality": quality, "restart_marker_blocks": blocks}
    if sampling == "gray":
        return encode(image[:height, :width], mode="L", **options)
    if sampling == "4:4:0":  # blocks of 16 x 8 pixels, not 8 x 16
        whole = image[: 8 * math.ceil(height / 16), : 16 * math.ceil(width / 8)]
        written, factors = "4:2:2", (1, 2)
    elif sampling == "4:1:1":  # of 8 x 32, not 16 x 16
        whole = image[: 16 * math.ceil(height / 8), : 16 * math.ceil(width / 32)]
        written, factors = "4:2:0", (4, 1)
    else:
        return encode(image[:height, :width], subsampling=sampling, **options)
    data = bytearray(with_sampling(encode(whole, subsampling=written, **options), *factors))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def blocks_in_a_row(width: int, sampling: str) -> int:
    return math.ceil(width / {"4:2:0": 16, "4:2:2": 16, "4:1:1": 32}.get(sampling, 8))


@st.composite
def crops(draw: st.DrawFn) -> tuple[bytes, Box]:
    height, width = draw(st.integers(1, 130)), draw(st.integers(1, 130))
    sampling = draw(st.sampled_from(SAMPLINGS))
    in_a_row = blocks_in_a_row(width, sampling)
    pieces = [n for n in range(1, in_a_row + 1) if in_a_row % n == 0]
    blocks = draw(st.just(0) | st.sampled_from(pieces))
    box_height, box_width = draw(st.integers(1, height)), draw(st.integers(1, width))
    box = Box(
        top=draw(st.integers(0, height - box_height)),
        left=draw(st.integers(0, width - box_width)),
        height=box_height,
        width=box_width,
    )
    return marked(height, width, sampling, draw(st.integers(5, 98)), blocks), box


def cut(pixels: Pixels, box: Box) -> Pixels:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def view_of(box: Box) -> ViewParams:
    return ViewParams(crop=box, hflip=False, ops=(), erase=None, erase_noise=0)


def decode_crop(data: bytes, box: Box, worth: int = 0) -> Pixels:
    image = EncodedImage(data=data, name="a.jpg", max_pixels=MOST, worth=worth)
    pixels, params = image.decode_for(lambda size: view_of(box))
    return cut(pixels, params.crop)


def smaller_jpeg(data: bytes, box: Box) -> SmallerJpeg | None:
    header = read_header(data)
    return (join_pieces if header.blocks else shorten)(data, header, box, 0)


def decoded(smaller: SmallerJpeg) -> Pixels:
    """Return the pixels of a smaller JPEG by a decoder that does not mind what comes behind."""
    return simplejpeg.decode_jpeg(
        smaller.data, "RGB", fastdct=False, fastupsample=False, strict=False
    )


@given(crops())
@settings(max_examples=600)
def test_a_crop_has_the_pixels_of_the_whole_image_whatever_its_sampling(case):
    data, box = case
    whole = decode(data, "a.jpg", MOST)
    assert_array_equal(decode_crop(data, box), cut(whole, box))
    smaller = smaller_jpeg(data, box)
    if smaller is None:  # without markers, where its last rows are needed
        assert not read_header(data).blocks
        assert box.top + box.height + 32 > whole.shape[0]
        return
    found = decoded(smaller)
    moved = replace(box, top=box.top - smaller.box.top, left=box.left - smaller.box.left)
    assert_array_equal(cut(found, moved), cut(whole, box))
    assert len(smaller.data) <= len(data)
    assert found.shape[:2] == (smaller.box.height, smaller.box.width)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_case_that_a_sampling_is_for_is_decoded_as_such(sampling):
    """Else the test above would compare other files than it says."""
    data = marked(100, 90, sampling, 80, 1)
    _, _, space, found = simplejpeg.decode_jpeg_header(data)
    assert (found, space) == (
        ("Gray", "Gray") if sampling == "gray" else (sampling.replace(":", ""), "YCbCr")
    )


def test_no_more_is_decoded_than_the_pieces_around_the_crop():
    data = marked(400, 512, "4:2:0", 90, 4)
    header = read_header(data)
    joined = join_pieces(data, header, Box(top=100, left=200, height=50, width=60), 0)
    assert joined.box == Box(top=96, left=192, height=64, width=128)
    assert len(joined.data) < len(data) / 4


@pytest.mark.parametrize(("bottom", "rows"), [(1, 16), (15, 16), (16, 32), (31, 32), (47, 48)])
def test_without_markers_no_row_is_decoded_below_the_crop_and_a_pixel_more(bottom, rows):
    data = marked(64, 128, "4:2:0", 90, 0)
    image = EncodedImage(data=data, name="", max_pixels=MOST, worth=0)
    box = Box(top=bottom - 1, left=100, height=1, width=20)
    pixels, params = image.decode_for(lambda size: view_of(box))
    assert pixels.shape == (rows, 128, 3)
    assert params.crop == box
    assert_array_equal(pixels[:bottom], decode(data, "", MOST)[:bottom])


def test_one_pixel_more_on_each_side_is_needed_and_taken():
    data = marked(64, 128, "4:2:0", 90, 1)
    header = read_header(data)
    for box in (
        Box(top=16, left=16, height=16, width=16),
        Box(top=17, left=17, height=14, width=14),
    ):
        found = join_pieces(data, header, box, 0).box
        side = 48 if box.top == 16 else 16
        assert (found.height, found.width) == (side, side)


def test_a_rim_of_less_than_three_samples_of_chroma_is_not_decoded_alone():
    data = marked(33, 34, "4:2:0", 90, 1)
    found = join_pieces(data, read_header(data), Box(top=33 - 1, left=34 - 1, height=1, width=1), 0)
    assert found.box == Box(top=16, left=16, height=17, width=18)


def changed(data: bytes, marker: int, offset: int, value: int) -> bytes:
    """Return a JPEG with another byte so many behind its first marker of a kind."""
    changed = bytearray(data)
    changed[changed.index(bytes((0xFF, marker))) + offset] = value
    return bytes(changed)


DATA = marked(100, 128, "4:2:0", 80, 2)
PLAIN = marked(100, 128, "4:2:0", 80, 0)

NOT_TAKEN_APART = {
    "progressive": encode(photographs()[0][:100, :128], progressive=True, restart_marker_blocks=2),
    "cmyk": encode(photographs()[0][:100, :128], mode="CMYK", restart_marker_blocks=2),
    "4:4:1": with_sampling(DATA, 1, 4),
    "4:1:0": with_sampling(DATA, 4, 2),
    "no sampling": with_sampling(DATA, 0, 0),
    "pieces that leave a row": marked(100, 128, "4:2:0", 80, 3),
    "extended": changed(DATA, 0xC0, 1, 0xC1),
    "arithmetic": changed(DATA, 0xC0, 1, 0xC9),
    "12 bits": changed(DATA, 0xC0, 4, 12),
    "no height": changed(changed(DATA, 0xC0, 5, 0), 0xC0, 6, 0),
    "no width": changed(DATA, 0xC0, 8, 0),
    "chroma of its own": changed(DATA, 0xC0, 14, 0x21),
    "two components": changed(DATA, 0xC0, 9, 2),
    "four components": changed(DATA, 0xC0, 9, 4),
    "a scan of one component": changed(DATA, 0xDA, 4, 1),
    "a scan of some coefficients": changed(DATA, 0xDA, 12, 62),
    "a short interval": changed(DATA, 0xDD, 3, 3),
    "a length beyond the end": changed(DATA, 0xDB, 2, 0xFF),
    "a length of nothing": changed(changed(DATA, 0xDB, 2, 0), 0xDB, 3, 0),
    "no marker": changed(DATA, 0xDB, 0, 0xFE),
    "two frames": DATA[:2] + DATA[DATA.index(b"\xff\xc0") :][:19] + DATA[2:],
    "a frame behind the scan": DATA.replace(DATA[DATA.index(b"\xff\xc0") :][:19], b""),
    "a height behind the scan": DATA[:2] + b"\xff\xdc\x00\x04\x00\x64" + DATA[2:],
    "nothing": b"\xff\xd8",
    "less than nothing": b"",
}


@pytest.mark.parametrize("name", NOT_TAKEN_APART)
def test_what_is_not_known_to_give_the_same_pixels_is_not_taken_apart(name):
    assert read_header(NOT_TAKEN_APART[name]) is None


def test_the_file_that_these_were_made_of_is_taken_apart_and_no_beginning_of_its_header():
    first = read_header(DATA).first
    assert not any(read_header(DATA[:end]) for end in range(first))
    assert (
        join_pieces(DATA, read_header(DATA), Box(top=0, left=0, height=9, width=9), 0) is not None
    )


def markers_of(data: bytes) -> list[int]:
    first = read_header(data).first
    return [
        at
        for at in range(first, len(data) - 1)
        if data[at] == 0xFF and data[at + 1] not in (0, 0xFF)
    ]


@pytest.mark.parametrize("number", [0, 1, 7, 8, -2, -1])
@pytest.mark.parametrize("change", ["other", "gone", "twice", "no restart"])
def test_markers_that_are_not_counted_as_they_should_be_are_not_followed(number, change):
    at = markers_of(DATA)[number]
    kind = DATA[at + 1]
    wrong = {
        "other": bytes((0xFF, 0xD0 + (kind + 1) % 8)),
        "gone": b"",
        "twice": DATA[at : at + 2] * 2,
        "no restart": b"\xff\xc4",
    }[change]
    data = DATA[:at] + wrong + DATA[at + 2 :]
    box = Box(top=0, left=0, height=9, width=9)
    header = read_header(data)
    if (number, change) == (-1, "twice"):
        assert join_pieces(data, header, box, 0) is not None  # bytes behind the end, as any
        return
    assert join_pieces(data, header, box, 0) is None
    assert outcome(lambda: decode_crop(data, box)) == outcome(
        lambda: cut(decode(data, "a.jpg", MOST), box)
    )


def outcome(make: Callable[[], Pixels]) -> tuple[object, ...]:
    """Return pixels, or why there are none, so that two ways can be compared."""
    try:
        pixels = make()
    except DecodeError as error:
        return str(error), error.reason
    return pixels.shape, pixels.tobytes()


def test_markers_that_the_header_denies_are_found_by_the_decoder():
    data = changed(DATA, 0xDD, 5, 0)
    assert not read_header(data).blocks
    box = Box(top=40, left=0, height=9, width=9)
    assert shorten(data, read_header(data), box, 0) is not None
    assert outcome(lambda: decode_crop(data, box)) == outcome(
        lambda: cut(decode(data, "a.jpg", MOST), box)
    )


@pytest.mark.parametrize("behind", [b"", b"\xff\xd0", b"\xff\xda\x00\x08", b"\xff\xff", b"x"])
def test_a_file_without_its_end_is_decoded_or_refused_as_a_whole(behind):
    box = Box(top=0, left=0, height=9, width=9)
    for end in (len(PLAIN) - 2, len(PLAIN) // 2):
        data = PLAIN[:end] + behind
        assert outcome(lambda data=data: decode_crop(data, box)) == outcome(
            lambda data=data: cut(decode(data, "a.jpg", MOST), box)
        )


@pytest.mark.parametrize("sound", [DATA, PLAIN], ids=["markers", "none"])
@given(
    st.lists(st.tuples(st.integers(2, 1 << 20), st.integers(0, 255)), min_size=1, max_size=3),
    st.integers(0, 90),
    st.integers(0, 100),
)
@settings(max_examples=400)
def test_a_damaged_file_gives_the_pixels_of_a_full_decode_or_of_its_sound_part(
    sound, damage, top, left
):
    """Whatever bytes change, nothing else is raised, and no other pixels are given."""
    changed = bytearray(sound)
    for at, value in damage:
        changed[at % len(changed)] = value
    data = bytes(changed)

    def box_in(size: ImageSize) -> Box:
        top_row, left_column = min(top, size.height - 1), min(left, size.width - 1)
        height, width = min(10, size.height - top_row), min(20, size.width - left_column)
        return Box(top=top_row, left=left_column, height=height, width=width)

    def decode_both() -> tuple[tuple[object, ...], tuple[object, ...]]:
        image = EncodedImage(data=data, name="a.jpg", max_pixels=MOST, worth=0)

        def region() -> Pixels:
            pixels, params = image.decode_for(lambda size: view_of(box_in(size)))
            return cut(pixels, params.crop)

        def whole() -> Pixels:
            pixels = image.decode()
            return cut(pixels, box_in(image_size(pixels)))

        return outcome(region), outcome(whole)

    ours, full = decode_both()
    # Damage elsewhere makes a whole image undecodable, which a region does not see.
    assert ours == full or full[1] == "undecodable"


def test_a_header_that_promises_more_pieces_than_there_are_bytes_asks_for_no_memory():
    data = changed(DATA, 0xDD, 5, 1)
    frame = data.index(b"\xff\xc0")
    data = data[: frame + 5] + b"\xff\xff\xff\xff" + data[frame + 9 :]
    header = read_header(data)
    assert header.size == ImageSize(height=65535, width=65535)
    tracemalloc.start()
    assert join_pieces(data, header, Box(top=0, left=0, height=1, width=1), 0) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(data)


@pytest.mark.parametrize("data", [DATA, PLAIN], ids=["markers", "none"])
def test_more_pixels_than_allowed_are_refused_before_pieces_are_looked_for(data):
    image = EncodedImage(data=data, name="a.jpg", max_pixels=100 * 128 - 1, worth=0)
    with pytest.raises(DecodeError, match="too-many-pixels"):
        image.decode_for(lambda size: view_of(Box(top=0, left=0, height=9, width=9)))
    with pytest.raises(DecodeError, match="too-many-pixels"):
        image.decode()
    bomb = EncodedImage(data=jpeg_of_size(60_000, 60_000), name="b.jpg", max_pixels=MOST, worth=0)
    with pytest.raises(DecodeError, match="too-many-pixels"):
        bomb.decode_for(lambda size: view_of(Box(top=0, left=0, height=9, width=9)))


@pytest.mark.parametrize("blocks", [4, 0])
def test_all_is_decoded_where_less_would_not_pay(monkeypatch, blocks):
    def fail(*args: object, **options: object) -> None:
        raise AssertionError

    data = marked(200, 256, "4:2:0", 80, blocks)
    assert regions._passes_over_the_rest()
    large, small = (Box(top=0, left=0, height=side, width=side) for side in (190, 20))
    monkeypatch.setattr(regions, "simplejpeg", fail)  # which ``decode`` does not use
    assert_array_equal(decode_crop(data, large, 1 << 14), cut(decode(data, "", MOST), large))
    with pytest.raises(AttributeError):
        decode_crop(data, small, 1 << 14)


def test_a_decoder_that_refuses_the_smaller_file_or_gives_another_size_is_not_believed(monkeypatch):
    box = Box(top=30, left=30, height=9, width=9)
    whole = cut(decode(DATA, "", MOST), box)

    class Broken:
        answer: Pixels | None = None

        def decode_jpeg(self, *args: object, **options: object) -> Pixels:
            if self.answer is None:
                raise ValueError("no")
            return self.answer

    monkeypatch.setattr(regions, "simplejpeg", Broken())
    assert_array_equal(decode_crop(DATA, box), whole)
    monkeypatch.setattr(Broken, "answer", np.zeros((8, 8, 3), np.uint8))
    assert_array_equal(decode_crop(DATA, box), whole)


@pytest.mark.parametrize("complaint", ["", "Corrupt JPEG data: premature end of data segment"])
def test_a_shortened_file_is_believed_with_the_complaint_of_its_rest_alone(monkeypatch, complaint):
    box = Box(top=30, left=30, height=9, width=9)
    assert regions._passes_over_the_rest()

    class Broken:
        def decode_jpeg(self, *args: object, buffer: Pixels, **options: object) -> Pixels:
            buffer[:] = 0
            if complaint:
                raise ValueError(complaint)
            return buffer

    monkeypatch.setattr(regions, "simplejpeg", Broken())
    assert_array_equal(decode_crop(PLAIN, box), cut(decode(PLAIN, "", MOST), box))


def test_a_decoder_that_leaves_the_rows_out_when_it_complains_is_given_whole_images(monkeypatch):
    box = Box(top=30, left=30, height=9, width=9)

    class Careful:
        """Writes into memory of its own first."""

        encode_jpeg = staticmethod(simplejpeg.encode_jpeg)

        def decode_jpeg(self, data: object, *args: object, buffer: Pixels | None = None, **options):
            found = simplejpeg.decode_jpeg(data, *args, **options)
            if buffer is not None:
                buffer[:] = found
            return found

    monkeypatch.setattr(regions, "simplejpeg", Careful())
    regions._passes_over_the_rest.cache_clear()
    try:
        assert not regions._passes_over_the_rest()
        image = EncodedImage(data=PLAIN, name="", max_pixels=MOST, worth=0)
        pixels, _ = image.decode_for(lambda size: view_of(box))
        assert_array_equal(pixels, decode(PLAIN, "", MOST))
    finally:
        regions._passes_over_the_rest.cache_clear()


@pytest.mark.parametrize("name", odd_files())
def test_odd_files_are_decoded_or_refused_as_ever(name):
    image = EncodedImage(data=odd_files()[name], name=name, max_pixels=MOST, worth=0)
    box = Box(top=0, left=0, height=1, width=1)

    def region() -> Pixels:
        pixels, params = image.decode_for(lambda size: view_of(box))
        return cut(pixels, params.crop)

    assert outcome(region) == outcome(lambda: cut(image.decode(), box))


@pytest.mark.parametrize("data", [DATA, PLAIN], ids=["markers", "none"])
def test_the_size_that_a_view_is_drawn_for_is_that_of_the_whole_image(data):
    drawn = []
    image = EncodedImage(data=data, name="", max_pixels=AugmentConfig().max_pixels, worth=0)
    image.decode_for(
        lambda size: drawn.append(size) or view_of(Box(top=0, left=0, height=5, width=5))
    )
    assert drawn == [ImageSize(height=100, width=128)]
