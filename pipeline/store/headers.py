"""What the header of a part's own file says, for formats that have no such files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.errors import StoreError
from pipeline.records import PartKey, PartRows, Rejection
from pipeline.store.contract import LabelStore
from pipeline.store.manifest import Manifest

__all__ = ["HeaderCheck", "check_reasons", "header_of"]

Reasons = Mapping[str, tuple[str, ...]]
"""Of rejection, by part, where they are worded unlike the manifest's."""


def header_of(manifest: Manifest, part: PartKey, reasons: Reasons) -> dict[str, Any]:
    """Return the fields of ``PartRows`` that no column holds."""
    shard = manifest.by_shard[part.shard]
    rejections = manifest.rejections.get(part.shard, ())
    if part.path in reasons:
        words = reasons[part.path]
        rejections = tuple(
            replace(one, reason=reason) for one, reason in zip(rejections, words, strict=True)
        )
    return {
        "part": part,
        "identity": manifest.identity.digest,
        "key_hash": shard.key_hash,
        "content_hash": shard.content_hash,
        "image_hash": manifest.image_hashes.get(part.shard, ""),
        "samples": shard.samples,
        "rejections": rejections,
    }


def check_reasons(values: Any, manifest: Manifest) -> Reasons:
    """Return the reasons that a manifest lists; raises ``ValueError`` if they do not fit it."""
    parts = {entry.part.path: entry.part for entry in manifest.parts}
    reasons = {path: tuple(map(str, words)) for path, words in values.items()}
    for path, words in reasons.items():
        known = manifest.rejections.get(parts[path].shard, ()) if path in parts else ()
        if len(words) != len(known):
            raise ValueError(f"{len(words)} reasons for {len(known)} rejections of {path}")
    return reasons


class HeaderCheck:
    """Checks part after part of a store that its manifest says all that their headers do."""

    def __init__(self, source: LabelStore) -> None:
        self._source = source
        self._digest = source.identity.digest
        self._samples: dict[int, tuple[object, ...]] = {}
        self.reasons: dict[str, tuple[str, ...]] = {}

    def add(self, rows: PartRows) -> None:
        """Check a part; raises ``StoreError`` if going over to another format would lose a bit.

        Keys, targets and seeds must be those of the shard's other parts.
        """
        manifest, part = self._source.manifest, rows.part
        expected = header_of(manifest, part, {})
        expected["identity"] = self._digest
        expected["rejections"] = _places(expected["rejections"])
        found = {name: getattr(rows, name) for name in expected}
        found["rejections"] = _places(rows.rejections)
        samples = (rows.keys, rows.target.tobytes(), rows.seed.tobytes())
        if found != expected or self._samples.setdefault(part.shard, samples) != samples:
            raise StoreError(
                f"{self._source.root.at(part.path)} does not fit its manifest, or another part "
                "of its shard; run `label-store verify` on the store"
            )
        if rows.rejections != manifest.rejections.get(part.shard, ()):
            self.reasons[part.path] = tuple(one.reason for one in rows.rejections)


def _places(rejections: tuple[Rejection, ...]) -> list[tuple[int, str]]:
    return [(one.index, one.key) for one in rejections]
