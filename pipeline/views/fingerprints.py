"""Fingerprints: short proofs that two machines make the same pixels from the same bytes.

A fingerprint is the CRC-32 of what decoding, resizing, an operation, drawing or pairing
gives on small odd inputs. A store keeps those of the machine that labelled it; a machine
whose fingerprints differ must neither add to the store nor replay it.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from pipeline.growth import to_plain
from pipeline.identity import AugmentConfig, MixConfig, StoreIdentity, canonical_json
from pipeline.records import Box, ImageSize, Pixels
from pipeline.views.apply import apply_op, apply_view, decode, image_size, resize
from pipeline.views.draw import draw_view, policy_ops
from pipeline.views.operation import Operation
from pipeline.views.ops import OPERATIONS
from pipeline.views.pairing import draw_groups, draw_mix, draw_partners
from pipeline.views.rng import noise_bytes, sample_seed

__all__ = ["BITS", "different_fingerprints", "fingerprints", "what_they_watch"]

BITS = ".bits"
"""The end of names of fingerprints of floats, which a sound device may have others of."""

_OF_FLOATS = {  # made in ``pipeline.views.floats``, which needs PyTorch
    "normalized.values": "normalizing",
    "normalized.bits": "normalizing, to the last bit",
    "mixed.values": "mixing normalized images",
    "mixed.bits": "mixing normalized images, to the last bit",
}

_SEED = 20201223  # any constant does


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One fingerprint: its name, what it watches, and how this machine's is made."""

    name: str
    watches: str
    crc: Callable[[], int]


def fingerprints(identity: StoreIdentity) -> dict[str, int]:
    """Return this machine's fingerprints of all that a store's views can depend on, by name.

    What the settings cannot reach is left out: an operation that its policy does not have, or
    mixing where it is off.
    """
    return {probe.name: probe.crc() for probe in _probes(identity)}


def different_fingerprints(
    ours: Mapping[str, int], theirs: Mapping[str, int], formats: Collection[str] | None = None
) -> list[str]:
    """Return the names of fingerprints that both sides have, and that differ.

    Releases may watch more or less than one another; what one of them does not watch is no
    difference. Nor is the decoding of other image formats than ``formats``, if they are known.
    """
    different = sorted(name for name in ours.keys() & theirs if ours[name] != theirs[name])
    return [name for name in different if formats is None or _is_met(name, formats)]


def _is_met(name: str, formats: Collection[str]) -> bool:
    """Return whether images of these formats meet what a fingerprint watches."""
    kind, _, image = name.partition(".")
    return kind != "decode" or image.partition("-")[0] in formats


def what_they_watch(identity: StoreIdentity, names: Iterable[str]) -> str:
    """Return the names of fingerprints with what each watches, for messages."""
    watched = _OF_FLOATS | {probe.name: probe.watches for probe in _probes(identity)}
    return ", ".join(f"{name} ({watched.get(name, 'unknown here')})" for name in names)


def _probes(identity: StoreIdentity) -> Iterator[Probe]:
    augment, mix = identity.augment, identity.mix
    for name, text in _IMAGES.items():
        yield Probe(
            name=f"decode.{name}",
            watches=f"decoding {name.replace('-', ', ')}",
            crc=partial(_decoded, name, text),
        )
    yield Probe(name="resize.down", watches="shrinking", crc=partial(_resized, 37, 29, 13))
    yield Probe(name="resize.up", watches="enlarging", crc=partial(_resized, 7, 5, 32))
    for name in policy_ops(augment):
        yield Probe(
            name=f"op.{name}",
            watches=f"the operation {name}",
            crc=partial(_operated, OPERATIONS[name], augment),
        )
    if augment.erase_probability:
        yield Probe(name="erase", watches="erasing", crc=partial(_erased, augment))
    yield Probe(name="draw.views", watches="drawing views", crc=partial(_drawn_views, augment))
    yield Probe(name="draw.pairs", watches="drawing pairs", crc=partial(_drawn_pairs, mix))
    if mix.probability:
        yield Probe(name="draw.mixing", watches="drawing mixes", crc=partial(_drawn_mixing, mix))


def _decoded(name: str, text: str) -> int:
    return _crc(decode(b64decode(text), name, max_pixels=1 << 16))


def _resized(height: int, width: int, size: int) -> int:
    box = Box(top=3, left=1, height=height, width=width)
    return _crc(resize(_noise(), box, size, hflip=size > height))


def _operated(operation: Operation, augment: AugmentConfig) -> int:
    return _crc(apply_op(_noise(), operation.probed, augment))


def _erased(augment: AugmentConfig) -> int:
    config, noise = replace(augment, image_size=31), _noise()
    params = draw_view(_SEED, 2, image_size(noise), config)
    box = Box(top=2, left=3, height=20, width=11)
    erased = replace(params, erase=box, erase_noise=_SEED)
    return _crc(apply_view(noise, erased, config))


def _noise() -> Pixels:
    return (noise_bytes(_SEED, 41 * 31 * 3) >> 8).astype(np.uint8).reshape(41, 31, 3)


