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
from typing import Protocol

import numpy as np

from pipeline.growth import to_plain
from pipeline.identity import AugmentConfig, MixConfig, canonical_json
from pipeline.records import Box, ImageSize, Pixels
from pipeline.views.apply import apply_op, apply_view, decode, image_size, resize
from pipeline.views.draw import draw_view, policy_ops
from pipeline.views.operation import Operation
from pipeline.views.ops import OPERATIONS
from pipeline.views.pairing import draw_groups, draw_mix, draw_partners
from pipeline.views.regions import EncodedImage
from pipeline.views.rng import noise_bytes, sample_seed

__all__ = [
    "BITS",
    "ViewSettings",
    "different_fingerprints",
    "fingerprints",
    "what_they_watch",
]

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


class ViewSettings(Protocol):
    """Whatever says how views are made, as a store's identity does."""

    @property
    def augment(self) -> AugmentConfig:
        """How they are augmented."""

    @property
    def mix(self) -> MixConfig:
        """How they are mixed."""


def fingerprints(identity: ViewSettings) -> dict[str, int]:
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


def what_they_watch(identity: ViewSettings, names: Iterable[str]) -> str:
    """Return the names of fingerprints with what each watches, for messages."""
    watched = _OF_FLOATS | {probe.name: probe.watches for probe in _probes(identity)}
    return ", ".join(f"{name} ({watched.get(name, 'unknown here')})" for name in names)


