"""A checkpoint alone: evaluated, compared with the teacher, analyzed."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.errors import CheckpointError, ConfigError, StoreError
from pipeline.identity import PRESETS, MixConfig
from pipeline.views.mixing import normalize
from student import checkpoint as checkpoints
from student.checkpoint import open_checkpoint
from student.cli import evaluate_main
from student.config import EvaluateConfig
from student.engine import train
from student.evaluation.analysis import analyze, plot_analysis
from student.evaluation.evaluate import FUSIONS, Accuracy, Evaluation, evaluate
from student.evaluation.report import (
    _throughput,
    evaluate_checkpoint,
    evaluate_directory,
    load_student,
)
from student.evaluation.validation import ValidationDataset, center_views, read_teacher_labels
from student.inputs import open_inputs
from student.loading import LoaderOptions
from student.model import split_heads, two_headed
from tests.commands import require_command
from tests.student.factories import (
    SMALL_VIEWS,
    TINY,
    make_identity,
    make_store,
    write_digit_shards,
)
from tests.student.worlds import World, make_world

VALIDATION = (13, 8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a run in it, validation shards, and their labels."""
    root = tmp_path_factory.mktemp("world")
    paths = write_digit_shards(root / "validation", VALIDATION)
    center = replace(PRESETS["center"], image_size=32)
    identity = make_identity(augment=center, mix=MixConfig(probability=0))
    make_store(root / "validation.parquet", paths, identity=identity, views=1)
    world = make_world(root, (14, 10))
    for name, changes in (
        ("run", {"ema_decay": 0.5}),
        ("single", {"model": "deit_tiny_patch16_224", "distillation_kind": "classical"}),
        ("none", {"distillation": "none"}),
    ):
        config = world.config(
            root / name,
            val_shards=(str(root / "validation" / "digits-*.tar"),),
            val_labels=str(root / "validation.parquet"),
            **changes,
        )
        train(config, open_inputs(config))
    return world


def settings(world: World, run: str = "run", **changes) -> EvaluateConfig:
    values = {
        "checkpoint": world.root / run / "last.pt",
        "val_shards": (str(world.root / "validation" / "digits-*.tar"),),
        "val_labels": str(world.root / "validation.parquet"),
        "workers": 0,
        "threads": 1,
        "device": "cpu",
        "eval_batch_size": 8,
    }
    return EvaluateConfig(**{**values, **changes})


@pytest.fixture(autouse=True)
def _quickly(monkeypatch) -> None:
    monkeypatch.setattr("student.evaluation.report._SECONDS_OF_SPEED", 0.0)


@pytest.mark.parametrize("run", ["run", "single", "none"])
def test_a_checkpoint_alone_gives_the_accuracies_that_its_run_found(world, run) -> None:
    report = evaluate_checkpoint(settings(world, run))
    last = (world.root / run / "metrics.jsonl").read_text().splitlines()[-1]
    logged = json.loads(last)
    pairs = (
        {"raw": "evaluation", "ema": "ema_evaluation"} if run == "run" else {"raw": "evaluation"}
    )
    assert set(report.evaluations) == set(pairs)
    for name, line in pairs.items():
        found = json.loads(json.dumps(report.evaluations[name].to_json()))
        for timing in (found, logged[line]):
            timing.pop("images_per_second")
        assert found == logged[line]
    assert report.throughput.images_per_second > 0
    assert report.peak_memory_bytes > 1e8  # PyTorch alone takes more
    values = report.to_json()
    timms = {"samples_per_sec", "step_time", "batch_size", "img_size", "param_count"}
    assert values["benchmark"].keys() == timms | {"steps"}
    assert values["benchmark"]["param_count"] == round(report.parameters / 1e6, 2)


