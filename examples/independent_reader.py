#!/usr/bin/env python3
"""Read a store of teacher labels without the project's code, and make all its views again.

    python examples/independent_reader.py STORE SHARD

Written from docs/FORMAT.md and docs/VIEWS.md alone, with the standard library, NumPy and PyArrow:
they are enough, and this is where to begin with a reader of your own. Docstrings begin with the
chapter that a function follows. It reads a shard of a store in a Parquet directory, of PNGs in
8-bit RGB, random-resized crops and RandAugment, and refuses what else a store may have. Labels are
compared where they are those of the golden stores' stand-in for a teacher.

If all is equal it prints how much was compared. Else its status is 1, and one line on stderr says
what differs first.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import struct
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Integers = NDArray[np.int64]
Settings = dict[str, Any]
Groups = list[tuple[list[int], list[int]]]

COLUMNS = {
    **{"key": "string", "view": "uint32", "target": "int32", "seed": "int64", "label": "uint16"},
    **{"digest": "uint32", "mixed_digest": "uint32"},
}
ONE = 65536  # 1 in fixed point
UNMIXED, MIXUP, CUTMIX = 0, 1, 2
OPERATIONS = (
    *("auto-contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize-add"),
    *("color", "contrast", "brightness", "sharpness"),
    *("shear-x", "shear-y", "translate-x", "translate-y"),
)


def require(condition: bool, problem: str) -> None:
    """Stop with a problem unless the condition holds."""
    if not condition:
        raise ValueError(problem)


class Tally(Counter[str]):
    """How much was compared and equal, by name."""

    def compare(self, name: str, stored: Any, made: Any, where: str) -> None:
        """Count a comparison; stop at one that is not equal."""
        require(stored == made, f"{name}, {where}: stored is {stored!r}, made again it is {made!r}")
        self[name] += 1

    def compare_all(self, name: str, stored: Settings, made: Settings, where: str) -> None:
        """Compare each field that either side has."""
        for key in sorted(stored.keys() | made.keys()):
            self.compare(name, stored.get(key), made.get(key), f"{key} of {where}")


def canonical(value: Any) -> bytes:
    """VIEWS, Names and hashes: canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def sha256(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def fixed(x: float) -> int:
    """VIEWS, Notation: a real number in units of 2^-16."""
    return math.floor(65536 * x + 0.5)


class Shard(NamedTuple):
    """The samples of a shard in their order, and its three hashes."""

    keys: list[str]
    targets: list[int]
    images: list[bytes]
    hashes: dict[str, str]


def read_shard(path: Path) -> Shard:
    """VIEWS, Names and hashes: samples of a shard, and the table of hashes."""
    samples: dict[str, dict[str, bytes]] = {}
    last = ""
    with tarfile.open(path, ignore_zeros=True) as archive:
        for member in archive:
            match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", member.name)
            file = archive.extractfile(member) if member.isreg() else None
            if match and file and not re.match(r"^__[^/]*__($|/)", member.name):
                key, extension = match[1], match[2].lower()
                again = key in samples and (key != last or extension in samples[key])
                require(not again, f"sample {key!r} or its {extension!r} is there twice")
                samples.setdefault(key, {})[extension] = file.read()
                last = key
    targets, images, content = [], [], []
    for key, members in samples.items():
        found = [data for name, data in members.items() if name in ("jpg", "jpeg", "png", "webp")]
        require(len(found) == 1, f"sample {key!r} has {len(found)} images")
        images.append(found[0])
        cls = members.get("cls")
        targets.append(json.loads(members["json"])["label"] if cls is None else int(cls))
        content.append([key, targets[-1], [[name, len(data)] for name, data in members.items()]])
    hashes = {"key_hash": canonical(list(samples)), "content_hash": canonical(content)}
    hashes["image_hash"] = b"".join(images)
    texts = {name: sha256(data) for name, data in hashes.items()}
    return Shard(list(samples), targets, images, texts)


def read_manifest(store: Path, tally: Tally) -> Settings:
    """FORMAT, Manifest: its seal before all else, the identity's digest, the files beside it."""
    data = (store / "_manifest.json").read_bytes()
    require(data[:11] == b'{"sha256":"' and data[75:77] == b'",', "the manifest has no seal")
    rest = b"{" + data[77:]
    tally.compare("seal", data[11:75], sha256(rest).encode(), "of the manifest")
    manifest: Settings = json.loads(rest)
    require(rest == canonical(manifest) + b"\n", "the manifest is not canonical JSON")
    require(manifest["format_version"] == 2, "this example reads no format version but 2")
    identity = manifest["identity"]
    tally.compare("identity", manifest["identity_digest"], sha256(canonical(identity)), "digest")
    beside = json.loads((store / "_meta/identity.json").read_bytes())
    for name in ("identity", "fingerprints", "needs"):
        tally.compare("identity", beside[name], manifest[name], f"{name} in _meta/identity.json")
    tally.compare("card", manifest["card"], sha256((store / "_README.md").read_bytes()), "SHA-256")
    return manifest


def column_types(columns: Settings) -> dict[str, str]:
    """FORMAT, Columns: names and types, of the optional ones those that the identity names."""
    optional = {name: "uint8" for name in ("confidence", "margin") if columns[name]}
    if columns["topk"]:
        optional |= dict.fromkeys(("topk_label", "topk_logprob", "topk_rest"), "uint16")
    return COLUMNS | optional


def read_part(data: bytes, header: Settings, name: str, tally: Tally) -> list[Settings]:
    """FORMAT, Seal, and Header of a part: the rows of a part, after all that guards them."""
    at = len(data) - 8 - int.from_bytes(data[-8:-4], "little") - 40  # from the footer's length
    require(at > 0 and data[at : at + 8] == b"TLpart2\n", f"{name} has no seal")
    digest = hashlib.sha256(data[: at + 8] + data[at + 40 :]).digest()
    tally.compare("seal", data[at + 8 : at + 40], digest, f"of {name}")
    table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    types = {one.name: str(getattr(one.type, "value_type", one.type)) for one in table.schema}
    expected = column_types(header["columns"])
    require(list(types.items()) == list(expected.items()), f"{name} has the columns {types}")
    rows: list[Settings] = table.to_pylist()
    known = [row for row in rows if row["target"] != -1]
    equal = sum(row["label"] == row["target"] for row in known)
    made = {**header, "agreement": {"known": len(known), "equal": equal}}
    stored = json.loads(table.schema.metadata[b"teacher_labels"])
    tally.compare_all("part header", stored, made, name)
    return rows


def blake(size: int, purpose: str, *identity: str | int) -> int:
    """VIEWS, Random numbers: BLAKE2b of a text, little end first."""
    text = json.dumps([purpose, *identity]).encode("ascii")
    return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest(), "little")


