"""Recipes of other libraries, each as a case: from encoded image to view, on one thread.

Those of `pip install -e '.[peers]'` and `'.[dali]'` are measured where they are installed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

__all__ = ["ALBUMENTATIONS", "DALI", "TIMM", "peers"]

TIMM = "timm, DeiT's recipe"
DALI = "DALI on the CPU, crop and flip"
ALBUMENTATIONS = "AlbumentationsX, crop and flip, not antialiased"

SIDE = 224
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)

Case = Callable[[], int]  # makes a view of each image, and returns how many


def peers(images: list[bytes]) -> Mapping[str, Case]:
    """Return the cases that can be measured here, by name; timm's whole recipe comes first."""
    return {
        TIMM: timm_recipe(images, augment=True),
        "timm, crop and flip": timm_recipe(images, augment=False),
        "torchvision v2 on tensors, RandAugment and erasing": torchvision_v2(images, augment=True),
        "torchvision v2 on tensors, crop and flip": torchvision_v2(images, augment=False),
        **opencv(images),
        **albumentations(images),
        **dali(images),
    }


def timm_recipe(images: list[bytes], *, augment: bool) -> Case:
    """Return a case that runs timm's DeiT transform, or its crop and flip alone."""
    transform = create_transform(
        SIDE,
        is_training=True,
        interpolation="bicubic",
        auto_augment="rand-m9-mstd0.5-inc1" if augment else None,
        color_jitter=None,
        re_prob=0.25 if augment else 0.0,
        re_mode="pixel",
    )

    def run() -> int:
        for data in images:
            # One view in 660 asks for posterize with 0 bits, at which Pillow 13 raises.
            with contextlib.suppress(ValueError):
                transform(Image.open(io.BytesIO(data)).convert("RGB"))
        return len(images)

    return run


def torchvision_v2(images: list[bytes], *, augment: bool) -> Case:
    """Return a case of torchvision's v2 transforms on tensors, antialiased.

    Its RandAugment lacks the increasing severity and the noise of its magnitude that timm's has,
    and its erasing fills with one color.
    """
    steps: list[Any] = [
        v2.RandomResizedCrop(
            SIDE,
            scale=AREA,
            ratio=ASPECT,
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        ),
        v2.RandomHorizontalFlip(),
    ]
    if augment:
        steps += [v2.RandAugment(num_ops=2, magnitude=9), v2.RandomErasing(p=0.25)]
    transform = v2.Compose(steps)
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in images]

    def run() -> int:
        for data in tensors:
            transform(decode_jpeg(data, mode=ImageReadMode.RGB))
        return len(tensors)

    return run


def opencv(images: list[bytes]) -> Mapping[str, Case]:
    """Return cases of plain OpenCV calls, none where it is not installed.

    Its cubic resizing takes 16 pixels however far it shrinks; averaging of areas is its antialiased
    way to shrink, and is no cubic.
    """
    try:
        import cv2
    except ImportError:
        return {}
    cv2.setNumThreads(1)
    arrays = [np.frombuffer(data, np.uint8) for data in images]
    random = np.random.default_rng(0)

    def crop_flip(interpolation: int) -> Case:
        def run() -> int:
            for data in arrays:
                image: Any = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
                top, left, height, width = _random_crop(random, *image.shape[:2])
                crop = image[top : top + height, left : left + width]
                view = cv2.resize(crop, (SIDE, SIDE), interpolation=interpolation)
                if random.random() < 0.5:
                    cv2.flip(view, 1)
            return len(arrays)

        return run

    return {
        "cv2, crop and flip, not antialiased": crop_flip(cv2.INTER_CUBIC),
        "cv2, crop and flip, areas": crop_flip(cv2.INTER_AREA),
    }


def _random_crop(random: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Return top, left, height, width as torchvision draws them; all of it after ten tries."""
    for _ in range(10):
        area = height * width * random.uniform(*AREA)
        aspect = np.exp(random.uniform(*np.log(ASPECT)))
        rows, columns = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
        if 0 < rows <= height and 0 < columns <= width:
            top = int(random.integers(height - rows + 1))
            return top, int(random.integers(width - columns + 1)), rows, columns
    return 0, 0, height, width


def albumentations(images: list[bytes]) -> Mapping[str, Case]:
    """Return cases of AlbumentationsX after OpenCV's decoder, none where it is not installed."""
    try:
        import albumentations as alb
        import cv2
    except ImportError:
        return {}
    cv2.setNumThreads(1)
    arrays = [np.frombuffer(data, np.uint8) for data in images]

    def crop_flip(antialias: Literal["image"] | None) -> Case:
        crop = alb.RandomResizedCrop(
            (SIDE, SIDE),
            scale=AREA,
            ratio=ASPECT,
            interpolation=2,  # cv2.INTER_CUBIC
            area_for_downscale=antialias,
        )
        transform = alb.Compose([crop, alb.HorizontalFlip()], telemetry=False)

        def run() -> int:
            for data in arrays:
                transform(image=cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))
            return len(arrays)

        return run

    return {
        ALBUMENTATIONS: crop_flip(None),
        "AlbumentationsX, crop and flip, areas": crop_flip("image"),
    }


def dali(images: list[bytes]) -> Mapping[str, Case]:
    """Return a case of DALI's CPU operators, none where DALI is not installed.

    Its decoder decodes no more than the crop; resizing is cubic and antialiased, the inverse
    transform exact, as ours.
    """
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError:
        return {}
    arrays = [np.frombuffer(data, np.uint8) for data in images]

    @pipeline_def(batch_size=len(arrays), num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def crop_flip() -> object:
        data = fn.external_source(source=lambda: arrays, batch=True)
        crops = fn.decoders.image_random_crop(
            data, device="cpu", random_area=AREA, random_aspect_ratio=ASPECT, use_fast_idct=False
        )
        views = fn.resize(crops, size=(SIDE, SIDE), interp_type=types.INTERP_CUBIC, antialias=True)
        return fn.flip(views, horizontal=fn.random.coin_flip())

    pipe = crop_flip(exec_async=False, exec_pipelined=False, prefetch_queue_depth=1)
    pipe.build()

    def run() -> int:
        pipe.run()
        return len(arrays)

    return {DALI: run}