def test_throughput_is_measured_as_timms_benchmark_does(monkeypatch) -> None:
    """Ten steps to warm up and 40 that count, of noise, in evaluation mode, heads joined."""
    clock = iter(range(10_000))
    monkeypatch.setattr("student.evaluation.report._SECONDS_OF_SPEED", 1e9)
    monkeypatch.setattr("student.evaluation.report.time.perf_counter", lambda: next(clock))
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1).train()
    seen = []
    model.register_forward_hook(lambda _, given, out: seen.append((given[0], out, model.training)))
    found = _throughput(model, 32, 4, nullcontext)
    assert len(seen) == 50
    assert {id(images) for images, _, _ in seen} == {id(seen[0][0])}
    assert seen[0][0].shape == (4, 3, 32, 32)
    assert seen[0][0].std() > 0.9
    assert not any(training or out.requires_grad for _, out, training in seen)
    assert seen[0][1].shape == (4, 1000)  # one output: joined
    # A clock that goes on by 1 at each look: 40 steps of 1, and 81 looks in the measured part.
    assert (found.steps, found.step_seconds, found.rows) == (40, 1, 4)
    assert found.images_per_second == pytest.approx(160 / 81)
    monkeypatch.setattr("student.evaluation.report._SECONDS_OF_SPEED", 3)
    assert _throughput(model, 32, 4, nullcontext).steps == 3


def test_a_single_head_has_one_accuracy_and_is_the_headline(world) -> None:
    evaluation = evaluate_checkpoint(settings(world, "single")).evaluations["raw"]
    assert evaluation.distillation_head is evaluation.sum_of_softmaxes is None
    assert evaluation.of("mean_of_logits") == evaluation.class_head


def test_teacher_and_student_are_compared_on_the_same_images(world) -> None:
    paths = sorted((world.root / "validation").glob("*.tar"))
    labels = read_teacher_labels(str(world.root / "validation.parquet"), paths)
    views = center_views(SMALL_VIEWS, 0.875)
    data = ValidationDataset(paths, views, classes=10, batch_size=21, labels=labels)
    model = load_student(world.root / "run" / "last.pt")
    found = evaluate(model, data, LoaderOptions())
    batch = data[0]
    with torch.no_grad(), two_headed(model):
        images = normalize(batch.pixels, views.mean, views.std)
        class_logits, distillation_logits = split_heads(model(images))
    assert found.teacher is not None
    assert found.teacher.samples == sum(VALIDATION)
    expected = (batch.teacher == batch.target).double().mean()
    assert found.teacher.accuracy == pytest.approx(expected.item())
    for name, logits in (("class_head", class_logits), ("distillation_head", distillation_logits)):
        share = (logits.argmax(1) == batch.teacher).double().mean()
        assert found.teacher.agreement[name] == pytest.approx(share.item())


def test_labels_of_augmented_views_are_no_validation_labels(world) -> None:
    with pytest.raises(StoreError, match="the preset center"):
        evaluate_checkpoint(settings(world, val_labels=str(world.root / "labels.parquet")))


def test_the_analysis_is_its_definition(world) -> None:
    report = evaluate_checkpoint(settings(world, analysis=True))
    analysis = report.analysis
    assert analysis is not None
    assert analysis.names == (
        *("truth", "teacher", "class_head", "distillation_head", "mean_of_logits"),
    )
    matrix = np.array(analysis.disagreement)
    assert (matrix == matrix.T).all()
    assert (np.diag(matrix) == 0).all()
    raw = report.evaluations["raw"]
    truth = dict(zip(analysis.names, matrix[0], strict=True))
    assert raw.teacher is not None
    assert truth["teacher"] == pytest.approx(1 - raw.teacher.accuracy)
    for name in ("class_head", "distillation_head", "mean_of_logits"):
        assert truth[name] == pytest.approx(1 - getattr(raw, name).top1)
        assert matrix[1][analysis.names.index(name)] == pytest.approx(
            1 - raw.teacher.agreement[name]
        )
    assert analysis.token_cosine is not None
    assert len(analysis.token_cosine) == 3  # the input and two blocks
    model = load_student(world.root / "run" / "last.pt")
    views = center_views(SMALL_VIEWS, 0.875)
    paths = sorted((world.root / "validation").glob("*.tar"))
    batch = ValidationDataset(paths, views, classes=10, batch_size=sum(VALIDATION))[0]
    with torch.no_grad(), two_headed(model):
        images = normalize(batch.pixels, views.mean, views.std)
        heads = [logits.argmax(1) for logits in split_heads(model(images))]
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        expected = []
        for block in (torch.nn.Identity(), *model.blocks):
            tokens = block(tokens)
            cosines = torch.cosine_similarity(tokens[:, 0], tokens[:, 1], dim=-1)
            expected.append(cosines.mean().item())
    assert analysis.token_cosine == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 3
    one, other = (analysis.names.index(name) for name in ("class_head", "distillation_head"))
    differ = (heads[0] != heads[1]).double().mean().item()
    assert matrix[one][other] == pytest.approx(differ)


