"""The loss, against its formula and two implementations of timm's."""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.task import TokenDistillationTask
from torch import Tensor, nn

from pipeline.columns import COLUMNS, ColumnConfig
from pipeline.errors import StoreError
from pipeline.labelling.ranking import rank_logits
from student.losses import LOSSES, MixedTarget, TeacherSignal
from student.losses.hard import HardLoss
from student.losses.none import NoDistillation
from student.losses.soft import SoftLoss, divergence, possible_distance
from tests.storing import IDENTITY, info_of, write_store

ROWS, CLASSES = 8, 7
# Sums of a few float32 terms in two orders: a few units in the last place.
CLOSE = {"rtol": 2e-6, "atol": 2e-6}


def logits(seed: int, rows: int = ROWS) -> Tensor:
    values = np.random.default_rng(seed).normal(size=(rows, CLASSES)) * 3
    return torch.tensor(values, dtype=torch.float32)


def labels(seed: int, rows: int = ROWS) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, CLASSES, rows))


MIXED = MixedTarget(target=labels(1), partner_target=labels(2), lam=torch.linspace(0, 1, ROWS))


def timms_truth(target: Tensor, lam: float) -> MixedTarget:
    """What timm's mixing of a batch makes of its classes: each with its opposite's."""
    share = torch.full((ROWS,), lam)
    return MixedTarget(target=target, partner_target=target.flip(0), lam=share, smoothing=0.1)


def plain_loss(class_logits, distillation_logits, truth, teacher, smoothing, alpha) -> float:
    """The definition, one row and one class at a time."""
    total = 0.0
    for row in range(len(teacher)):
        terms = []
        for values in (class_logits[row].tolist(), distillation_logits[row].tolist()):
            norm = math.log(sum(math.exp(value) for value in values))
            terms.append([norm - value for value in values])
        lam = float(truth.lam[row])
        dense = [smoothing / CLASSES] * CLASSES
        dense[int(truth.target[row])] += (1 - smoothing) * lam
        dense[int(truth.partner_target[row])] += (1 - smoothing) * (1 - lam)
        hard = sum(share * term for share, term in zip(dense, terms[0], strict=True))
        total += (1 - alpha) * hard + alpha * terms[1][int(teacher[row])]
    return total / len(teacher)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_loss_is_its_formula(smoothing: float, alpha: float) -> None:
    truth = replace(MIXED, smoothing=smoothing)
    heads = (logits(3), logits(4))
    found = HardLoss(alpha=alpha)(heads, truth, TeacherSignal(label=labels(5))).loss
    expected = plain_loss(*heads, truth, labels(5), smoothing, alpha)
    assert found.item() == pytest.approx(expected, rel=2e-6)


def test_the_class_term_is_timms_soft_target_cross_entropy() -> None:
    target, lam = labels(1), 0.3125
    truth = timms_truth(target, lam)
    dense = mixup_target(target, CLASSES, lam, smoothing=0.1)
    signal = TeacherSignal(label=labels(5))
    found = HardLoss()((logits(3), logits(4)), truth, signal).class_loss
    torch.testing.assert_close(found, SoftTargetCrossEntropy()(logits(3), dense), **CLOSE)


class FixedHeads(nn.Module):
    """Gives the same logits for any image, as a student of two heads or a teacher of one."""

    def __init__(self, *heads: Tensor) -> None:
        super().__init__()
        self.heads = heads
        self.num_classes, self.in_chans = CLASSES, 3
        self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

    def set_distilled_training(self, enable: bool = True) -> None:
        pass

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.heads[0] if len(self.heads) == 1 else self.heads


