"""Packs a folder of images, one directory per class, into shuffled WebDataset shards.

The same images and seed give the same bytes on every machine: the order is drawn over the
sorted file list, and tar headers carry no times, users or modes of the files. Only images that
are encoded anew (``max_side``, ``quality``) also depend on Pillow's version, and those that get
restart markers (``lossless``) on jpegtran's.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypeAlias

from pipeline.classes import (
    CLASSES_FILE,
    MAX_CLASSES,
    ClassNames,
    check_names,
    read_names,
    require_known,
)
from pipeline.errors import ConfigError, DecodeError, PipelineError, ShardError
from pipeline.files.kinds import why_no_data, without_waiting
from pipeline.files.local import LocalFolder, open_folder, real_path
from pipeline.growth import settle
from pipeline.identity import canonical_json
from pipeline.shards.encoding import (
    EXTENSIONS,
    EncodedFile,
    Encoding,
    encode_image,
    find_jpegtran,
)
from pipeline.shards.index import INDEX_SUFFIX, index_bytes, is_key
from pipeline.telling import told
from pipeline.views.rng import sample_share, stream

__all__ = [
    "VALIDATION",
    "PackConfig",
    "PackReport",
    "PackedShard",
    "PlannedShard",
    "WriteShards",
    "pack_shards",
    "write_shard",
]

WriteShards: TypeAlias = (
    "Callable[[PackConfig, Sequence[PlannedShard], Callable[[int], None]], Iterator[PackedShard]]"
)
"""Writes planned shards in any order, and says of how many images it has written more."""

_LARGEST_RESTART = 4096  # pixels; a row is a piece long before
_WINDOW = 64  # images in memory at once
_FEWEST = 2  # images in a shard: pairs are drawn from it
_HEAD = 4096  # bytes of a file that are looked at
_SCAN = b"\xff\xda"  # the marker before a JPEG's pixels
_LARGEST = 1 << 30  # bytes of a file; a file of holes takes no disk, and all of the memory
_SMALLEST = 26  # bytes of a WebP of one pixel; no image has fewer
_READERS = 16  # threads; storage far away takes a while to answer each
_UNTAKEN = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpe", ".jxl", ".svg"}
    | {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"}  # of cameras
    | {".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".tga", ".tif", ".tiff"}
)
"""Extensions of images of other kinds."""
_PREFIX = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
VALIDATION = ("val", "valid", "validation", "test")
"""What directories of images or shards for validation are called, the usual name first."""
_SPLITS = frozenset(
    {"train", "training", "trainval", "val", "valid", "validation"}
    | {"test", "testing", "dev", "eval"}
)
"""Names of directories that hold directories of classes, and are none themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackConfig:
    """What to pack, and how."""

    images: Path
    """Directory with one directory of images for each class."""
    out: str
    """Directory or URL (s3://...) of the shards; made if need be, and must hold none yet."""
    classes: str | None = None
    """All classes in the order of their indices, where `images` has some of them or another order:
    the shards or image folder of the training set, a classes.json, or a file with a name a line,
    such as ImageNet's synsets. Unset: the directories of images, sorted by name."""
    part: tuple[float, float] = (0.0, 1.0)
    """Of a folder that is not split into training and validation, a part of each class: 0 0.8 for
    the one, 0.8 1 for the other. Which file is in which goes by hashes of paths below `images`."""
    per_shard: int = 1000
    """Images in a shard. A single one left over joins the shard before it."""
    prefix: str = "shard"
    """Shards are named <prefix>-000000.tar and so on."""
    seed: int = 0
    """Seed of the order in which images are packed."""
    max_side: int | None = None
    """Shrink images whose longer side exceeds this many pixels, and store them as JPEG."""
    quality: int | None = None
    """Encode every image anew as JPEG of this quality, 1 to 100 (color at half resolution:
    4:2:0); a JPEG that would not get smaller keeps its bytes. Unset: only images that
    are shrunk are encoded, at 90; all others keep their bytes."""
    restart: int = 64
    """Restart markers after about so many pixels of a row in JPEGs that are encoded or marked,
    so that a training at one view per decode decodes little more than a crop. 0: none."""
    lossless: bool = False
    """Put restart markers also into JPEGs that are not encoded anew: other bytes, the same
    pixels. Needs the program jpegtran. Files that it cannot do so with keep their bytes."""

    def __post_init__(self) -> None:
        settle(self)
        if self.per_shard < _FEWEST:
            raise ConfigError(
                f"`per_shard` is {self.per_shard}; use 2 or more, pairs need two samples"
            )
        if not 0 <= self.part[0] < self.part[1] <= 1:
            raise ConfigError(
                f"`part` is {self.part[0]:g} {self.part[1]:g}; use two rising numbers in 0..1"
            )
        if not _PREFIX.fullmatch(self.prefix):
            raise ConfigError(
                f"`prefix` is {self.prefix!r}; use letters, digits, '_', '-' and '.', "
                "and no '.' or '-' in front"
            )
        if self.max_side is not None and self.max_side < 1:
            raise ConfigError(f"`max_side` is {self.max_side}; use 1 or more pixels")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ConfigError(f"`quality` is {self.quality}; use 1..100")
        if not 0 <= self.restart <= _LARGEST_RESTART:
            raise ConfigError(f"`restart` is {self.restart}; use 0..{_LARGEST_RESTART} pixels")
        if self.lossless and not self.restart:
            raise ConfigError("`lossless` adds restart markers, and `restart` is 0; leave out one")

    @property
    def encoding(self) -> Encoding:
        """The settings that change an image's bytes."""
        return Encoding(
            max_side=self.max_side,
            quality=self.quality,
            restart=self.restart,
            lossless=self.lossless,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackReport:
    """What was done; ``read`` is always ``packed`` plus the files passed over."""

    shards: tuple[Path | str, ...]  # files, or URLs
    classes: tuple[str, ...]
    absent: tuple[str, ...]  # of the classes, those of which there are no images
    read: int  # files found
    packed: int
    shrunk: int  # of the packed ones
    reencoded: int  # of the packed ones, the shrunk ones included
    marked: int  # of the packed ones: other bytes, the same pixels
    turned: int  # of the packed ones: JPEGs that are stored on their side or mirrored (EXIF)
    passed_over: tuple[Path, ...]  # those of the next three lines, others, and hidden ones
    untaken: tuple[Path, ...]  # images of kinds that are not taken, by their extension
    broken: tuple[Path, ...]  # images by their extension, and not by their first bytes
    undecodable: tuple[Path, ...]  # those that had to be decoded, and do not; sorted
    bytes: int  # of all shards


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """One image file to be packed."""

    path: Path
    key: str
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """A shard to be written: its images in their order."""

    name: str  # of its file, in `out`
    sources: tuple[_Source, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShard:
    """A shard that is written."""

    packed: int
    shrunk: int
    reencoded: int
    marked: int
    turned: int
    undecodable: tuple[Path, ...]  # images that are left out
    bytes: int


def pack_shards(
    config: PackConfig,
    on_progress: Callable[[int, int], None] = lambda packed, total: None,
    write: WriteShards | None = None,
) -> PackReport:
    """Write the shards and ``classes.json``, which comes last, and return what was done.

    ``on_progress`` is called with the images packed so far and their total. A shard has its
    final name only when it is whole. ``write`` writes the shards, here one after the other; in any
    order and anywhere they have the same bytes. Raises ``ConfigError`` for directories that do not
    fit, and ``ShardError`` for two images of one key, or for a shard of which fewer than two images
    decode, if they have to; an unreadable file or a full disk raises ``PipelineError``.

    >>> pack_shards(PackConfig(images=Path("images"), out="packed", max_side=500)).classes
    ('cat', 'dog')
    """
    _check_directories(config)
    if config.lossless:
        find_jpegtran()
    files = _part_of(_files_below(config.images), config)
    named = [path for path in files if _has_extension(path, config.images, EXTENSIONS)]
    _classes_of(config, named)  # what is cheap first: a layout is refused before files are read
    images = _images_among(named)
    classes, _ = _classes_of(config, images)
    planned = _plan(config, _name_sources(config.images, images, classes))

    shown = 0

    def show(images_more: int) -> None:
        nonlocal shown
        shown += images_more
        on_progress(shown, len(images))

    done: list[PackedShard] = []
    try:
        for shard in (write or write_in_turn)(config, planned, show):
            done.append(shard)
    except PipelineError as error:
        if not done:
            raise
        raise type(error)(
            f"{error}; {len(done)} finished shards are in {config.out}: delete them before you run "
            "again"
        ) from error
    folder = open_folder(config.out)
    folder.replace(CLASSES_FILE, canonical_json(list(classes)) + b"\n")
    paths = [folder.at(shard.name) for shard in planned]
    undecodable = {path for one in done for path in one.undecodable}
    taken = set(images)
    packed = taken - undecodable
    filled = {path.relative_to(config.images).parts[0] for path in packed}
    return PackReport(
        shards=tuple(map(Path, paths) if isinstance(folder, LocalFolder) else paths),
        classes=classes,
        absent=tuple(name for name in classes if name not in filled),
        read=len(files),
        packed=sum(one.packed for one in done),
        shrunk=sum(one.shrunk for one in done),
        reencoded=sum(one.reencoded for one in done),
        marked=sum(one.marked for one in done),
        turned=sum(one.turned for one in done),
        passed_over=tuple(path for path in files if path not in packed),
        untaken=tuple(path for path in files if _has_extension(path, config.images, _UNTAKEN)),
        broken=tuple(path for path in named if path not in taken),
        undecodable=tuple(path for path in named if path in undecodable),
        bytes=sum(one.bytes for one in done),
    )


def _plan(config: PackConfig, sources: Sequence[_Source]) -> list[PlannedShard]:
    order = stream("pack", config.seed).permutation(len(sources))
    return [
        PlannedShard(
            name=f"{config.prefix}-{number:06d}.tar",
            sources=tuple(sources[index] for index in order[start:end]),
        )
        for number, (start, end) in enumerate(_cut(len(sources), config.per_shard))
    ]


def write_in_turn(
    config: PackConfig, planned: Sequence[PlannedShard], show: Callable[[int], None]
) -> Iterator[PackedShard]:
    """Write shards one after the other, with all cores."""
    for shard in planned:
        yield write_shard(config, shard, os.cpu_count(), show)


def write_shard(
    config: PackConfig,
    planned: PlannedShard,
    threads: int | None,
    show: Callable[[int], None] = lambda images: None,
) -> PackedShard:
    """Write one shard, and beside it an index of its bytes.

    ``show`` is called with the images that are written since the last call.
    """
    packed: list[EncodedFile] = []
    undecodable: list[Path] = []
    folder = open_folder(config.out)
    with folder.write_file(planned.name) as file:
        for source, encoded in _write_samples(file, planned.sources, config, threads):
            if encoded is None:
                undecodable.append(source.path)
            else:
                packed.append(replace(encoded, data=b""))
            show(1)
        if undecodable and len(packed) < _FEWEST:
            raise ShardError(
                f"{planned.name}: of its {len(planned.sources)} images {len(packed)} decode, and "
                f"pairs need {_FEWEST}; {undecodable[0]} and the like are damaged, cut off or too "
                "large: repair or remove them, or pack without `max_side` and `quality`"
            )
        size = file.tell()
        index = index_bytes(file, planned.name)
    folder.replace(f"{planned.name}{INDEX_SUFFIX}", index)
    return PackedShard(
        packed=len(packed),
        shrunk=sum(one.shrunk for one in packed),
        reencoded=sum(one.reencoded for one in packed),
        marked=sum(one.marked for one in packed),
        turned=sum(one.turned for one in packed),
        undecodable=tuple(undecodable),
        bytes=size,
    )


def _check_directories(config: PackConfig) -> None:
    if not config.images.is_dir():
        raise ConfigError(f"`images` {config.images}: no such directory; check the path")
    folder = open_folder(config.out)
    local = real_path(folder.path) if isinstance(folder, LocalFolder) else None
    if local is not None and local.is_relative_to(real_path(config.images)):
        raise ConfigError(
            f"`out` {config.out} lies in `images` {config.images} and would become a class; "
            "choose a directory outside"
        )
    if folder.is_a_file():
        raise ConfigError(f"`out` {config.out} is a file; name a directory")
    found = [path for path in folder.list() if "/" not in path and path.endswith(".tar")]
    if folder.exists(CLASSES_FILE):
        found.append(CLASSES_FILE)
    if found:
        raise ConfigError(
            f"`out` {config.out} already holds {found[0]}"
            + (f" and {len(found) - 1} more" if len(found) > 1 else "")
            + "; delete what an earlier run left there, or choose another directory"
        )


def _files_below(root: Path) -> list[Path]:
    """Return all files, links followed, sorted by code points so that no locale matters."""

    def refuse(error: OSError) -> None:
        raise PipelineError(f"{error.filename}: cannot list the directory: {error.strerror}")

    files: list[Path] = []
    above: dict[str, frozenset[tuple[int, int]]] = {}
    for directory, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        found = Path(directory).stat()
        way = above.pop(directory, frozenset[tuple[int, int]]())
        if (found.st_dev, found.st_ino) in way:
            raise ConfigError(
                f"{directory} is a link to a directory in which it lies; remove the link"
            )
        way |= {(found.st_dev, found.st_ino)}
        above |= {str(Path(directory, name)): way for name in folders}
        files += [Path(directory, name) for name in names]
    for path in files:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{str(path)!r}: the name is not UTF-8, so it cannot be a key; rename the file"
            ) from None
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _part_of(files: Sequence[Path], config: PackConfig) -> list[Path]:
    """Return the files in the configured part of each class, in their order.

    A class's files lie by their hashes at even distances in 0..1, so a part has its share of each
    class to half a file, and another file moves no more than one of its class over a border.
    """
    low, high = config.part
    if (low, high) == (0, 1):
        return list(files)
    classes: dict[tuple[str, bool], list[Path]] = {}
    for path in files:
        is_image = _has_extension(path, config.images, EXTENSIONS)  # others take no image's share
        name = path.relative_to(config.images).parts[0]
        classes.setdefault((name, is_image), []).append(path)
    taken = set()
    for one in classes.values():
        order = sorted(one, key=lambda path: sample_share(0, _inside(path, config)))
        taken |= {path for row, path in enumerate(order) if low <= (row + 0.5) / len(one) < high}
    return [path for path in files if path in taken]


def _inside(path: Path, config: PackConfig) -> str:
    return path.relative_to(config.images).as_posix()


def _has_extension(path: Path, root: Path, extensions: Container[str]) -> bool:
    # Hidden files are not images, whatever they are called: ._cat.jpg is a Mac's metadata.
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and path.suffix.lower() in extensions


def _images_among(files: Sequence[Path]) -> list[Path]:
    """Return the files that begin as images; what comes after is not looked at."""

    def look() -> Iterator[bool]:
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(files), _WINDOW):
                yield from pool.map(_begins_as_image, files[start : start + _WINDOW])

    looks = told(look(), "looking at first bytes", "images", len(files))
    return [path for path, is_image in zip(files, looks, strict=True) if is_image]


