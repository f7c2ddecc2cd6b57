"""What every label store can do, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from pipeline.config import StoreIdentity
from pipeline.files import Folder
from pipeline.records import PartRows, ShardView
from pipeline.store.manifest import CARD_PATH, RUNS_PATH, Manifest, PartEntry

__all__ = ["LabelStore"]


class LabelStore(ABC):
    """A finished store, open for reading.

    Opening reads the manifest alone. A store may be pickled to worker processes and read
    from several; all bytes that a label is read from are verified when a process first
    reads them.
    """

    def __init__(self, root: Folder, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest

    @property
    def identity(self) -> StoreIdentity:
        """What the store's labels depend on."""
        return self.manifest.identity

    @property
    def bytes(self) -> int:
        """Bytes of all files with labels."""
        return self.manifest.bytes

    @abstractmethod
    def read_view(self, shard: int, view: int) -> ShardView:
        """Return the labels of one shard at one view.

        Raises ``IncompleteStoreError`` if the store has none, ``ChecksumError`` if the
        bytes are not those that were committed.
        """

    @abstractmethod
    def read_part(self, entry: PartEntry) -> PartRows:
        """Return all that one part of the manifest stores; raises as ``read_view`` does."""

    @abstractmethod
    def check_files(self) -> None:
        """Raise ``StoreError`` for files that the manifest does not list, and check those
        bytes that ``read_part`` does not read.
        """

    def companions(self) -> Mapping[str, bytes]:
        """Return the files that travel with a store, by path: its card, how its runs went."""
        paths = [CARD_PATH, *self.root.list(RUNS_PATH)]
        return {path: self.root.read_bytes(path) for path in paths if self.root.exists(path)}
