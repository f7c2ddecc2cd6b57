"""The fingerprints of the default settings, as every sound machine has them in format 2."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["REFERENCE"]

REFERENCE: Mapping[str, int] = {
    "decode.jpeg": 3800541507,
    "decode.jpeg-411": 3002236560,
    "decode.jpeg-422": 681611645,
    "decode.jpeg-440": 84630411,
    "decode.jpeg-441": 922556746,
    "decode.jpeg-cmyk": 3495474939,
    "decode.jpeg-gray": 2659916968,
    "decode.jpeg-part": 2065179697,
    "decode.jpeg-progressive": 2103548736,
    "decode.jpeg-restart": 1140909722,
    "decode.jpeg-rgb": 1399488255,
    "decode.jpeg-ycck": 684129136,
    "decode.png": 3923514441,
    "decode.png-16-bit": 4126472543,
    "decode.png-alpha": 2586562025,
    "decode.webp": 1013471248,
    "decode.webp-animated": 3793129506,
    "decode.webp-lossless": 3581628419,
    "draw.mixing": 3031850329,
    "draw.pairs": 4274875515,
    "draw.views": 3887536647,
    "erase": 3160572277,
    "mixed.bits": 1026530306,
    "mixed.values": 1530098720,
    "normalized.bits": 3960077515,
    "normalized.values": 4073517879,
    "op.auto-contrast": 2211284217,
    "op.brightness": 639812905,
    "op.color": 1819212749,
    "op.contrast": 367478244,
    "op.equalize": 352315220,
    "op.invert": 1623846975,
    "op.posterize": 1884484522,
    "op.rotate": 2856090363,
    "op.sharpness": 2212011564,
    "op.shear-x": 4033109102,
    "op.shear-y": 589144749,
    "op.solarize": 3462993700,
    "op.solarize-add": 3369020513,
    "op.translate-x": 74899228,
    "op.translate-y": 4211165809,
    "resize.down": 2437715702,
    "resize.up": 57824475,
}
"""Of views by the default settings, on a CPU; a store with other settings keeps its own."""
