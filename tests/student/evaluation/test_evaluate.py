"""Validation: the center view of every sample once, four ways to use two heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ShardError
from pipeline.identity import AugmentConfig
from student.evaluation.evaluate import FUSIONS, evaluate, fuse
from student.evaluation.validation import ValidationDataset, center_views
from student.loading import LoaderOptions
from tests.factories import digit_samples, write_shard
from tests.student.factories import SMALL_VIEWS, assert_fits, write_digit_shards

VIEWS = center_views(SMALL_VIEWS, 1.0)


def validation(paths: tuple[Path, ...], batch_size: int = 10, classes: int = 10):
    return ValidationDataset(paths, VIEWS, classes=classes, batch_size=batch_size)


class Brightness(nn.Module):
    """Two heads that rank classes by an image's mean alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        distance = images.mean((1, 2, 3))[:, None] - torch.linspace(-2, 2, 10)
        return -distance.abs() * self.scale, distance.abs()


def test_center_views_keep_the_stores_size_and_normalization_and_nothing_random() -> None:
    store = AugmentConfig(image_size=64, mean=(0.5, 0.5, 0.5), erase_probability=1.0)
    views = center_views(store, 0.9)
    assert (views.image_size, views.mean, views.center_fraction) == (64, store.mean, 0.9)
    assert (views.crop, views.policy, views.hflip, views.erase_probability) == (
        "center",
        "none",
        0.0,
        0.0,
    )


@pytest.mark.parametrize(("batch_size", "workers"), [(10, 0), (7, 0), (100, 1)])
def test_accuracies_count_every_sample_once(tmp_path, batch_size: int, workers: int) -> None:
    paths = write_digit_shards(tmp_path, [17, 1, 12])
    dataset = validation(paths, batch_size)
    model = Brightness()
    found = evaluate(model, dataset, LoaderOptions(workers=workers))
    assert model.training
    assert found.samples == 30
    for batch in map(dataset.__getitem__, range(len(dataset))):
        assert_fits(batch, dataset.item_bytes)
    whole = validation(paths, 30)[0]
    from pipeline.views.mixing import normalize

    with torch.no_grad():
        scores = fuse(model(normalize(whole.pixels, VIEWS.mean, VIEWS.std)))
    for name in FUSIONS:
        order = scores[name].argsort(dim=1, descending=True)
        ranks = (order == whole.target[:, None]).int().argmax(1)
        accuracy = getattr(found, name)
        assert accuracy.top1 == (ranks < 1).double().mean()
        assert accuracy.top5 == (ranks < 5).double().mean()


def test_fusions_are_those_of_the_paper() -> None:
    one, other = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    fused = fuse((one, other))
    assert torch.equal(fused["class_head"], one)
    assert torch.equal(fused["distillation_head"], other)
    assert torch.equal(fused["mean_of_logits"], torch.tensor([[1.0, 0.5]]))
    expected = torch.softmax(one, 1) + torch.softmax(other, 1)
    assert torch.equal(fused["sum_of_softmaxes"], expected)


def test_a_class_that_the_student_lacks_is_refused(tmp_path: Path) -> None:
    paths = write_digit_shards(tmp_path, [12])
    with pytest.raises(ShardError, match=r"'digit_0009' has class 9.*5 classes \(0\.\.4\)"):
        validation(paths, classes=5)


def test_a_key_that_two_validation_shards_have_is_refused(tmp_path: Path) -> None:
    paths = [write_shard(tmp_path / f"{n}.tar", digit_samples(3 + n)) for n in range(2)]
    with pytest.raises(ShardError, match=r"0\.tar and .*1\.tar both have the key 'digit_0000'"):
        validation(tuple(paths))


def test_a_validation_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    paths = write_digit_shards(tmp_path, [12], torn={0: [3]})
    for workers in (0, 1):
        with pytest.raises(ShardError, match="validation image 'digit_0003' does not decode"):
            evaluate(Brightness(), validation(paths), LoaderOptions(workers=workers))


def test_few_classes_have_no_top_5(tmp_path: Path) -> None:
    samples = [(key, image, 0) for key, image, _ in digit_samples(4)]

    class Binary(Brightness):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            logits = images.mean((1, 2, 3))[:, None] * torch.tensor([[0.0, 1.0]])
            return logits, logits

    dataset = validation((write_shard(tmp_path / "v.tar", samples),), classes=2)
    found = evaluate(Binary(), dataset, LoaderOptions())
    assert found.class_head.top5 is None
