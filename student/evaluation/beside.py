"""A run's student as one of whom a store's report can ask what it calls views."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.classes import ClassNames
from pipeline.errors import ConfigError
from pipeline.labelling.devices import choose_device, set_threads
from student.batches import resize_images
from student.evaluation.evaluate import fuse
from student.evaluation.report import load_saved
from student.model import two_headed
from student.optimization import autocast
from student.output import checkpoint_of

__all__ = ["RunStudent"]


class RunStudent:
    """The student of a run's directory, its best or else its last, or of a checkpoint.

    Its weights are those that won the last evaluation. Raises ``ConfigError`` for a path at which
    there is none, and what ``load_student`` does.
    """

    def __init__(self, path: Path) -> None:
        file = Path(checkpoint_of(str(path)))
        if not file.is_file():
            raise ConfigError(
                f"`against` {path} is neither a store, whose name ends in .parquet or .zarr, nor a "
                "training run"
            )
        set_threads()
        self._device = choose_device("auto")
        self._saved, model, _ = load_saved(file, None, None, (), None)
        self._model = model.to(self._device)
        self._precision = partial(autocast, self._device, self._saved.precision)
        self.name = f"run {path.resolve().name}" if path.is_dir() else file.name
        self.classes = self._saved.classes
        self.class_names = ClassNames.of(self._saved.class_names, file)

    def labels(self, images: Tensor) -> Mapping[str, NDArray[np.int64]]:
        """Return the classes of (N, 3, S, S) images by each head, (N,), and last by their mean."""
        with torch.inference_mode(), two_headed(self._model), self._precision():
            output = self._model(resize_images(images.to(self._device), self._saved.image_size))
        scores = fuse(output)
        last = self._saved.headline if self._saved.headline in scores else "class_head"
        names = [name for name in scores if name not in ("sum_of_softmaxes", last)]
        return {
            name.replace("_", " "): scores[name].argmax(-1).cpu().numpy() for name in (*names, last)
        }
