"""Reports of runs: numbers are the log's, mistakes those of the student that is saved."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from base64 import b64decode
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.errors import ConfigError, PipelineError
from pipeline.identity import PRESETS, MixConfig
from pipeline.views.mixing import normalize
from student import load_student
from student.cli import report_main
from student.engine import train
from student.evaluation.validation import ValidationDataset, center_views
from student.inputs import open_inputs
from student.model import split_heads, two_headed
from student.run_report import RunRecord, compare_runs, read_run
from tests.pages import Element, number, pictures_of, read_page, table_of
from tests.pipeline.tools.test_report import assert_tame
from tests.student.factories import SMALL_VIEWS, make_identity, make_store, write_digit_shards
from tests.student.worlds import World, make_world

VALIDATION = (30, 17)
FUSIONS = ("class_head", "distillation_head", "mean_of_logits", "sum_of_softmaxes")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with two runs in it, of which one averages, and one without validation."""
    root = tmp_path_factory.mktemp("world")
    paths = write_digit_shards(root / "validation", VALIDATION)
    center = replace(PRESETS["center"], image_size=32)
    identity = make_identity(augment=center, mix=MixConfig(probability=0))
    make_store(root / "validation.parquet", paths, identity=identity, views=1)
    world = make_world(root, (14, 10))
    validation = {
        "val_shards": (str(root / "validation" / "digits-*.tar"),),
        "val_labels": str(root / "validation.parquet"),
    }
    for name, changes in (
        ("run", {"ema_decay": 0.5, **validation}),
        ("faster", {"lr": 3e-3, "report_images": 0, **validation}),
        ("blind", {}),
    ):
        config = world.config(root / name, **changes)
        train(config, open_inputs(config))
    return world


@pytest.fixture(scope="module")
def page(world: World) -> Element:
    return read_page((world.root / "run" / "report.html").read_text())


@pytest.fixture(scope="module")
def log(world: World) -> pd.DataFrame:
    return pd.read_json(world.root / "run" / "metrics.jsonl", lines=True)


def chart(page: Element, caption: str) -> list[list[str]]:
    """Return the rows of the numbers beside a chart."""
    (found,) = [
        one
        for one in page.all("figure", **{"class": "drawn"})
        if one.all("figcaption")[0].text == caption
    ]
    (body,) = found.all("tbody")
    return [[cell.text for cell in row.walk()] for row in body.all("tr")]


def test_losses_rates_and_agreement_are_the_logs(page: Element, log: pd.DataFrame) -> None:
    lines = log[log.kind == "train"]
    assert len(lines) == 3
    for caption, columns, slack in (
        ("Loss", ["loss", "class_loss", "distillation_loss"], 6e-4),
        ("Learning rate", ["lr"], 6e-7),
        ("Agreement with the teacher, on training views", ["agreement", "teacher_accuracy"], 6e-5),
    ):
        shown = np.array([[number(cell) for cell in row] for row in chart(page, caption)])
        np.testing.assert_array_equal(shown[:, 0], lines.step)
        np.testing.assert_allclose(shown[:, 1:], lines[columns].astype(float), atol=slack)


def test_accuracies_of_all_heads_raw_and_averaged_are_the_logs(
    page: Element, log: pd.DataFrame
) -> None:
    epochs = log[log.kind == "epoch"]
    for what, caption in (
        ("top1", "Top-1 by epoch"),
        ("top5", "Top-5 by epoch"),
        ("loss", "Loss on validation images"),
    ):
        expected = [
            [
                epoch + 1,
                *(
                    line[kind][name][what]
                    for kind in ("e", "ema")
                    for name in FUSIONS
                    for line in [{"e": raw, "ema": ema}]
                ),
            ]
            for epoch, raw, ema in zip(
                epochs.epoch, epochs.evaluation, epochs.ema_evaluation, strict=True
            )
        ]
        rows = [list(map(number, row)) for row in chart(page, caption)]
        np.testing.assert_allclose(rows, expected, atol=6e-4 if what == "loss" else 6e-5)
    best = max(
        one["mean_of_logits"]["top1"]
        for kind in ("evaluation", "ema_evaluation")
        for one in epochs[kind]
    )
    text = f"best top-1, that of best.pt, by the mean of logits {100 * best:.2f} %"
    assert text in page.text
    last = epochs.iloc[-1]
    shown = table_of(page, "final")
    assert len(shown) == 8
    for row, (kind, name) in zip(
        shown, [(k, n) for k in ("evaluation", "ema_evaluation") for n in FUSIONS], strict=True
    ):
        assert row[0] == name.replace("_", " ")
        assert row[1] == ("raw" if kind == "evaluation" else "averaged")
        found = last[kind]
        numbers = [*(found[name][one] for one in ("top1", "top5", "loss"))]
        numbers.append(found["teacher"]["agreement"][name])
        assert [number(cell) for cell in row[2:]] == pytest.approx(numbers, abs=6e-5)


