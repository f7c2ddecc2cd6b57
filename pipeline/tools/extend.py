"""Adds views to a store: a label job whose settings are those of the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from pipeline.errors import ConfigError
from pipeline.files.local import Folder
from pipeline.labelling.config import LabelConfig
from pipeline.store import LabelStore
from pipeline.store.provenance import read_runs

__all__ = ["extend_command", "extended_config", "recorded_shards"]


def extended_config(config: LabelConfig, store: LabelStore, end_view: int) -> LabelConfig:
    """Return the settings of a job after which ``store`` has all views before ``end_view``.

    What labels depend on, and how views are cut into parts, is the store's; shards, weights'
    file, and how the job runs are those of ``config``. Raises ``ConfigError`` if the store has
    more views already.
    """
    _require_whole(store)
    identity, there = store.identity, store.manifest.view_range
    if end_view < there.stop:
        raise ConfigError(
            f"`extend_to` is {end_view}: {store.root} has the views "
            f"{there.start}..{there.stop - 1} already; give the number of views in all, old and new"
        )
    return replace(
        config,
        teacher=identity.teacher.architecture,
        num_classes=identity.teacher.classes,
        precision=identity.teacher.precision,
        batch_views=identity.teacher.batch_views,
        seed=identity.root_seed,
        augment=identity.augment,
        mix=True,  # as ``mixing`` says, which may be not at all
        mixing=identity.mix,
        keep=identity.columns.to_text(),
        first_view=there.start,
        views=end_view - there.start,
        views_per_part=max(entry.part.views for entry in store.manifest.parts),
        extend_to=end_view,
    )


def extend_command(store: LabelStore, views: int, shards: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the ``label-teacher`` command that adds ``views`` views to a store.

    Shards and weights' file are those of the store's last label job unless given. Raises
    ``ConfigError`` if there is no record of them.
    """
    if views < 1:
        raise ConfigError(f"`views` is {views}: give how many views to add, 1 or more")
    _require_whole(store)
    if store.root.is_a_file():
        raise ConfigError(
            f"{store.root} is one file, to which nothing can be added: export it to a directory, "
            "and extend that"
        )
    jobs = _jobs(store.root)
    last = jobs[-1] if jobs else {}
    patterns = tuple(shards) or recorded_shards(store.root)
    end = store.manifest.view_range.stop + views
    command = ["label-teacher", "--out", store.root.name, "--extend-to", str(end)]
    defaults = {one.name: one.default for one in fields(LabelConfig)}
    for name in ("teacher_checkpoint", "teacher_weights", "teacher_random_weights"):
        if last.get(name) not in (None, defaults[name]):
            command += [f"--{name.replace('_', '-')}", _value(last[name], store.root)]
    return (*command, "--shards", *patterns)


def recorded_shards(root: Folder) -> tuple[str, ...]:
    """Return the shards of a store's label jobs; raises ``ConfigError`` if no list is known."""
    jobs = _jobs(root)
    named = {tuple(map(str, found)) for job in jobs if isinstance(found := job.get("shards"), list)}
    if len(named) != 1:
        raise ConfigError(
            f"{root} has the records of {len(jobs)} label jobs with {len(named)} lists of "
            "shards; give `shards`, all in the order of their numbers in the store's card"
        )
    return tuple(_value(one, root) for one in next(iter(named)))


def _jobs(root: Folder) -> list[Mapping[str, Any]]:
    """Return the settings of a store's label jobs, as they are recorded."""
    settings = [run.settings for run in read_runs(root) if run.settings]
    return [one for one in settings if isinstance(one, Mapping)]


def _require_whole(store: LabelStore) -> None:
    if store.manifest.subset_of:
        raise ConfigError(
            f"{store.root} is a subset of another store; extend the store that it was taken from, "
            "and thin that again"
        )


def _value(found: object, root: Folder) -> str:
    """Return a recorded value for a command; raises ``ConfigError`` if it would be a flag."""
    text = str(found)
    if text.startswith("-") or not text.isprintable():
        raise ConfigError(
            f"{root} records {text!r} where a file or number belongs, so no command is made "
            "of it; write the command yourself"
        )
    return text