def test_each_class_is_counted_by_the_headline(world) -> None:
    report = evaluate_checkpoint(settings(world, analysis=True))
    analysis = report.analysis
    assert analysis is not None
    assert analysis.prediction == "mean_of_logits"
    evaluation = report.evaluations["raw"]
    samples = sum(one.samples for one in analysis.classes)
    right = sum(one.right for one in analysis.classes)
    assert samples == evaluation.samples == sum(VALIDATION)
    assert right / samples == pytest.approx(evaluation.mean_of_logits.top1)
    for one in analysis.classes:
        assert 0 <= one.mistaken <= one.samples - one.right
        assert (one.mistaken_for is None) == (one.mistaken == 0) == (one.right == one.samples)
        assert one.mistaken_for != one.number
        pairs = [pair for pair in analysis.confused if pair.target == one.number]
        # Hits and confusions are the whole matrix: its rows, and its columns.
        assert one.right + sum(pair.samples for pair in pairs) == one.samples
        pairs = [pair for pair in analysis.confused if pair.called == one.number]
        assert one.right + sum(pair.samples for pair in pairs) == one.called
    single = evaluate_checkpoint(settings(world, "single", analysis=True)).analysis
    assert single is not None
    assert single.prediction == "class_head"


def test_a_student_without_tokens_is_analyzed_without_them(world) -> None:
    analysis = evaluate_checkpoint(settings(world, "single", analysis=True)).analysis
    assert analysis is not None
    assert analysis.token_cosine is None
    assert analysis.names == ("truth", "teacher", "class_head")


def test_an_analysis_leaves_no_hook_behind(world) -> None:
    model = load_student(world.root / "run" / "last.pt")
    paths = sorted((world.root / "validation").glob("*.tar"))
    data = ValidationDataset(paths, center_views(SMALL_VIEWS, 1.0), classes=10, batch_size=8)
    found = analyze(model, data, LoaderOptions())
    assert "teacher" not in found.names
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def test_the_plot_is_an_image(world, tmp_path) -> None:
    analysis = evaluate_checkpoint(settings(world, analysis=True)).analysis
    assert analysis is not None
    plot_analysis(analysis, tmp_path / "new" / "plot.png")
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_named(world, tmp_path, monkeypatch) -> None:
    analysis = evaluate_checkpoint(settings(world, analysis=True)).analysis
    assert analysis is not None
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"matplotlib: pip install .*\[plots\]"):
        plot_analysis(analysis, tmp_path / "plot.png")


CALLED = ["class head", "distillation head", "mean of logits"]


def test_the_command_prints_tables_and_writes_json(world, tmp_path, capsys) -> None:
    flags = (
        *("--checkpoint", str(world.root / "run" / "best.pt"), "--val-shards"),
        *(str(world.root / "validation" / "digits-*.tar"), "--workers", "0", "--threads", "1"),
        *("--val-labels", str(world.root / "validation.parquet"), "--analysis"),
        *("--json", str(tmp_path / "report.json"), "--device", "cpu"),
    )
    evaluate_main(flags)
    text, said = capsys.readouterr()
    checkpoint = world.root / "run" / "best.pt"
    told = said.splitlines()[-3:]  # no analysis is next, which was made
    assert told[:2] == [
        f"evaluate-student: {tmp_path / 'report.json'} is written",
        f"evaluate-student: next: export-student {checkpoint} --to timm --out student.pth",
    ]
    against = told[2].removeprefix("evaluate-student: next: ")
    assert against.startswith("label-store report ")
    assert against.endswith(f" --against {checkpoint.parent} --out report.html")
    require_command(shlex.split(against))
    for words in ("sum of softmaxes", "averaged weights", "the teacher", "disagreement", "cosine"):
        assert words in text
    lines = text.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("disagreement"))
    assert lines[at].endswith(" class head distillation head mean of logits")  # whole words
    rows = lines[at + 1 : at + 6]
    assert [row[:20].rstrip() for row in rows][2:] == CALLED
    assert {len(row) for row in rows} == {len(lines[at])}
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["evaluations"]["ema"]["samples"] == sum(VALIDATION)
    assert values["analysis"]["names"][0] == "truth"


