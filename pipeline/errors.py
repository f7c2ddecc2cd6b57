"""The exceptions that this project raises on purpose.

Every message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Literal, TypeAlias

__all__ = [
    "REJECTION_WORDS",
    "CheckpointError",
    "ChecksumError",
    "ClassesError",
    "ConfigError",
    "DecodeError",
    "IdentityError",
    "IncompleteStoreError",
    "PipelineError",
    "RejectionError",
    "RejectionReason",
    "ReplayError",
    "ShardError",
    "StoreError",
    "TeacherError",
    "TryAgainError",
    "require_package",
]


RejectionReason: TypeAlias = Literal[
    "empty", "unknown-format", "too-many-pixels", "undecodable", "crashes-decoder"
]
"""Why an image has no labels. Stores hold these codes, so they depend on the image's bytes and the
store's settings alone: never on a library's words, a name or a process."""

REJECTION_WORDS: Mapping[RejectionReason, str] = {
    "empty": "it has no bytes",
    "unknown-format": "its first bytes are not those of a JPEG, PNG or WebP",
    "too-many-pixels": "its header says more pixels than `max_pixels` allows",
    "undecodable": "it is damaged, cut off, or of a kind that no decoder reads",
    "crashes-decoder": "whatever process decodes it crashes",
}
"""The codes in words, for people."""


class PipelineError(Exception):
    """The base of all errors a user can cause or cure; parameters stand in backticks.

    >>> try:
    ...     open_store("absent.parquet")
    ... except PipelineError as error:
    ...     print(error)
    absent.parquet: there is no label store here; check the path
    """


class ConfigError(PipelineError):
    """A setting is out of range, or two settings contradict each other."""


class ClassesError(ConfigError):
    """A list of classes' names is malformed, or two lists call one number by two names."""


class ShardError(PipelineError):
    """A shard is missing, malformed, or not the one that was expected."""


class DecodeError(PipelineError):
    """An image does not decode; the label job turns this into a rejection for ``reason``."""

    def __init__(self, message: str, reason: RejectionReason = "undecodable") -> None:
        super().__init__(message)
        self.reason: RejectionReason = reason


class RejectionError(PipelineError):
    """Too many images were rejected, or parts disagree about which ones are."""


class TeacherError(PipelineError):
    """The teacher cannot be built, or cannot label these shards."""


class StoreError(PipelineError):
    """A label store is missing, malformed, or of an unknown version."""


class ChecksumError(StoreError):
    """Bytes on disk are not the bytes that were committed."""


class IdentityError(StoreError):
    """A store belongs to another configuration than the one at hand."""


class IncompleteStoreError(StoreError):
    """A store lacks parts, or its manifest."""


class ReplayError(PipelineError):
    """A replayed view is not the view that the teacher labelled."""


class CheckpointError(PipelineError):
    """A checkpoint is unreadable, or belongs to another model or run."""


class TryAgainError(PipelineError):
    """Machines failed, or had no room: the same command may do better later."""


def require_package(module: str, extra: str, what: str) -> None:
    """Raise ``ConfigError`` if a package is missing that an extra of the project brings.

    ``what`` begins the message: who needs it.
    """
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{what} needs {module}: pip install 'teacher-labels[{extra}]'")