def _drawn_views(augment: AugmentConfig) -> int:
    drawn = [
        to_plain(draw_view(sample_seed(_SEED, str(view)), view, size, augment))
        for view in range(24)
        for size in (ImageSize(height=375, width=500), ImageSize(height=9, width=70))
    ]
    return binascii.crc32(canonical_json(drawn))


def _drawn_pairs(mix: MixConfig) -> int:
    drawn: list[object] = []
    for samples in (1, 2, 3, 17, 97):
        for block in (0, 7):
            groups = draw_groups(_SEED, "shard", samples, block, mix).groups
            drawn.append(groups)
            for group, members in enumerate(groups):
                view = block * mix.block_views + 4 % mix.block_views
                drawn.append(draw_partners(_SEED, "shard", view, group, len(members), mix))
    return binascii.crc32(canonical_json(drawn))


def _drawn_mixing(mix: MixConfig) -> int:
    mixings = [draw_mix(_SEED, "shard", view, (3, 8), 224, mix) for view in range(24)]
    return binascii.crc32(canonical_json([to_plain(mixing) for mixing in mixings]))


def _crc(pixels: Pixels) -> int:
    shape = np.array(pixels.shape, "<u4")
    return binascii.crc32(pixels.tobytes(), binascii.crc32(shape.tobytes()))


