"""The teacher: views in, argmax labels of them mixed out, in batches of one constant shape."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.layers import ConvNormAct
from timm.models import PretrainedCfg
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.columns import ColumnConfig
from pipeline.errors import TeacherError
from pipeline.files.hub import hub_if_reached
from pipeline.growth import settle
from pipeline.identity import (
    TRIPLE_VIEWS,
    AugmentConfig,
    MixConfig,
    Precision,
    StoreIdentity,
    TeacherIdentity,
    derivation_of,
    different_fields,
)
from pipeline.labelling.forward import BatchShape, Forward, Pending, ahead
from pipeline.labelling.ranking import Answers, answers_of, labels_of
from pipeline.labelling.streams import device_of
from pipeline.labelling.timm_files import FETCH_CURE, no_teacher
from pipeline.labelling.weights import (
    Described,
    FoundWeights,
    WeightsError,
    Which,
    read_state,
    state_digest,
    tensor_bytes,
)
from pipeline.records import AugmentedGroup, TeacherLabels
from pipeline.views.mixing import float_digests

__all__ = [
    "Teacher",
    "TeacherSpec",
    "load_stored_teacher",
    "load_teacher",
    "pretrained_config",
]

DTYPES: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSpec:
    """Which teacher to build. Without a checkpoint, timm's pretrained weights are fetched."""

    architecture: str  # timm's name
    checkpoint: Path | None = None  # .safetensors, or a .pth with tensors alone
    weights: Which | None = "raw"  # of the checkpoint; None: raw ones, averaged if there are none
    random_weights: int | None = None  # seed of untrained weights, for trials of speed
    num_classes: int | None = None  # None: the checkpoint's, or the pretrained model's
    precision: Precision = "fp32"
    batch_views: int | None = None  # None: a triple on a CPU, a block on a GPU
    columns: ColumnConfig = field(default_factory=ColumnConfig)  # what to give beside labels

    def __post_init__(self) -> None:
        settle(self)


def load_teacher(
    spec: TeacherSpec, augment: AugmentConfig, mix: MixConfig, device: torch.device
) -> Teacher:
    """Build a teacher for views of this configuration.

    Raises ``TeacherError`` for an unknown architecture, that of a derived store, weights that
    cannot be read or do not fit, or a class count that labels (uint16) cannot hold.
    """
    note = derivation_of(spec.architecture)
    if note is not None:
        raise TeacherError(
            f"the store's labels are derived ({note}): no teacher gives them to its views; use the "
            "store that it was derived from, which its _meta/runs name"
        )
    found = _read_checkpoint(spec)
    model = _create_model(spec, found.state if found else None, augment.image_size)
    if found is not None:
        _load_state(model, found.state, spec)
    model = model.eval().requires_grad_(False)
    classes = int(getattr(model, "num_classes", 0))
    # 65535 is no class: it stands for a missing label in Zarr.
    if not 2 <= classes < 1 << 16:
        raise TeacherError(
            f"{spec.architecture} has {classes} classes and labels hold 2..65535; give "
            "`num_classes`, as many as the shards have"
        )
    if spec.columns.topk > classes:
        raise TeacherError(
            f"{spec.architecture} has {classes} classes, fewer than topk={spec.columns.topk}; let "
            "`keep` ask for no more than there are"
        )
    default_views = mix.block_views if device.type == "cuda" else TRIPLE_VIEWS
    identity = TeacherIdentity(
        architecture=spec.architecture,
        weights=state_digest(model.state_dict()),
        classes=classes,
        precision=spec.precision,
        batch_views=spec.batch_views or default_views,
    )
    described = _described(model, spec, found)
    prepared = _prepare(model, spec.precision, device)
    return Teacher(prepared, identity, augment, mix, described, spec.columns, found)


def load_stored_teacher(
    identity: StoreIdentity,
    device: torch.device,
    *,
    checkpoint: Path | None,
    random_weights: int | None,
) -> Teacher:
    """Build the very teacher that labelled a store; raises ``TeacherError`` if it is another."""
    stored = identity.teacher
    spec = TeacherSpec(
        architecture=stored.architecture,
        checkpoint=checkpoint,
        weights=None,
        random_weights=random_weights,
        num_classes=stored.classes,
        precision=stored.precision,
        batch_views=stored.batch_views,
        columns=identity.columns,
    )
    teacher = load_teacher(spec, identity.augment, identity.mix, device)
    if teacher.identity != stored and teacher.other_weights is not None:
        # The store says which of a checkpoint's weights were used.
        spec = replace(spec, weights=teacher.other_weights)
        teacher = load_teacher(spec, identity.augment, identity.mix, device)
    different = different_fields(asdict(teacher.identity), asdict(stored))
    if different:
        raise TeacherError(
            "this teacher is not the one that labelled the store (ours / the store's):\n  "
            + "\n  ".join(different)
            + "\n  give `checkpoint` the very weights that were used, or `random_weights` "
            "the same seed"
        )
    return teacher


