"""The store that a tool writes: checked before, complete or without a manifest after."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pipeline.classes import ClassNames, agreed_names
from pipeline.errors import IdentityError, StoreError
from pipeline.files.local import Folder, Location, open_folder
from pipeline.identity import StoreIdentity
from pipeline.records import PartKey, ShardInfo
from pipeline.store import (
    LabelStore,
    Manifest,
    check_store,
    claim_store,
    find_parts,
    finish_store,
)
from pipeline.store.card import card_text
from pipeline.store.manifest import RUNS_PATH, USER_PATH
from pipeline.store.provenance import record_run
from pipeline.store.subset import SubsetOf
from pipeline.telling import ShowProgress
from pipeline.views.fingerprints import different_fingerprints

__all__ = ["ShowProgress", "check_sources", "check_target", "copy_companions", "finish_target"]

_OF_SOURCES = "of_sources"


def agreed_classes(*stores: LabelStore) -> tuple[str, ...] | None:
    """Return the names of classes that some stores have, None if none has any.

    Raises ``ClassesError`` if two have others.
    """
    found = agreed_names(*(ClassNames.of(one.manifest.classes, one.root) for one in stores))
    return None if found is None else found.names


def check_target(
    out: Location,
    identity: StoreIdentity,
    fingerprints: Mapping[str, int],
    parts: Collection[PartKey],
) -> Folder:
    """Claim ``out`` for these parts, new or left by an interrupted run, and return it.

    Raises ``StoreError`` if it holds something else, ``IdentityError`` if it is a store of
    another identity; writes nothing then.
    """
    folder = open_folder(out)
    claimed = check_store(folder, identity)
    if claimed is not None:
        _require_no_stray(folder, parts)
    if different_fingerprints(claim_store(folder, identity, fingerprints), fingerprints):
        raise IdentityError(
            f"`out` is {folder}, which was begun with other fingerprints than the stores given; "
            "give the path of a new store"
        )
    return folder


def _require_no_stray(folder: Folder, parts: Collection[PartKey]) -> None:
    stray = sorted(set(find_parts(folder)) - set(parts))
    if stray:
        raise StoreError(
            f"`out` is {folder}, which holds {len(stray)} parts that would not be in the result, "
            f"the first is {stray[0].path}; give the path of a new store"
        )


def check_sources(sources: Sequence[LabelStore]) -> None:
    """Raise ``StoreError`` for files that are none of a store's, and people's that disagree."""
    seen: dict[str, tuple[LabelStore, bytes]] = {}
    for source in sources:
        source.check_names()
        for path, data in source.user_files().items():
            first, known = seen.setdefault(path, (source, data))
            if data != known:
                raise StoreError(
                    f"{first.root} and {source.root} have other contents at {path}; make them the "
                    "same, or give one of them another name"
                )


def copy_companions(out: Folder, source: LabelStore) -> None:
    """Copy the records of a source's runs, which say how labels were made, and people's files."""
    for path, data in source.companions().items():
        if path.startswith((RUNS_PATH, USER_PATH)):
            out.commit_new(path, data)


def finish_target(
    out: Folder,
    sources: Sequence[LabelStore],
    identity: StoreIdentity,
    shards: Sequence[ShardInfo],
    parts: Collection[PartKey],
    run: Mapping[str, Any],
    *,
    subset_of: Sequence[SubsetOf] = (),
    classes: tuple[str, ...] | None = None,
) -> Manifest:
    """Record how the store came about, verify it whole, and write its manifest and card.

    Notes of the sources are kept: as they are where all agree, else as a list; and whose subsets
    they are, with ``subset_of`` after it; and the names of their classes, unless ``classes`` are
    given. Raises ``StoreError`` and writes no manifest unless it holds these parts, and no others.
    """
    # A record alone, were all else deleted, is no store.
    begun = claim_store(out, identity, sources[0].manifest.fingerprints)
    record_run(out, "label-store", run)
    _require_no_stray(out, parts)
    notes = [source.manifest.notes for source in sources]
    alike = all(one == notes[0] for one in notes)
    kept = notes[0] if alike else {_OF_SOURCES: [one for many in notes for one in _listed(many)]}
    known = [one for source in sources for one in source.manifest.subset_of]
    chain = tuple(dict.fromkeys([*known, *subset_of]))
    return finish_store(
        out,
        identity,
        begun,
        shards,
        card_text,
        parts,
        notes=kept,
        subset_of=chain,
        classes=classes or agreed_classes(*sources),
    )


def _listed(notes: Mapping[str, Any]) -> list[Any]:
    """Return a store's notes, or those of its own sources, so that merges do not nest them."""
    found = notes.get(_OF_SOURCES)
    return found if isinstance(found, list) and len(notes) == 1 else [dict(notes)]
