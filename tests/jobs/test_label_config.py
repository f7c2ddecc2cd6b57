"""``label-teacher --config``: settings from a file, under those of flags."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from jobs.label_teacher import LabelFlags, parse_arguments
from pipeline.cli.console import flags_of
from pipeline.errors import ConfigError
from pipeline.labelling.config import FirstSettings, LabelConfig

FIRST = fields(FirstSettings)

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


def test_help_begins_with_the_flags_that_matter_and_has_the_others_in_groups(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    printed = capsys.readouterr().out
    _, *parts = re.split(r"^ ((?:\w+ )?options) +$", printed, flags=re.MULTILINE)
    named, boxes = parts[::2], parts[1::2]
    kinds = ("teacher", "view", "augmentation", "mixing", "trial", "run")
    assert named == ["options", *(f"{one} options" for one in kinds)]
    flags = [re.findall(r"^  (--[a-z][\w.-]*)", box, re.MULTILINE) for box in boxes]
    assert flags[0] == [*(f"--{one.name.replace('_', '-')}" for one in FIRST), "--config"]
    shown = [one for box in flags for one in box]
    assert sorted(shown) == sorted(set(shown))
    assert len(shown) > 50


def test_every_setting_is_in_a_group() -> None:
    config = parse_arguments(["--shards", "x", "--out", "y.parquet"])
    assert LabelFlags.of(config).settings() == config
    flags = flags_of(LabelFlags)
    assert {one.name for one in fields(LabelConfig)} - flags.keys() == {"augment", "mixing"}


@pytest.mark.parametrize("name", ["first_view", "views", "extend_to"])
def test_views_that_no_manifest_can_hold_are_refused(name: str) -> None:
    for number in (1 << 32, 10**30):
        with pytest.raises(ConfigError, match="`first_view` and `views` end after 2147483648"):
            LabelConfig(shards=("x.tar",), out="x.parquet", **{name: number})


@pytest.mark.parametrize("name", ["threads", "batch_views", "teachers", "teacher_random_weights"])
def test_numbers_that_pytorch_cannot_take_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"`{name}` .*; use (fewer|a smaller number)"):
        LabelConfig(shards=("x.tar",), out="x.parquet", **{name: 1 << 64})


def test_views_in_more_parts_than_can_be_planned_are_refused() -> None:
    most: dict[str, Any] = {"shards": ("x.tar",), "out": "x.parquet", "views_per_part": 3}
    assert LabelConfig(**most, views=3 << 16).views == 3 << 16
    for name in ("views", "extend_to"):
        with pytest.raises(ConfigError, match=r"`views_per_part` 3 cuts .*; use a larger one"):
            LabelConfig(**most, **{name: (3 << 16) + 1})