class Stream:
    """VIEWS, Random numbers: a stream of words, and a method for each draw of the table."""

    def __init__(self, purpose: str, *identity: str | int) -> None:
        """Begin at the first word."""
        self._philox = np.random.Philox(key=blake(16, purpose, *identity))
        self._words: list[int] = []

    def word(self) -> int:
        """Take the next word."""
        if not self._words:
            self._words = self._philox.random_raw(16).tolist()[::-1]
        return self._words.pop()

    def unit(self) -> float:
        """Take a word as a number in [0, 1)."""
        return (self.word() >> 11) * 2.0**-53

    def happens(self, p: float) -> bool:
        """Say yes with probability p."""
        return self.unit() < p

    def integer(self, n: int) -> int:
        """Choose from 0 to n - 1."""
        return self.word() * n >> 64

    def uniform(self, a: float, b: float) -> int:
        """Choose between a and b, in fixed point."""
        return fixed(a + (b - a) * self.unit())

    def log_uniform(self, a: float, b: float) -> int:
        """Choose between a and b, the logarithm uniform, in fixed point."""
        return fixed(math.exp(math.log(a) + (math.log(b) - math.log(a)) * self.unit()))

    def normal(self, mean: float, std: float) -> int:
        """Take a normal deviate, in fixed point; NormalDist goes by AS 241."""
        u = ((self.word() >> 11) + 0.5) * 2.0**-53
        return fixed(mean + std * NormalDist().inv_cdf(u))

    def beta(self, a: float) -> int:
        """Take a deviate of the beta distribution of a and a, in fixed point."""
        while True:
            x, y = self.unit() ** (1 / a), self.unit() ** (1 / a)
            if 0 < x + y <= 1:
                return fixed(x / (x + y))

    def permutation(self, n: int) -> list[int]:
        """Put 0 to n - 1 in some order."""
        order = list(range(n))
        for k in range(n - 1, 0, -1):
            other = self.integer(k + 1)
            order[k], order[other] = order[other], order[k]
        return order


