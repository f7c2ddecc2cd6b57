"""The comparison of examples/cifar10 at a size that says nothing, on digits."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.cifar10 import arms, run
from examples.cifar10.arms import ArmResult, batch_mixing, first_classes, read_results
from examples.cifar10.config import ARM_NAMES, VOTES, EvidenceConfig, smoke
from examples.cifar10.data import find_shards, pack_images
from examples.cifar10.report import (
    Evidence,
    checks,
    evidence_text,
    read_evidence,
    within,
    write_report,
)
from examples.cifar10.stores import STATIC_NOTE, Stores
from pipeline.classes import CLASSES_FILE
from pipeline.errors import ConfigError
from pipeline.records import FIXED_ONE, MixKind
from pipeline.shards.index import open_shard
from pipeline.store import open_store
from student import engine
from student.losses import TeacherSignal
from student.losses.hard import HardLoss
from student.losses.soft import SoftLoss
from tests.factories import digit_samples, digits, write_shard
from tests.student.factories import write_digit_teacher

IMAGES = 64


def out_of(config: EvidenceConfig) -> Path:
    return config.out / "smoke"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> EvidenceConfig:
    """All arms of one seed, run to the end."""
    root = tmp_path_factory.mktemp("evidence")
    write_shard(root / "train-0.tar", digit_samples(IMAGES))
    write_shard(root / "train-1.tar", digit_samples(IMAGES, 500))  # smoke leaves it out
    write_shard(root / "val.tar", digit_samples(40, 1000))
    spec = write_digit_teacher(root / "teacher.safetensors")
    assert spec.checkpoint is not None
    others = ("test_byobnet", "test_efficientnet")
    files = tuple(root / f"{name}.safetensors" for name in others)
    for name, file in zip(others, files, strict=True):
        write_digit_teacher(file, name)
    config = EvidenceConfig(
        teacher=spec.architecture,
        teacher_checkpoint=spec.checkpoint,
        other_teachers=others,
        other_checkpoints=files,
        shards=(str(root / "train-*.tar"),),
        val_shards=(str(root / "val.tar"),),
        out=root / "out",
        view_size=32,
        batch_size=16,
        threads=1,
        workers=0,
        smoke=True,
    )
    assert run.collect(config) == out_of(config) / "EVIDENCE.md"
    return config


@pytest.fixture
def results(done: EvidenceConfig) -> dict[str, ArmResult]:
    return {one.arm: one for one in read_results(out_of(done))}


def test_every_arm_has_a_result_of_all_its_steps(results: dict[str, ArmResult]) -> None:
    assert tuple(results) == ARM_NAMES
    for one in results.values():
        assert one.steps == 2 * IMAGES // 16
        assert one.audited > 0
        assert [line["epoch"] for line in one.epochs] == [0, 1]
        assert one.evaluation["samples"] == 40
        assert one.evaluation["teacher"]["samples"] == 40


def test_labels_of_the_store_and_of_the_loop_give_the_same_weights_and_other_arms_do_not(
    results: dict[str, ArmResult],
) -> None:
    weights = {name: one.weights for name, one in results.items()}
    assert weights["hard-store"] == weights["hard-loop"]
    assert len(set(weights.values())) == len(ARM_NAMES) - 1


def test_the_teacher_runs_in_the_arms_of_the_loop_alone(results: dict[str, ArmResult]) -> None:
    for name, one in results.items():
        running = ["teacher" in line["seconds"] for line in one.epochs]
        assert running == [arms.ARMS[name].teacher_in_loop] * 2  # type: ignore[index]


def test_the_arm_with_deits_mixing_mixes_views_and_truth_by_batch(
    done: EvidenceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, truths = [], []
    mixed, target = engine.mixed_images, engine.mixed_target
    monkeypatch.setattr(
        engine,
        "mixed_images",
        lambda batch, *more: (seen.append(batch.mix), mixed(batch, *more))[1],
    )
    monkeypatch.setattr(
        engine,
        "mixed_target",
        lambda *given, **more: (truths.append(target(*given, **more)), truths[-1])[1],
    )
    config, arm = smoke(done), arms.ARMS["loop-deit-mixing"]
    stores = Stores(out_of(done) / "stores")
    settings = arms._train_config(config, stores, find_shards(config), arm, tmp_path / "run", 1)
    arms._train(settings, arm)
    assert len(seen) == 2 * IMAGES // 16
    for mix in seen:
        assert mix.partner.tolist() == list(range(15, -1, -1))
        assert len(set(mix.lam.tolist())) == 1
    assert len({int(mix.lam[0]) for mix in seen}) == len(seen)
    for mix, truth in zip(seen, truths, strict=True):
        assert truth.partner_target.tolist() == truth.target.tolist()[::-1]
        np.testing.assert_array_equal(truth.lam.numpy(), mix.lam / np.float32(FIXED_ONE))


def test_the_static_store_replays_the_same_views_with_labels_of_plain_images(
    done: EvidenceConfig,
) -> None:
    folder = out_of(done) / "stores"
    hard, static, plain = (
        open_store(folder / f"{name}.parquet") for name in ("hard", "static", "plain")
    )
    assert static.identity.teacher.derivation == STATIC_NOTE
    of_images = plain.read_view(0, 0)
    for view in range(2):
        ours, theirs = static.read_view(0, view), hard.read_view(0, view)
        np.testing.assert_array_equal(ours.label, of_images.label)
        np.testing.assert_array_equal(ours.digest, theirs.digest)
        assert (ours.label != theirs.label).any()


def test_what_is_there_is_not_done_again_and_what_is_missing_is(
    done: EvidenceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [*(out_of(done) / "stores").glob("*/_manifest.json"), *out_of(done).glob("results/*")]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    trained = []
    train = arms._train
    monkeypatch.setattr(
        arms, "_train", lambda settings, arm: (trained.append(arm), train(settings, arm))[1]
    )
    report = (out_of(done) / "EVIDENCE.md").read_bytes()
    run.collect(done)
    assert not trained
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files} == before
    assert (out_of(done) / "EVIDENCE.md").read_bytes() == report
    lost = out_of(done) / "results" / "static-0.json"
    was = json.loads(lost.read_bytes())
    lost.unlink()
    run.collect(done)  # the run's own checkpoint is there: only its end is looked at again
    assert trained == [arms.ARMS["static"]]
    assert json.loads(lost.read_bytes())["weights"] == was["weights"]


def test_results_of_other_settings_are_not_mixed(done: EvidenceConfig) -> None:
    with pytest.raises(ConfigError, match=r"lr: 0.5 / 0.001"):
        run.collect(replace(done, lr=0.5))


def test_shards_are_given_or_fetched(done: EvidenceConfig) -> None:
    for changes in ({"download": Path("x")}, {"shards": ()}, {"shards": (), "val_shards": ()}):
        with pytest.raises(ConfigError, match="--download DIR"):
            replace(done, **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--seeds"):
        replace(done, seeds=(1, 1))


def test_arms_that_vote_take_more_teachers_than_one(done: EvidenceConfig) -> None:
    assert done.used_arms == ARM_NAMES
    alone = replace(done, other_teachers=(), other_checkpoints=())
    assert set(ARM_NAMES) - set(alone.used_arms) == VOTES
    with pytest.raises(ConfigError, match="vote-mean need --other-teachers"):
        replace(alone, arms=("none", "vote-mean"))
    for count in (1, 2):
        with pytest.raises(ConfigError, match="two or more"):
            replace(alone, other_teachers=("a", "b")[:count], other_checkpoints=(Path("a"),))


def test_a_vote_has_labels_of_its_own_and_says_so(done: EvidenceConfig) -> None:
    folder = out_of(done) / "stores"
    hard, majority, mean = (
        open_store(folder / f"{name}.parquet") for name in ("hard", "majority", "mean")
    )
    for one in (majority, mean):
        assert one.identity.teacher.derivation
        np.testing.assert_array_equal(one.read_view(0, 0).digest, hard.read_view(0, 0).digest)
        assert (one.read_view(0, 0).label != hard.read_view(0, 0).label).any()


def test_the_first_classes_leave_to_all_others_what_they_do_not_have() -> None:
    share = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.7, 0.2, 0.08, 0.02]])
    signal = TeacherSignal(
        label=torch.tensor([3, 1]),
        topk_label=torch.tensor([[3, 0, 1, 2], [1, 2, 3, 0]]),
        topk_logprob=share[:, :3].log(),
        topk_rest=share[:, 3].log(),
    )
    for count in (1, 2, 3):
        found = first_classes(signal, count)
        assert found.topk_label is not None
        assert found.topk_rest is not None
        assert found.topk_label.tolist() == signal.topk_label[:, :count].tolist()  # type: ignore[index]
        torch.testing.assert_close(found.topk_rest.exp(), share[:, count:].sum(1))


def test_arms_of_fewer_classes_and_of_sure_labels_alone_learn_these(
    done: EvidenceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, stores = smoke(done), Stores(out_of(done) / "stores")
    signals = []
    for kind in (SoftLoss, HardLoss):
        call = kind.__call__
        monkeypatch.setattr(
            kind,
            "__call__",
            lambda loss, heads, truth, teacher, call=call: (
                signals.append((loss, teacher)),
                call(loss, heads, truth, teacher),
            )[1],
        )
    for name, classes in (("soft-store", 10), ("soft-top-2", 2), ("hard-sure", 10)):
        signals.clear()
        arm = arms.ARMS[name]  # type: ignore[index]
        settings = arms._train_config(config, stores, find_shards(config), arm, tmp_path / name, 1)
        arms._train(settings, arm)
        loss, teacher = signals[0]
        assert teacher.topk_logprob.shape[1] == classes
        assert getattr(loss, "min_confidence", None) == (0.5 if name == "hard-sure" else None)


def test_the_mixing_of_a_batch_is_one_for_all_rows_and_pairs_it_with_its_mirror_image() -> None:
    kinds, shares = [], []
    for step in range(200):
        mix = batch_mixing(6, seed=3, step=step, side=32)
        assert mix.partner.tolist() == [5, 4, 3, 2, 1, 0]
        for values in (mix.kind, mix.lam, mix.box):
            assert (values == values[:1]).all()
        kinds.append(int(mix.kind[0]))
        shares.append(int(mix.lam[0]) / FIXED_ONE)
        if mix.kind[0] == MixKind.CUTMIX.code:
            area = int(mix.box[0, 2]) * int(mix.box[0, 3])
            assert mix.lam[0] == pytest.approx(FIXED_ONE * (1 - area / 32**2), abs=1)
    assert set(kinds) == {MixKind.MIXUP.code, MixKind.CUTMIX.code}
    assert statistics.stdev(shares) > 0.2
    again = batch_mixing(6, seed=3, step=7, side=32)
    np.testing.assert_array_equal(again.lam, batch_mixing(6, seed=3, step=7, side=32).lam)


def evidence_of(done: EvidenceConfig, points: dict[str, list[float]]) -> Evidence:
    """Return the evidence with these accuracies, by seed, and weights that differ by arm."""
    evidence = read_evidence(out_of(done))
    made: dict[str, dict[int, ArmResult]] = {}
    for name, values in points.items():
        one = evidence.results[name][0]  # type: ignore[index]
        for seed, value in enumerate(values):
            heads = {head: {"top1": value} for head in ("class_head", "mean_of_logits")}
            evaluation = {**one.evaluation, **heads, "distillation_head": {"top1": 0.125}}
            weights = f"{name.removesuffix('-loop').removesuffix('-store')}-{seed}"
            made.setdefault(name, {})[seed] = replace(
                one, seed=seed, evaluation=evaluation, weights=weights
            )
    return replace(evidence, results=made)  # type: ignore[arg-type]


def test_the_report_gives_means_spreads_and_paired_differences_of_the_results(
    done: EvidenceConfig,
) -> None:
    evidence = evidence_of(done, {"none": [0.50, 0.52, 0.54], "hard-store": [0.53, 0.54, 0.58]})
    text = evidence_text(evidence)
    assert "| none | 3 | 52.00 ± 2.00 | - | - | - |" in text
    gain = "+3.00 (+3.00, +2.00, +4.00)"
    assert f"| hard-store | 3 | 55.00 ± 2.65 | 12.50 ± 0.00 | 55.00 ± 2.65 | {gain} |" in text
    found = f"{gain}, +0.52 to +5.48"  # 4.303 / sqrt(3) standard deviations around the mean
    assert f"| hard labels are 1 to 4 points above none | {found} | open |" in text


def test_a_difference_holds_if_all_of_its_interval_does() -> None:
    assert within([2.0, 2.1, 2.2], 1, 4)
    assert within([2.0, 2.1, 2.2], 3, 4) is False
    assert within([2.0, 2.1, 2.2], 2, 4) is None
    assert within([2.0, 2.0], 1, 4) is None
    assert within([0.4] * 9, 0, math.inf)


def test_what_was_expected_and_not_found_is_said_so(done: EvidenceConfig) -> None:
    found = {
        "none": [0.50, 0.50, 0.50],
        "hard-store": [0.50, 0.501, 0.5005],
        "hard-loop": [0.50, 0.501, 0.5005],
        "static": [0.49, 0.50, 0.495],
        "soft-store": [0.40, 0.402, 0.401],
        "loop-deit-mixing": [0.53, 0.532, 0.531],
    }
    evidence = evidence_of(done, found)
    assert [one.holds for one in checks(evidence)] == [True, False, None, True, False]
    assert "| **no** |" in evidence_text(evidence)
    other = {**evidence.results["hard-loop"]}
    other[1] = replace(other[1], weights="others")
    changed = replace(evidence, results={**evidence.results, "hard-loop": other})
    first = next(checks(changed))
    assert (first.found, first.holds) == ("the same for 2 of 3 seeds", False)
    assert "| **different** |" in evidence_text(changed)


def test_a_comparison_with_other_settings_stands_beside_with_what_differs(
    done: EvidenceConfig,
) -> None:
    first = evidence_of(done, {"none": [0.50, 0.52, 0.54], "hard-store": [0.53, 0.54, 0.58]})
    longer = evidence_of(done, {"none": [0.60, 0.62, 0.64], "hard-store": [0.63, 0.64, 0.68]})
    longer = replace(longer, settings={**longer.settings, "epochs": 9, "lr": 0.5})
    text = evidence_text(first, also=[longer])
    begun, ended = text.split("\n## The same with epochs 9, lr 0.5\n")
    assert begun + "\n## " + ended.split("\n## ", 1)[1] == evidence_text(first)
    added = ended.split("\n## ")[0]
    assert "\n### Expected and found\n" in added
    assert "\n### Accuracy, per cent\n" in added
    assert "| none | 3 | 62.00 ± 2.00 | - | - | - |" in added


def test_the_report_is_made_of_what_there_is(done: EvidenceConfig, tmp_path: Path) -> None:
    report = write_report(out_of(done), tmp_path / "docs" / "EVIDENCE.md")
    text = report.read_text()
    assert str(out_of(done)) not in text
    assert "| the same |" in text
    for name in ("accuracy", "epochs", "classes"):
        assert f"(evidence/{name}.svg)" in text
        drawn = (tmp_path / "docs" / "evidence" / f"{name}.svg").read_bytes()
        assert b"<svg" in drawn
        assert drawn == (out_of(done) / "evidence" / f"{name}.svg").read_bytes()
    assert "Notes" not in text.split("##")[-1]
    (tmp_path / "notes.md").write_text("Seven.\n")
    write_report(out_of(done), report, tmp_path / "notes.md")
    assert report.read_text() == f"{text}\n## Notes, written by hand\n\nSeven.\n"
    write_report(out_of(done), report, also=[out_of(done)])
    assert "\n## The same with other runs\n" in report.read_text()
    with pytest.raises(ConfigError, match="holds no results"):
        write_report(out_of(done), tmp_path / "x.md", also=[tmp_path])
    for out, notes, message in (
        (tmp_path, None, "holds no results"),
        (out_of(done), tmp_path / "none.md", r"none\.md: no such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_report(out, tmp_path / "x.md", notes)
    assert not (tmp_path / "x.md").exists()


def test_shards_that_are_sorted_by_class_are_shuffled_and_keep_their_images(
    done: EvidenceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = sorted(digit_samples(60), key=lambda one: one[2])
    for number in range(3):
        write_shard(tmp_path / f"sorted-{number}.tar", samples[20 * number : 20 * number + 20])
    config = replace(
        done, shards=(str(tmp_path / "sorted-*.tar"),), out=tmp_path / "out", smoke=False
    )
    (pattern,) = find_shards(config).training
    assert "are sorted by class" in capsys.readouterr().out
    shard = open_shard(Path(pattern).parent / "shard-000000.tar", 0)
    images = {shard.image_bytes(index): one.target for index, one in enumerate(shard.samples)}
    assert images == {image: target for _, image, target in samples}
    assert len({one.target for one in shard.samples[:20]}) > 4
    assert find_shards(config).training == (pattern,)
    assert "sorted" not in capsys.readouterr().out.replace(str(tmp_path), "")
    assert find_shards(replace(done, smoke=False)).training == done.shards
    names = [f"digit {9 - number}" for number in range(10)]  # in no alphabet's order
    (tmp_path / CLASSES_FILE).write_text(json.dumps(names))
    (pattern,) = find_shards(replace(config, out=tmp_path / "named")).training
    assert json.loads((Path(pattern).parent / CLASSES_FILE).read_text()) == names
    shard = open_shard(Path(pattern).parent / "shard-000000.tar", 0)
    named = {shard.image_bytes(index): one.target for index, one in enumerate(shard.samples)}
    assert named == images
    (tmp_path / CLASSES_FILE).unlink()
    write_shard(tmp_path / "gap.tar", [samples[0], *samples[40:]])
    with pytest.raises(ConfigError, match="without a gap"):
        find_shards(replace(config, shards=(str(tmp_path / "gap.tar"),), out=tmp_path / "gap"))


def test_fetched_images_are_packed_evenly_and_anew_after_an_interruption(tmp_path: Path) -> None:
    pixels, targets = digits()
    data = [
        (Image.fromarray(one), int(target)) for one, target in zip(pixels, targets, strict=True)
    ]
    names = [f"digit {number}" for number in range(10)]
    torn = tmp_path / "out" / "shard-000000.tar"
    torn.parent.mkdir()
    torn.write_bytes(b"torn")
    pack_images(data, names, 55, tmp_path / "images", tmp_path / "out")
    shard = open_shard(torn, 0)
    assert sorted(sample.target for sample in shard.samples) == sorted([*range(10)] * 5)
    with pytest.raises(ConfigError, match="there are 1797"):
        pack_images(data, names, 5000, tmp_path / "more", tmp_path / "more-out")


def test_the_command_names_its_errors_and_fails(
    done: EvidenceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = ["--shards", *done.shards, "--val-shards", *done.val_shards, "--out", str(tmp_path)]
    for arguments, text in (
        ([], "give --shards and --val-shards, or --download"),
        (shards, "nowhere.safetensors does not exist"),
    ):
        with pytest.raises(SystemExit) as exit_:
            run.main(["--teacher-checkpoint", "nowhere.safetensors", *arguments])
        assert exit_.value.code == 1
        assert text in capsys.readouterr().err
