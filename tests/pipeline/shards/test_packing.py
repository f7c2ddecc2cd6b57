from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
import tarfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import commands as cli
from pipeline.errors import ConfigError, PipelineError, ShardError
from pipeline.records import Pixels
from pipeline.shards import packing
from pipeline.shards.index import Shard, open_shard
from pipeline.shards.packing import PackConfig, pack_shards
from pipeline.views.apply import decode
from tests.factories import encode, photographs, synthetic_image

TORN = encode(synthetic_image(99, 99))[:-300]  # its header is whole
NO_IMAGES = (
    (".jpg", b""),
    (".JPG", b"<!DOCTYPE html><html><body>404</body></html>"),
    (".jpeg", b"\xff\xd8"),
    (".jpg", TORN[:100]),
    (".jpg", encode(synthetic_image(6, 9), "GIF")),
    (".png", b"\x89PNG\r\n\x1a\n" + bytes(9)),
    (".webp", encode(synthetic_image(6, 9), "WEBP")[:25]),
)


def write_folder(root: Path, names: dict[str, list[str]]) -> Path:
    """Write a small image, different for each, under every name of every class."""
    seed = 0
    for class_name, files in names.items():
        (root / class_name).mkdir(parents=True, exist_ok=True)
        for name in files:
            path = root / class_name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            seed += 1
            kind = {".png": "PNG", ".webp": "WEBP"}.get(path.suffix.lower(), "JPEG")
            path.write_bytes(encode(synthetic_image(6, 9, seed), kind))
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = {name: [f"{i}.jpg" for i in range(6)] for name in ("cat", "ape", "dog")}
    return write_folder(tmp_path / "images", names)


def pack(folder: Path, out: Path, **options: object) -> packing.PackReport:
    return pack_shards(PackConfig(images=folder, out=out, **options))


def encode_packed(pixels: Pixels, quality: int, blocks: int) -> bytes:
    """Return a JPEG as it is packed, with a restart marker after so many blocks."""
    options = {"optimize": True, "restart_marker_blocks": blocks}
    return encode(pixels, quality=quality, subsampling="4:2:0", **options)


def open_all(report: packing.PackReport) -> list[Shard]:
    return [open_shard(path, number) for number, path in enumerate(report.shards)]


def samples_of(report: packing.PackReport) -> dict[str, tuple[int, bytes]]:
    """Return key -> (target, image bytes) over all shards."""
    return {
        sample.key: (sample.target, bytes(shard.image_bytes(index)))
        for shard in open_all(report)
        for index, sample in enumerate(shard.samples)
    }


def test_an_image_of_holes_that_would_take_all_memory_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    os.truncate(folder / "ape" / "3.jpg", 1 << 40)  # it takes no disk
    with pytest.raises(PipelineError, match=r"3\.jpg has 1099511627776 bytes, and an image"):
        pack(folder, tmp_path / "shards")


def test_every_image_is_packed_once_with_its_class_and_its_own_bytes(folder, tmp_path):
    report = pack(folder, tmp_path / "shards", per_shard=5)
    expected = {
        f"{path.parent.name}_{path.stem}": (
            ("ape", "cat", "dog").index(path.parent.name),
            path.read_bytes(),
        )
        for path in folder.rglob("*.jpg")
    }
    assert samples_of(report) == expected
    assert report.classes == ("ape", "cat", "dog")
    assert json.loads((tmp_path / "shards" / "classes.json").read_text()) == ["ape", "cat", "dog"]
    assert (report.read, report.packed, report.passed_over) == (18, 18, ())


def test_the_same_images_and_seed_give_the_same_bytes(folder, tmp_path):
    copy = tmp_path / "elsewhere"
    for path in sorted(folder.rglob("*.jpg"), reverse=True):  # another order, other times
        target = copy / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o600)
        os.utime(target, (1, 1))
    one = pack(folder, tmp_path / "one", per_shard=4, max_side=7)
    two = pack(copy, tmp_path / "two", per_shard=4, max_side=7)
    assert [path.read_bytes() for path in one.shards] == [path.read_bytes() for path in two.shards]


def test_another_seed_gives_another_order_of_the_same_samples(folder, tmp_path):
    one = pack(folder, tmp_path / "one", seed=0)
    two = pack(folder, tmp_path / "two", seed=1)
    assert list(samples_of(one)) != list(samples_of(two))
    assert samples_of(one) == samples_of(two)


