from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from jobs.label_teacher import LabelFlags
from jobs.run import agreement_of, describe_preflight
from pipeline.cli.console import flags_of, running
from pipeline.errors import ClassesError, TeacherError
from pipeline.identity import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
from pipeline.labelling.agreement import (
    Cause,
    OnViews,
    Preflight,
    are_too_hard,
    is_better,
    require_agreement,
    wilson,
)
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.job import index_shards
from pipeline.labelling.trial import _even, matching
from pipeline.labelling.weights import Described
from pipeline.labelling.worker import TeacherWorker
from pipeline.shards import index
from tests.factories import digits, encode, write_shard
from tests.pipeline.labelling.test_job import plan_of

SIDE, CLASSES = 32, 10
# Five digits in red or green: blue, which swapped channels give, is never seen in training.
TINTS = np.array([[1.0, 0.45, 0.1], [0.35, 1.0, 0.1]])


def tinted() -> tuple[np.ndarray, np.ndarray]:
    """Return 901 digits of 0 to 4, (N, 8, 8, 3) uint8, and their ten classes."""
    images, target = digits()
    gray = np.stack(images)[target < 5]
    tint = np.arange(len(gray)) % 2
    return (gray * TINTS[tint][:, None, None]).astype(np.uint8), 2 * target[target < 5] + tint


