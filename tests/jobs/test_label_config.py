"""``label-teacher --config``: settings from a file, under those of flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.label_teacher import parse_arguments
from pipeline.errors import ConfigError

SETTINGS = """
shards = ["x-{00..09}.tar"]
out = "labels.parquet"
preset = "crop-flip"
views = 30
image_size = 64
hflip = 0
keep = "confidence"

[mixing]
group_size = 8
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "label.toml"
    path.write_text(SETTINGS)
    return path


def test_a_file_gives_settings_and_flags_override_it(file: Path) -> None:
    config = parse_arguments(["--config", str(file), "--views", "40", "--hflip", "0.25"])
    assert (config.shards, config.out) == (("x-{00..09}.tar",), "labels.parquet")
    assert (config.views, config.keep, config.preset) == (40, "confidence", "crop-flip")
    assert (config.augment.image_size, config.augment.hflip) == (64, 0.25)
    assert config.augment.policy == "none"  # of the preset
    assert config.mixing.group_size == 8
    assert config.mixing.block_views == 15


def test_a_file_means_what_its_flags_mean(file: Path) -> None:
    flags = ["--shards", "x-{00..09}.tar", "--out", "labels.parquet", "--preset", "crop-flip"]
    flags += ["--views", "30", "--image-size", "64", "--hflip", "0", "--keep", "confidence"]
    flags += ["--mixing.group-size", "8"]
    assert parse_arguments(["--config", str(file)]) == parse_arguments(flags)


def test_a_preset_on_the_command_line_sets_what_the_file_leaves_open(file: Path) -> None:
    config = parse_arguments(["--config", str(file), "--preset", "deit"])
    assert (config.preset, config.augment.policy) == ("deit", "rand-augment")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("vews = 3", "no setting vews; did you mean views"),
        ("[mixing]\ngroups = 3", r"no setting mixing\.groups"),
        ("mixing = 3", "mixing is a table"),
        ("views = 'three'", "`views` is 'three'"),
        ("image_size = 0", "`image_size` is 0"),
        ("preset = ['deit']", "`preset` is"),
        ("views = ", "cannot be read"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_setting_that_there_is_not_is_named(file: Path, text: str, error: str) -> None:
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=error):
        parse_arguments(["--config", str(file)])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.toml cannot be read"):
        parse_arguments(["--config", str(tmp_path / "x.toml")])