def test_a_folder_with_a_part_of_the_classes_is_packed_in_the_order_of_all(folder, tmp_path):
    pack(folder, tmp_path / "train")
    part = write_folder(tmp_path / "part", {"dog": ["7.jpg"], "ape": ["8.jpg"]})
    (part / "cat").mkdir()  # empty, and takes no index
    report = pack(part, tmp_path / "val", classes=str(tmp_path / "train"))
    assert (report.classes, report.absent) == (("ape", "cat", "dog"), ("cat",))
    targets = {key: target for key, (target, _) in samples_of(report).items()}
    assert targets == {"ape_8": 0, "dog_7": 2}
    names = [(tmp_path / one / "classes.json").read_bytes() for one in ("train", "val")]
    assert names[0] == names[1]


def test_parts_of_a_folder_have_each_image_once_whatever_else_there_is(folder, tmp_path):
    whole = samples_of(pack(folder, tmp_path / "whole"))
    bounds = (0.0, 0.3, 0.8, 1.0)
    reports = [
        pack(folder, tmp_path / str(low), part=(low, high), classes=str(folder))
        for low, high in pairwise(bounds)
    ]
    parts = [samples_of(report) for report in reports]
    assert sum(map(len, parts)) == len(whole)
    assert {key: one for part in parts for key, one in part.items()} == whole
    assert [report.read for report in reports] == [len(part) for part in parts]
    again = pack(folder, tmp_path / "again", part=(0.3, 0.8), classes=str(folder))
    assert samples_of(again) == parts[1]


@pytest.mark.parametrize("count", [1, 2, 5, 6, 20, 33])
def test_a_part_has_its_share_of_each_class_to_half_an_image(tmp_path, count):
    names = {
        name: [f"{i}.jpg" for i in range(count)] + [f"{i}.txt" for i in range(7)]
        for name in ("cat", "ape")
    }
    folder = write_folder(tmp_path / "images", names)
    for low, high in ((0, 0.8), (0, 0.25)):
        config = PackConfig(images=folder, out="x", part=(low, high))
        taken = packing._part_of(packing._files_below(folder), config)
        for name in names:
            images = [path for path in taken if path.match(f"{name}/*.jpg")]
            assert abs(len(images) - (high - low) * count) <= 0.5


def test_a_new_image_moves_no_more_than_one_of_its_class_over_a_border(tmp_path):
    names = {name: [f"{i}.jpg" for i in range(23)] for name in ("cat", "ape")}
    folder = write_folder(tmp_path / "images", names)

    def trained() -> set[Path]:
        config = PackConfig(images=folder, out="x", part=(0, 0.8))
        return set(packing._part_of(packing._files_below(folder), config))

    before = trained()
    for number in range(40):
        shutil.copy(folder / "cat" / "0.jpg", folder / "cat" / f"new-{number}.jpg")
        after = trained()
        new = {folder / "cat" / f"new-{number}.jpg"}
        moved = (after ^ before) - new
        assert len(moved) <= 1
        assert {path.parent.name for path in moved} <= {"cat"}
        before = after


def test_a_class_that_the_list_does_not_have_is_refused(folder, tmp_path):
    (tmp_path / "names.txt").write_text("ape\ncat\n")
    with pytest.raises(ConfigError, match=r"has the class 'dog', which `classes` .*names\.txt"):
        pack(folder, tmp_path / "shards", classes=str(tmp_path / "names.txt"))
    (tmp_path / "names.txt").write_text("ape\ncat\ndog\ncat\n")
    with pytest.raises(ConfigError, match="'cat' more than once"):
        pack(folder, tmp_path / "shards", classes=str(tmp_path / "names.txt"))


