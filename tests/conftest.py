"""Fixtures that all tests share, and how hypothesis runs here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.factories import write_shard

# Derandomised, so that a test that passes here passes everywhere.
settings.register_profile("laws", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("laws")

Samples = Iterable[tuple[str, bytes, int]]


@pytest.fixture
def make_shard(tmp_path: Path) -> Callable[[str, Samples], Path]:
    """Return a function that writes (key, JPEG bytes, target) to a shard of this name."""

    def make(name: str, samples: Samples) -> Path:
        return write_shard(tmp_path / name, samples)

    return make
