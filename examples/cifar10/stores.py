"""The label stores of the comparison, each made once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.cifar10.config import EvidenceConfig
from examples.cifar10.data import Shards
from jobs.run import run_label_job
from pipeline.columns import SHARE_STEPS
from pipeline.files.local import replace
from pipeline.labelling.config import LabelConfig
from pipeline.store import LabelStore, open_store
from pipeline.store.manifest import MANIFEST_PATH
from pipeline.store.provenance import read_runs
from pipeline.tools import diff_stores, relabelled_store, thin_store, voted_store

__all__ = ["STATIC_NOTE", "StoreFacts", "Stores", "make_stores", "read_facts", "write_facts"]

FACTS = "stores.json"
_COLUMNS = ("confidence", "topk")
STATIC_NOTE = "labels of the plain image, whatever the view"


@dataclass(frozen=True, slots=True)
class Stores:
    """Where the label stores lie, in one directory."""

    root: Path

    def path(self, name: str) -> Path:
        """Return the path of a store; ``make_stores`` says which there are."""
        return self.root / f"{name}.parquet"

    def there(self, name: str) -> bool:
        """Return whether a store is finished."""
        return (self.path(name) / MANIFEST_PATH).exists()

    def open(self, name: str) -> LabelStore:
        """Open a store."""
        return open_store(self.path(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """What a store holds, for the report."""

    name: str
    labels: int
    bytes: int
    known: int  # labels whose true class is known
    equal: int  # of them, those that say it
    seconds: float  # of the label job; 0 for a store made of others
    same_as_hard: float | None  # share of views with the label of the store ``hard``
    sure: float | None  # share of labels of which the teacher is sure


def make_stores(config: EvidenceConfig, shards: Shards, names: Sequence[str]) -> Stores:
    """Make those of the named stores that are missing, and what they are made of.

    soft: a label job with probabilities; hard: that without them; other-1, other-2, ...: the same
    views by other teachers; majority and mean: what soft and these say together; plain: one plain
    view; static: the views of hard with the labels of plain; val: the validation images. Raises
    ``SystemExit`` with the job's status if it was stopped.
    """
    stores = Stores(config.out / "stores")
    others = _others(config)
    for name in _with_sources(names, others):
        if stores.there(name):
            continue
        print(f"evidence: making {stores.path(name)}", flush=True)
        match name:
            case "soft":
                _label(config, stores, name, shards.training, keep=_kept(config))
            case _ if name in others:
                number = others.index(name)
                other: dict[str, Any] = {
                    "teacher": config.other_teachers[number],
                    "teacher_checkpoint": config.other_checkpoints[number],
                    # A small one may know the classes of few mixed views.
                    "allow_low_agreement": True,
                }
                _label(config, stores, name, shards.training, keep=_kept(config), **other)
            case "majority" | "mean":
                voters = [stores.open(voter) for voter in ("soft", *others)]
                voted_store(voters, stores.path(name), by=name)
            case "plain" | "val":
                which = shards.training if name == "plain" else shards.validation
                plain: dict[str, Any] = {"augment": config.plain, "preset": "center", "views": 1}
                _label(config, stores, name, which, mix=False, **plain)
            case "hard":
                thin_store(stores.open("soft"), stores.path(name), drop=_COLUMNS)
            case "static":
                relabelled_store(
                    stores.open("hard"),
                    stores.open("plain"),
                    stores.path(name),
                    note=STATIC_NOTE,
                )
    return stores


def _others(config: EvidenceConfig) -> list[str]:
    return [f"other-{number}" for number in range(1, 1 + len(config.other_teachers))]


def _kept(config: EvidenceConfig) -> str:
    return f"confidence,topk={config.topk}"


def _with_sources(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the names and those of the stores that they are made of, these first."""
    sources = {
        "hard": ("soft",),
        "static": ("soft", "hard", "plain"),
        **dict.fromkeys(("majority", "mean"), ("soft", *others)),
    }
    order: dict[str, None] = {}
    for name in names:
        order.update(dict.fromkeys((*sources.get(name, ()), name)))
    return list(order)


def _label(
    config: EvidenceConfig, stores: Stores, name: str, shards: tuple[str, ...], **changes: Any
) -> None:
    settings = LabelConfig(
        shards=shards,
        out=str(stores.path(name)),
        teacher=config.teacher,
        teacher_checkpoint=config.teacher_checkpoint,
        views=config.epochs,
        preset=config.preset,
        augment=config.augment,
        precision="fp32",
        device="cpu",
        threads=config.used_threads,
        serial=True,
    )
    status = run_label_job(dataclasses.replace(settings, **changes))
    if status:
        raise SystemExit(status)


def write_facts(config: EvidenceConfig, stores: Stores) -> None:
    """Write what the finished stores hold beside the results."""
    hard = stores.open("hard") if stores.there("hard") else None
    others = _others(config)
    names = ("soft", "hard", *others, "majority", "mean", "plain", "static", "val")
    facts = [_facts(stores.open(name), name, hard, config) for name in names if stores.there(name)]
    replace(
        config.out / FACTS, json.dumps([asdict(one) for one in facts], indent=1).encode() + b"\n"
    )


def _facts(
    store: LabelStore, name: str, hard: LabelStore | None, config: EvidenceConfig
) -> StoreFacts:
    manifest = store.manifest
    jobs = [run for run in read_runs(store.root) if run.tool == "label-teacher"]
    same = sure = None
    if hard is not None and name not in ("soft", "hard", "plain", "val"):
        teachers = diff_stores(hard, store).teachers
        same = 1 - teachers.different / teachers.rows
    if name == "soft":
        parts = [store.read_part(part).columns["confidence"].ravel() for part in manifest.parts]
        least = SHARE_STEPS * config.min_confidence - 0.5  # as the loss reads it
        sure = float(np.mean(np.concatenate(parts) >= least))
    labelled = name in ("soft", "plain", "val") or name.startswith("other")
    return StoreFacts(
        name=name,
        labels=manifest.rows,
        bytes=manifest.bytes,
        known=manifest.agreement.known,
        equal=manifest.agreement.equal,
        seconds=sum(run.seconds for run in jobs) if labelled else 0.0,
        same_as_hard=same,
        sure=sure,
    )


def read_facts(out: Path) -> tuple[StoreFacts, ...]:
    """Return what was written of the stores, nothing if that was not done yet."""
    path = out / FACTS
    if not path.exists():
        return ()
    return tuple(StoreFacts(**one) for one in json.loads(path.read_bytes()))
