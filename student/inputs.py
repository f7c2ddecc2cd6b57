"""Opens what a run reads, and refuses what does not fit together, before anything is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pipeline.cache import ShardFile
from pipeline.config import canonical_json
from pipeline.files import expand_shards
from pipeline.planning import TrainingPlan
from pipeline.shards import match_shards
from pipeline.store import LabelStore, open_store
from pipeline.verify import check_fingerprints
from student.checkpoint import RunIdentity
from student.config import TrainConfig

__all__ = ["Inputs", "open_inputs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """A store, the shards it labels, validation shards, and the order of training."""

    store: LabelStore
    shards: Mapping[int, ShardFile]  # by the store's shard numbers
    validation: tuple[ShardFile, ...]
    plan: TrainingPlan

    def run_identity(self, config: TrainConfig) -> RunIdentity:
        """Return what a checkpoint of this run and the run that continues it must share."""
        manifest = self.store.manifest
        rejected = {str(n): [one.index for one in many] for n, many in manifest.rejections.items()}
        shards = [[asdict(shard) for shard in manifest.shards], rejected]
        return RunIdentity(
            config=config.binding(),
            config_digest=config.digest,
            store=self.store.identity.digest,
            shards=hashlib.sha256(canonical_json(shards)).hexdigest(),
        )


def open_inputs(config: TrainConfig) -> Inputs:
    """Open the store and pair its shards with the given files.

    Raises ``StoreError`` if the store is not whole, ``IdentityError`` if this machine would
    replay other pixels, ``ShardError`` if the shards are not those it labels,
    ``ConfigError`` if it cannot give the epochs or batches asked for.
    """
    store = open_store(config.labels)
    check_fingerprints(store)
    cache = config.cache
    paths = match_shards(store.manifest.shards, expand_shards(config.shards, cache))
    validation = expand_shards(config.val_shards, cache) if config.val_shards else ()
    plan = TrainingPlan(store.manifest, config.plan)
    return Inputs(store=store, shards=paths, validation=validation, plan=plan)