class Teacher:
    """A frozen network that labels views in padded batches of one shape."""

    def __init__(
        self,
        model: nn.Module,
        identity: TeacherIdentity,
        augment: AugmentConfig,
        mix: MixConfig,
        described: Described,
        columns: ColumnConfig,
        found: FoundWeights | None = None,
    ) -> None:
        self.identity = identity
        self.other_weights: Which | None = None  # those in the checkpoint that were not taken
        self.class_names = None if found is None else found.class_names
        if found is not None and found.has_both:
            self.other_weights = "ema" if found.which == "raw" else "raw"
        self.described = described
        self.fixed_size = bool(getattr(model, "pretrained_cfg", {}).get("fixed_input_size"))
        self._columns = columns
        self.model = model
        self._augment = augment
        self._batch_rows = mix.group_size * identity.batch_views
        self._device = device_of(next(model.parameters()).device)
        self._dtype = DTYPES[identity.precision]
        self._counting = threading.Lock()
        self._made: Forward | None = None
        self.busy_seconds = 0.0  # in which the device was at work on groups

    def label_groups(
        self, groups: Iterable[AugmentedGroup]
    ) -> Iterator[tuple[AugmentedGroup, TeacherLabels]]:
        """Yield groups with their labels; the device has the next one before."""
        return ahead(groups, self.begin_group)

    def label_group(self, group: AugmentedGroup) -> TeacherLabels:
        """Label a group's views: P * V rows, those not valid with an arbitrary label."""
        return self.begin_group(group)()

    def begin_group(self, group: AugmentedGroup) -> Callable[[], TeacherLabels]:
        """Have a group's views labelled; what is returned gives the labels, once they are there.

        Digests the mixed images that the group says, as they are on the device.

        Teacher batches are cut at absolute multiples of ``batch_views``, so a view has the
        same row and shape whatever range of views a part or a run covers.
        """
        step, views = self.identity.batch_views, group.valid.shape[1]
        begun: list[tuple[slice, slice, Pending]] = []
        for start in range(group.first_view // step * step, group.first_view + views, step):
            first = max(start, group.first_view) - group.first_view
            end = min(start + step, group.first_view + views) - group.first_view
            column = first + group.first_view - start
            pending = self._forward.begin(group, slice(first, end), column)
            begun.append((slice(first, end), slice(column, column + end - first), pending))
        return lambda: self._finish(group, begun)

    def _finish(
        self, group: AugmentedGroup, begun: Sequence[tuple[slice, slice, Pending]]
    ) -> TeacherLabels:
        samples, pieces = len(group.valid), []
        digests = np.zeros(group.valid.shape, np.uint32)
        for views, columns, pending in begun:
            seconds = pending.wait()
            with self._counting:
                self.busy_seconds += seconds
            found = self._labels(pending.host)
            pieces.append(found.map(partial(_some_columns, samples=samples, columns=columns)))
            if pending.floats is not None:
                due = group.has_mixed_digest[:, views]
                digests[:, views][due] = float_digests(pending.floats)
        joined = TeacherLabels.joined(pieces, axis=1)
        flat = joined.map(lambda values: values.reshape(-1, *values.shape[2:]))
        return replace(flat, mixed_digest=digests.reshape(-1))

    def label_images(self, images: Tensor) -> TeacherLabels:
        """Label normalized and mixed images on the device, (N, 3, S, S) float32, any N > 0."""
        pieces, ranked = [], bool(self._columns.shapes())
        for start in range(0, len(images), self._batch_rows):
            rows = images[start : start + self._batch_rows]
            # Padded to the job's shape, so that the loop's labels are the store's.
            batch = images.new_zeros(self._batch_rows, *images.shape[1:])
            batch[: len(rows)] = rows
            found = self._labels(answers_of(self.logits(batch), ranked).on_host())
            pieces.append(found.map(itemgetter(slice(len(rows)))))
        return TeacherLabels.joined(pieces)

    def logits(self, batch: Tensor) -> Tensor:
        """Return the float32 logits, (N, C), of normalized images, (N, 3, S, S) of any floats."""
        with torch.inference_mode():
            batch = batch.to(dtype=self._dtype, memory_format=torch.channels_last)
            logits: Tensor = self.model(batch)
        return logits.float()

    @property
    def _forward(self) -> Forward:
        """The way of batches; it takes memory, so only who labels groups has one."""
        with self._counting:
            if self._made is None:
                shape = BatchShape(
                    samples=self._batch_rows // self.identity.batch_views,
                    views=self.identity.batch_views,
                    side=self._augment.image_size,
                    classes=self.identity.classes,
                    ranked=bool(self._columns.shapes()),
                    dtype=self._dtype,
                    mean=self._augment.mean,
                    std=self._augment.std,
                )
                self._made = Forward(self.logits, self._device, shape)
            return self._made

    def _labels(self, answers: Answers) -> TeacherLabels:
        if not answers.are_finite:
            raise TeacherError(
                f"{self.identity.architecture} gives logits that are not finite in "
                f"{self.identity.precision}; use `precision` bf16 or fp32, or check its weights"
            )
        return labels_of(answers, self._columns)


def _some_columns(values: NDArray[Any], samples: int, columns: slice) -> NDArray[Any]:
    """Return some views of a batch of so many samples, (N, V, ...)."""
    return values.reshape(samples, -1, *values.shape[1:])[:, columns]


def _read_checkpoint(spec: TeacherSpec) -> FoundWeights | None:
    if spec.checkpoint is None:
        return None
    try:
        return read_state(spec.checkpoint, spec.weights, "weights")
    except WeightsError as error:
        raise TeacherError(f"{spec.checkpoint} {error}") from error


def pretrained_config(architecture: str) -> PretrainedCfg:
    """Return what timm knows of a teacher's weights; raises ``TeacherError`` if it knows none."""
    if not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=5)
        raise TeacherError(
            f"`architecture` {architecture!r} is no model of timm {timm.__version__}"
            + (f"; similar names: {', '.join(close)}" if close else "")
        )
    try:
        config: PretrainedCfg | None = timm.models.get_pretrained_cfg(architecture)
    except RuntimeError as error:
        known = timm.list_pretrained(f"{architecture.split('.')[0]}.*")
        raise TeacherError(
            f"`architecture` {architecture!r}: timm {timm.__version__} knows no such weights; "
            f"it knows {', '.join(known) or 'none of this model'}"
        ) from error
    if config is None:  # one of its old names
        raise TeacherError(
            f"`architecture` {architecture!r} is an old name; give the one that timm "
            f"{timm.__version__} has for it"
        )
    return config