def test_a_run_of_few_classes_has_no_top_5(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.root / "run", tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(re.sub(r'"top5": [\d.]+', '"top5": null', log.read_text()))
    page = read_page(compare_runs([tmp_path / "run"]))
    assert "Top-1 by epoch" in page.text
    assert "op-5" not in page.text
    assert len(table_of(page, "final")[0]) == 5


def test_throughput_and_the_wait_for_data_are_the_logs(page: Element, log: pd.DataFrame) -> None:
    epochs = log[log.kind == "epoch"]
    speeds = [number(row[1]) for row in chart(page, "Throughput")]
    np.testing.assert_allclose(speeds, epochs.rows_per_second, rtol=1e-3)
    rows = chart(page, "Seconds of an epoch, by what they were spent on")
    for row, seconds in zip(rows, epochs.seconds, strict=True):
        found = [seconds["data"], seconds["student"], seconds["evaluation"]]
        assert [number(cell) for cell in row[1:]] == pytest.approx(found, rel=1e-3)


def predictions(world: World) -> tuple[torch.Tensor, ValidationDataset]:
    """Return the (N, 10) probabilities of the saved student, one batch of all images."""
    model = load_student(world.root / "run" / "last.pt")
    views = center_views(SMALL_VIEWS, 0.875)
    paths = sorted((world.root / "validation").glob("*.tar"))
    data = ValidationDataset(paths, views, classes=10, batch_size=sum(VALIDATION))
    with torch.no_grad(), two_headed(model):
        heads = split_heads(model(normalize(data[0].pixels, views.mean, views.std)))
    return ((heads[0] + heads[1]) / 2).softmax(1), data


def test_mistakes_are_those_of_the_student_that_is_saved(world: World, page: Element) -> None:
    shares, data = predictions(world)
    target, called = data[0].target.tolist(), shares.argmax(1).tolist()
    pairs = Counter((a, b) for a, b in zip(target, called, strict=True) if a != b)
    shown = [tuple(int(number(cell)) for cell in row) for row in table_of(page, "confused")]
    assert {row[:2]: row[2] for row in shown} == pairs
    assert [row[2] for row in shown] == sorted(pairs.values(), reverse=True)
    right = Counter(a for a, b in zip(target, called, strict=True) if a == b)
    assert {tuple(int(number(cell)) for cell in row[:3]) for row in table_of(page, "classes")} == {
        (label, count, right[label]) for label, count in Counter(target).items()
    }
    names = [cell.text for cell in page.all("table", id="disagreement")[0].all("th")][:5]
    matrix = [[number(cell) for cell in row[1:]] for row in table_of(page, "disagreement")]
    wrong = 1 - sum(right.values()) / len(target)
    assert matrix[0][names.index("mean of logits")] == pytest.approx(wrong, abs=6e-5)
    assert len(chart(page, "Cosine of class and distillation token, by layer")) == 3


def test_the_worst_images_are_those_of_the_lowest_probability(world: World, page: Element) -> None:
    shares, data = predictions(world)
    truth = shares[torch.arange(len(shares)), data[0].target]
    order = truth.argsort(stable=True)[:24].tolist()
    items = pictures_of(page)
    assert [item.all("strong")[0].text for item in items] == [data.key_of(row) for row in order]
    for item, row in zip(items, order, strict=True):
        source = item.all("img")[0].attributes["src"].removeprefix("data:image/png;base64,")
        with Image.open(io.BytesIO(b64decode(source))) as picture:
            assert (np.asarray(picture) == data[0].pixels[row].numpy()).all()
        assert f"truth: {int(data[0].target[row])} ({float(truth[row]):.1%})" in item.text
        said = [one.text.partition(":")[0] for one in item.all("span")]
        assert said[:2] == ["truth", "student"]  # whether they are warned of or not
        assert item.attributes["data-called"] == str(int(shares[row].argmax()))
    assert pictures_of(read_page((world.root / "faster" / "report.html").read_text())) == []


def test_a_run_without_validation_says_so(world: World) -> None:
    page = read_page((world.root / "blind" / "report.html").read_text())
    assert "Nothing was evaluated" in page.text
    assert len(chart(page, "Loss")) == 3


def test_runs_are_compared_and_what_differs_is_said(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs.html"
    report_main([*(str(world.root / name) for name in ("run", "faster")), "--out", str(out)])
    assert "2 runs" in capsys.readouterr().out
    page = read_page(out.read_text())
    different = {row[0]: row[1:] for row in table_of(page, "different")}
    assert different["lr"] == ["0.001", "0.003"]
    assert {"ema_decay", "lr", "output", "report_images"} == set(different)
    logs = [
        pd.read_json(world.root / name / "metrics.jsonl", lines=True) for name in ("run", "faster")
    ]
    losses = [log[log.kind == "train"].loss.tolist() for log in logs]
    shown = [[number(cell) for cell in row[1:]] for row in chart(page, "Loss")]
    np.testing.assert_allclose(shown, np.array(losses).T, atol=6e-4)
    last = [log[log.kind == "epoch"].evaluation.iloc[-1]["mean_of_logits"]["top1"] for log in logs]
    found = {
        row[0]: number(row[3])
        for row in table_of(page, "final")
        if row[1:3] == ["mean of logits", "raw"]
    }
    assert found == {
        "run": pytest.approx(last[0], abs=6e-5),
        "faster": pytest.approx(last[1], abs=6e-5),
    }


def test_an_unfinished_run_has_no_report_of_its_own_and_can_be_looked_at(
    world: World, tmp_path: Path
) -> None:
    config = world.config(tmp_path / "run")
    train(config, open_inputs(config), stop_after=4)
    assert not (tmp_path / "run" / "report.html").exists()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # torn
    page = read_page(compare_runs([tmp_path / "run"]))
    assert len(chart(page, "Loss")) == 2
    assert "2 of 3" in page.text


def test_a_run_shorter_than_its_log_s_lines_has_charts_of_its_epochs(
    world: World, tmp_path: Path
) -> None:
    config = world.config(tmp_path / "run", log_every=50)
    train(config, open_inputs(config))
    log = pd.read_json(tmp_path / "run" / "metrics.jsonl", lines=True)
    epochs = log[log.kind == "epoch"]
    assert not (log.kind == "train").any()
    page = read_page((tmp_path / "run" / "report.html").read_text())
    for caption, columns, slack in (
        ("Loss", ["loss", "class_loss", "distillation_loss"], 6e-4),
        ("Learning rate", ["lr"], 6e-7),
        ("Agreement with the teacher, on training views", ["agreement", "teacher_accuracy"], 6e-5),
    ):
        shown = np.array([[number(cell) for cell in row] for row in chart(page, caption)])
        np.testing.assert_array_equal(shown[:, 0], epochs.step)
        np.testing.assert_allclose(shown[:, 1:], epochs[columns].astype(float), atol=slack)


def test_of_few_lines_of_training_and_more_epochs_the_epochs_are_shown() -> None:
    train, epochs = (
        tuple({"step": step, "loss": float(step)} for step in steps)
        for steps in ((50, 100), range(14, 113, 14))
    )
    run = RunRecord(name="", config={}, train=train, epochs=epochs)
    assert [step for step, _ in run.series("train", "loss")] == [14 * n for n in range(1, 9)]
    assert len(replace(run, epochs=epochs[:2]).series("train", "loss")) == 2
    assert run.series("train", "loss") == run.series("epoch", "loss")


def test_of_one_head_no_word_is_lost_on_two(world: World, page: Element, tmp_path: Path) -> None:
    with_two = page.text
    assert page.all("table", id="disagreement")
    for words in ("two heads", "student's distillation head says", "Averaged weights"):
        assert words in with_two
    assert "agrees with the teacher" in with_two
    config = world.config(
        tmp_path / "run",
        model="deit_tiny_patch16_224",
        distillation_kind="classical",
        val_shards=(str(world.root / "validation" / "digits-*.tar"),),
    )
    train(config, open_inputs(config))
    alone = read_page((tmp_path / "run" / "report.html").read_text())
    assert not alone.all("table", id="disagreement")
    for words in ("two heads", "distillation head", "Averaged weights", "agrees with the teacher"):
        assert words not in alone.text
    assert "the student's prediction says what the teacher does" in alone.text
    assert "with the weights of the last step (last.pt)" in alone.text
    assert len(table_of(alone, "final")) == 1


def test_speed_after_a_resume_is_that_of_the_steps_since(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path / "run", batch_size=4)
    train(config, open_inputs(config), stop_after=8)  # of 6 steps to an epoch
    resumed = replace(config, resume="auto")
    outcome = train(resumed, open_inputs(resumed))
    log = pd.read_json(tmp_path / "run" / "metrics.jsonl", lines=True)
    first, broken, last = (line for _, line in log[log.kind == "epoch"].iterrows())
    for line, steps in ((first, 6), (broken, 4), (last, 6)):
        spent = line.seconds["total"] - line.seconds.get("evaluation", 0.0)
        assert line.rows_per_second * spent == pytest.approx(4 * steps)
    assert broken.timed_from_step == 8
    assert np.isnan(first.timed_from_step)
    assert len(outcome.epoch_seconds) == 1  # the whole one
    page = read_page((tmp_path / "run" / "report.html").read_text())
    rows = chart(page, "Seconds of an epoch, by what they were spent on")
    assert [number(row[0]) for row in rows] == [1, 3]


def test_a_strangers_settings_are_shown_in_part(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    many = {f"setting{n}": "x" for n in range(50_000)}
    config = {"shards": ["y" * 100] * 50_000, "z" * 500_000: 1, **many}
    (run / "config.json").write_text(json.dumps({"config": config}))
    (run / "metrics.jsonl").write_text("")
    text = compare_runs([run, run])
    assert len(text) < 1_000_000
    page = read_page(text)
    assert len(table_of(page, "settings")) == 1000
    assert "49,002 more" in page.text


def test_runs_of_one_name_are_told_apart_by_their_paths(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.root / "run", tmp_path / "run")
    page = read_page(compare_runs([world.root / "run", tmp_path / "run"]))
    assert str(tmp_path / "run") in page.text
    assert str(world.root / "run") in page.text


@pytest.mark.parametrize(
    "value", ["x", None, True, [], {}, "1e999", "10" * 400, "-1e308", "NaN", "Infinity"]
)
def test_a_strangers_run_is_shown_as_far_as_it_makes_sense(tmp_path: Path, value: object) -> None:
    hostile = "</script><script>alert(1)</script>"
    run = tmp_path / "<b>run"
    run.mkdir()
    config = {"config": {hostile: hostile, "epochs": value, "model": hostile}}
    (run / "config.json").write_text(json.dumps(config))
    raw = value if isinstance(value, str) and value != "x" else json.dumps(value)
    evaluation = f'{{"mean_of_logits": {{"top1": {raw}}}, "teacher": {raw}}}'
    lines = [
        f'{{"kind": "train", "step": {raw}, "loss": 1}}',
        f'{{"kind": "train", "step": 1, "loss": {raw}}}',
        f'{{"kind": "epoch", "step": 1, "epoch": {raw}, "evaluation": {raw}, "seconds": {raw}}}',
        f'{{"kind": "epoch", "step": 1, "epoch": 0, "evaluation": {evaluation}}}',
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    page = read_page(compare_runs([run, run]))
    assert_tame(page)
    assert hostile in page.text


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run that can be read"):
        read_run(tmp_path)
    with pytest.raises(ConfigError, match="`runs` is empty"):
        compare_runs([])


@pytest.mark.timeout(60)
def test_files_that_are_no_runs_are_not_waited_for_followed_or_taken_whole(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"config": {"token": "secret"}}')
    for name, make, error in (
        ("pipe", os.mkfifo, "is no file, but a pipe"),
        ("link", lambda path: path.symlink_to(tmp_path / "secret.json"), "leads out of"),
        ("large", lambda path: (path.touch(), os.truncate(path, 1 << 33)), "has at most"),
    ):
        for file, other in (("config.json", "metrics.jsonl"), ("metrics.jsonl", "config.json")):
            run = tmp_path / f"{name}-{file}"
            run.mkdir()
            (run / other).write_text("{}")
            make(run / file)
            with pytest.raises(PipelineError, match=error):
                read_run(run)


def test_a_run_whose_values_would_take_much_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, log = tmp_path / "config.json", tmp_path / "metrics.jsonl"
    config.write_text('{"config":{}}')
    log.write_text('{"kind":"train","step":1}\n' * 1000)
    assert len(read_run(tmp_path).train) == 1000
    monkeypatch.setattr("student.run_report.MUCH_JSON", 1 << 18)
    with pytest.raises(ConfigError, match="its log may take more than"):
        read_run(tmp_path)
    log.write_text("")
    config.write_text('{"config":{"a":[' + "[]," * (1 << 21) + "0]}}")
    with pytest.raises(ConfigError, match="its values may take more than 256 MiB of memory"):
        read_run(tmp_path)