def enlarged(pixels: np.ndarray) -> Tensor:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    images = F.interpolate(images, size=(SIDE, SIDE), mode="bicubic").clamp(0, 255) / 255
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny network on tinted digits of 32 pixels, in two seconds."""
    pixels, classes = tinted()
    images, target = enlarged(pixels), torch.from_numpy(classes)
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(6):
        for rows in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(images[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    path = tmp_path_factory.mktemp("trained") / "tinted.safetensors"
    save_file({name: one.contiguous() for name, one in model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard_of(tmp_path_factory.mktemp("tinted") / "a.tar", lambda target: target)


def shard_of(path: Path, number: Callable[[int], int]) -> Path:
    samples = [
        (f"digit_{i:04d}", encode(image, quality=95, subsampling=0), number(int(target)))
        for i, (image, target) in enumerate(zip(*tinted(), strict=True))
    ]
    return write_shard(path, samples)


def config_of(weights: Path, shard: Path, **settings: object) -> LabelConfig:
    views = {"image_size": SIDE, "center_fraction": 1.0, **settings}
    return LabelConfig(
        shards=(str(shard),),
        out=str(shard.parent / "x.parquet"),
        teacher="test_efficientnet",
        teacher_checkpoint=weights,
        augment=AugmentConfig(**views),  # type: ignore[arg-type]
        precision="fp32",
        views=100,
    )


def trial_of(config: LabelConfig) -> Preflight:
    return TeacherWorker(config, threads=1).preflight(index_shards(config.shards))


def refusal_of(config: LabelConfig) -> str:
    with pytest.raises(TeacherError) as caught:
        require_agreement(config, trial_of(config), CLASSES)
    return str(caught.value)


def test_a_teacher_that_fits_passes(weights: Path, shard: Path) -> None:
    config = config_of(weights, shard)
    report = trial_of(config)
    assert report.images == 384
    assert report.correct > 350
    assert report.cause is None
    require_agreement(config, report, CLASSES)


def test_the_trial_takes_as_many_images_as_suit_the_job(weights: Path, shard: Path) -> None:
    config = config_of(weights, shard)
    assert trial_of(replace(config, views=1)).images == 48  # one batch
    assert trial_of(replace(config, views=20)).images == 20 * 901 // 100


def test_another_size_is_named(weights: Path, shard: Path) -> None:
    config = config_of(weights, shard, image_size=96)
    report = trial_of(config)
    with pytest.raises(TeacherError) as caught:
        require_agreement(config, report, CLASSES)
    text = str(caught.value)
    assert "with `image_size` 32, not 96, it agrees with 9" in text
    assert "of 96 images" in text
    assert "`allow_low_agreement` goes on" in text
    require_agreement(replace(config, allow_low_agreement=True), report, CLASSES)


def test_another_mean_and_std_are_named(weights: Path, shard: Path) -> None:
    text = refusal_of(config_of(weights, shard, mean=(0.0,) * 3, std=(1.0,) * 3))
    assert "with `mean` 0.485 0.456 0.406 and `std` 0.229 0.224 0.225 it agrees" in text


def test_swapped_channels_are_named(weights: Path, shard: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    state["conv_stem.weight"] = state["conv_stem.weight"].flip(1).contiguous()
    save_file(state, tmp_path / "bgr.safetensors")
    assert "with blue before red (BGR" in refusal_of(config_of(tmp_path / "bgr.safetensors", shard))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (lambda n: n * 3 % 10, r"in another order \(class 1 of the shards is its 7, class 2"),
        (lambda n: n + 1, "class n for its n - 1"),
    ],
)
def test_classes_in_another_order_are_named(
    weights: Path, tmp_path: Path, number: Callable[[int], int], words: str
) -> None:
    shard = shard_of(tmp_path / "a.tar", number)
    config = config_of(weights, shard)
    with pytest.raises(TeacherError, match=words):
        require_agreement(config, trial_of(config), CLASSES)


def test_two_wrong_settings_are_named_together(weights: Path, shard: Path) -> None:
    text = refusal_of(config_of(weights, shard, image_size=48, mean=(0.2,) * 3, std=(0.8,) * 3))
    assert "with `image_size` 32, not 48, and with `mean` 0.485 0.456 0.406" in text


def test_what_a_file_says_of_its_model_is_compared(
    weights: Path, shard: Path, tmp_path: Path
) -> None:
    told = tmp_path / "told.safetensors"
    header = {"image_size": "48", "mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"}
    names = json.dumps([f"class {n}" for n in range(CLASSES)])
    save_file(load_file(weights), told, {**header, "accuracy": "0.97", "class_names": names})
    warnings = trial_of(config_of(told, shard, image_size=128)).warnings
    assert "told.safetensors expects 48 px, the views have 128" in warnings[-1]
    assert "told.safetensors expects mean (0.5, 0.5, 0.5)" in warnings[-2]
    (tmp_path / "classes.json").write_text(json.dumps([f"{n}" for n in range(CLASSES)]))
    named = shard_of(tmp_path / "a.tar", lambda n: n)
    with pytest.raises(ClassesError, match=r"told\.safetensors and .*classes\.json"):
        trial_of(config_of(told, named))


def test_a_teacher_of_more_classes_than_the_shards_name_is_said(
    weights: Path, tmp_path: Path
) -> None:
    named = shard_of(tmp_path / "a.tar", lambda target: target % 6)
    for count, said in ((6, 1), (CLASSES, 0)):
        (tmp_path / "classes.json").write_text(json.dumps([f"{n}" for n in range(count)]))
        warnings = trial_of(config_of(weights, named)).warnings
        text = "the teacher tells 10 classes apart, and the shards name 6: a student"
        assert sum(text in one for one in warnings) == said


@pytest.mark.parametrize("value", ["[1, 2]", "nonsense", "[[0], 1, 2]", "true", "1e999", "-5"])
def test_a_header_that_means_something_else_says_nothing(
    weights: Path, shard: Path, tmp_path: Path, value: str
) -> None:
    odd = tmp_path / "odd.safetensors"
    save_file(load_file(weights), odd, dict.fromkeys(("image_size", "mean", "accuracy"), value))
    report = trial_of(config_of(odd, shard))
    assert report.warnings[1:] == ()  # the first is of the shard
    assert report.cause is None


@pytest.mark.parametrize(("size", "said"), [(512, 512), (513, None), (4096, None)])
def test_a_file_alone_chooses_no_size_of_which_the_trials_images_take_gigabytes(
    size: int, said: int | None
) -> None:
    assert Described.of({"image_size": size}, "a file").size == said


def test_untrained_weights_are_not_looked_into(shard: Path, tmp_path: Path) -> None:
    config = replace(
        config_of(tmp_path, shard),
        teacher_checkpoint=None,
        teacher_random_weights=0,
        num_classes=10,
    )
    report = trial_of(config)
    assert report.cause is None
    require_agreement(config, report, CLASSES)


def test_where_no_class_is_known_nothing_is_compared(
    weights: Path, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_target", lambda *_: -1)
    config = config_of(weights, shard)
    report = trial_of(config)
    assert report.images == report.correct == 0
    assert report.cause is None
    require_agreement(config, report, CLASSES)
    assert "nothing could be compared" in agreement_of(report)


def test_the_identity_knows_nothing_of_the_trial(weights: Path, shard: Path) -> None:
    config = config_of(weights, shard)
    worker = TeacherWorker(config, threads=1)
    before = config.identity(worker.identity).digest
    worker.preflight(index_shards(config.shards))
    assert config.identity(worker.identity).digest == before


REPORT = Preflight(
    images=48,
    correct=16,
    rows_per_batch=48,
    batch_seconds=1.0,
    flip_rows=0,
    flips=0,
    augment_seconds=0.01,
    warnings=(),
)


@pytest.mark.parametrize(
    ("images", "correct", "classes", "fits"),
    [
        (100, 10, 10, False),  # chance
        (384, 1, 1000, False),  # above chance, perhaps
        (384, 5, 1000, False),  # above chance for certain, and useless
        (48, 16, 10, True),  # poor, but nothing better was found
        (10, 0, 10, False),  # ten wrong ones are enough
        (3, 0, 1000, True),  # too few
        (10, 3, 10, True),
        (48, 24, 2, False),  # no better than a coin
        (384, 300, 1000, True),
        (0, 0, 10, True),
    ],
)
def test_the_verdict_is_an_interval_against_chance(
    images: int, correct: int, classes: int, fits: bool
) -> None:
    config = LabelConfig(shards=("a",), out="x.parquet")
    report = replace(REPORT, images=images, correct=correct)
    if fits:
        return require_agreement(config, report, classes)
    with pytest.raises(TeacherError, match=f"{correct} of {images} images"):
        require_agreement(config, report, classes)
    require_agreement(replace(config, teacher_random_weights=0), report, classes)
    return require_agreement(replace(config, allow_low_agreement=True), report, classes)


@pytest.mark.parametrize(("otherwise", "fits"), [(43, False), (20, True)])
def test_a_cause_stops_a_job_if_much_is_gained(otherwise: int, fits: bool) -> None:
    cause = Cause(changes=("so",), images=48, correct=16, otherwise=otherwise)
    report, config = replace(REPORT, cause=cause), LabelConfig(shards=("a",), out="x.parquet")
    if fits:
        require_agreement(config, report, 10)
    else:
        with pytest.raises(TeacherError, match=r"so it agrees with 43 of 48 images.*16 of these"):
            require_agreement(config, report, 10)
    assert json.dumps(asdict(report))  # a run's record holds it


@given(st.data())
def test_labels_by_chance_are_never_taken_for_better(data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    before, after = (random.random(96) < 0.1 for _ in range(2))
    assert not is_better(before, after)
    assert is_better(before, np.ones(96, bool))


def test_a_matching_uses_each_class_once() -> None:
    labels, targets = np.array([7, 7, 7, 3, 7], np.uint16), np.array([0, 0, 1, 1, 2])
    assert matching(labels, targets) == {0: 7, 1: 3}


def test_the_interval_holds_what_was_seen() -> None:
    for hits in range(11):
        low, high = wilson(hits, 10)
        assert 0 <= low <= hits / 10 <= high <= 1


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 10, 16, 20, 100])
def test_images_of_all_classes_are_tried_where_classes_take_turns(classes: int) -> None:
    chosen = _even(100 * classes, 5 * classes)
    assert chosen == sorted(set(chosen))
    counts = np.bincount([one % classes for one in chosen], minlength=classes)
    assert counts.min() >= 1
    assert counts.max() <= 15
    assert _even(7, 9) == list(range(7))


def test_what_a_teacher_names_on_views_is_counted_one_view_at_a_time() -> None:
    random = np.random.default_rng(0)
    label = random.integers(0, 5, 200)
    own, partner = random.integers(-1, 5, (2, 200))
    partner[::3] = own[::3]  # views that are not mixed
    found = OnViews.of(label, own, partner)
    rows = [
        (one, {a, b}, a)
        for one, a, b in zip(label.tolist(), own.tolist(), partner.tolist(), strict=True)
        if a >= 0 and b >= 0
    ]
    assert found.views == len(rows)
    assert found.own == sum(one == a for one, _, a in rows)
    assert found.either == sum(one in two for one, two, _ in rows)
    guessed = [np.mean([one in two for one, *_ in rows]) for _, two, _ in rows]
    assert found.guessed == pytest.approx(sum(guessed))
    assert OnViews.of(label, np.full(200, -1), partner) == OnViews()


@pytest.mark.parametrize("policy", ["rand-augment", "none"])
def test_the_trial_tells_views_that_are_too_hard_for_a_teacher_from_others(
    weights: Path, shard: Path, policy: str
) -> None:
    """DeiT's crops and operations hide small digits, and mixing the rest."""
    mild = {"policy": policy, "crop_scale": (0.7, 1.0), "erase_probability": 0.0, "hflip": 0.0}
    config = config_of(weights, shard, **(mild if policy == "none" else {}))
    report = trial_of(config)
    seen = report.on_views
    assert seen.views > 150
    assert seen.own <= seen.either <= seen.views
    assert are_too_hard(report, CLASSES) == (policy == "rand-augment")