@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_the_loss_is_that_of_timms_token_distillation_task(alpha: float) -> None:
    target, teacher_logits = labels(1), logits(6)
    task = TokenDistillationTask(
        student_model=FixedHeads(logits(3), logits(4)),
        teacher_model=FixedHeads(teacher_logits),
        criterion=SoftTargetCrossEntropy(),
        distill_type="hard",
        task_loss_weight=1 - alpha,
        verbose=False,
    )
    expected = task(torch.zeros(ROWS, 3, 4, 4), mixup_target(target, CLASSES, 0.75, smoothing=0.1))
    signal = TeacherSignal(label=teacher_logits.argmax(1))
    found = HardLoss(alpha=alpha)((logits(3), logits(4)), timms_truth(target, 0.75), signal)
    torch.testing.assert_close(found.loss, expected["loss"], **CLOSE)
    torch.testing.assert_close(found.class_loss, expected["task_loss"], **CLOSE)
    torch.testing.assert_close(found.distillation_loss, expected["distill_loss"], **CLOSE)


def first_of(teacher: Tensor, k: int = CLASSES) -> tuple[Tensor, Tensor, Tensor]:
    """The k highest of a teacher's log-probabilities, and that of the others together."""
    log, label = teacher.double().log_softmax(-1).sort(descending=True)
    rest = log[:, k:].logsumexp(-1) if k < CLASSES else torch.full((ROWS,), -1000.0)
    return label[:, :k], log[:, :k].float(), rest.float()


def signal_of(teacher: Tensor, k: int = CLASSES) -> TeacherSignal:
    label, log, rest = first_of(teacher, k)
    return TeacherSignal(label=label[:, 0], topk_label=label, topk_logprob=log, topk_rest=rest)


