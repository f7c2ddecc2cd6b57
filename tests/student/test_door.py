"""The package's door: every name opens, and importing it is light."""

from __future__ import annotations

import subprocess
import sys

import student


def test_every_public_name_is_there() -> None:
    for name in student.__all__:
        assert getattr(student, name).__name__ == name
    assert set(student._MODULES) == set(student.__all__)


def test_importing_the_package_loads_no_pytorch() -> None:
    code = "import sys, student; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
