"""Opens what a run reads, and refuses what does not fit together, before anything is trained."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.classes import ClassNames, agreed_names, names_beside
from pipeline.errors import ConfigError
from pipeline.files.cache import ShardFile
from pipeline.files.hub import is_hub_url
from pipeline.files.local import expand_shards
from pipeline.growth import to_plain
from pipeline.identity import canonical_json
from pipeline.shards.index import match_shards
from pipeline.store import LabelStore, open_store
from pipeline.store.subset import number_ranges
from pipeline.tools.verify import check_fingerprints
from student.checkpoint import RunIdentity
from student.config import TrainConfig
from student.order import PlanConfig, TrainingPlan
from student.replay import ReplayDataset

__all__ = ["Inputs", "open_inputs", "open_replay"]


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """A store, the shards it labels, validation shards, and the order of training."""

    store: LabelStore
    shards: Mapping[int, ShardFile]  # by the store's shard numbers; of all, or of a subset
    validation: tuple[ShardFile, ...]
    plan: TrainingPlan
    classes: ClassNames | None = None  # of the store, its shards or the validation shards
    unnamed: tuple[str, ...] = ()  # which of store and validation shards have no names of classes

    def pinned(self, config: TrainConfig) -> TrainConfig:
        """Return the settings with the commit of a store on the hub that was read.

        A run goes on with it, whatever its branch has become.
        """
        if not is_hub_url(config.labels):
            return config
        return replace(config, labels=str(self.store.root))

    def run_identity(self, config: TrainConfig) -> RunIdentity:
        """Return what a checkpoint of this run and the run that continues it must share."""
        manifest = self.plan.manifest
        rejected = {str(n): [one.index for one in many] for n, many in manifest.rejections.items()}
        omitted = {str(n): text for n, text in manifest.omitted.items()}
        shards = [[to_plain(shard) for shard in manifest.shards], rejected]
        shards += [omitted] if omitted else []
        views = {"first": manifest.view_range.start}
        if config.plan.cycle_views:  # else views may be added without changing what was consumed
            views["end"] = manifest.view_range.stop
        whole = len(manifest.shards) == len(self.store.manifest.shards)
        return RunIdentity(
            config=config.binding(),
            store=self.store.identity.to_json(),
            views=views,
            shards=hashlib.sha256(canonical_json(shards)).hexdigest(),
            subset=None if whole else number_ranges(manifest.by_shard),
        )


def open_inputs(config: TrainConfig) -> Inputs:
    """Open the store and pair its shards with the given files.

    Raises ``StoreError`` if the store is not whole or lacks labels of the kind asked for,
    ``IdentityError`` if this machine would replay other pixels, ``ShardError`` if the shards
    are not those it labels, ``ClassesError`` if store and shards have other names of classes,
    ``ConfigError`` if the store cannot give the epochs or batches asked for.
    """
    config.require_useful()
    store = open_store(config.labels)
    config.distillation.loss.require_store(store)
    wanted, side = config.run.image_size, store.identity.augment.image_size
    if wanted not in (None, side):
        raise ConfigError(
            f"`image_size` is {wanted}, and the views of {config.labels} have {side} pixels; label "
            f"a store at {wanted}, or have its views resized with `student_size` {wanted}"
        )
    check_fingerprints(store)
    cache = config.run.cache
    given = expand_shards(config.shards, cache)
    paths = match_shards(store.manifest.shards, given, subset=config.run.subset)
    shown = config.evaluation.val_shards
    validation = expand_shards(shown, cache, "val_shards") if shown else ()
    named = agreed_names(
        ClassNames.of(store.manifest.classes, store.root), names_beside(list(paths.values()))
    )
    shown_names = names_beside(validation)
    sides = (("the store", named), ("the validation shards", shown_names if validation else named))
    plan = TrainingPlan(store.manifest.of_shards(paths), config.plan)
    return Inputs(
        store=store,
        shards=paths,
        validation=validation,
        plan=plan,
        classes=agreed_names(named, shown_names),
        unnamed=tuple(side for side, names in sides if names is None),
    )


def open_replay(
    labels: str | Path,
    shards: Sequence[str],
    plan: PlanConfig,
    *,
    rank: int = 0,
    ranks: int = 1,
    subset: bool = False,
) -> ReplayDataset:
    """Open the batches of a store for a training loop of your own.

    Item k is this rank's slice of global batch k; give it to a ``DataLoader`` with
    ``batch_size=None``. With ``subset`` some of the store's shards are enough, and a warning says
    which are left out. Raises as ``open_inputs``.

    >>> plan = PlanConfig(seed=0, epochs=2, batch_size=8)
    >>> batches = open_replay("teacher.parquet", ["digits-{0..1}.tar"], plan)
    >>> len(batches), batches[0].pixels.shape
    (8, torch.Size([8, 16, 16, 3]))
    """
    store = open_store(labels)
    check_fingerprints(store)
    paths = match_shards(store.manifest.shards, expand_shards(tuple(shards)), subset=subset)
    if words := store.manifest.left_out(paths):
        _log.warning("%s: %s", labels, words)
    order = TrainingPlan(store.manifest.of_shards(paths), plan)
    return ReplayDataset(store, paths, order, rank=rank, ranks=ranks)
