"""Makes the golden stores: run once for each format version, never to make a test pass.

`python -m tests.golden.make` writes a shard of digits, two small stores of its labels in each
format, and their rows as JSON beside this file. Releases to come must open, read and replay
these files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from webdataset import TarWriter

from pipeline.identity import AugmentConfig, ColumnConfig, MixConfig, StoreIdentity
from pipeline.records import PartRows
from pipeline.store import LabelStore
from pipeline.store.card import card_text
from pipeline.store.export import export_store
from tests.factories import encode, photographs
from tests.labelling import digit_shard, hash_identity, write_hash_store

HERE = Path(__file__).parent
SHARD = HERE / "digits.tar"
PLAIN_SHARD, PLAIN_STORE, PLAIN_SAMPLES = HERE / "plain.tar", HERE / "plain.parquet", 9
SAMPLES, TORN, VIEWS, PART_VIEWS = 11, 3, 18, 9
COLUMNS: Mapping[str, ColumnConfig] = {
    "hard": ColumnConfig(),
    "soft": ColumnConfig(confidence=True, margin=True, topk=3),
}


FORMATS = ("parquet", "zarr", "one.parquet")
"""By the ends of their names: a directory of Parquet parts, Zarr, and one Parquet file."""


def store_path(name: str, ending: str = "parquet") -> Path:
    """Return where the store of this name lies, in the format with this ending."""
    return HERE / f"{name}.{ending}"


def identity_of(name: str) -> StoreIdentity:
    """Return the identity of the store of this name."""
    return hash_identity(columns=COLUMNS[name])


def rows_as_json(rows: PartRows) -> dict[str, Any]:
    """Return a part's rows as plain values, by column."""
    return {
        "keys": list(rows.keys),
        "target": rows.target.tolist(),
        "seed": rows.seed.tolist(),
        "label": rows.label.tolist(),
        "digest": _where(rows.digest, rows.has_digest),
        "mixed_digest": _where(rows.mixed_digest, rows.mixed_digest != 0),
        **{name: values.tolist() for name, values in rows.columns.items()},
    }


def _where(values: NDArray[np.uint32], there: NDArray[np.bool_]) -> list[list[int | None]]:
    return [
        [int(one) if known else None for one, known in zip(*pair, strict=True)]
        for pair in zip(values, there, strict=True)
    ]


def values_of(store: LabelStore) -> dict[str, Any]:
    """Return all rows of a store, by the paths of its parts."""
    entries = store.manifest.parts
    return {entry.part.path: rows_as_json(store.read_part(entry)) for entry in entries}


def write_plain_store() -> None:
    """Write a store whose images a reader needs no decoder for: PNGs, in groups with an odd one.

    Its teacher's label is the CRC-32 of the mixed floats modulo 65535, so that a reader that
    follows the documents alone can compare every view, and not only those with a digest.
    """
    china, flower = photographs()
    with PLAIN_SHARD.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for number in range(PLAIN_SAMPLES):
            source = (china, flower)[number % 2]
            top, height, width = 30 * number, 21 + 5 * number, 61 - 4 * number
            pixels = np.ascontiguousarray(source[top : top + height, 200 : 200 + width])
            key, image = f"crop/{number:03d}", encode(pixels, "PNG")
            tar.write({"__key__": key, "png": image, "cls": b"%d" % (number % 2)})
    identity = hash_identity(AugmentConfig(image_size=24), MixConfig(group_size=4))
    write_hash_store(
        PLAIN_STORE, [PLAIN_SHARD], views=192, per_part=96, identity=identity, card=card_text
    )


def main() -> None:
    """Write the shard, the stores and their values; refuse to change what is there."""
    if SHARD.exists():
        sys.exit(f"{SHARD} is there: a golden store is made once, delete it to make another")
    digit_shard(SHARD, SAMPLES, first=40, broken=(TORN,))
    values = {}
    for name in COLUMNS:
        store = write_hash_store(
            store_path(name),
            [SHARD],
            views=VIEWS,
            per_part=PART_VIEWS,
            identity=identity_of(name),
            card=card_text,
        )
        values[name] = values_of(store)
        for ending in FORMATS[1:]:
            export_store(store.root, store_path(name, ending), single_file=ending == "one.parquet")
    write_plain_store()
    text = json.dumps(values, separators=(",", ":"), sort_keys=True)
    (HERE / "values.json").write_text(text.replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