def test_a_file_that_is_no_checkpoint_is_one_error(world, tmp_path, capsys) -> None:
    (tmp_path / "bad.pt").write_bytes(b"no")
    with pytest.raises(SystemExit):
        evaluate_main(["--checkpoint", str(tmp_path / "bad.pt"), "--val-shards", "x.tar"])
    assert capsys.readouterr().err.startswith("evaluate-student: error: ")
    with pytest.raises(CheckpointError, match="no averaged weights"):
        load_student(world.root / "single" / "last.pt", "ema")


@pytest.mark.parametrize(
    ("top1", "permuted", "samples", "expected"),
    [
        (0.1, 0.9, 1000, True),
        (0.9, 0.9, 1000, False),
        (0.1, 0.9, 50, False),
        (0.1, 0.1, 1000, False),
    ],
)
def test_only_a_student_that_tells_classes_apart_by_other_names_is_suspected(
    top1, permuted, samples, expected
) -> None:
    evaluation = Evaluation(
        samples=samples,
        class_head=Accuracy(top1=top1, top5=1.0, loss=1.0),
        distillation_head=None,
        mean_of_logits=None,
        sum_of_softmaxes=None,
        teacher=None,
        permuted_top1=permuted,
        images_per_second=1.0,
    )
    assert evaluation.classes_look_permuted(10) == expected