_IMAGES: Mapping[str, str] = {  # made for this purpose: noise, enlarged and compressed
    "jpeg": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUf"
        "GhsjHBYWICwgIyYnKSopGR8tMC0oMCUoKSj/2wBDAQcHBwoIChMKChMoGhYaKCgoKCgoKCgoKCgoKCgoKCgo"
        "KCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCj/wAARCAAlAB0DASIAAhEBAxEB/8QAGgAAAwADAQAA"
        "AAAAAAAAAAAAAAUGAQMHBP/EACcQAAIBAwMDAwUAAAAAAAAAAAECBAADBQYRIQcSMRRRcSQzQVJh/8QAGgEA"
        "AgIDAAAAAAAAAAAAAAAAAQUCBAMGB//EACURAAEDAwMEAwEAAAAAAAAAAAECAwQABREGEiEVIjFBFFJhcf/a"
        "AAwDAQACEQMRAD8AStYbWP0kTlz7VT6btnpvZNnI8M/A3qW6QiZhszbvTUKKCNywq76spa1KbbxyGK/rRvEt"
        "i6NdKa4QecmgzLchsl18Z/lT2bYZa+0+19s80mbKW7R7SeRWTckwccYwVtgNqkZNuS10ntbmo6ftUiMgtFQw"
        "PHNTtFzivblTwfzFd11vGjPBYY9FR9vK1BYTPHCh1yIL/NOtN5V8pJW3eO4PvVjN0dhJVgvLdFbb80tS0mW+"
        "Ik08H6+ay3Bt62n4TA7Tzk1y2bqmHNkEIgANYF+M437BXoz2nMZClN6V1IHjalBCIdlPFWbxbU27amJuxTPT"
        "XTpyVBY7k+abaHJE5dqe68nyLAUW7jAfw0UUhsyiq7ozVzVIAgqV7qBeXeu8u5J+a195NFFdivDaSlHHqtD0"
        "8ohKsV//2Q=="
    ),
    "jpeg-progressive": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAoHBwgHBgoICAgLCgoLDhgQDg0NDh0VFhEYIx8lJCIfIiEmKzcv"
        "Jik0KSEiMEExNDk7Pj4+JS5ESUM8SDc9Pjv/2wBDAQoLCw4NDhwQEBw7KCIoOzs7Ozs7Ozs7Ozs7Ozs7Ozs7"
        "Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozv/wgARCAAVACsDAREAAhEBAxEB/8QAGQABAQADAQAA"
        "AAAAAAAAAAAABAUBAgYD/8QAGQEAAgMBAAAAAAAAAAAAAAAAAwUBAgQG/9oADAMBAAIQAxAAAAGiABmDDBsq"
        "1xefnRMJPbIUsnoTFY1urNJh7AkJeQITv7CVBk9HbwO+2zMP/8QAGxAAAgIDAQAAAAAAAAAAAAAAAgMAAQQR"
        "ExL/2gAIAQEAAQUCvHGWiVgzfIckiK/JQmVpjGSmO2k1eXNx6vumcQhVqGNXGBU5DOIz/8QAIhEAAgIBAwQD"
        "AAAAAAAAAAAAAQIAAwQREzESFCEiMlFS/9oACAEDAQE/AVvYnzFWph7R6qNeYmLrxBUq8zSuDIUQZg40nS7+"
        "QJXurFAPyM26v1NlZ0BeIcu1PAiZdrcmY1S2D2nZVfU//8QAIhEAAgIBAgcBAAAAAAAAAAAAAgMAAREEIRAS"
        "ExQiMUFS/9oACAECAQE/ARayLe2perPEY1hXABpToNi3HdzTCN1uUwiq9xxb+NQVsL7idu39xV5uLUPJmMKx"
        "PFTRDRDvGjVcP//EAB0QAAICAQUAAAAAAAAAAAAAAAABESEQAgMgIjH/2gAIAQEABj8CxJGaKRepo77iKhni"
        "5//EABsQAQEAAgMBAAAAAAAAAAAAAAEAESEQMWFB/9oACAEBAAE/IcHTMuCBc2FiSPV4XdLP3XQpfbnttDiR"
        "A0QaEZss+EvG/9oADAMBAAIAAwAAABAmKO4dRwFr/8QAGhEAAwADAQAAAAAAAAAAAAAAAAEREDFhIf/aAAgB"
        "AwEBPxCWQrWH4RUlOwnUZWDKg2h0PUJx5DiTUPajVAtNLhf/xAAbEQEBAAIDAQAAAAAAAAAAAAABABExIUFh"
        "EP/aAAgBAgEBPxA7qE1AwS48QmrwsVYU4roi2lXbp7JBGXxWclnwl+D5/8QAHhAAAwABBAMAAAAAAAAAAAAA"
        "AAERITFBUZFhcYH/2gAIAQEAAT8QRptNjbFiFrOozLsQ7FvHV59FKDfCLeLyh1c4ymxmnYzQ6L0g6jRZSwhQ"
        "bGFTXs1BN/Tzuz//2Q=="
    ),
    "jpeg-gray": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUf"
        "GhsjHBYWICwgIyYnKSopGR8tMC0oMCUoKSj/wAALCAATABcBAREA/8QAFgABAQEAAAAAAAAAAAAAAAAABQYH"
        "/8QAKRAAAQMCAwcFAQAAAAAAAAAAAQIDBQAEBhESBxMUITFBURUiMmFiof/aAAgBAQAAPwChlZizxOjdttPj"
        "Lyk1MyEPAMIImeJbZHdIyojj8P2Z0Q7jimP31qnRjW6bUPT7S3B76kAUjOS0ZMQ2jFYS0wRzNsPd/Kzp3Z9b"
        "SKi7hJ15doehfORpLEQDTJLY0n6oPZ24u7xRurlRdbz+K+YrW5oCzdCbUBpPhHKv/9k="
    ),
    "jpeg-cmyk": (
        "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAGBAUGBQQGBgUGBwcGCAoQCgoJCQoUDg8MEBcUGBgXFBYWGh0lHxob"
        "IxwWFiAsICMmJykqKRkfLTAtKDAlKCko/8AAFAgADQALBEMRAE0RAFkRAEsRAP/EABkAAAMBAQEAAAAAAAAA"
        "AAAAAAAFBgcDCP/EACgQAAEEAgEDBAEFAAAAAAAAAAIBAwQFAAYREyExBxJRYRUUIjJBQv/aAA4EQwBNAFkA"
        "SwAAPwCOq6mi0N6SuxMRLS1MUSPHiv8AUB0vgiHxlUlMtDKf4v48SoqR68HqmIuK4vnkV7plTT7rGq9zs4Ov"
        "wI/4FhoSInnen0ufKpz5z1Tl5D1HbrCK1Li7fOrmHhQwiBEExZRf8oq+eMi5noTbbBKdtxtBMZpK+hJx393f"
        "G7vo5RXbhWf5Y0/Vr1eBQVTv3+cM4bjQ0jG21+vV1PDg+1zlZjI8PLz95qk/0zo3KRyxuBctpUdFMjl/u6v0"
        "XymZDvkxqFo0Szahx1fIyR5FTs8n9IX1hiWcd7CmPRmNnthaaJQFOonZExtA9OhegsOx9huIjJghBHYdRAbR"
        "U/iKceExvRV9hMpoclu+sowOtCSMtHwAIqeE+sM//9k="
    ),
    "png": (
        "iVBORw0KGgoAAAANSUhEUgAAAAcAAAALBAMAAABBvoqbAAAAMFBMVEWz3Uq6qlhC41YkqWenjlJve19Mj4Ed"
        "gFXDZGVkV2bNLXl/NE8xYaI/XDY1NqUZEWy0256yAAAAQklEQVR42gE3AMj/AOUGBPADU9/0LAFNSxIGAQbG"
        "D8UCEPueQAOgGfcCAkQA0CAAyVEs4AEBRy/5AFiI3SAB28oPTP7+EtLHmYG4AAAAAElFTkSuQmCC"
    ),
    "webp": (
        "UklGRvoAAABXRUJQVlA4IO4AAAAQBwCdASoXABEAPrVQoUwnJKMiKAqo4BaJbACdMoR+MIIsJpXz8fkAcyT+"
        "oFnb+zIAqlWoZ0AXcdKZfh5gUlDU4AD+5giNx5lZmroponOHFukry6Ayja8v6888kdoLyHsvGzVSClrxCSKY"
        "V9oCrWfFjcJ6M24ZP6pSIuLB+659rZqiFrXv6VHT3EoYI0XHXgoB1RyzKrRPXayqfaS5tGNyfoY1v4Jx/Vj0"
        "+l7dRD+j/gZVhH3/aaFBi29+9q+cyHU3eGysuicenH58yhjyLx90xXIPULgcBW0rc6OlDt6D5h/n4RtrL8UH"
        "q4xcIAAA"
    ),
}
