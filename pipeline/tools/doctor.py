"""Looks at a machine before anything is paid for: does it have, and do, what the commands need?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from pipeline.files.cache import CacheConfig
from pipeline.identity import AugmentConfig, MixConfig, StoreIdentity, TeacherIdentity
from pipeline.store.provenance import processor

__all__ = ["Finding", "examine"]

PROJECT = "teacher-labels"
EXTRAS = ("cloud", "export", "hub", "jobs", "zarr")
"""What may be left out by whoever does not need it."""

DISK_GB, SHARED_GB, MEMORY_GB = 5.0, 1.0, 4.0
"""Below these, long jobs are known to fail; what one needs depends on its data."""

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_TEACHER = TeacherIdentity(
    architecture="none", weights="0" * 64, classes=2, precision="fp32", batch_views=3
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, and what was found."""

    name: str
    found: str
    cure: str = ""  # what to do; empty if all is well

    @property
    def is_well(self) -> bool:
        """Whether there is nothing to mend."""
        return not self.cure


def examine() -> Iterator[Finding]:
    """Yield what is found on this machine, one thing at a time; writes nothing that stays."""
    yield _python()
    yield from _packages()
    yield _processor()
    yield _memory()
    yield _gpu()
    yield _pixels()
    yield _disk("disk", Path.cwd(), DISK_GB, "free some, or work in another directory")
    yield _disk(
        "/dev/shm",
        Path("/dev/shm"),
        SHARED_GB,
        "loaders and Ray keep batches there; give a container more (Docker's shm-size, an "
        "emptyDir of medium Memory on Kubernetes), or train with `workers` 0",
    )
    cache = CacheConfig().directory_path
    yield _writable("cache", cache, "set XDG_CACHE_HOME, or give `cache_dir`")
    yield _writable("temporary files", Path(tempfile.gettempdir()), "set TMPDIR")
    yield _kernels()


def _python() -> Finding:
    found = f"{platform.python_version()} ({sys.executable})"
    old = sys.version_info < (3, 11)
    return Finding(name="Python", found=found, cure="install 3.11 or newer" if old else "")


def _packages() -> Iterator[Finding]:
    """Yield the packages of other versions than are supported, or that all are of these."""
    fit = True
    for extra, one in _needed():
        found = _version(one.name)
        if not found and extra:
            continue
        if not found or not one.specifier.contains(found, prereleases=True):
            fit = False
            cure = f"pip install '{one}'"
            yield Finding(name=one.name, found=found or "not installed", cure=cure)
    if fit:
        some = ("torch", "torchvision", "timm", "ray", "zarr", "pyarrow", "numpy")
        words = ", ".join(f"{name} {found}" for name in some if (found := _version(name)))
        yield Finding(name="packages", found=f"{PROJECT} {version(PROJECT)}; {words}")
    lacking = [f"{one.name} [{extra}]" for extra, one in _needed() if not _version(one.name)]
    if fit and lacking:
        yield Finding(name="extras", found=f"not installed: {', '.join(lacking)}")


def _needed() -> Iterator[tuple[str, Requirement]]:
    """Yield what the project needs, and the extra that needs it, if one does."""
    for one in map(Requirement, requires(PROJECT) or ()):
        for extra in ("", *EXTRAS):
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                yield extra, one
                break


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _processor() -> Finding:
    flags: set[str] = set()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith(("flags", "Features")):
            flags |= set(line.partition(":")[2].split())
    known = [one for one in _FLAGS if one in flags]
    cores = len(os.sched_getaffinity(0))
    bf16 = any("bf16" in one for one in known)
    return Finding(
        name="processor",
        found=f"{processor()}, {cores} cores for us, {' '.join(known) or platform.machine()}"
        + ("" if bf16 else "; no bf16 in hardware, so fp32 may be the faster precision here"),
    )


def _memory() -> Finding:
    found = [line.split() for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")]
    limit = _lines("/sys/fs/cgroup/memory.max")
    free = int(found[0][1]) * 1024 / 1e9 if found else 0.0
    if limit and limit[0].strip().isdigit():
        free = min(free, int(limit[0]) / 1e9)
    cure = "" if free >= MEMORY_GB else "end other programs, or give the container more"
    return Finding(name="memory", found=f"{free:.1f} GB free", cure=cure)


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        from pipeline.views.floats import fingerprints_on
        from pipeline.views.reference import REFERENCE

        names = [torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count())]
        prints = fingerprints_on(_identity(), "cuda")
        odd = [one for one in prints if one.endswith(".values") and prints[one] != REFERENCE[one]]
        cure = f"its floats are wrong ({', '.join(odd)}): update its driver" if odd else ""
        return Finding(name="GPU", found=", ".join(names), cure=cure)
    if Path("/dev/nvidia0").exists():
        return Finding(
            name="GPU",
            found=f"there is one that PyTorch {torch.__version__} does not see",
            cure="install a PyTorch for its driver: https://pytorch.org/get-started/locally",
        )
    return Finding(name="GPU", found="none; teachers and students run on the CPU")


def _pixels() -> Finding:
    """Compare what this machine makes of images with what every sound one does."""
    from pipeline.views.fingerprints import different_fingerprints, what_they_watch
    from pipeline.views.floats import fingerprints_on
    from pipeline.views.reference import REFERENCE

    ours = fingerprints_on(_identity(), "cpu")
    different = different_fingerprints(ours, REFERENCE)
    if not different:
        return Finding(name="pixels", found=f"{len(ours)} fingerprints are as they should be")
    return Finding(
        name="pixels",
        found=f"these are others than elsewhere: {what_they_watch(_identity(), different)}",
        cure="stores of other machines will be refused here; install the versions in "
        "constraints.txt (simplejpeg and Pillow decode, numba draws)",
    )


def _identity() -> StoreIdentity:
    return StoreIdentity(root_seed=0, augment=AugmentConfig(), mix=MixConfig(), teacher=_TEACHER)


def _disk(name: str, path: Path, least: float, cure: str) -> Finding:
    try:
        free = shutil.disk_usage(path).free / 1e9
    except OSError as error:
        return Finding(name=name, found=f"{path}: {error.strerror}", cure=cure)
    found = f"{free:.1f} GB free in {path}"
    return Finding(name=name, found=found, cure="" if free >= least else cure)


def _writable(name: str, path: Path, cure: str) -> Finding:
    """Try to write below a directory that a command would make."""
    there = next(one for one in (path, *path.parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return Finding(name=name, found=f"{path} can be written")
    except OSError as error:
        return Finding(name=name, found=f"{there}: {error.strerror}", cure=cure)


def _kernels() -> Finding:
    """Say where compiled kernels are kept, without which each start costs seconds."""
    from pipeline.views.compiled import kept_in

    kept = kept_in()
    found = f"kept in {kept}" if kept else "not kept: each process compiles them, for seconds"
    return Finding(
        name="kernels", found=found, cure="" if kept else "set NUMBA_CACHE_DIR to a directory"
    )


def _lines(path: str) -> list[str]:
    read: Callable[[], str] = Path(path).read_text
    try:
        return read().splitlines()
    except OSError:
        return []