def _create_model(spec: TeacherSpec, state: Mapping[str, Tensor] | None, size: int) -> nn.Module:
    config = pretrained_config(spec.architecture)
    options: dict[str, Any] = {}
    classes = spec.num_classes
    if classes is None and state is not None:
        classes = _classes_of(state, config.classifier)
    if classes is not None:
        options["num_classes"] = classes
    if config.fixed_input_size:
        options["img_size"] = size
    pretrained = state is None and spec.random_weights is None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.random_weights or 0)
        why = ""
        try:
            with hub_if_reached() if pretrained else nullcontext("") as why:
                model: nn.Module = timm.create_model(
                    spec.architecture, pretrained=pretrained, **options
                )
        except (OSError, RuntimeError, TypeError, AssertionError) as error:
            if not (why and isinstance(error, OSError)):
                why = str(error).rstrip(".")
            cure = FETCH_CURE if pretrained else "check `num_classes` and `image_size`"
            raise no_teacher(spec.architecture, why, cure) from error
    return model


def _classes_of(state: Mapping[str, Tensor], classifier: object) -> int | None:
    """Return how many classes weights have, whose last layer timm calls ``classifier``.

    Other libraries call it by the last part of that name: fc for timm's head.fc.
    """
    if not isinstance(classifier, str):
        return None
    last = classifier.rpartition(".")[2]
    for name in (classifier, last):
        weight = state.get(f"{name}.weight")
        if weight is not None and weight.dim() in (2, 4):
            return len(weight)
    return None


def _load_state(model: nn.Module, state: Mapping[str, Tensor], spec: TeacherSpec) -> None:
    """Load a state dict, as it is or as timm itself translates it from other libraries."""
    if set(state) != set(model.state_dict()):
        state = _translated(model, state, spec)
    difference = _difference(model, state)
    if difference is not None:
        raise TeacherError(
            f"{spec.checkpoint} is no {spec.architecture} as it would be built: {difference}"
        )
    model.load_state_dict(state)


