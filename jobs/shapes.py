"""Draws a folder of images to try the commands on, for want of one: four shapes, in any colors."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFilter

from pipeline.cli.console import say, tell_next
from pipeline.telling import told

__all__ = ["SIDES", "main", "write_shapes"]

SIDES = {"circle": 0, "square": 4, "star": 10, "triangle": 3}
SIZE, SCALE = 64, 4  # pixels; drawn larger and shrunk, for smooth edges


def draw(shape: str, chance: random.Random) -> Image.Image:
    """Return one image of a shape: turned, squeezed and colored by chance, on a gradient."""
    side = SIZE * SCALE
    hues = [chance.randrange(256), chance.randrange(256)]
    image = Image.linear_gradient("L").resize((side, side)).rotate(90 * chance.randrange(4))
    image = Image.merge("HSV", [image.point(lambda v: (hues[0] + v // 8) % 256), *(image,) * 2])
    image = image.convert("RGB").point(lambda v: 40 + v // 2)
    radius = side * chance.uniform(0.16, 0.42)
    squeeze, turn = chance.uniform(0.75, 1), chance.uniform(0, 2 * math.pi)
    corners = SIDES[shape] or 48
    points = []
    for corner in range(corners):
        reach = radius * (0.45 if shape == "star" and corner % 2 else 1)
        angle = 2 * math.pi * corner / corners
        x, y = reach * math.cos(angle), squeeze * reach * math.sin(angle)
        points.append(
            (
                side / 2 + x * math.cos(turn) - y * math.sin(turn),
                side / 2 + x * math.sin(turn) + y * math.cos(turn),
            )
        )
    color = ImageColor.getrgb(f"hsv({hues[1] * 360 // 256}, 78%, 100%)")
    ImageDraw.Draw(image).polygon(points, fill=color)
    image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return image.filter(ImageFilter.GaussianBlur(chance.choice((0, 0, 0, 1, 2))))


def write_shapes(out: Path, train: int = 240, val: int = 60) -> None:
    """Write so many images of each shape to ``out``/train and ``out``/val.

    Some are hard to tell.
    """
    for split, count in (("train", train), ("val", val)):
        for shape in SIDES:
            folder = out / split / shape
            folder.mkdir(parents=True, exist_ok=True)
            for number in told(range(count), f"drawing {split}/{shape}", "images", count):
                chance = random.Random(f"{split} {shape} {number}")
                draw(shape, chance).save(folder / f"{shape}-{split}-{number:03d}.jpg", quality=90)


def main() -> None:
    """Draw the images into the directory that is the command's argument."""
    out = Path(sys.argv[1])
    write_shapes(out)
    say(f"{out}: train and val, {len(SIDES)} classes in each: {', '.join(SIDES)}")
    tell_next("teacher-labels", "pack", "--images", str(out / "train"), "--out", "shards/train")