def plain_soft_loss(student: Tensor, teacher: Tensor, k: int, tau: float) -> float:
    """The definition, one row and one class at a time: what is not stored is spread evenly."""
    total = 0.0
    for row in range(len(student)):
        probability = teacher[row].double().softmax(-1).tolist()
        ranked = sorted(range(CLASSES), key=lambda one, of=probability: -of[one])
        for one in ranked[k:]:
            probability[one] = sum(
                torch.softmax(teacher[row].double(), -1)[other].item() for other in ranked[k:]
            ) / (CLASSES - k)
        scaled = [value / tau for value in student[row].tolist()]
        norm = math.log(sum(math.exp(value) for value in scaled))
        weights = [value ** (1 / tau) for value in probability]
        for weight, value in zip(weights, scaled, strict=True):
            share = weight / sum(weights)
            total += share * (math.log(share) - (value - norm))
    return tau * tau * total / len(student)


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 3, CLASSES - 1, CLASSES])
def test_the_soft_loss_is_its_formula_with_the_rest_spread_evenly(tau: float, k: int) -> None:
    found = divergence(logits(4), *first_of(logits(6), k), tau)
    expected = plain_soft_loss(logits(4), logits(6), k, tau)
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_the_soft_loss_is_deits_but_for_the_division_by_classes(tau: float) -> None:
    """DeiT: KL of the log-softmaxes at tau, summed, times tau^2, divided by B * C."""
    student, teacher = logits(4), logits(6)
    found = divergence(student, *first_of(teacher), tau)
    ours, theirs = ((one / tau).log_softmax(-1) for one in (student, teacher))
    deit = (theirs.exp() * (theirs - ours)).sum() * tau**2 / student.numel()
    torch.testing.assert_close(found / CLASSES, deit, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("heads", ["token", "classical"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_each_loss_is_that_of_timms_token_distillation_task(kind: str, heads: str) -> None:
    target, teacher = labels(1), logits(6)
    student = (logits(3), logits(4) if heads == "token" else logits(3))
    weight = 0.3
    task = TokenDistillationTask(
        student_model=FixedHeads(*student),
        teacher_model=FixedHeads(teacher),
        criterion=SoftTargetCrossEntropy(),
        distill_type=kind,
        task_loss_weight=1 - weight,
        temperature=3.0,
        verbose=False,
    )
    expected = task(torch.zeros(ROWS, 3, 4, 4), mixup_target(target, CLASSES, 0.75, smoothing=0.1))
    truth = timms_truth(target, 0.75)
    signal = signal_of(teacher)
    loss = HardLoss(alpha=weight) if kind == "hard" else SoftLoss(soft_lambda=weight, tau=3.0)
    found = loss(student, truth, signal)
    close = {"rtol": 1e-5, "atol": 1e-5}  # log p / tau for logits / tau
    torch.testing.assert_close(found.loss, expected["loss"], **close)
    torch.testing.assert_close(found.class_loss, expected["task_loss"], **close)
    torch.testing.assert_close(found.distillation_loss, expected["distill_loss"], **close)


def test_classical_distillation_is_the_same_formula_with_one_head_for_both() -> None:
    signal = TeacherSignal(label=labels(5))
    one = logits(3)
    found = HardLoss()((one, one), replace(MIXED, smoothing=0.1), signal)
    assert found.loss.item() == pytest.approx(plain_loss(one, one, MIXED, labels(5), 0.1, 0.5))


def test_without_distillation_the_loss_is_the_smoothed_truth_of_the_class_head_alone() -> None:
    head, truth = logits(4).requires_grad_(), replace(MIXED, smoothing=0.1)
    found = NoDistillation()((logits(3), head), truth, TeacherSignal(label=labels(5)))
    expected = plain_loss(logits(3), logits(4), MIXED, labels(5), 0.1, 0.0)
    assert found.loss.item() == pytest.approx(expected, rel=2e-6)
    assert found.distillation_loss.item() == 0
    assert not found.loss.requires_grad


def test_smoothing_touches_the_truth_and_not_the_teacher_under_mixing_too() -> None:
    signal = TeacherSignal(label=labels(5))
    terms = [
        HardLoss()((logits(3), logits(4)), replace(MIXED, smoothing=one), signal)
        for one in (0.0, 0.1)
    ]
    assert terms[0].distillation_loss == terms[1].distillation_loss
    assert terms[0].class_loss != terms[1].class_loss


@pytest.mark.parametrize("tau", [1.0, 3.0, 4.0])
def test_a_store_of_all_classes_gives_the_papers_loss_but_for_its_steps(tau: float) -> None:
    teacher, student = logits(6), logits(4).requires_grad_()
    kept = rank_logits(teacher, ColumnConfig(topk=CLASSES)).columns
    stored = [torch.from_numpy(COLUMNS[name].read(values)) for name, values in kept.items()]
    ours = divergence(student, *stored, tau)
    exact = divergence(student, *first_of(teacher), tau)
    # A logarithm is off by 1/128 at most: so is each share of the teacher, relatively, over tau.
    assert ours.item() == pytest.approx(exact.item(), rel=0.01)
    gradients = [torch.autograd.grad(one, student)[0] for one in (ours, exact)]
    assert (gradients[0] - gradients[1]).norm() < 0.01 * gradients[1].norm()


def test_no_true_teacher_is_farther_than_the_possible_distance() -> None:
    """Whatever the unstored classes divide among themselves; the worst case comes close to it."""
    random = np.random.default_rng(0)
    for spread in (0.3, 1.0, 3.0):
        teacher = torch.from_numpy(random.normal(0, spread, (ROWS, CLASSES)))
        for k in range(1, CLASSES):
            label, log, rest = first_of(teacher, k)
            for tau in (0.5, 1.0, 2.0, 5.0):
                used = ((rest[:, None] - math.log(CLASSES - k)) / tau).exp().repeat(1, CLASSES)
                used.scatter_(1, label, (log / tau).exp())
                used = used / used.sum(1, keepdim=True)
                most = possible_distance(log.numpy(), rest.numpy(), CLASSES, tau)
                true = (teacher / tau).softmax(1)
                assert (used - true).abs().sum(1).mean().item() / 2 <= most + 1e-6
                worst = crowded(teacher, label, log, rest) ** (1 / tau)
                worst = worst / worst.sum(1, keepdim=True)
                apart = (used - worst).abs().sum(1).mean().item() / 2
                assert apart == pytest.approx(most, abs=1e-5)
    assert possible_distance(log.numpy(), rest.numpy(), k, 3.0) == 0


def crowded(teacher: Tensor, label: Tensor, log: Tensor, rest: Tensor) -> Tensor:
    """Return (N, C) probabilities with the rest in as few classes as may hold it."""
    found = torch.zeros_like(teacher, dtype=log.dtype)
    found.scatter_(1, label, log.exp())
    for row, left, most in zip(found, rest.exp().tolist(), log[:, -1].exp().tolist(), strict=True):
        for position in (row == 0).nonzero().flatten().tolist():
            row[position] = min(left, most)
            left -= min(left, most)
    return found


@pytest.mark.parametrize(("topk", "tau"), [(1, 3.0), (2, 3.0), (5, 9.0)])
def test_a_tau_for_which_too_much_of_the_teacher_is_missing_is_refused_with_one_that_serves(
    tmp_path: Path, topk: int, tau: float
) -> None:
    """Of a thousand classes that share what the stored ones leave."""
    identity = replace(IDENTITY, columns=ColumnConfig(topk=topk))
    identity = replace(identity, teacher=replace(identity.teacher, classes=1000))
    store = write_store(tmp_path / "s.parquet", [info_of(0), info_of(1)], [(0, 3)], identity)
    refused = rf"is {tau:g}, at which the {topk} of 1000 .* may be 0\.\d\d from the true one"
    with pytest.raises(StoreError, match=refused) as error:
        SoftLoss(tau=tau).require_store(store)
    found = re.search(r"use `tau` of at most ([\d.]+), or label", str(error.value))
    assert found is not None
    most = float(found[1])
    assert 1 <= most < tau
    SoftLoss(tau=most).require_store(store)
    with pytest.raises(StoreError, match="keep a larger topk"):
        SoftLoss(tau=most + 0.1).require_store(store)


def test_soft_labels_that_the_store_lacks_are_refused_with_a_cure() -> None:
    with pytest.raises(StoreError, match=r"top-k.*label again with topk=10"):
        SoftLoss()((logits(3), logits(4)), MIXED, TeacherSignal(label=labels(5)))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_mean_over_rows_and_teaches_whom_it_says(name: str) -> None:
    signal = signal_of(logits(6), 3)
    twice = [
        replace(one, **{key: torch.cat([value, value]) for key, value in tensors_of(one).items()})
        for one in (MIXED, signal)
    ]
    heads = [logits(3).requires_grad_(), logits(4).requires_grad_()]
    loss = LOSSES[name]()
    terms = loss(heads, MIXED, signal)
    again = loss([torch.cat([one, one]) for one in heads], *twice)
    torch.testing.assert_close(terms.loss, again.loss, **CLOSE)
    terms.loss.backward()
    assert heads[0].grad is not None
    assert (heads[1].grad is not None) == loss.taught


def tensors_of(record: object) -> dict[str, Tensor]:
    values = {one.name: getattr(record, one.name) for one in fields(record)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def plain_binary_loss(class_logits: Tensor, truth: MixedTarget) -> float:
    """The definition, one row and one class at a time."""
    total = 0.0
    for row in range(ROWS):
        lam = float(truth.lam[row])
        shares = [0.0] * CLASSES
        shares[int(truth.target[row])] += lam
        shares[int(truth.partner_target[row])] += 1 - lam
        for share, value in zip(shares, class_logits[row].tolist(), strict=True):
            wanted = (1 - truth.smoothing) * share + truth.smoothing / CLASSES
            if truth.binary == "present":
                wanted = float(share > 0)
            chance = 1 / (1 + math.exp(-value))
            total -= wanted * math.log(chance) + (1 - wanted) * math.log(1 - chance)
    return total / ROWS / CLASSES


@pytest.mark.parametrize(
    ("kind", "smoothing"), [("present", 0.0), ("shares", 0.0), ("shares", 0.1)]
)
def test_binary_cross_entropy_learns_each_class_for_itself(kind, smoothing) -> None:
    truth = replace(MIXED, smoothing=smoothing, binary=kind)
    assert {0.0, 1.0} < set(truth.lam.tolist())  # unmixed rows too
    heads = (logits(3), logits(4))
    for loss in (HardLoss(alpha=0.3), NoDistillation()):
        terms = loss(heads, truth, TeacherSignal(label=labels(5)))
        expected = plain_binary_loss(heads[0], truth)
        assert terms.class_loss.item() == pytest.approx(expected, rel=2e-6)
    teachers = HardLoss(alpha=1.0)(heads, truth, TeacherSignal(label=labels(5))).loss
    assert teachers == HardLoss(alpha=1.0)(heads, MIXED, TeacherSignal(label=labels(5))).loss


def test_shares_in_binary_cross_entropy_are_timms_default() -> None:
    target, lam = labels(1), 0.3125
    truth = replace(timms_truth(target, lam), binary="shares")
    dense = mixup_target(target, CLASSES, lam, smoothing=0.1)
    found = NoDistillation()((logits(3), logits(3)), truth, TeacherSignal(label=target)).loss
    torch.testing.assert_close(found, BinaryCrossEntropy()(logits(3), dense))


def test_present_classes_in_binary_cross_entropy_are_deits() -> None:
    target, lam = labels(1), 0.3125
    truth = replace(timms_truth(target, lam), smoothing=0.0, binary="present")
    dense = mixup_target(target, CLASSES, lam, smoothing=0.0).gt(0.0).float()
    found = NoDistillation()((logits(3), logits(3)), truth, TeacherSignal(label=target)).loss
    torch.testing.assert_close(found, torch.nn.BCEWithLogitsLoss()(logits(3), dense))


def test_labels_of_an_unsure_teacher_are_left_out_and_the_others_weigh_what_they_did() -> None:
    heads, sure = (logits(3), logits(4)), torch.tensor([0.1, 0.5, 0.6, 0.59, 1.0, 0.0, 0.6, 0.9])
    signal = TeacherSignal(label=labels(5), confidence=sure)
    terms = HardLoss(alpha=0.4, min_confidence=0.6)(heads, MIXED, signal)
    rows = torch.nn.functional.cross_entropy(heads[1], labels(5), reduction="none")
    expected = sum(rows[row] for row in (2, 4, 6, 7)) / ROWS
    torch.testing.assert_close(terms.distillation_loss, expected)
    torch.testing.assert_close(terms.loss, 0.6 * terms.class_loss + 0.4 * expected)
    # Three votes of four, as a store keeps them.
    votes = TeacherSignal(label=labels(5), confidence=torch.full((ROWS,), 191 / 255))
    found = HardLoss(min_confidence=0.75)(heads, MIXED, votes).distillation_loss
    torch.testing.assert_close(found, rows.mean())
    # Halves of a batch average to the whole.
    halves = [
        HardLoss(min_confidence=0.6)(
            (heads[0][half], heads[1][half]),
            replace(MIXED, target=MIXED.target[half], partner_target=MIXED.partner_target[half],
                    lam=MIXED.lam[half]),
            TeacherSignal(label=labels(5)[half], confidence=sure[half]),
        ).distillation_loss
        for half in (slice(0, 4), slice(4, 8))
    ]  # fmt: skip
    torch.testing.assert_close(sum(halves) / 2, expected)
    plain = HardLoss()(heads, MIXED, TeacherSignal(label=labels(5)))
    assert torch.equal(HardLoss()(heads, MIXED, signal).loss, plain.loss)


def test_a_store_that_does_not_keep_the_confidence_is_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.parquet", [info_of(0)], [(0, 3)])
    HardLoss().require_store(store)
    with pytest.raises(StoreError, match=r"`min_confidence` is 0.5, and .* keep confidence"):
        HardLoss(min_confidence=0.5).require_store(store)
    kept = replace(IDENTITY, columns=ColumnConfig(confidence=True))
    HardLoss(min_confidence=0.5).require_store(
        write_store(tmp_path / "kept.parquet", [info_of(0)], [(0, 3)], kept)
    )
