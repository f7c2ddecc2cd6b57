#!/usr/bin/env python
"""Label augmented views of shards with a teacher: on Ray, or with --serial without."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

if __name__ == "__main__":  # run by path: the directory above holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from pipeline.cli.console import described, flags_of, parse_flags, running, words_given
from pipeline.errors import ConfigError
from pipeline.files.kinds import read_toml
from pipeline.identity import PRESETS, AugmentConfig, MixConfig, Preset, mixing_of_preset
from pipeline.labelling.config import (
    FirstSettings,
    LabelConfig,
    RunSettings,
    TeacherSettings,
    TrialSettings,
    ViewSettings,
)

__all__ = ["configured", "main", "parse_arguments", "read_settings"]

_AUGMENT = frozenset(one.name for one in fields(AugmentConfig))
_OWN = frozenset(one.name for one in fields(LabelConfig)) - {"augment"}

Kind = TypeVar("Kind")
Group = Annotated[Kind, tyro.conf.OmitArgPrefixes]  # a box of the help, whose flags have no prefix

_FIRST = tuple(f"--{one.name.replace('_', '-')}" for one in fields(FirstSettings))
_EXAMPLE = (
    *("--shards", "shards/train", "--out", "labels.parquet", "--views", "300"),
    *("--teacher", "regnety_160.deit_in1k"),
)


@dataclass(frozen=True, kw_only=True)
class LabelFlags(FirstSettings):
    """Label augmented views of WebDataset shards with a teacher, once for all students."""

    config: Path | None = None
    """TOML file of settings by their flags' names, with _ for -, those of mixing in a table
    [mixing]; flags override it."""
    of_teacher: Annotated[Group[TeacherSettings], tyro.conf.arg(name="teacher")]
    of_views: Annotated[Group[ViewSettings], tyro.conf.arg(name="view")]
    augmentation: Group[AugmentConfig]
    mixing: MixConfig
    trial: Group[TrialSettings]
    run: Group[RunSettings]

    @staticmethod
    def of(config: LabelConfig) -> LabelFlags:
        """Return settings in their groups."""
        return LabelFlags(
            **_values(config, FirstSettings),
            of_teacher=TeacherSettings(**_values(config, TeacherSettings)),
            of_views=ViewSettings(**_values(config, ViewSettings)),
            augmentation=config.augment,
            mixing=config.mixing,
            trial=TrialSettings(**_values(config, TrialSettings)),
            run=RunSettings(**_values(config, RunSettings)),
        )

    def settings(self) -> LabelConfig:
        """Return the settings of all groups."""
        return LabelConfig(
            **_values(self, FirstSettings),
            **_values(self.of_teacher, TeacherSettings),
            **_values(self.of_views, ViewSettings),
            **_values(self.trial, TrialSettings),
            **_values(self.run, RunSettings),
            augment=self.augmentation,
            mixing=self.mixing,
        )


def parse_arguments(
    arguments: Sequence[str] | None = None, program: str = "label-teacher"
) -> LabelConfig:
    """Return the settings of a command line.

    Flags lie over those of ``--config``. ``--preset`` sets the others' defaults, and
    ``--extend-to`` sets them to the store's.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--preset", "--extend-to", "--out", "--config"):
        peek.add_argument(flag, nargs="?")
    named = peek.parse_known_args(arguments)[0]
    told = {} if named.config is None else read_settings(Path(named.config))
    preset: Any = named.preset or told.get("preset")
    out, more = named.out or told.get("out"), named.extend_to or told.pop("extend_to", None)
    if more and str(more).isdecimal() and out:
        if preset:
            raise ConfigError("--extend-to takes the store's augmentation; leave out --preset")
        from pipeline.store import open_store
        from pipeline.tools import extended_config

        base = _defaults("deit")
        defaults = replace(base, **_of_told(base, told)) if told else base
        defaults = extended_config(defaults, open_store(out), int(more))
    else:
        known: Preset = preset if str(preset) in PRESETS else "deit"
        base = _defaults(known)  # tyro complains of one that is not known
        defaults = replace(base, **_of_told(base, told))
    flags: LabelFlags = parse_flags(
        LabelFlags,
        program,
        arguments,
        description=described(str(LabelFlags.__doc__), _FIRST, program, *_EXAMPLE),
        default=LabelFlags.of(defaults),
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    return flags.settings()


def _defaults(preset: Preset) -> LabelConfig:
    return LabelConfig(
        shards=tyro.MISSING,
        out=tyro.MISSING,
        preset=preset,
        augment=PRESETS[preset],
        mix=mixing_of_preset(preset),
    )


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file, by name; raises ``ConfigError`` for one there is not."""
    values = read_toml(path)
    _require_known(values, f"`config` {path}: ")
    return values


def configured(settings: Mapping[str, Any]) -> LabelConfig:
    """Return a job's settings from those that differ from the flags' defaults, by their names."""
    _require_known(settings, "")
    preset: Any = settings.get("preset", "deit")
    base = _defaults(preset if str(preset) in PRESETS else "deit")
    return replace(base, **_of_told(base, settings))


def _require_known(values: Mapping[str, Any], where: str) -> None:
    """Raise ``ConfigError`` for a setting that there is not."""
    mixing = values.get("mixing", {})
    if not isinstance(mixing, Mapping):
        raise ConfigError(f"{where}mixing is a table of settings, [mixing]")
    known = {"": _OWN | _AUGMENT, "mixing.": {one.name for one in fields(MixConfig)}}
    for prefix, names in (("", values), ("mixing.", mixing)):
        for name in names:
            if name not in known[prefix]:
                close = get_close_matches(name, known[prefix], n=1)
                hint = f"; did you mean {close[0]}?" if close else "; names are those of the flags"
                raise ConfigError(f"{where}there is no setting {prefix}{name}{hint}")


def _of_told(base: LabelConfig, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration over ``base``, with settings that a file told."""
    augment = {name: value for name, value in told.items() if name in _AUGMENT}
    own = {name: value for name, value in told.items() if name not in _AUGMENT | {"mixing"}}
    return {
        **own,
        "augment": replace(base.augment, **augment),
        "mixing": replace(base.mixing, **told.get("mixing", {})),
    }


def _values(record: Any, kind: type) -> dict[str, Any]:
    """Return what a record has for the fields of a kind of settings."""
    return {one.name: getattr(record, one.name) for one in fields(kind)}


def prepare_environment() -> None:
    """Set what libraries read when they load; whatever the user has set stays."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not os.environ.get("RAY_ADDRESS"):
        # A Ray of our own: on the loopback interface alone (Ray has this switch for systems
        # without clusters), and with a token, since other users share that interface.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def main(arguments: Sequence[str] | None = None, program: str = "label-teacher") -> None:
    """Run ``label-teacher``."""
    arguments = words_given(arguments)
    prepare_environment()
    interrupted = "interrupted; committed parts stay, run the same command again for the rest"
    with running(program, flags_of(LabelFlags), interrupted, arguments):
        config = parse_arguments(arguments, program)
        from jobs.run import run_label_job

        raise SystemExit(run_label_job(config))


if __name__ == "__main__":
    main()