class Namer(torch.nn.Module):
    """Calls class c by another number, knowing it from the shards' order."""

    def __init__(self, targets: torch.Tensor, names: torch.Tensor, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.targets, self.names, self.seen = targets, names, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mine = self.targets[self.seen : self.seen + len(images)]
        self.seen += len(images)
        return torch.nn.functional.one_hot(self.names[mine], self.classes).float()


@pytest.mark.parametrize("names", ["shifted", "collapsed"])
def test_classes_in_another_order_are_told_from_a_student_that_knows_none(tmp_path, names) -> None:
    paths = write_digit_shards(tmp_path, [200])
    data = ValidationDataset(paths, center_views(SMALL_VIEWS, 1.0), classes=10, batch_size=64)
    targets = torch.cat([data[item].target for item in range(len(data))])
    called = (torch.arange(10) + 1) % 10 if names == "shifted" else torch.full((10,), 3)
    found = evaluate(Namer(targets, called), data, LoaderOptions())
    assert found.permuted_top1 == (1.0 if names == "shifted" else pytest.approx(0.1, abs=0.05))
    assert found.classes_look_permuted(10) == (names == "shifted")


def test_of_few_classes_nothing_is_said_about_their_order(tmp_path) -> None:
    paths = write_digit_shards(tmp_path, [200])
    data = ValidationDataset(paths, center_views(SMALL_VIEWS, 1.0), classes=40, batch_size=64)
    targets = torch.cat([data[item].target for item in range(len(data))])
    namer = Namer(targets, (torch.arange(10) + 1) % 10, classes=40)
    assert evaluate(namer, data, LoaderOptions()).permuted_top1 == 0


def without_times(evaluation: Evaluation) -> dict[str, object]:
    return {**evaluation.to_json(), "images_per_second": 0}


FOREIGN = {
    "deit.pth": lambda own: {"model": own.model, "epoch": 3, "args": argparse.Namespace(lr=1.0)},
    "timm.pth.tar.pt": lambda own: {"state_dict": own.model, "state_dict_ema": own.ema},
    "bare.pth": lambda own: dict(own.model),
    "weights.safetensors": lambda own: dict(own.model),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_weights_of_deit_and_timm_are_evaluated_as_their_own(world, tmp_path, name) -> None:
    own = open_checkpoint(world.root / "run" / "last.pt")
    values, path = FOREIGN[name](own), tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(values, path)
    given = {"model": own.student.model, "model_args": TINY, "image_size": 32}
    report = evaluate_checkpoint(settings(world, checkpoint=path, **given, eval_fraction=0.875))
    expected = evaluate_checkpoint(settings(world))
    assert report.step is None
    assert report.classes == 10
    assert (
        report.parameters
        == expected.parameters
        == sum(one.numel() for one in load_student(world.root / "run" / "last.pt").parameters())
    )
    assert set(report.evaluations) == ({"raw", "ema"} if "timm" in name else {"raw"})
    for which, found in report.evaluations.items():
        assert without_times(found) == without_times(expected.evaluations[which])


def test_weights_of_another_program_need_the_name_of_their_model(world, tmp_path) -> None:
    torch.save({"model": {"head.weight": torch.zeros(10, 3)}}, tmp_path / "x.pth")
    foreign = {"checkpoint": tmp_path / "x.pth"}
    with pytest.raises(ConfigError, match=r"x\.pth is no checkpoint of a run here: give `model`"):
        evaluate_checkpoint(settings(world, **foreign))
    with pytest.raises(CheckpointError, match="does not fit its model test_resnet"):
        evaluate_checkpoint(settings(world, **foreign, model="test_resnet", image_size=32))
    with pytest.raises(ConfigError, match="is of a student of 32 pixels, not 64; leave"):
        evaluate_checkpoint(settings(world, image_size=64))


@pytest.mark.timeout(60)
def test_a_pipe_for_a_checkpoint_is_refused_at_once(world, tmp_path) -> None:
    os.mkfifo(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="is a pipe, a socket or a device"):
        evaluate_checkpoint(settings(world, checkpoint=tmp_path / "x.pth"))


def test_a_checkpoint_is_read_once(world, monkeypatch) -> None:
    loads = []
    load = checkpoints.load_tensors
    monkeypatch.setattr(
        checkpoints, "load_tensors", lambda path: (loads.append(path), load(path))[1]
    )
    evaluate_checkpoint(settings(world))
    assert len(loads) == 1


def test_a_directory_is_evaluated_file_by_file(world, tmp_path, capsys) -> None:
    config = world.config(
        tmp_path / "run", val_shards=settings(world).val_shards, checkpoint_history=2, epochs=3
    )
    train(config, open_inputs(config))
    (tmp_path / "run" / "torn.pt").write_bytes(b"torn")
    arguments = [
        *("--checkpoint", str(tmp_path / "run"), "--val-shards", *settings(world).val_shards),
        *("--workers", "0", "--threads", "1", "--json", str(tmp_path / "all.json")),
    ]
    evaluate_main(arguments)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    names = ["best.pt", "epoch-0002.pt", "epoch-0003.pt", "last.pt", "previous.pt"]
    assert [line.split()[0] for line in lines[1:]] == names
    values = json.loads((tmp_path / "all.json").read_text())
    assert list(values) == names
    assert values["epoch-0003.pt"]["step"] == values["last.pt"]["step"] == 6
    assert values["epoch-0002.pt"]["step"] == 4
    top1 = values["last.pt"]["evaluations"]["raw"]["mean_of_logits"]["top1"]
    assert f"{top1:8.2%}" in lines[4]
    evaluate_main([*arguments[:-2], "--analysis"])
    lines = capsys.readouterr().out.splitlines()
    best = max(names, key=lambda name: values[name]["evaluations"]["raw"]["mean_of_logits"]["top1"])
    assert lines[6].endswith(f"/{best}, the best of them:")
    analyzed = next(line for line in printed.err.splitlines() if "next: evaluate-student" in line)
    require_command(shlex.split(analyzed.partition("next: ")[2]))
    assert f"/{best} --val-shards " in analyzed
    assert analyzed.endswith(" --analysis")
    assert lines[7].startswith("disagreement")
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match=r"holds no \.pt, \.pth, \.safetensors file"):
        evaluate_directory(settings(world, checkpoint=tmp_path / "none"))


def test_the_loss_is_the_mean_cross_entropy_of_each_prediction(world) -> None:
    paths = sorted((world.root / "validation").glob("*.tar"))
    views = center_views(SMALL_VIEWS, 0.875)
    data = ValidationDataset(paths, views, classes=10, batch_size=8)
    model = load_student(world.root / "run" / "last.pt")
    found = evaluate(model, data, LoaderOptions())
    losses: dict[str, list[float]] = {name: [] for name in FUSIONS}
    for batch in (data[item] for item in range(len(data))):
        with torch.no_grad(), two_headed(model):
            images = normalize(batch.pixels, views.mean, views.std)
            one, other = (head.double() for head in split_heads(model(images)))
        both = (one.softmax(-1) + other.softmax(-1)) / 2
        chances = (one.softmax(-1), other.softmax(-1), ((one + other) / 2).softmax(-1), both)
        for name, chance in zip(FUSIONS, chances, strict=True):
            losses[name] += (-chance.log()[range(len(batch.target)), batch.target]).tolist()
    for name in FUSIONS:
        # Logarithms in float32 against float64.
        assert found.of(name).loss == pytest.approx(np.mean(losses[name]), rel=1e-5)


@pytest.fixture
def evaluated(world, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A command's last lines, of a report that is there already."""
    report = evaluate_checkpoint(settings(world))

    def told(capsys: pytest.CaptureFixture[str], *flags: str, step: int | None = 4) -> list[str]:
        found, module = replace(report, step=step, unnamed=()), "student.evaluation.report"
        monkeypatch.setattr(f"{module}.evaluate_checkpoint", lambda _: found)
        monkeypatch.setattr(f"{module}.evaluate_directory", lambda _: {"b.pt": found})
        evaluate_main(flags)
        lines = capsys.readouterr().err.splitlines()
        return [line.removeprefix("evaluate-student: ") for line in lines]

    return told


LOOK = "next: evaluate-student --checkpoint my.pt --val-shards"
EXPORT = "next: export-student my.pt --to timm --out student.pth"


def test_an_evaluation_ends_with_a_look_and_an_export(evaluated, capsys) -> None:
    flags = ("--checkpoint", "my.pt", "--val-shards")
    look = f"{LOOK} a.tar 'b c.tar' --analysis"
    assert evaluated(capsys, *flags, "a.tar", "b c.tar") == [EXPORT, look]
    assert evaluated(capsys, *flags, "a.tar", "--analysis") == [EXPORT]
    beside = ("--val-labels", "v.parquet")
    assert evaluated(capsys, *flags, "a.tar", *beside) == [
        EXPORT,
        f"{LOOK} a.tar --val-labels v.parquet --analysis",
    ]
    # Weights of another program are where they are to be.
    assert evaluated(capsys, *flags, "a.tar", step=None) == [f"{LOOK} a.tar --analysis"]
    for line in (look, EXPORT):
        require_command(shlex.split(line.removeprefix("next: ")))


def test_an_evaluation_says_where_its_files_are(evaluated, capsys, tmp_path) -> None:
    flags = ("--checkpoint", "my.pt", "--val-shards", "a.tar", "--analysis")
    plot, values = str(tmp_path / "x.png"), str(tmp_path / "x.json")
    told = evaluated(capsys, *flags, "--plot", plot, "--json", values)
    assert told == [f"{values} is written", f"{plot} is written", EXPORT]


def test_of_a_directory_the_best_is_looked_at_and_exported(evaluated, capsys, tmp_path) -> None:
    best = tmp_path / "b.pt"
    assert evaluated(capsys, "--checkpoint", str(tmp_path), "--val-shards", "a.tar") == [
        f"next: export-student {best} --to timm --out student.pth",
        f"next: evaluate-student --checkpoint {best} --val-shards a.tar --analysis",
    ]