def _translated(
    model: nn.Module, state: Mapping[str, Tensor], spec: TeacherSpec
) -> Mapping[str, Tensor]:
    """Return a state dict in timm's names, if timm knows a way: torchvision's RegNets, say.

    Its ``pretrained_cfg`` may hold the weights, which then go through the architecture's own
    filter. They are returned as they are unless that renames them and no more: some architectures
    leave what they do not find at random values.
    """
    # Told by sizes first: a file of another model may be large, and its values are not read then.
    if _sizes(state) != _sizes(model.state_dict()):
        return state
    classes = getattr(model, "num_classes", None)
    weights = {"state_dict": dict(state), "num_classes": classes, "label_offset": 0, "source": ""}
    image = getattr(getattr(model, "patch_embed", None), "img_size", None)
    options = {} if image is None else {"img_size": image}
    try:
        with torch.random.fork_rng(devices=[]):
            other = timm.create_model(
                spec.architecture,
                pretrained=True,
                pretrained_cfg_overlay=weights,
                num_classes=classes,
                **options,
            )
    except Exception:  # a filter of timm meets weights that it was not made for
        return state
    found = other.state_dict()
    ours, theirs = (_contents(one) for one in (found, state))
    return found if ours == theirs else state


def _contents(state: Mapping[str, Tensor]) -> Counter[bytes]:
    """Return how often each content occurs among weights, whatever their names and shapes."""
    return Counter(hashlib.sha256(tensor_bytes(one)).digest() for one in state.values())


def _sizes(state: Mapping[str, Tensor]) -> Counter[int]:
    return Counter(one.nbytes for one in state.values())


def _difference(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Return why weights do not fit a model, with the cure, or None if they do."""
    own = model.state_dict()
    missing, foreign = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    misshapen = [
        name for name in sorted(set(own) & set(state)) if state[name].shape != own[name].shape
    ]
    if not (missing or foreign or misshapen):
        return None
    prefix = _common_prefix(state, own)
    if prefix is not None:
        return (
            f"all its names begin with {prefix!r}, as of a model inside another one; save the "
            "state dict of the inner one"
        )
    config = getattr(model, "pretrained_cfg", {})
    last = (f"{config.get('classifier')}.weight", f"{config.get('classifier')}.bias")
    if not missing and not foreign and set(misshapen) <= set(last):
        found, built = (len(one[misshapen[0]]) for one in (state, own))
        return f"its weights have {found} classes, not {built}; give `num_classes` {found}, or none"
    shapes = [f"{one} {tuple(state[one].shape)} for {tuple(own[one].shape)}" for one in misshapen]
    return (
        f"it is of another architecture; {len(missing)} tensors are missing {missing[:3]}, "
        f"{len(foreign)} are foreign {foreign[:3]}, {len(misshapen)} have another shape "
        f"{shapes[:3]}; give its own `architecture`"
    )


def _common_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """Return what stands before all names of weights that are the model's without it."""
    first = next(iter(state))
    for at in (at for at, letter in enumerate(first) if letter == "."):
        prefix = first[: at + 1]
        rest = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
        if len(rest) == len(state) and rest & set(own):
            return prefix
    return None


def _described(model: nn.Module, spec: TeacherSpec, found: FoundWeights | None) -> Described:
    """Return what is known of the pixels that a model was made for.

    timm knows it of its own weights, also where a local file has them; of others their file may.
    """
    timms = Described()
    if found is None or "." in spec.architecture:
        config = getattr(model, "pretrained_cfg", {})
        timms = Described.of(config, f"timm's {spec.architecture}")
    file = timms if found is None else found.described
    return Described(
        source=file.source if (file.size or file.mean) else timms.source,
        size=file.size or timms.size,
        mean=file.mean or timms.mean,
        std=file.std or timms.std,
        accuracy=file.accuracy,
    )


def _prepare(model: nn.Module, precision: Precision, device: torch.device) -> nn.Module:
    """Fold BatchNorm, cast, and move; the classifier stays in float32.

    In bf16 two close logits are often equal, and the argmax would be the lower class; with
    features in bf16 and the last layer in float32 ties are as rare as in float32.
    """
    _fold_batch_norm(model)
    model = model.to(device=device, dtype=DTYPES[precision]).to(memory_format=torch.channels_last)
    get_classifier = getattr(model, "get_classifier", None)
    classifier = get_classifier() if get_classifier is not None else None
    if precision != "fp32" and isinstance(classifier, nn.Linear):
        classifier.float()
        classifier.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return model


def _fold_batch_norm(model: nn.Module) -> None:
    """Fold each BatchNorm that follows a convolution in timm's ``ConvNormAct`` into it."""
    for module in model.modules():
        if not isinstance(module, ConvNormAct):
            continue
        conv, norm = module.conv, module.bn
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        if norm.running_mean is None or norm.running_var is None or not math.isfinite(norm.eps):
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        rest = [getattr(norm, name, None) for name in ("drop", "act")]
        module.bn = nn.Sequential(*(layer for layer in rest if isinstance(layer, nn.Module)))