def test_only_a_teacher_that_knows_plain_images_has_views_that_are_too_hard() -> None:
    hard = OnViews(views=100, own=20, either=33, guessed=20.0)
    report = replace(REPORT, correct=40, on_views=hard)
    assert are_too_hard(report, 10)
    assert not are_too_hard(replace(report, correct=6), 10)
    assert not are_too_hard(replace(report, images=0, correct=0), 10)
    assert not are_too_hard(replace(report, on_views=replace(hard, either=50)), 10)
    few = OnViews(views=20, own=0, either=0, guessed=4.0)
    assert not are_too_hard(replace(report, on_views=few), 10)


@pytest.mark.parametrize(
    ("views", "told"),
    [
        ({}, "--preset crop-flip and --crop-scale 0.5 1"),
        ({"policy": "none"}, "a larger --crop-scale, or views that are not mixed"),
    ],
)
def test_a_job_says_what_views_suit_better_and_goes_on(
    weights: Path,
    shard: Path,
    capsys: pytest.CaptureFixture[str],
    views: dict[str, str],
    told: str,
) -> None:
    plan = plan_of(config_of(weights, shard, **views))
    hard = replace(REPORT, correct=48, on_views=OnViews(views=96, own=24, either=32, guessed=24.0))
    with running("label-teacher", flags_of(LabelFlags)):
        describe_preflight(plan, hard)
    printed = capsys.readouterr()
    counted = "own class in 25%, one of the two mixed images in 33% (by chance 25%)"
    assert f"on 96 augmented views it names the image's {counted}" in printed.out
    assert told in printed.err
    describe_preflight(
        plan, replace(hard, on_views=OnViews(views=96, own=60, either=80, guessed=24))
    )
    assert not capsys.readouterr().err
