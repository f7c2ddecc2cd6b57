"""From the rows of a part to the labels of a whole shard at one view."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from pipeline.records import PartRows, ShardView, spread

__all__ = ["PartViews"]


class PartViews:
    """The views of one part, by the samples' index in the shard; rejected ones hold zeros.

    What all views share is made once.
    """

    def __init__(self, rows: PartRows) -> None:
        self.rows = rows
        self._keys, self._accepted = rows.all_keys, rows.accepted
        self._target, self._seed = self._spread(rows.target), self._spread(rows.seed)
        for shared in (self._accepted, self._target, self._seed):
            shared.flags.writeable = False

    def at(self, view: int) -> ShardView:
        """Return the labels at a view that the part covers."""
        rows = self.rows
        column = view - rows.part.first_view
        return ShardView(
            shard=rows.part.shard,
            view=view,
            keys=self._keys,
            accepted=self._accepted,
            target=self._target,
            seed=self._seed,
            label=self._spread(rows.label[:, column]),
            digest=self._spread(rows.digest[:, column]),
            has_digest=self._spread(rows.has_digest[:, column]),
            mixed_digest=self._spread(rows.mixed_digest[:, column]),
            columns=rows.columns.map(lambda values: self._spread(values[:, column])),
        )

    def _spread(self, values: NDArray[Any]) -> NDArray[Any]:
        return spread(values, self._accepted)
