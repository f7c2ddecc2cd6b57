"""What every label store can do, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pipeline.config import StoreIdentity
from pipeline.files import Folder
from pipeline.records import PartRows, ShardView
from pipeline.store.manifest import Manifest, PartEntry

__all__ = ["LabelStore"]


class LabelStore(ABC):
    """A finished store, open for reading.

    Opening reads the manifest alone. A store may be pickled to worker processes and read
    from several; every part's checksum is verified when a process first reads it.
    """

    def __init__(self, root: Folder, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest

    @property
    def identity(self) -> StoreIdentity:
        """What the store's labels depend on."""
        return self.manifest.identity

    @abstractmethod
    def read_view(self, shard: int, view: int) -> ShardView:
        """Return the labels of one shard at one view.

        Raises ``IncompleteStoreError`` if the store has none, ``ChecksumError`` if the
        bytes are not those that were committed.
        """

    @abstractmethod
    def read_part(self, entry: PartEntry) -> PartRows:
        """Read one part of the manifest and check it whole.

        Raises ``ChecksumError`` if its bytes are not those that were committed.
        """

    def read_file(self, entry: PartEntry) -> bytes | None:
        """Return a part's Parquet file, checked; None where the store keeps no such files.

        Raises what ``read_part`` does.
        """
        return None