def _begins_as_image(path: Path) -> bool:
    """Tell whether a label job would try to decode a file; what ends in its header is none."""
    from pipeline.views.apply import image_format

    with _saying_where(path), open(path, "rb", buffering=0, opener=without_waiting) as file:
        head, size = file.read(_HEAD), os.fstat(file.fileno()).st_size
    if size > _LARGEST and image_format(head):
        raise PipelineError(
            f"{path} has {size} bytes, and an image {_LARGEST} at most, which are in memory at "
            "once; remove it, or make it smaller"
        )
    whole = len(head) < _HEAD
    if image_format(head) == "jpeg" and whole:
        return _SCAN in head
    return len(head) >= _SMALLEST and image_format(head) != ""


def _classes_of(
    config: PackConfig, images: Sequence[Path]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return all classes in the order of their indices, and those without a directory here."""
    known = None if config.classes is None else read_names(config.classes)
    found = _read_classes(config, images, known)
    if known is None:
        return check_names(found, f"`images` {config.images}"), ()
    require_known(found, known, config.images)
    there = set(found)
    return known.names, tuple(name for name in known.names if name not in there)


def _read_classes(
    config: PackConfig, images: Sequence[Path], known: ClassNames | None
) -> tuple[str, ...]:
    """Return the names of the class directories, sorted."""
    root = config.images
    cure = "give each class one directory of images below `images`"
    loose = [path for path in images if path.parent == root]
    if loose:
        raise ConfigError(
            f"{loose[0]}: the image lies in no class directory"
            + (f", nor do {len(loose) - 1} more" if len(loose) > 1 else "")
            + f"; {cure}"
        )
    classes = sorted(
        path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not classes:
        raise ConfigError(f"`images` {root} holds no directories; {cure}")
    if len(classes) > MAX_CLASSES:
        raise ConfigError(
            f"`images` {root} holds {len(classes)} classes; labels have 16 bits, so pack at "
            f"most {MAX_CLASSES}"
        )
    if known is None or not set(classes) <= set(known.names):
        _require_flat(root, classes, images)
    filled = {path.relative_to(root).parts[0] for path in images}
    empty = [name for name in classes if name not in filled]
    if known is not None:
        return tuple(name for name in classes if name in filled)  # an empty one takes no index
    if empty:
        low, high = config.part
        some, fill = "", "fill or delete the directory, because it would take a class index"
        if (low, high) != (0, 1):
            some = f" in the `part` {low:g} to {high:g} of its files"
            fill = f"pack a larger part, or let `classes` be {root}, so that it keeps its index"
        for path in _files_below(root / empty[0]):
            reason = why_no_data(path) if _has_extension(path, root, EXTENSIONS) else None
            if reason is not None:
                fill = f"{path} {reason}; or {fill}"
                break
        raise ConfigError(
            f"{root / empty[0]}: the class holds no images{some}"
            + (f", nor do {len(empty) - 1} more" if len(empty) > 1 else "")
            + f" ({', '.join(EXTENSIONS)}, by name and first bytes); {fill}"
        )
    return tuple(classes)


def _require_flat(root: Path, names: Sequence[str], images: Sequence[Path]) -> None:
    """Raise ``ConfigError`` if train and val, or the like, are directories beside each other.

    They would become classes. One of these names may be a class's, such as a train's, if another
    directory holds images itself.
    """
    splits = [name for name in names if name.casefold() in _SPLITS]
    direct = any(path.parent.parent == root for path in images)
    if splits and (len(splits) == len(names) or not direct):
        first = next((one for one in splits if one.casefold().startswith("train")), splits[0])
        raise ConfigError(
            f"`images` {root} holds {', '.join(names[:3])}, which are data sets and not classes: "
            f"pack each by itself, first the training set, as `images` {root / first}, and "
            "the others with `classes` set to its shards or images, so that all have one order "
            "of classes"
        )


def _name_sources(root: Path, images: Sequence[Path], classes: Sequence[str]) -> list[_Source]:
    """Give each image its key and class index; two images of one key are an error."""
    index = {name: target for target, name in enumerate(classes)}
    by_key: dict[str, _Source] = {}
    for path in images:
        name = path.relative_to(root).parts[0]
        stem = path.stem if path.stem.startswith(f"{name}_") else f"{name}_{path.stem}"
        key = stem.replace(".", "_")  # WebDataset ends a key at its first dot
        if not is_key(key):
            raise ShardError(
                f"{str(path)!r}: {key!r} cannot be a key, it holds control characters or line "
                "ends; rename the file"
            )
        if key in by_key:
            deep = len(path.relative_to(root).parts) > 2
            raise ShardError(
                f"{by_key[key].path} and {path} both get the key {key!r}; seeds and labels go by "
                + (
                    f"key. If {name} is no class but holds some, let `images` be the directory "
                    f"that holds classes, such as {path.parent.parent}; else rename a file"
                    if deep
                    else "key, so rename one of the files"
                )
            )
        by_key[key] = _Source(path=path, key=key, target=index[name])
    return list(by_key.values())


def _cut(count: int, per_shard: int) -> list[tuple[int, int]]:
    """Return (start, end) of each shard; no shard of one sample, for it could not be paired."""
    starts = list(range(0, count, per_shard))
    if len(starts) > 1 and count % per_shard == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


@contextmanager
def _saying_where(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a ``PipelineError`` that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PipelineError(
                f"{path}: the disk is full, nothing of this file is left behind; free space, "
                f"delete the other shards in {path.parent} and run again"
            ) from error
        reason = why_no_data(path) or f"cannot be read: {error.strerror or error}"
        raise PipelineError(f"{path} {reason}") from error


def _write_samples(
    file: BinaryIO, sources: Sequence[_Source], config: PackConfig, threads: int | None
) -> Iterator[tuple[_Source, EncodedFile | None]]:
    """Write one shard's samples in order, and give each once it is through; None is left out."""
    from webdataset import TarWriter  # which loads PyTorch: not before there is work

    tar = TarWriter(
        file, encoder=False, mtime=0, mode=0o444, user="root", group="root", format="PAX_FORMAT"
    )
    with tar, ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(sources), _WINDOW):
            window = sources[start : start + _WINDOW]
            # Results come in the order of the window, so threads do not change the bytes.
            encoded_window = pool.map(lambda source: _encode(source.path, config), window)
            for source, encoded in zip(window, encoded_window, strict=True):
                if encoded is not None:
                    tar.write(_members(source, encoded))
                yield source, encoded


def _members(source: _Source, encoded: EncodedFile) -> Mapping[str, str | bytes]:
    return {
        "__key__": source.key,
        encoded.extension: encoded.data,
        "cls": str(source.target).encode(),
    }


def _encode(path: Path, config: PackConfig) -> EncodedFile | None:
    """Return an image as it goes into a shard, None if it had to be decoded and does not."""
    with _saying_where(path):
        data = path.read_bytes()
    try:
        return encode_image(path, data, config.encoding)
    except DecodeError:
        return None
