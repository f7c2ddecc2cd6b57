#!/usr/bin/env python
"""Label augmented views of shards with a teacher: on Ray, or with --serial without."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":  # run by path: the directory above holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from pipeline.cli.console import flags_of, running, words_given
from pipeline.errors import ConfigError
from pipeline.identity import PRESETS, AugmentConfig, Preset, mixing_of_preset
from pipeline.labelling.config import LabelConfig

__all__ = ["main", "parse_arguments"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFlags(LabelConfig):
    """Label augmented views of WebDataset shards with a teacher, once for all students."""

    augment: Annotated[AugmentConfig, tyro.conf.arg(name="")] = field(default_factory=AugmentConfig)


def parse_arguments(
    arguments: Sequence[str] | None = None, program: str = "label-teacher"
) -> LabelConfig:
    """Return the settings of a command line.

    ``--preset`` sets the others' defaults, and ``--extend-to`` sets them to the store's.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--preset", "--extend-to", "--out"):
        peek.add_argument(flag, nargs="?")
    named = peek.parse_known_args(arguments)[0]
    preset: Preset = named.preset if named.preset in PRESETS else "deit"  # tyro will complain
    defaults = LabelConfig(
        shards=tyro.MISSING,
        out=tyro.MISSING,
        preset=preset,
        augment=PRESETS[preset],
        mix=mixing_of_preset(preset),
    )
    if named.extend_to and named.extend_to.isdecimal() and named.out:
        if named.preset:
            raise ConfigError("--extend-to takes the store's augmentation; leave out --preset")
        from pipeline.store import open_store
        from pipeline.tools import extended_config

        defaults = extended_config(defaults, open_store(named.out), int(named.extend_to))
    flags = tyro.cli(
        LabelFlags,
        prog=program,
        args=arguments,
        default=LabelFlags(**_values(defaults)),
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    return LabelConfig(**_values(flags))


def _values(config: LabelConfig) -> dict[str, Any]:
    return {one.name: getattr(config, one.name) for one in fields(LabelConfig)}


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
    interrupted = "interrupted; committed parts stay"
    with running(program, flags_of(LabelFlags), interrupted, arguments):
        config = parse_arguments(arguments, program)
        from jobs.run import run_label_job

        raise SystemExit(run_label_job(config))


if __name__ == "__main__":
    main()