@pytest.mark.parametrize(
    "names",
    [
        {"train": ["cat/1.jpg", "dog/2.jpg"], "val": ["cat/3.jpg", "dog/4.jpg"]},
        {"Training": ["cat/1.jpg"], "extra": ["cat/3.jpg"]},
        {"train": ["cat/1.jpg"], "test": ["2.jpg"]},
        {"train": ["cat/1.jpg"]},
    ],
)
def test_data_sets_are_not_taken_for_classes(tmp_path, names):
    folder = write_folder(tmp_path / "images", names)
    with pytest.raises(ConfigError, match=r"data sets and not classes: pack .*images/[tT]rain"):
        pack(folder, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_a_class_may_be_called_train_and_a_class_may_have_directories(tmp_path):
    names = {"train": ["1.jpg", "steam/2.jpg"], "bus": ["3.jpg"]}
    report = pack(write_folder(tmp_path / "a", names), tmp_path / "1")
    assert report.classes == ("bus", "train")
    nested = {"n1": ["images/1.jpg"], "n2": ["images/2.jpg"]}
    assert pack(write_folder(tmp_path / "b", nested), tmp_path / "2").classes == ("n1", "n2")
    only = write_folder(tmp_path / "c", {"train": ["steam/2.jpg"]})
    assert pack(only, tmp_path / "3", classes=str(tmp_path / "1")).absent == ("bus",)


def test_a_directory_whose_name_is_no_line_is_refused(tmp_path):
    folder = write_folder(tmp_path / "images", {"ca\nt": ["1.jpg"]})
    with pytest.raises(ConfigError, match=r"names class 0 'ca\\nt'"):
        pack(folder, tmp_path / "shards")


def test_shards_are_shuffled_over_classes(folder, tmp_path):
    first = open_all(pack(folder, tmp_path / "shards", per_shard=9))[0]
    assert len({sample.target for sample in first.samples}) == 3


def test_the_order_is_golden(folder, tmp_path):
    (shard,) = open_all(pack(folder, tmp_path / "shards"))
    assert [sample.key for sample in shard.samples][:6] == [
        "ape_0",
        "cat_2",
        "ape_3",
        "cat_0",
        "ape_4",
        "ape_5",
    ]


@pytest.mark.parametrize(
    ("count", "per_shard", "sizes"),
    [
        (1, 5, [1]),
        (2, 2, [2]),
        (3, 2, [3]),
        (5, 5, [5]),
        (6, 5, [6]),
        (7, 5, [5, 2]),
        (11, 5, [5, 6]),
        (12, 5, [5, 5, 2]),
    ],
)
def test_a_shard_of_one_sample_is_avoided(tmp_path, count, per_shard, sizes):
    folder = write_folder(tmp_path / "images", {"a": [f"{i}.jpg" for i in range(count)]})
    report = pack(folder, tmp_path / "shards", per_shard=per_shard)
    assert [shard.info.samples for shard in open_all(report)] == sizes
    assert [path.name for path in report.shards] == [
        f"shard-{number:06d}.tar" for number in range(len(sizes))
    ]


def test_keys_carry_the_class_once_and_no_dots_and_extensions_are_normalized(tmp_path):
    names = {"n01.x": ["n01.x_7.JPEG", "8.a.jpeg", "deep/er/9.PNG", "10.WebP", "n01_11.JPG"]}
    folder = write_folder(tmp_path / "images", names)
    shards = open_all(pack(folder, tmp_path / "shards"))
    assert sorted(sample.image_name for shard in shards for sample in shard.samples) == [
        "n01_x_10.webp",
        "n01_x_7.jpg",
        "n01_x_8_a.jpg",
        "n01_x_9.png",
        "n01_x_n01_11.jpg",
    ]


@pytest.mark.parametrize(
    "names",
    [["1.jpg", "1.png"], ["1.jpg", "1.JPG"], ["a.b.jpg", "a_b.jpg"], ["x/1.jpg", "y/1.jpg"]],
)
def test_two_images_of_one_key_are_refused_by_name(tmp_path, names):
    folder = write_folder(tmp_path / "images", {"c": names})
    with pytest.raises(ShardError) as caught:
        pack(folder, tmp_path / "shards")
    assert all(str(folder / "c" / name) in str(caught.value) for name in names)


def test_long_and_foreign_names_survive(tmp_path):
    names = ["x" * 200 + ".jpg", "été 猫.jpg"]
    folder = write_folder(tmp_path / "images", {"c": names})
    assert set(samples_of(pack(folder, tmp_path / "shards"))) == {"c_" + "x" * 200, "c_été 猫"}


def test_files_that_are_no_images_are_counted_and_listed(folder, tmp_path):
    others = ["README.txt", "cat/list.csv", "cat/._0.jpg", ".thumbnails/1.jpg", "dog/noextension"]
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    report = pack(folder, tmp_path / "shards")
    assert set(report.passed_over) == {folder / name for name in others}
    assert report.classes == ("ape", "cat", "dog")
    assert report.read == report.packed + len(report.passed_over) == 18 + 5


def test_only_images_beyond_max_side_are_shrunk(tmp_path):
    folder = tmp_path / "images"
    (folder / "c").mkdir(parents=True)
    china = photographs()[0]
    large = folder / "c" / "large.png"
    large.write_bytes(encode(china, "PNG", mode="RGBA"))
    small = folder / "c" / "small.webp"
    small.write_bytes(encode(china[:100, :80], "WEBP"))
    report = pack(folder, tmp_path / "shards", max_side=100)
    found = samples_of(report)
    assert report.shrunk == 1
    assert found["c_small"][1] == small.read_bytes()
    (shard,) = open_all(report)
    assert {sample.image_name for sample in shard.samples} == {"c_large.jpg", "c_small.webp"}
    pixels = decode(found["c_large"][1], "large", 1 << 20)
    assert pixels.shape == (67, 100, 3)
    twin = np.asarray(Image.fromarray(china).resize((100, 67), Image.Resampling.BICUBIC))
    assert found["c_large"][1] == encode_packed(twin, 90, blocks=7)


def test_with_a_quality_every_image_is_encoded_anew_unless_that_makes_it_larger(tmp_path):
    folder = tmp_path / "images"
    (folder / "c").mkdir(parents=True)
    china = photographs()[0][:120, :150]
    files = {
        "fine.jpg": encode(china, quality=97),
        "coarse.jpg": encode(china, quality=20, subsampling="4:2:0", optimize=True),
        "drawing.png": encode(china, "PNG"),
    }
    for name, data in files.items():
        (folder / "c" / name).write_bytes(data)
    report = pack(folder, tmp_path / "shards", quality=80, max_side=500)
    found = samples_of(report)
    assert (report.shrunk, report.reencoded) == (0, 2)
    assert found["c_coarse"][1] == files["coarse.jpg"]
    for key, name in (("c_fine", "fine.jpg"), ("c_drawing", "drawing.png")):
        twin = decode(files[name], name, 1 << 20)
        assert found[key][1] == encode_packed(twin, 80, blocks=5)


def test_a_shrunk_image_is_stored_shrunk_even_if_its_file_grows(tmp_path):
    folder = tmp_path / "images"
    (folder / "c").mkdir(parents=True)
    data = encode(photographs()[0][:100, :100], quality=1)
    (folder / "c" / "a.jpg").write_bytes(data)
    report = pack(folder, tmp_path / "shards", quality=100, max_side=90)
    stored = samples_of(report)["c_a"][1]
    assert len(stored) > len(data)
    assert decode(stored, "a", 1 << 20).shape == (90, 90, 3)


@pytest.mark.parametrize("settings", [{"max_side": 10}, {"max_side": 1000}, {"quality": 90}])
def test_an_image_that_has_to_be_decoded_and_does_not_is_passed_over(folder, tmp_path, settings):
    good = pack(folder, tmp_path / "good", **settings)
    bad = folder / "cat" / "bad.jpg"
    bad.write_bytes(TORN)
    report = pack(folder, tmp_path / "shards", **settings)
    assert report.undecodable == report.passed_over == (bad,)
    assert report.broken == ()
    assert (report.read, report.packed) == (19, 18)
    assert samples_of(report) == samples_of(good)


def test_a_class_of_which_no_image_decodes_keeps_its_number_and_is_named(folder, tmp_path):
    (folder / "bee").mkdir()
    (folder / "bee" / "bad.jpg").write_bytes(TORN)
    report = pack(folder, tmp_path / "shards", quality=90)
    assert report.absent == ("bee",)
    assert "bee" in report.classes


@pytest.mark.parametrize("settings", [{}, {"quality": 90}])
def test_files_that_begin_as_no_image_change_no_shard_and_are_counted(folder, tmp_path, settings):
    good = pack(folder, tmp_path / "good", per_shard=5, **settings)
    bad = {f"cat/bad-{number}{end}": data for number, (end, data) in enumerate(NO_IMAGES)}
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    report = pack(folder, tmp_path / "shards", per_shard=5, **settings)
    assert report.broken == report.passed_over == tuple(folder / name for name in sorted(bad))
    assert report.read == report.packed + len(report.passed_over) == 18 + len(bad)
    assert [path.read_bytes() for path in report.shards] == [
        path.read_bytes() for path in good.shards
    ]


def test_a_layout_that_is_refused_is_refused_before_any_file_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_images_among", lambda files: pytest.fail("a file was read"))
    (folder / "emu").mkdir()
    with pytest.raises(ConfigError, match="emu: the class holds no images"):
        pack(folder, tmp_path / "shards")


def test_images_whose_pixels_begin_late_are_packed(folder, tmp_path):
    late = encode(synthetic_image(6, 9), exif=b"Exif\0\0" + bytes(60_000))
    small = encode(synthetic_image(1, 1), "WEBP", lossless=True)
    (folder / "cat" / "late.jpg").write_bytes(late)
    (folder / "cat" / "small.webp").write_bytes(small)
    report = pack(folder, tmp_path / "shards")
    assert (report.packed, report.passed_over) == (20, ())


def test_a_class_of_files_that_begin_as_no_image_is_refused(folder, tmp_path):
    (folder / "emu").mkdir()
    (folder / "emu" / "0.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"emu: the class holds no images \(.*first bytes"):
        pack(folder, tmp_path / "shards")


@pytest.mark.timeout(60)
def test_a_pipe_is_not_waited_for(folder, tmp_path):
    some = next(folder.glob("*/*.jpg")).parent
    os.mkfifo(some / "pipe.jpg")
    assert some / "pipe.jpg" in pack(folder, tmp_path / "out").broken


def test_links_in_a_circle_are_named(folder, tmp_path):
    first, second = sorted(folder.iterdir())[:2]
    (first / "more").symlink_to(second)  # not in itself
    (second / "back").symlink_to(first)
    with pytest.raises(ConfigError, match=r"is a link to a directory in which it lies"):
        pack(folder, tmp_path / "out")


def test_pointers_for_images_are_called_so(folder, tmp_path):
    (folder / "lfs").mkdir()
    (folder / "lfs" / "a.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    with pytest.raises(ConfigError, match=r"no images.*a\.jpg is a pointer of Git LFS"):
        pack(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\x1b[2Jb.jpg", "a\x85.jpg"])
def test_a_name_that_can_be_no_key_is_refused_before_a_shard_is_written(folder, tmp_path, name):
    some = next(folder.glob("*/*.jpg"))
    shutil.copy(some, some.with_name(name))
    with pytest.raises(ShardError, match="cannot be a key") as raised:
        pack(folder, tmp_path / "out")
    assert repr(str(some.with_name(name))) in str(raised.value)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("settings", [{}, {"quality": 80}, {"max_side": 5}])
def test_jpegs_that_are_stored_on_their_side_are_counted(tmp_path, settings):
    (tmp_path / "images" / "c").mkdir(parents=True)
    for orientation in range(9):  # 0 is none
        for end, kind in ((".jpg", "JPEG"), (".png", "PNG")):
            path = tmp_path / "images" / "c" / f"{orientation}-{kind}{end}"
            exif = Image.Exif()
            exif[0x0112] = orientation
            path.write_bytes(encode(synthetic_image(6, 9), kind, exif=exif))
    report = pack(tmp_path / "images", tmp_path / "shards", **settings)
    assert (report.packed, report.turned) == (18, 7)


def test_finished_shards_are_named_where_packing_ends(folder, tmp_path):
    for number in range(20):
        (folder / "cat" / f"bad-{number}.jpg").write_bytes(TORN)
    out = tmp_path / "shards"
    with pytest.raises(ShardError, match=r"of its 2 images [01] decode.*bad-\d+\.jpg") as error:
        pack(folder, out, per_shard=2, quality=90)
    left = list(out.glob("*.tar"))
    assert not list(out.glob(".*"))
    if left:
        assert f"{len(left)} finished shards are in {out}: delete them" in str(error.value)


def test_without_max_side_nothing_is_decoded(folder, tmp_path):
    (folder / "cat" / "bad.jpg").write_bytes(TORN)
    assert samples_of(pack(folder, tmp_path / "shards"))["cat_bad"] == (1, TORN)


def test_an_image_in_no_class_is_refused(folder, tmp_path):
    (folder / "stray.jpg").write_bytes(TORN)
    with pytest.raises(ConfigError, match=r"stray\.jpg: .*one directory"):
        pack(folder, tmp_path / "shards")


def test_an_empty_class_is_refused_by_name(folder, tmp_path):
    (folder / "emu").mkdir()
    (folder / "emu" / "notes.txt").write_text("no image")
    with pytest.raises(ConfigError, match=r"emu: the class holds no images"):
        pack(folder, tmp_path / "shards")


def test_a_class_without_images_in_a_part_is_said_to_have_none_there(folder, tmp_path):
    with pytest.raises(
        ConfigError, match=r"no images in the `part` 0 to 0\.001 of.*larger"
    ) as error:
        pack(folder, tmp_path / "shards", part=(0, 0.001))
    assert f"let `classes` be {folder}, so" in str(error.value)
    (folder / "emu").mkdir()
    (folder / "emu" / "0.jpg").write_bytes((folder / "cat" / "0.jpg").read_bytes())
    packed = pack(folder, tmp_path / "shards", part=(0.4, 0.9), classes=str(folder))
    assert packed.classes == ("ape", "cat", "dog", "emu")


def test_a_folder_without_classes_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError, match="holds no directories"):
        pack(tmp_path / "images", tmp_path / "shards")
    with pytest.raises(ConfigError, match="no such directory"):
        pack(tmp_path / "absent", tmp_path / "shards")


@pytest.mark.parametrize("name", ["old-000003.tar", "classes.json"])
def test_a_directory_that_holds_shards_is_refused_by_name(folder, tmp_path, name):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=f"already holds {name}"):
        pack(folder, tmp_path / "shards")


def test_shards_are_not_written_among_the_images(folder):
    with pytest.raises(ConfigError, match="would become a class"):
        pack(folder, folder / "shards")


@pytest.mark.parametrize(
    "options",
    [
        {"per_shard": 1},
        {"part": (0.5, 0.5)},
        {"part": (-0.1, 0.5)},
        {"part": (0.5, 1.1)},
        {"prefix": ""},
        {"prefix": "a/b"},
        {"prefix": ".hidden"},
        {"max_side": 0},
        {"quality": 0},
        {"quality": 101},
        {"restart": -1},
        {"restart": 4097},
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, options):
    (name,) = options
    with pytest.raises(ConfigError, match=f"`{name}` is"):
        PackConfig(images=tmp_path, out=tmp_path, **options)


def test_an_unreadable_image_is_named(folder, tmp_path):
    (folder / "cat" / "lost.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PipelineError, match=r"cat/lost\.jpg is a link to a file that is not there"):
        pack(folder, tmp_path / "shards")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_whole_shards_only(folder, tmp_path, monkeypatch, code):
    real = os.fsync

    def full_at_the_second(handle: int) -> None:
        if ".shard-000001.tar." in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    with pytest.raises(PipelineError, match=r"shard-000001\.tar: the disk is full"):
        pack(folder, tmp_path / "shards", per_shard=6)
    names = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert names == ["shard-000000.tar", "shard-000000.tar.idx"]
    assert open_shard(tmp_path / "shards" / "shard-000000.tar", 0).info.samples == 6


def test_a_shard_has_no_final_name_before_it_is_whole(folder, tmp_path):
    seen = []

    def look(packed: int, total: int) -> None:
        seen.append((packed, total, sorted(path.name for path in out.glob("*.tar"))))

    out = tmp_path / "shards"
    pack_shards(PackConfig(images=folder, out=out, per_shard=9), look)
    assert [(packed, total) for packed, total, _ in seen] == [(i, 18) for i in range(1, 19)]
    assert all(names == [] for packed, _, names in seen if packed <= 9)
    assert all(names == ["shard-000000.tar"] for packed, _, names in seen if packed > 9)


def test_tar_headers_carry_nothing_of_the_machine(folder, tmp_path):
    (path,) = pack(folder, tmp_path / "shards").shards
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
        headers = {(m.mtime, m.uname, m.gname, m.uid, m.gid, m.mode) for m in tar}
    assert headers == {(0, "root", "root", 0, 0, 0o444)}


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pack-shards", *map(str, arguments)])
    try:
        cli.pack_shards()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def test_the_command_packs_and_sums_up(folder, tmp_path, monkeypatch, capsys):
    (folder / "README").write_text("x")
    out = tmp_path / "shards"
    code = run_command(monkeypatch, "--images", folder, "--out", out, "--per-shard", 8)
    printed = capsys.readouterr()
    assert code == 0
    assert "19 files read = 18 packed + 1 passed over; 3 classes" in printed.out
    assert str(folder / "README") in printed.out
    assert "next: pack-shards --images " in printed.err
    val = tmp_path / "val"
    assert not run_command(monkeypatch, "--images", folder, "--out", val, "--classes", out)
    following = f"next: teacher-labels train-teacher --shards {out} --val-shards {val} "
    assert following in capsys.readouterr().err


def test_the_command_says_what_it_passed_over_and_what_lies_on_its_side(
    folder, tmp_path, monkeypatch, capsys
):
    untaken = ["IMG_1.HEIC", "old.gif", "scan.tiff", "x.bmp"]
    for name in ("Thumbs.db", "._IMG_1.HEIC", "empty.jpg", *untaken):
        (folder / "dog" / name).write_bytes(b"")
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "dog" / "side.jpg").write_bytes(encode(synthetic_image(6, 9), exif=exif))
    dog = folder / "dog"
    assert run_command(monkeypatch, "--images", folder, "--out", tmp_path / "shards") == 0
    lines = capsys.readouterr().out.splitlines()
    start = "pack-shards: passed over"
    cure = "convert them to JPEG, PNG or WebP"
    named = ", ".join(str(dog / name) for name in untaken)
    assert lines[0] == f"{start} 2, no images: {dog / '._IMG_1.HEIC'}, {dog / 'Thumbs.db'}"
    assert lines[1] == f"{start} 4, images of kinds that are not taken; {cure}: {named}"
    assert lines[2].startswith(f"{start} 1, named as images, but with other first bytes (")
    assert lines[2].endswith(f": {dog / 'empty.jpg'}")
    assert (
        "EXIF orientation, which is ignored, is other than 1 in 1 of the packed JPEGs" in lines[3]
    )
    assert "exiftran -ai" in lines[3]
    assert "26 files read = 19 packed + 7 passed over; 3 classes" in lines[4]


def test_of_many_files_that_are_passed_over_the_first_are_named(
    folder, tmp_path, monkeypatch, capsys
):
    for number in range(9):
        (folder / "dog" / f"{number}.gif").write_bytes(b"GIF8")
    assert run_command(monkeypatch, "--images", folder, "--out", tmp_path / "shards") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith(f"{folder / 'dog' / '4.gif'} and 4 more")


def test_the_command_prints_errors_without_a_traceback(folder, tmp_path, monkeypatch, capsys):
    arguments = ("--images", folder, "--out", tmp_path / "shards")
    assert run_command(monkeypatch, *arguments, "--per-shard", 1) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("pack-shards: error: --per-shard is 1")
    assert "Traceback" not in printed


def test_a_config_is_frozen(tmp_path):
    config = PackConfig(images=tmp_path, out=tmp_path)
    assert replace(config, seed=3).seed == 3
    with pytest.raises(AttributeError):
        config.seed = 3  # type: ignore[misc]


def test_shards_packed_into_object_storage_have_the_local_bytes(folder, tmp_path, s3) -> None:
    local = pack(folder, tmp_path / "shards", per_shard=6)
    url = s3.make_bucket() + "/train"
    report = pack(folder, url, per_shard=6)
    assert report.shards == tuple(f"{url}/{path.name}" for path in local.shards)
    assert report.bytes == local.bytes
    theirs = {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    assert s3.objects(url) == theirs
    with pytest.raises(ConfigError, match=r"s3://.*/train already holds shard-000000\.tar and 3"):
        pack(folder, url)


def test_a_shard_that_fails_is_not_sent_to_object_storage(folder, tmp_path, s3) -> None:
    url = s3.make_bucket() + "/train"

    def fail(packed: int, total: int) -> None:
        if packed == 9:
            raise PipelineError("stop")

    with pytest.raises(PipelineError, match="stop"):
        pack_shards(PackConfig(images=folder, out=url, per_shard=6), fail)
    assert sorted(s3.objects(url)) == ["shard-000000.tar", "shard-000000.tar.idx"]