@cache
def groups_of(root_seed: int, key_hash: str, block: int, n: int, size: int) -> Groups:
    """VIEWS, Groups: those of a block of views, each with its rounds (Partners)."""
    order = Stream("groups", root_seed, key_hash, block).permutation(n)
    starts = list(range(0, n, size))
    if n % size == 1 and n > size:
        starts[-1] -= 2
    groups = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], n], strict=True)):
        positions = end - start + (end - start) % 2
        rounds = Stream("pairs", root_seed, key_hash, block, number).permutation(positions - 1)
        groups.append((order[start:end], rounds))
    return groups


def partners_of(groups: Groups, position: int, rejected: set[int]) -> dict[int, int]:
    """VIEWS, Partners: who is mixed with whom at a position of a block, without who is alone."""
    partners = {}
    for group, rounds in groups:
        last = len(rounds)
        r = rounds[position // 3 % last]
        for p, sample in enumerate(group):
            q = r if p == last else last if p == r else (2 * r - p) % last
            if q < len(group) and group[q] not in rejected:
                partners[sample] = group[q]
    return partners


class Box(NamedTuple):
    """A rectangle of an image."""

    top: int = 0
    left: int = 0
    height: int = 0
    width: int = 0

    def of(self, image: NDArray[Any]) -> NDArray[Any]:
        """Look at this part of an image."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


class Mixing(NamedTuple):
    """How a view is mixed: kind, lambda and box."""

    kind: int = UNMIXED
    lam: int = ONE
    box: Box = Box()


def draw_mixing(stream: Stream, mix: Settings, size: int) -> Mixing:
    """VIEWS, Mixing: that of a pair at a view."""
    if not stream.happens(mix["probability"]):
        return Mixing()
    cutmix = mix["cutmix_alpha"] > 0
    if cutmix and mix["mixup_alpha"] > 0:
        cutmix = stream.happens(mix["switch_probability"])
    if not cutmix:
        return Mixing(MIXUP, stream.beta(mix["mixup_alpha"]))
    half = math.isqrt((ONE - stream.beta(mix["cutmix_alpha"])) * size * size // ONE) // 2
    row, column = stream.integer(size), stream.integer(size)
    top, left = max(0, row - half), max(0, column - half)
    height, width = min(size, row + half) - top, min(size, column + half) - left
    lam = ONE - fixed(height * width / (size * size))
    return Mixing(CUTMIX, lam, Box(top, left, height, width))


def draw_sides(stream: Stream, share: list[float], ratio: list[float], pixels: int) -> list[int]:
    """VIEWS, The parameters of a view: sqrt(A q) and sqrt(A / q), of a crop or an erased box."""
    area = stream.uniform(*share) * pixels / ONE
    q = stream.log_uniform(*ratio) / ONE
    return [max(1, round(math.sqrt(side))) for side in (area * q, area / q)]


def draw_crop(stream: Stream, augment: Settings, h: int, w: int) -> Box:
    """VIEWS, The parameters of a view: 1. Crop."""
    ratio = augment["crop_ratio"]
    for _ in range(10):
        width, height = draw_sides(stream, augment["crop_scale"], ratio, h * w)
        if width <= w and height <= h:
            top, left = stream.integer(h - height + 1), stream.integer(w - width + 1)
            return Box(top, left, height, width)
    height, width = h, w
    if w < h * ratio[0]:
        height = max(1, min(h, round(w / ratio[0])))
    elif w > h * ratio[1]:
        width = max(1, min(w, round(h * ratio[1])))
    return Box((h - height) // 2, (w - width) // 2, height, width)


def draw_argument(stream: Stream, number: int, m: int) -> int:
    """VIEWS, The parameters of a view: the table of operations, in its order, at magnitude m."""
    signed = number == 3 or number >= 7
    sign = -1 if signed and stream.happens(0.5) else 1
    factor = ONE + sign * (9 * m // 100)
    shear, shift = sign * (3 * m // 100), sign * (45 * m // 1000)
    levels = 4 - 4 * m // 655360, 256 - 256 * m // 655360, 110 * m // 655360
    return (0, 0, 0, 3 * sign * m, *levels, *[factor] * 4, *[shear] * 2, *[shift] * 2)[number]


def decode_png(data: bytes) -> Image:
    """VIEWS, Decoding: a PNG of 8-bit RGB without interlacing, filters as in the PNG standard."""
    require(data[:8] == b"\x89PNG\r\n\x1a\n", "this example reads no images but PNG")
    w, h, *kind = struct.unpack(">IIBBBBB", data[16:29])
    require(kind == [8, 2, 0, 0, 0], f"this example does not read PNG of kind {kind}")
    packed, at = b"", 8
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        packed += data[at + 8 : at + 8 + length] if name == b"IDAT" else b""
        at += length + 12
    image = np.zeros((h + 1, w + 1, 3), np.int64)  # with a black row above, and column to the left
    for y, line in enumerate(np.frombuffer(zlib.decompress(packed), np.uint8).reshape(h, -1)):
        for x, value in enumerate(line[1:].reshape(w, 3)):
            a, b, c = image[y + 1, x], image[y, x + 1], image[y, x]  # left, above, and both
            near_a, near_b, near_c = abs(b - c), abs(a - c), abs(a + b - 2 * c)
            paeth = np.where(near_b <= near_c, b, c)
            paeth = np.where((near_a <= near_b) & (near_a <= near_c), a, paeth)
            image[y + 1, x + 1] = value + (0 * a, a, b, (a + b) // 2, paeth)[line[0]] & 255
    return image[1:, 1:].astype(np.uint8)


@cache
def resize_weights(a: int, size: int) -> Integers:
    """VIEWS, Resizing: a matrix from a to size pixels."""
    longer = max(a, size)
    taps = min(a, 4 * longer // size + 2)
    center = (2 * np.arange(size)[:, None] + 1) * a
    position = np.clip((center - 4 * longer) // (2 * size), 0, a - taps) + np.arange(taps)
    d = 65536 * abs((2 * position + 1) * size - center) // (2 * longer)
    near = (3 * d**3 - 5 * d**2 * 2**16 + 2**49) // 2**17
    far = (-(d**3) + 5 * d**2 * 2**16 - 8 * d * 2**32 + 2**50) // 2**17
    v = np.where(d < 65536, near, np.where(d < 131072, far, 0))
    total = v.sum(1, keepdims=True)
    weights = (2**15 * v + total) // (2 * total)
    weights[np.arange(size), v.argmax(1)] += 16384 - weights.sum(1)
    matrix = np.zeros((size, a), np.int64)
    np.put_along_axis(matrix, position, weights, 1)
    return matrix


def resize(x: Integers, size: int) -> Integers:
    """VIEWS, Two passes: first all columns, then all rows."""
    for _ in range(2):
        x = np.tensordot(resize_weights(len(x), size), x, 1)
        x = np.clip((x + 8192) // 16384, 0, 255).swapaxes(0, 1)
    return x


def blend(base: Integers, x: Integers, arg: int) -> Integers:
    """VIEWS, Operations: blend from a base."""
    blended: Integers = np.clip((65536 * base + arg * (x - base)) // 65536, 0, 255)
    return blended


def equalize(x: Integers) -> Integers:
    """VIEWS, Operations: equalize, one channel."""
    counts = np.bincount(x.ravel(), minlength=256)
    s = (x.size - counts[x.max()]) // 255
    below = np.cumsum(counts) - counts
    return np.minimum(255, (s // 2 + below) // s)[x] if s else x


def sharpness(x: Integers, arg: int) -> Integers:
    """VIEWS, Operations: sharpness; pixels at the border stay."""
    (h, w, _), result = x.shape, x.copy()
    around = sum(x[i : h - 2 + i, j : w - 2 + j] for i in range(3) for j in range(3))
    inner = x[1:-1, 1:-1]
    result[1:-1, 1:-1] = blend((around + 4 * inner + 6) // 13, inner, arg)
    return result


@cache
def move_weights() -> Integers:
    """VIEWS, Moves: the four weights of each of 1024 steps."""
    t = np.arange(1024) / 1024
    values = [t * (-1 + t * (2 - t)), 1 + t * t * (t - 2), t * (1 + t * (1 - t)), t * t * (t - 1)]
    weights = np.floor(4096 * np.stack(values, 1) + 0.5).astype(np.int64)
    weights[np.arange(1024), np.where(t <= 0.5, 1, 2)] += 4096 - weights.sum(1)
    return weights


def move(x: Integers, name: str, arg: int, fill: Integers) -> Integers:
    """VIEWS, Moves: each pixel is looked up in the image before."""
    (h, w, _), z = x.shape, math.radians(arg / 65536)
    cos, sin = fixed(math.cos(z)), fixed(math.sin(z))
    c, f = w * (ONE - cos) + h * sin, h * (ONE - cos) - w * sin
    a, b, c, d, e, f = {
        "rotate": (cos, -sin, c // 2, sin, cos, f // 2),
        "shear-x": (ONE, arg, 0, 0, ONE, 0),
        "shear-y": (ONE, 0, 0, arg, ONE, 0),
        "translate-x": (ONE, 0, arg * w, 0, ONE, 0),
        "translate-y": (ONE, 0, 0, 0, ONE, arg * h),
    }[name]
    across, down = 2 * np.arange(w) + 1, 2 * np.arange(h)[:, None] + 1
    sx, sy = a * across + b * down + 2 * c, d * across + e * down + 2 * f
    outside = (sx < 0) | (sy < 0) | (sx >= 2**17 * w) | (sy >= 2**17 * h)
    sx, sy = sx - 65536, sy - 65536
    wx, wy = move_weights()[sx % 2**17 // 128], move_weights()[sy % 2**17 // 128]
    columns = np.clip((sx // 2**17)[..., None] + np.arange(-1, 3), 0, w - 1)
    rows = np.clip((sy // 2**17)[..., None] + np.arange(-1, 3), 0, h - 1)
    found = x[rows[..., :, None], columns[..., None, :]]  # axes: y, x, j, i and the channel
    lines = (found * wx[:, :, None, :, None]).sum(3) // 16
    result = np.clip(((lines * wy[..., None]).sum(2) + 2**19) // 2**20, 0, 255)
    return np.where(outside[..., None], fill, result)


def operate(x: Integers, name: str, arg: int, fill: Integers) -> Integers:
    """VIEWS, Operations: the table."""
    gray = (x @ np.array([[19595], [38470], [7471]]) + 32768) // 65536
    low, high = x.min((0, 1)), x.max((0, 1))
    span = np.maximum(high - low, 1)
    table: dict[str, Callable[[], Integers]] = {
        "auto-contrast": lambda: np.where(high > low, (x - low) * 255 // span, x),
        "equalize": lambda: np.stack([equalize(x[..., channel]) for channel in range(3)], -1),
        "invert": lambda: 255 - x,
        "posterize": lambda: x >> (8 - arg) << (8 - arg),
        "solarize": lambda: np.where(x < arg, x, 255 - x),
        "solarize-add": lambda: np.where(x < 128, np.minimum(255, x + arg), x),
        "color": lambda: blend(gray, x, arg),
        "contrast": lambda: blend((2 * gray.sum() + gray.size) // (2 * gray.size), x, arg),
        "brightness": lambda: blend(0 * x, x, arg),
        "sharpness": lambda: sharpness(x, arg),
    }
    return table[name]() if name in table else move(x, name, arg, fill)


def erase(x: Integers, stream: Stream, augment: Settings) -> None:
    """VIEWS, The parameters of a view: 4. Erasing; and Erasing, in place."""
    size, share, ratio = len(x), augment["erase_area"], augment["erase_ratio"]
    for _ in range(10):
        height, width = draw_sides(stream, share, ratio, size * size)
        if height < size and width < size:
            top, left = stream.integer(size - height + 1), stream.integer(size - width + 1)
            words = np.random.Philox(key=stream.word()).random_raw(height * width)
            noise = words.astype("<u8").view("<u2")[: height * width * 3]
            noise = noise.reshape(height, width, 3)
            for channel, (mean, std) in enumerate(
                zip(augment["mean"], augment["std"], strict=True)
            ):
                normal = NormalDist(255 * mean, 255 * std)
                steps = [fixed(normal.cdf(k + 0.5)) for k in range(255)]
                values = np.searchsorted(steps, noise[..., channel], "right")
                Box(top, left, height, width).of(x)[..., channel] = values
            return


def make_view(image: Image, stream: Stream, augment: Settings) -> Image:
    """VIEWS, The parameters of a view, and From bytes to pixels; each step as it is drawn."""
    crop = draw_crop(stream, augment, *image.shape[:2])
    x = resize(crop.of(image).astype(np.int64), augment["image_size"])
    if stream.happens(augment["hflip"]):
        x = x[:, ::-1]
    fill = np.array([math.floor(255 * mean + 0.5) for mean in augment["mean"]])
    for number in [stream.integer(15) for _ in range(augment["rand_ops"])]:
        if stream.happens(augment["rand_probability"]):
            m = stream.normal(augment["rand_magnitude"], augment["rand_magnitude_std"])
            arg = draw_argument(stream, number, min(max(m, 0), 655360))
            x = operate(x, OPERATIONS[number], arg, fill)
    x = x.copy()
    if stream.happens(augment["erase_probability"]):
        erase(x, stream, augment)
    return x.astype(np.uint8)


def normalize(x: Image, augment: Settings) -> NDArray[np.float32]:
    """VIEWS, Normalization and mixing: constants in doubles, then all in float32."""
    shift = (255 * np.array(augment["mean"])).astype(np.float32)
    scale = (1 / (255 * np.array(augment["std"]))).astype(np.float32)
    return (x.astype(np.float32) - shift) * scale


def mix_views(own: Image, other: Image, mixing: Mixing, augment: Settings) -> bytes:
    """VIEWS, Normalization and mixing: the float32 image that the teacher gets."""
    mixed, partner = normalize(own, augment), normalize(other, augment)
    if mixing.kind == MIXUP:
        share = np.float32(mixing.lam / ONE)
        mixed = mixed * share + partner * (np.float32(1) - share)
    elif mixing.kind == CUTMIX:
        mixing.box.of(mixed)[:] = mixing.box.of(partner)
    return mixed.astype("<f4").tobytes()


class Reader:
    """Makes the views of a shard again, and compares them with the rows of its parts."""

    def __init__(self, shard: Shard, identity: Settings, rejected: set[int], tally: Tally) -> None:
        """Draw the seeds, and decode the images."""
        self.shard, self.rejected, self.tally = shard, rejected, tally
        self.augment, self.mix = identity["augment"], identity["mix"]
        self.root_seed = identity["root_seed"]
        views = self.augment["crop"], self.augment["policy"]
        require(views == ("random-resized", "rand-augment"), f"this example does not read {views}")
        self.stand_in = identity["teacher"]["architecture"] == "hash"
        self.seeds = [blake(8, "sample", self.root_seed, key) >> 1 for key in shard.keys]
        usable = [i for i in range(len(shard.keys)) if i not in rejected]
        self.images = {i: decode_png(shard.images[i]) for i in usable}

    def compare_view(self, rows: list[Settings], view: int) -> None:
        """VIEWS, all of it: the rows of all samples at one view."""
        made = {
            i: make_view(image, Stream("view", self.seeds[i], view), self.augment)
            for i, image in self.images.items()
        }
        key_hash, size = self.shard.hashes["key_hash"], self.mix["group_size"]
        block, position = divmod(view, self.mix["block_views"])
        groups = groups_of(self.root_seed, key_hash, block, len(self.seeds), size)
        partners = partners_of(groups, position, self.rejected)
        for row, i in zip(rows, made, strict=True):
            other, mixing = i, Mixing()
            if i in partners and self.mix["probability"] > 0:
                other = partners[i]
                pair = min(i, other), max(i, other)
                stream = Stream("mix", self.root_seed, key_hash, view, *pair)
                mixing = draw_mixing(stream, self.mix, self.augment["image_size"])
            mixed = mix_views(made[i], made[other], mixing, self.augment)
            partner = None if mixing.kind == UNMIXED else self.shard.keys[other]
            text = canonical([partner, mixing.kind, mixing.lam, *mixing.box])
            self.compare_row(row, view, i, made[i].tobytes() + text, mixed)

    def compare_row(self, row: Settings, view: int, i: int, digested: bytes, mixed: bytes) -> None:
        """VIEWS, Digests; FORMAT, Columns: one row."""
        key, seed = self.shard.keys[i], self.seeds[i]
        again = {"key": key, "view": view, "target": self.shard.targets[i], "seed": seed}
        first = view == 0 or (seed ^ view) % 64 == 0
        second = first and (seed // 64 ^ view // 64) % 16 == 0
        again["digest"] = zlib.crc32(digested) if first else None
        again["mixed_digest"] = zlib.crc32(mixed) if second else None
        if self.stand_in:
            again["label"] = zlib.crc32(mixed) % 65535
        where = f"sample {key!r} at view {view}"
        for name, value in again.items():
            self.tally.compare(name if value is not None else f"no {name}", row[name], value, where)
        if {"confidence", "margin"} <= row.keys():
            self.tally.compare("margin", row["margin"] <= row["confidence"], True, where)
        if "topk_label" in row:
            logs = row["topk_logprob"]
            total = sum(math.exp(-step / 64) for step in [*logs, row["topk_rest"]])
            self.tally.compare("topk_label", row["topk_label"][0], row["label"], where)
            self.tally.compare("topk_logprob", logs, sorted(logs), where)
            self.tally.compare("topk_rest", abs(total - 1) < 0.0081, True, f"the sum, {where}")


def compare_shard(store: Path, path: Path, tally: Tally) -> None:
    """FORMAT, Manifest: compare all parts of a shard with what its bytes give."""
    manifest, shard = read_manifest(store, tally), read_shard(path)
    content = shard.hashes["content_hash"]
    records = [record for record in manifest["shards"] if record["content_hash"] == content]
    require(len(records) == 1, f"{path.name!r} is no shard of the store: none has its content_hash")
    stored = dict(records[0])
    number, n, samples = stored["number"], str(stored["number"]), len(shard.keys)
    require(n not in manifest.get("omitted", {}), "this example does not read subsets")
    again = {"number": number, "name": stored["name"], "bytes": path.stat().st_size}
    again |= {"samples": samples, **shard.hashes}
    stored["image_hash"] = manifest["image_hashes"][n]
    tally.compare_all("shard", stored, again, repr(path.name))
    rejections = manifest["rejections"].get(n, [])
    identity = manifest["identity"]
    reader = Reader(shard, identity, {each["index"] for each in rejections}, tally)
    header = {"format_version": 2, "identity": manifest["identity_digest"], **shard.hashes}
    header |= {"samples": samples, "rejections": rejections, "formats": manifest["formats"][n]}
    header["columns"] = identity["columns"]
    for part in manifest["parts"]:
        if part["shard"] == number:
            first, views = part["first_view"], part["views"]
            path = store / f"shard={number}/view-{first:05}-{first + views:05}.parquet"
            data, ranged = path.read_bytes(), {"first_view": first, "views": views}
            again = {"path": path.relative_to(store).as_posix(), "shard": number, **ranged}
            again |= {"bytes": len(data), "sha256": sha256(data)}
            again["rows"] = views * len(reader.images)
            tally.compare_all("part", part, again, path.name)
            rows = read_part(data, header | ranged, path.name, tally)
            for view in range(first, first + views):
                reader.compare_view(rows[view - first :: views], view)


def main(arguments: list[str]) -> None:
    """Compare a store with a shard of it, and print how much was equal."""
    if len(arguments) != 2:
        sys.exit("usage: python examples/independent_reader.py STORE SHARD")
    tally = Tally()
    try:
        compare_shard(Path(arguments[0]), Path(arguments[1]), tally)
    except KeyError as problem:
        sys.exit(f"no {problem} where there should be one")
    except (OSError, ValueError, tarfile.TarError, struct.error, zlib.error) as problem:
        sys.exit(" ".join(str(problem).split()))
    for name, count in tally.items():
        print(f"{name:16}{count:6} equal")


if __name__ == "__main__":
    main(sys.argv[1:])
