"""Images as they go into shards: restart markers, and what never changes by them."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from pipeline.errors import ConfigError, PipelineError
from pipeline.shards import encoding
from pipeline.shards.encoding import Encoding, encode_image
from pipeline.shards.packing import PackConfig, pack_shards
from pipeline.views.apply import decode
from pipeline.views.restarts import read_header
from tests.factories import encode, install_jpegtran, photographs, synthetic_image
from tests.odd_images import odd_files

JPEG, PNG = (encode(synthetic_image(6, 9), kind) for kind in ("JPEG", "PNG"))
LOSSLESS = Encoding(lossless=True)
PHOTOGRAPH = photographs()[0][:90, :256]


def marked(pixels: np.ndarray, blocks: int = 4, **options: object) -> bytes:
    return encode(pixels, optimize=True, restart_marker_blocks=blocks, **options)


@given(st.integers(1, 8), st.sampled_from("<>"), st.integers(0, 400))
def test_an_orientation_is_read_as_pillow_reads_it_and_damage_is_none(value, order, end):
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F], exif[0x0112], exif[0x0131] = "maker", value, "program"
    data = encode(synthetic_image(6, 9), exif=exif.tobytes(), comment=b"before")
    assert encoding.jpeg_orientation(data) == value
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == value
    assert encoding.jpeg_orientation(data[:end]) in (1, value)
    assert encoding.jpeg_orientation(data.replace(b"II*\0", b"IX*\0")) in (1, value)


@pytest.mark.parametrize("data", [b"", JPEG[:2], JPEG, b"\xff\xd8" + b"\xff\xe1\0\0" * 9, PNG])
def test_what_says_no_orientation_has_the_first(data):
    assert encoding.jpeg_orientation(data) == 1


@given(st.integers(1, 5000), st.sampled_from([8, 16, 32]), st.integers(1, 300))
def test_pieces_divide_a_row_and_are_about_as_wide_as_asked_for_or_the_row(width, block, restart):
    blocks = encoding._blocks_of_a_piece(width, block, restart)
    in_a_row = -(-width // block)
    assert in_a_row % blocks == 0
    assert blocks == in_a_row or restart / 2 <= blocks * block <= 2 * restart
    assert encoding._blocks_of_a_piece(width, block, 0) == 0


@pytest.mark.parametrize(("width", "blocks"), [(500, 4), (333, 3), (375, 4), (496, 31), (16, 1)])
def test_usual_widths_have_pieces_of_about_64_pixels_and_prime_ones_rows(width, blocks):
    assert encoding._blocks_of_a_piece(width, 16, 64) == blocks


def test_what_is_encoded_anew_has_markers_and_the_pixels_that_it_has_without():
    data = encode(photographs()[1], "PNG")
    packed, plain = (
        encode_image(Path("a.png"), data, Encoding(max_side=400, restart=restart)).data
        for restart in (64, 0)
    )
    assert_array_equal(decode(packed, "a", 1 << 20), decode(plain, "a", 1 << 20))
    assert read_header(packed).blocks == 5  # of 25 in a row: 80 pixels
    assert read_header(plain).blocks == 0


def test_the_size_of_noise_at_the_highest_quality_is_no_obstacle():
    """Pillow gives libjpeg one buffer for all of an image whose Huffman codes are its own."""
    noise = np.random.default_rng(1).integers(0, 256, (700, 900, 3), np.uint8)
    for quality in (94, 100):
        made = encode_image(Path("a.png"), encode(noise, "PNG"), Encoding(quality=quality))
        assert decode(made.data, "a", 1 << 20).shape == noise.shape


programs = pytest.mark.parametrize(
    "program", ["stand-in", *(["jpegtran"] if shutil.which("jpegtran") else [])]
)


@programs
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2", "4:4:4"])
def test_lossless_gives_the_same_pixels_with_markers(tmp_path, monkeypatch, program, subsampling):
    data = encode(PHOTOGRAPH, quality=85, subsampling=subsampling)
    if program == "stand-in":
        answer = marked(PHOTOGRAPH, quality=85, subsampling=subsampling)
        install_jpegtran(tmp_path, monkeypatch, {data: answer})
    made = encode_image(Path("a.jpg"), data, LOSSLESS)
    assert (made.marked, made.reencoded, made.extension) == (True, False, "jpg")
    assert read_header(made.data).blocks > 0
    assert made.data != data
    assert_array_equal(decode(made.data, "a", 1 << 20), decode(data, "a", 1 << 20))


@programs
def test_lossless_leaves_alone_what_is_no_sound_jpeg(tmp_path, monkeypatch, program):
    if program == "stand-in":
        install_jpegtran(tmp_path, monkeypatch, {})
    files = odd_files() | {
        "png": encode(PHOTOGRAPH, "PNG"),
        "cmyk": encode(PHOTOGRAPH, mode="CMYK"),
    }
    files["cut"] = encode(PHOTOGRAPH)[:-100]
    for name, data in files.items():
        made = encode_image(Path("a.jpg"), data, LOSSLESS)
        assert made.data == data or (made.marked and name.startswith("good")), name


def test_a_jpeg_whose_pixels_would_change_keeps_its_bytes(tmp_path, monkeypatch):
    data = encode(PHOTOGRAPH, quality=85)
    other = PHOTOGRAPH.copy()
    other[-1, -1] ^= 0x80
    install_jpegtran(tmp_path, monkeypatch, {data: marked(other, quality=85)})
    assert encode_image(Path("a.jpg"), data, LOSSLESS).data == data


@pytest.mark.parametrize("answer", [b"", b"\xff\xd8\xff\xd9", encode(PHOTOGRAPH, quality=85)])
def test_an_answer_without_markers_is_not_taken(tmp_path, monkeypatch, answer):
    data = encode(PHOTOGRAPH, quality=85, optimize=True)
    install_jpegtran(tmp_path, monkeypatch, {data: answer})
    assert encode_image(Path("a.jpg"), data, LOSSLESS).data == data


def test_with_max_side_only_what_is_not_shrunk_is_marked_without_loss(tmp_path, monkeypatch):
    small, large = encode(PHOTOGRAPH, quality=85), encode(photographs()[0], quality=85)
    install_jpegtran(tmp_path, monkeypatch, {small: marked(PHOTOGRAPH, quality=85)})
    made = [
        encode_image(Path("a.jpg"), data, Encoding(max_side=300, lossless=True))
        for data in (small, large)
    ]
    assert [(one.marked, one.shrunk) for one in made] == [(True, False), (False, True)]
    assert all(read_header(one.data).blocks > 0 for one in made)


def test_an_absent_jpegtran_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "images" / "c"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encode(synthetic_image(20, 20)))
    config = PackConfig(images=folder.parent, out=str(tmp_path / "out"), lossless=True)
    with pytest.raises(ConfigError, match="`lossless` needs the program jpegtran"):
        pack_shards(config)
    assert not (tmp_path / "out").exists()


def test_a_jpegtran_that_does_not_end_is_ended_and_the_image_named(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_SECONDS", 0.2)
    program = install_jpegtran(tmp_path, monkeypatch, {})
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(PipelineError, match=r"a\.jpg: jpegtran is not done with it after"):
        encode_image(Path("a.jpg"), encode(PHOTOGRAPH), LOSSLESS)


def test_markers_without_a_distance_are_a_contradiction(tmp_path):
    with pytest.raises(ConfigError, match="`lossless` adds restart markers, and `restart` is 0"):
        PackConfig(images=tmp_path, out="x", lossless=True, restart=0)


def test_lossless_packing_counts_what_it_marked_and_keeps_all_else(tmp_path, monkeypatch):
    folder = tmp_path / "images" / "c"
    folder.mkdir(parents=True)
    files = {
        "a.jpg": encode(PHOTOGRAPH, quality=85),
        "b.png": encode(PHOTOGRAPH, "PNG"),
        "c.jpg": encode(PHOTOGRAPH)[:-99],
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    install_jpegtran(tmp_path, monkeypatch, {files["a.jpg"]: marked(PHOTOGRAPH, quality=85)})
    report = pack_shards(PackConfig(images=folder.parent, out=str(tmp_path / "out"), lossless=True))
    assert (report.packed, report.marked, report.reencoded) == (3, 1, 0)
    packed = report.shards[0].read_bytes()
    assert files["b.png"] in packed
    assert files["a.jpg"] not in packed


def test_texts_and_profiles_are_kept_and_pieces_are_as_wide_as_asked_for(tmp_path, monkeypatch):
    program = install_jpegtran(tmp_path, monkeypatch, {})
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/data\necho $* > {tmp_path}/words\n")
    data = encode(PHOTOGRAPH)
    assert encode_image(Path("a.jpg"), data, Encoding(lossless=True, restart=128)).data == data
    assert (tmp_path / "words").read_text() == "-copy all -optimize -restart 8B\n"
    assert (tmp_path / "data").read_bytes() == data