def _probes(identity: ViewSettings) -> Iterator[Probe]:
    augment, mix = identity.augment, identity.mix
    for name, text in _IMAGES.items():
        yield Probe(
            name=f"decode.{name}",
            watches=f"decoding {name.replace('-', ', ')}",
            crc=partial(_decoded, name, text),
        )
    yield Probe(
        name="decode.jpeg-part",
        watches="decoding parts of jpeg",
        crc=partial(_decoded_in_part, _IMAGES["jpeg-restart"]),
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


def _decoded_in_part(text: str) -> int:
    """Return a fingerprint of what views of an image decode of it."""
    image = EncodedImage(data=b64decode(text), name="", max_pixels=1 << 16, worth=0)
    config = AugmentConfig(image_size=16, policy="none", erase_probability=0.0)
    word = 0
    for view in range(8):
        draw = partial(draw_view, _SEED, view, config=config)
        pixels, params = image.decode_for(draw)
        word = binascii.crc32(apply_view(pixels, params, config).tobytes(), word)
    return word


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
    "jpeg-restart": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZG"
        "NywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09P"
        "T09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAA0AEsDASIAAhEBAxEB/8QAGwAAAgMBAQEAAAAAAAAAAAAA"
        "BAUAAwYBAgf/xAAoEAACAgICAQQCAQUAAAAAAAABAgADBBESIQUTFDFRIkFhBhUWMlL/xAAaAQACAwEBAAAAAAAA"
        "AAAAAAAEBQECAwYA/8QAJREAAQQBAwMFAQAAAAAAAAAAAQACAwQRBRMhEjEyFBUjM0FE/90ABAAB/9oADAMBAAIR"
        "AxEAPwAOi9S47miw23V19TB4jXCwbBmy8ZcBR+R/Utrkwe0YR0L88Bf/0CPInRMzmY45mOvK5C7OjM5k8rG/HuVo"
        "2TFGCQvHTOmbeJX/0RvAsDYJsGsC0gn6mI8FyqcF+poc/OUY2lbvU2dIJnbiu6T5AW8r/9I3NyUOwDEzqWfYgD5V"
        "r5JHetxziKrVgt8wwu9TwPxFWaZvNyPxf//T5QpAl84zIvwZz1F+43ZEWjCTSudA7ox2X//U9tg0INjUEvtakEJF"
        "tXlLHbRJjTGRchdtPW6xcOVSnfbTOZRlf//Vz2Vfa5O9w7xWOLdcxGFnj6iP1KSPbf6QuKaGSLYA5RlqOTUY/hOM"
        "r//Wqzq1xk3XE65lttnBt6jEu2T006uAqHlqTLXfAwtW1OL29nTY5K//1wK8VePP9z0bTX0JaXCjjKGHIzbRztEl"
        "6ZsvsccMX//QWtkOZ59d/wCZetSn5nv0a/sRnLqkbXYwulZTgkHU4L//0VAwAnYEsXIagaEYFQ0pbDFh+ItN5w8i"
        "nMraUg5C/9JWfJOTruH4a+61ylY8WPnUtQ+0HU1pywkdQ7ojdNd2Y+y//9Mv2SVDcDyrAqkCD5PljrW4EuUbm1ud"
        "A1jXt3H9lWR77cgK/9RQ1rF5b+XDcJxsIWEHUbU+MDrrUjUtRgLg2FEzVNloK//VzuRl2Vtobg/9xu/mbo/0yt3f"
        "Gc/xBP8AibwPruYC4cqfUzjgFf/W4vzCagJJJzM6kr//12SgcYo8n0DqSSLqHYK1n6V//9DMZLHc94JPqCSSP/43"
        "L2l+QX//0SMAdCPsMDYkknKO+4p3qXiF/9L6HjIvEdQjiPoSSQGHxUr/2Q=="
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
    # By simplejpeg, of noise, with the sampling that the name says; 4:4:1 by swapping
    # the sampling and the sides in the header of 4:1:1, which has as many blocks.
    "jpeg-422": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIs"
        "IxwcKDcpLDAxNDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
        "MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/wAARCAAVACUDASEAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAA"
        "AAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAk"
        "M2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKT"
        "lJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QA"
        "HwEAAwEBAQEBAQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdh"
        "cRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hp"
        "anN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk"
        "5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwCW+0rT9PhMlvcLIw6AVykmr6pe3BtY7NimcZApZJmdPDPlb3O+"
        "fFU8fQl7SNjWsPCsmRNeAxKecmteSOGwj/0GQTOOwq8zxeJli4+yhePc+bweHniISqJe6UzrviBThNMcj1xRXpRc"
        "rbF+ww/8xhtqdk4xDISaZHqmo2TebAikDpkV4X9n4TD14qozbIsqr4iLVVGtZ+MJ78iDUyFj6HFdPpreH0xJaybp"
        "Dzya+mxtenh6V6Gx6NZVMA/qVLaRvJqRC4VUx9KK+WefQvuc/wDq5OWp5BbafbpICEFaNxGq2+AO1ds4KtJOZ7mb"
        "VJYOH7nQ5ydRvNW9PmeF/kJFfSrDU55bNtHzmExNTEJ1aju0bqardhcCQ0V+Yzw9Pmeh2f2jiF1P/9k="
    ),
    "jpeg-440": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIs"
        "IxwcKDcpLDAxNDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
        "MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/wAARCAAlABUDARIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAA"
        "AAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAk"
        "M2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKT"
        "lJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QA"
        "HwEAAwEBAQEBAQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdh"
        "cRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hp"
        "anN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk"
        "5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwClcY0CNhP8u8YFM8Vt/wAJJLCsfGGHSuTKc3p4SR20+LMTjINV"
        "o2KWi2D3l49wgyuc11kVsvhrS4TjJkUCvWzbE4rEwjLCRufP4OhVx1eTpojXxFb2Q8h2AZeDVJ/BM2qsbtSQJOa0"
        "w6rKmvaKzHVpYelJxqPUw765FoQ8JyQe1Zulxyzq/n5PHevLxVDD4aSahc78mySVJv6xLQ7Pw5qK+JGEF4cCPpmu"
        "MtLuXTb4mElcnnFfTRrKrh19XjZo7cfCGE/3OWr3se0x3QtEEMeNq8CuasdXje1RpGyxHNfF4rOK1Ko4tEU8ppV4"
        "+0qSV2claIqo+B2or1Y6vU9bPPdhoYVxxdH60V9ZkiTjI+Ly2TlVd2a9vM4hABor8/zZL61I76kmpbn/2Q=="
    ),
    "jpeg-411": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIs"
        "IxwcKDcpLDAxNDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
        "MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/wAARCAAVACUDAUEAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAA"
        "AAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAk"
        "M2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKT"
        "lJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QA"
        "HwEAAwEBAQEBAQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdh"
        "cRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hp"
        "anN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk"
        "5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwCW+0rT9PhMlvcLIw6AVykmr6pe3BtY7NimcZArWsPCsmRNeAxK"
        "ecmteSOGwj/0GQTOOwpwx8pZdGnRV2mvuIx+YzzirTnazs7lM674gU4TTHI9cUUUV6icrHB7DD/zGG2p2TjEMhJp"
        "keqajZN5sCKQOmRWtZ+MJ78iDUyFj6HFdPpreH0xJaybpDzya5MBSoYOlW5PjR34PCVsNgoYlr3n7v3m8mpELhVT"
        "H0oooryXn0O4f6uTep5BbafbpICEFaNxGq2+AO1c5Oo3mrenzPC/yEivoMuowqOq5LeL/I68yrTjjFh0/dWtjdTV"
        "bsLgSGiiivgpYend6GP9o4juf//Z"
    ),
    "jpeg-441": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIs"
        "IxwcKDcpLDAxNDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
        "MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/wAARCAAlABUDARQAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAA"
        "AAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAk"
        "M2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKT"
        "lJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QA"
        "HwEAAwEBAQEBAQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdh"
        "cRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hp"
        "anN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk"
        "5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwCW+0rT9PhMlvcLIw6AVykmr6pe3BtY7NimcZArWsPCsmRNeAxK"
        "ecmteSOGwj/0GQTOOwpwx8pZdGnRV2mvuIx+YzzirTnazs7lM674gU4TTHI9cUUUV6icrHB7DD/zGG2p2TjEMhJp"
        "keqajZN5sCKQOmRWtZ+MJ78iDUyFj6HFdPpreH0xJaybpDzya5MBSoYOlW5PjR34PCVsNgoYlr3n7v3m8mpELhVT"
        "H0oooryXn0O4f6uTep5BbafbpICEFaNxGq2+AO1c5Oo3mrenzPC/yEivoMuowqOq5LeL/I68yrTjjFh0/dWtjdTV"
        "bsLgSGiiivgpYend6GP9o4juf//Z"
    ),
    # By Pillow with keep_rgb; of CMYK with the transform of its Adobe marker set to 2.
    "jpeg-rgb": (
        "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAIBgYHBgUIBwcHCQkICgwUDQwLCwwZEhMPFB0aHx4dGhwcICQuJyAiLCMc"
        "HCg3KSwwMTQ0NB8nOT04MjwuMzQy/8AAEQgAEwAdA1IRAEcRAEIRAP/EAB8AAAEFAQEBAQEBAAAAAAAAAAABAgME"
        "BQYHCAkKC//EALUQAAIBAwMCBAMFBQQEAAABfQECAwAEEQUSITFBBhNRYQcicRQygZGhCCNCscEVUtHwJDNicoIJ"
        "ChYXGBkaJSYnKCkqNDU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6g4SFhoeIiYqSk5SVlpeY"
        "mZqio6Slpqeoqaqys7S1tre4ubrCw8TFxsfIycrS09TV1tfY2drh4uPk5ebn6Onq8fLz9PX29/j5+v/aAAwDUgBH"
        "AEIAAD8A0Z/jVeOpFrbxu3YVB4j+HOj6RaNLo10biYdFrj9N8TaP4SmF1pdz50q9Aa898TX+s+NLtWuLXYCe1ZXh"
        "rwbrWqEyXVtsjXv7V6Z4e8aX3j2zYtAFwOAK6XSPA7WmjibnzAM4rqvN8PaOPssd7u1EcCP3rlr6z8VWmv4tdOLo"
        "G4NZ0r6nDIUWDIFMN740PNrpW+L+E+ors7W78arAo/srtXL+FvDWpXN6qy7ohnqwrnL3xzBqUZjsoGjc9DXlWs6b"
        "oNrbloNOy3sK9Kk0IaVEHk1CHIGcbhXM3Pivxbps4WC7lEJPKgdq6P4d+LLLRl2LYvH9RUNj42Vr0aaclScb+1dt"
        "4b1nw3cRpcajYh9R6+Yeua9Dv/G0K2rXMdlIDjO7bXdW/huzu4VmN9ApYZwWFdvF4pdIwsD7Yx0FcVP8ZbiGVkBc"
        "AdqztXgihgYxxqhx1ArxDQ1X7SOBWHbKrvhwCPevCvG95ci8AE8gGem6usuoYzASUU8elX1hjS5TaijnsKt6CSbJ"
        "XJ+f171xIYprICnAz0Fek3kEX/CFu3lrnZ1xWx9uul4FxIB/vV39ozfZ15PSvmrWONRlx/eNf//Z"
    ),
    "jpeg-ycck": (
        "/9j/7gAOQWRvYmUAZAAAAAAC/9sAQwAIBgYHBgUIBwcHCQkICgwUDQwLCwwZEhMPFB0aHx4dGhwcICQuJyAiLCMc"
        "HCg3KSwwMTQ0NB8nOT04MjwuMzQy/8AAFAgADQARBEMRAE0RAFkRAEsRAP/EAB8AAAEFAQEBAQEBAAAAAAAAAAAB"
        "AgMEBQYHCAkKC//EALUQAAIBAwMCBAMFBQQEAAABfQECAwAEEQUSITFBBhNRYQcicRQygZGhCCNCscEVUtHwJDNi"
        "coIJChYXGBkaJSYnKCkqNDU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6g4SFhoeIiYqSk5SV"
        "lpeYmZqio6Slpqeoqaqys7S1tre4ubrCw8TFxsfIycrS09TV1tfY2drh4uPk5ebn6Onq8fLz9PX29/j5+v/aAA4E"
        "QwBNAFkASwAAPwDGuviF4g8ZWEtmL2OK2kGHXy+tZ/iHw74fs9Ytxa3SaNZE/vVnO7NYvhTxFr+l6xb6Rp+myafY"
        "XLYlWXDEj617/WhpXhC2s/Dqm1uFN5nJP/1q37CFZiLPw/bsLcDjWM5iPtiu9uvBus23iL+0LfW4LW1K/wAaZoqL"
        "+w9a/wCfhf8AvitL/hHfEf8A0N1n/wB+a0/seq/9DhZf9+6Ks6pb23gLSJ/7MtopCRnMy5rynTbBdZspRfSyTe7t"
        "k15U1gb65S9e5nWWLldr4FFcv4Z8U3/2z+2SVMpOPKI/d/lVnQtRu9H1L+yba4kFoOQhbiur8SWkifDxdRF7cmbO"
        "OZDiiu2/4Wjqv/PlY/8Afquy/tG4/vV43/at/wD8/k3/AH3RX//Z"
    ),
    # Raw words of 16 bits between zlib and CRCs; the others by Pillow.
    "png-16-bit": (
        "iVBORw0KGgoAAAANSUhEUgAAAA0AAAAJEAAAAACcgSX1AAAA/klEQVR4nAHzAAz/ACUX2uA4lCCEqgS2qtIgr0MD"
        "VMurvZijUlINAMc2Xwefp+3HT90425SxKfLSzKkhDYs3MVnzAEDYpCE58eWPQA1xySzkXDevZwRLA7RYkGxfADQ4"
        "KnP+XZ9tXNoIbYz0skBeqropAVn2zR5nAFcXPyNB6UnjSV6ChzySSGhB6FF1K4WCbTOgAEHCCFpzxe1Mujgovlb+"
        "1WedUYv3zwWgipAgAEDmZpWPD8cg3Osq8vFx2UibQLpbchMSGF81AHKFVHWJ5pf8Yv2jjtWBlpHkPaDK1U6jSZfn"
        "ALi0L/unDtwn/I+jOwRf19rY+wweuaCABLmS4FNzNAuJd64AAAAASUVORK5CYII="
    ),
    "png-alpha": (
        "iVBORw0KGgoAAAANSUhEUgAAAA0AAAAJCAYAAADpeqZqAAAB3ElEQVR4nAXBvVPaUAAA8KAvefnkI08IPLSFHlKu"
        "uNBFdOngYju19q53rm4duvsndGw3J69Tr1O7OXTQzcE75Ww5c3wIqaEFciAcyQv5wKS/XyTMZEKKzlFU9B3lywf+"
        "OYyeHwWtoxPw6wTIGihm+kWsMFjGG7KASgLNSjQ4O3xx5s4411L7lvH7i9HwUOMWi7dslmLxU4LL62p5BZorljaw"
        "RnVttLDFBTj+8OTY0U1n8r02MZpfjfmDMg/zb8O1zedrlUdiZStubwmzgXAzBjfDdjicTbgZuPrx6Yr2AlqifSn3"
        "+iEnJaMSVxW5uFKMF37mCvmPhTwz9hn/5aoP3mcBSfMEdKnNLr9Y8Ni2sWw4Mvu3wHKdJMcIEhO4fGBVYhYXdTlY"
        "DmBa9tIe63nAsd84zNRmQE8HseteLN5B8WXdXg6AHgxeJQb3B+G9uGGKaNJBqX+9FKMRBuDPdzi5ZCarsFHdgeqO"
        "koEKcYekP1P7tSaqXX5jL2HehnuJ1t42p21naSsL9o3pPuR8iJQEIslnpK4s1VsItrSpqRmuYpDmYwL6c9DO3bVP"
        "s5PThDBKgF3R253zYD6O4bEmr2sqH1EvUs5F12S6SF9FpT+VEiIe6kndnh671iPUUuQ/Hvnbkk7OGsIAAAAASUVO"
        "RK5CYII="
    ),
    "webp-lossless": (
        "UklGRlgCAABXRUJQVlA4TEsCAAAvDIACAHfkKADARNnO3d0aUIJc5KIET3d3d7bTGo4DADCbS23b7ltDeIBu121s"
        "23bsxJlta8fyvG+2bds1zWbSCPrXCGzbrs/f1/yHLdozwC9PedAqK9b6ZdFANH2JgAdYCUkqV1kt3j8T5cAr3x+h"
        "wKL0nFQrxwTFDFbEcGLmBfka/aBK4SqyCqB2UtOoG/aX3JAGgiC0naCX3KegqHlXPbKBJA6cFBKRNwAPmwSG0y7P"
        "hzVJYXGXqd6IIuN4hcbXo2IxCrT5RmEApeRxO4VcbnNyenCwU2vJIpQJ76dE+Wz6wQr+VUkgxF5rHfBWQyuFm/qK"
        "8M1x3pf2zwczRlc6ixne7OyEv5pTwGuQ/XHuP/+n2b0hlkWjaMJIcaa0SYxVlPh7QDxlGHqFM1NkXgY4nIykVo3G"
        "sE+psGwgrY6ipiUHRDbwVLEhkxCev60+/PXElQShzsQRZD/BDfDhtYBEY3N6qcBKXU1ADmDNAUljY74Gywc8K6ZP"
        "/nRUrgn2vnqNQqYEJH4PwCpZCWjeQnpWDlRUxcCyE4JqWTojAnhCNTAxshUA8mEQzic31ii32ZUfWK1yZEqAGAAA"
        "gSbbtm3btm1bs23eH9H/AACfvz+ad9cEEk2jjURjb++Nm1Ong0xnKJTcHOj+hGKzLhDQ/z/Xbnv2ow4Epxz28dH+"
        "YFeZB68vXb3F63Gvecx2p9cfGowX53hYvlRu6Uy/o/EVFp5Jy+RFFnXi94Eh2a/PlLTwgBGEwhKxSMhHPj3W6qj5"
        "MpmIz4i4y9tqBb1ZAQA="
    ),
    "webp-animated": (
        "UklGRkACAABXRUJQVlA4WAoAAAACAAAAEgAADgAAQU5JTQYAAAAAAAAAAABBTk1GCAEAAAAAAAAAABIAAA4AAAAA"
        "AAJWUDgg8AAAADAHAJ0BKhMADwA+tUieSackIqEwCADgFolsO4egMMD/Ifx38AOKraMQzQCIKsO4HiBvAP1J8zP1"
        "x9MA3m7yAAWB8AD+3qp/2Z7WPU4H/692gBn+Lnf/htk7oplX7B3afnmuie2wHFIU6O9Flb9/mY8tJ5Imc6xbo+Wa"
        "rv3iSEKx60YoHOLFMqpwT7SqE2uz6kd3c2ijl61VSXqI8OEMdX/Sy9Bvaf8czv+XSVmzw8kONv+9+RZbdzVSeaqT"
        "zUEIHZUgZSTrIRoz/8282CV8HAH1wSi7G356rsiwbOFxCPC4hIcbRtFkzjFaOMh/yAAAAEFOTUYEAQAAAAAAAAAA"
        "EgAADgAAAAAAAFZQOCDsAAAAVAYAnQEqEwAPAD61SJ5JgwCAAAFolsO4egMMD/Ifx38AJtiGaARBVh3A8QN4B+pP"
        "mZ+uPpgG83AxtgAA/tQnB8f7zjyP3/9mJVGP/Lnu//vyama37K/VXc5eE2a7WUP665OhNhgbHrepl9otLoVxjdwF"
        "kCxieOJknzSgk6nHU0wMq3Vy1CB/ce4gZn8ndzSuLalX0KU2lBYfsv++UXTa/wnV/laKE8ZmbZ3OP9W8R1zxlH28"
        "o+3lEdSYLJyJS/Qr870btWIQ73Al0S/XcG96Fmf5mjvRZM7hsKrRo7wR5zpFn6G5Q63gqf8AAAA="
    ),
}
