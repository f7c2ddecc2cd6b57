"""The command ``train-student``: parses, calls, prints."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from pipeline.classes import class_text
from pipeline.cli.commands import label_store
from pipeline.cli.console import (
    Progress,
    as_typed,
    counted,
    described,
    flags_of,
    note,
    parse_flags,
    running,
    say,
    some_of,
    steps_shown,
    tell,
    tell_next,
    tell_page,
    unused,
    words_given,
)
from pipeline.cli.following import tell_report
from pipeline.errors import ConfigError, PipelineError
from pipeline.files.local import open_folder
from pipeline.files.local import replace as replace_file
from pipeline.files.objects import is_url
from pipeline.identity import PRESETS, MixConfig, different_fields
from pipeline.telling import heard_by
from student.config import EvaluateConfig, ExportConfig, TrainConfig
from student.habits import require_own_flags
from student.recipes import read_run_file, recipe
from student.signals import StopRequest, signal_name

if TYPE_CHECKING:
    from student.distributed import Ranks
    from student.engine import Outcome
    from student.evaluation.analysis import Analysis
    from student.evaluation.beside import RunStudent
    from student.evaluation.evaluate import Accuracy, Evaluation
    from student.evaluation.report import CheckpointReport
    from student.inputs import Inputs

__all__ = [
    "evaluate_main",
    "export_main",
    "main",
    "report_main",
    "store_main",
    "tell_after_training",
]

_DESCRIPTION = """Train a distilled student on the augmented views and teacher labels of a store.

Everything about the views comes from the store: size, augmentation, mixing, classes. Settings
can also come from --recipe deit (DeiT's defaults), --recipe deit-384 (its fine-tuning) and
--config FILE (the run.toml of an earlier run); flags override a file, a file a recipe.
Start several processes with torchrun."""
_FIRST = ("--labels", "--shards", "--output", "--model", "--epochs", "--val-shards")
_EXAMPLE = (
    *("--labels", "labels.parquet", "--shards", "shards/train", "--val-shards", "shards/val"),
    *("--model", "deit_tiny_distilled_patch16_224", "--epochs", "300", "--output", "runs/tiny"),
)
_TO_EVALUATE = ("--checkpoint", "--val-shards", "--analysis", "--val-labels", "--json")
_CHECKPOINT = ("--checkpoint", "runs/tiny/best.pt", "--val-shards", "shards/val", "--analysis")
_CLASSES = 20  # in a table
_EXPORTED = {"safetensors": "student.safetensors", "hub": "student", "onnx": "student.onnx"}
_NOT_COMPARED = "whether both number the classes alike is not known"
_INTERRUPTED = "interrupted; --resume auto goes on from the last checkpoint, if there is one"


@dataclass(frozen=True, kw_only=True)
class ExportFlags(ExportConfig):
    """Write a run's student as a file that timm, Hugging Face's hub or ONNX can load."""

    run: tyro.conf.Positional[str]
    """A run's directory, of which best.pt is taken, or else last.pt; or one of its checkpoints;
    path or URL."""


@dataclass(frozen=True, kw_only=True)
class TrainFlags(TrainConfig):
    """The settings, and where others come from: those two are read before all flags."""

    recipe: Literal["deit", "deit-384"] | None = None
    """Settings to begin with."""
    config: Path | None = None
    """TOML file of settings over the recipe's, such as the run.toml of an earlier run."""


def main(arguments: Sequence[str] | None = None, program: str = "train-student") -> None:
    """Run ``train-student``."""
    arguments = words_given(arguments)
    stop = StopRequest(_stop_before_training, program)
    flags = {
        **flags_of(TrainConfig, prefixes=False),
        **{"recipe": "--recipe", "config": "--config"},
    }
    with (
        running(program, flags, _INTERRUPTED, arguments),
        stop.listening(),
    ):
        try:
            _run(*_parse(arguments, program), stop)
        except PipelineError as error:
            # Rank 0 reports what stops all; torchrun's others report what is theirs alone.
            if type(error).__name__ == "SilentError":
                raise SystemExit(1) from None
            raise


def evaluate_main(
    arguments: Sequence[str] | None = None, program: str = "evaluate-student"
) -> None:
    """Run ``evaluate-student``."""
    arguments = words_given(arguments)
    with running(program, flags_of(EvaluateConfig), arguments=arguments):
        if arguments and not arguments[0].startswith("-"):
            raise ConfigError(f"name what to evaluate with a flag: {_evaluation_of(arguments[0])}")
        config: EvaluateConfig = parse_flags(
            EvaluateConfig,
            program,
            arguments,
            description=described(str(EvaluateConfig.__doc__), _TO_EVALUATE, program, *_CHECKPOINT),
            config=(tyro.conf.OmitArgPrefixes,),
        )
        _evaluate(config)


def _evaluation_of(run: str) -> str:
    """Return the command that evaluates a run or a checkpoint."""
    directory = Path(run) if Path(run).is_dir() else Path(run).parent
    there = [name for name in ("best.pt", "last.pt") if (Path(run) / name).exists()]
    checkpoint = str(Path(run) / there[0]) if there else run
    shards: tuple[str, ...] = ("...",)
    with contextlib.suppress(PipelineError):
        settings, _ = read_run_file(directory / "run.toml", ("model", "model_args"))
        shards = some_of(settings.get("val_shards", ()), "...")
    given = ("--checkpoint", checkpoint, "--val-shards", *shards)
    return as_typed("evaluate-student", *given)


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """Write a page that shows training runs beside each other, finished or not.

    It is one HTML file that asks for nothing.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Their output directories, paths or URLs."""
    out: Path = Path("runs.html")
    """The page to write; its name ends in .html."""


def report_main(arguments: Sequence[str] | None = None, program: str = "student-report") -> None:
    """Run ``student-report``."""
    arguments = words_given(arguments)
    with running(program, flags_of(ReportFlags), arguments=arguments):
        flags: ReportFlags = parse_flags(ReportFlags, program, arguments)
        from pipeline.reporting.page import require_page_name
        from student.run_report import compare_runs

        require_page_name(flags.out)
        replace_file(flags.out, compare_runs(flags.runs).encode())
        say(f"{flags.out}: {counted(len(flags.runs), 'run')}")
        tell_page(flags.out)


def store_main(arguments: Sequence[str] | None = None, program: str = "label-store") -> None:
    """Run ``label-store``, which can compare a store with a run's student."""

    def open_student(path: Path) -> RunStudent:
        from student.evaluation.beside import RunStudent

        return RunStudent(path)

    label_store(arguments, program, open_student)


def export_main(arguments: Sequence[str] | None = None, program: str = "export-student") -> None:
    """Run ``export-student``."""
    arguments = words_given(arguments)
    with running(program, flags_of(ExportConfig), arguments=arguments):
        if "--out" not in {word.partition("=")[0] for word in arguments} and "--to" in arguments:
            kind = arguments[arguments.index("--to") + 1 :][:1]
            out = unused(_EXPORTED.get(kind[0] if kind else "", "student.pth"))
            whole = as_typed("export-student", *arguments, "--out", out)
            raise ConfigError(f"where to write it is missing: {whole}")
        config: ExportFlags = parse_flags(ExportFlags, program, arguments)
        if config.to == "onnx":
            note("PyTorch traces the student, which takes half a minute")
        from student.exporting import export_student

        done = export_student(config)
        say(f"{done.out} is written, of {done.source}, {done.which} weights; to load it:")
        say(done.loading)
        tell(f"load {done.out} with the line above, where it is to be used")


def _evaluate(config: EvaluateConfig) -> None:
    from student.evaluation.report import evaluate_checkpoint, evaluate_directory  # loads PyTorch
    from student.output import is_directory

    if is_directory(config.checkpoint):
        reports = evaluate_directory(config)
        _print_directory(reports)
        if config.json is not None:
            _write_json(config.json, {name: one.to_json() for name, one in reports.items()})
        best = max(reports, key=lambda name: _top1_of(reports[name]))
        path = open_folder(config.checkpoint).at(best)
        if config.analysis:
            say(f"{path}, the best of them:")
            _show_analysis(config, reports[best])
        _tell_after_evaluation(config, reports[best], path)
        return
    with Progress("weights", f"evaluating {config.checkpoint}"):
        report = evaluate_checkpoint(config)
    if report.unnamed:
        note(f"{' and '.join(report.unnamed)} have no names of classes: {_NOT_COMPARED}")
    if report.step is not None:
        say(f"{config.checkpoint}, after {counted(report.step, 'step')}; predictions by head:")
    for name, evaluation in report.evaluations.items():
        title = "raw weights" if name == "raw" else "averaged weights"
        print_evaluation(title, evaluation, report.taught)
        warn_of_class_order(evaluation, report.classes)
    say(f"{'parameters':20} {report.parameters:8}")
    say(f"{'peak memory (MB)':20} {report.peak_memory_bytes / 1e6:8.0f}")
    speed = report.throughput
    say(
        f"{'student alone':20} {speed.images_per_second:8.0f} images per second "
        f"({1000 * speed.step_seconds:.1f} ms for {speed.rows}; {counted(speed.steps, 'step')})"
    )
    if config.json is not None:
        _write_json(config.json, report.to_json())
    _show_analysis(config, report)
    _tell_after_evaluation(config, report, config.checkpoint)


def _show_analysis(config: EvaluateConfig, report: CheckpointReport) -> None:
    from student.evaluation.analysis import plot_analysis

    if report.analysis is not None:
        _print_analysis(report.analysis)
        _print_classes(report.analysis, report.names)
        if config.plot is not None:
            plot_analysis(report.analysis, config.plot)


def _top1_of(report: CheckpointReport) -> float:
    fusion = "mean_of_logits" if report.taught else "class_head"
    return max(one.of(fusion).top1 for one in report.evaluations.values())


def _tell_after_evaluation(config: EvaluateConfig, report: CheckpointReport, best: str) -> None:
    """Say where the numbers are, and what to do with the best weights that were evaluated."""
    for path in (config.json, config.plot):
        if path is not None:
            note(f"{path} is written")
    if report.step is not None:  # else they are another program's already
        tell_export(best)
    if not config.analysis:
        given = ("--val-shards", *some_of(config.val_shards))
        beside = () if config.val_labels is None else ("--val-labels", str(config.val_labels))
        tell_next("evaluate-student", "--checkpoint", best, *given, *beside, "--analysis")
    run = None if is_url(best) else _run_of(Path(best).parent)
    if run is not None:
        tell_report(run[0], "--against", str(Path(best).parent), shards=run[1])


def _run_of(directory: Path) -> tuple[str, tuple[str, ...]] | None:
    """Return the store and the shards that a run in a directory here learned from, if it says so.

    Its file may be a stranger's: what would be a flag is not taken.
    """
    try:
        settings, _ = read_run_file(directory / "run.toml", ("model", "model_args"))
        labels, shards = str(settings["labels"]), tuple(settings["shards"])
    except (PipelineError, KeyError):
        return None
    return None if any(one.startswith("-") for one in (labels, *shards)) else (labels, shards)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    replace_file(path, json.dumps(values, indent=1).encode() + b"\n")


def _print_directory(reports: Mapping[str, CheckpointReport]) -> None:
    """Print a line for each file's weights, by what its predictions are taken from."""
    rows = [
        (f"{name} {which}", evaluation.of("mean_of_logits" if report.taught else "class_head"))
        for name, report in reports.items()
        for which, evaluation in report.evaluations.items()
    ]
    width = max(20, *(len(name) for name, _ in rows))
    say(f"{'weights':{width}} {_shares_header([found for _, found in rows])}")
    for name, found in rows:
        say(f"{name:{width}} {_shares(found)}")


def _shares_header(found: Sequence[Accuracy]) -> str:
    """Return the header of accuracies; of few classes there is no top-5."""
    top5 = f" {'top-5':>8}" if any(one.top5 is not None for one in found) else ""
    return f"{'top-1':>8}{top5} {'loss':>8}"


def _shares(found: Accuracy) -> str:
    top5 = "" if found.top5 is None else f" {found.top5:8.2%}"
    return f"{found.top1:8.2%}{top5} {found.loss:8.4f}"


def _print_analysis(analysis: Analysis) -> None:
    names = [name.replace("_", " ") for name in analysis.names]
    say(f"{'disagreement':20} " + " ".join(f"{name:>8}" for name in names))
    for label, shares in zip(names, analysis.disagreement, strict=True):
        cells = zip(names, shares, strict=True)
        say(f"{label:20} " + " ".join(f"{share:{max(8, len(name))}.4f}" for name, share in cells))
    if analysis.token_cosine is not None:
        layers = " ".join(f"{value:.3f}" for value in analysis.token_cosine)
        say(f"cosine of class and distillation token, input and layers: {layers}")


def _print_classes(analysis: Analysis, names: Sequence[str] | None) -> None:
    """Print how classes are called, those with the lowest accuracy first."""
    worst = sorted(analysis.classes, key=lambda one: (one.right / one.samples, one.number))
    words = [class_text(one.number, names) for one in worst[:_CLASSES]]
    width = max(20, *map(len, words)) if words else 20
    title = f"by {analysis.prediction.replace('_', ' ')}"
    say(f"{title:{width}} {'top-1':>8} {'images':>8} {'precision':>9}  mostly mistaken for")
    for one, word in zip(worst[:_CLASSES], words, strict=True):
        other = one.mistaken_for
        most = "" if other is None else f"  {class_text(other, names)} ({one.mistaken})"
        precision = f"{one.right / one.called:.2%}" if one.called else "-"
        shares = f"{one.right / one.samples:8.2%} {one.samples:8} {precision:>9}"
        say(f"{word:{width}} {shares}{most}")
    if len(worst) > _CLASSES:
        say(f"and {len(worst) - _CLASSES} more classes, all of them in the JSON")


def warn_of_class_order(evaluation: Evaluation, classes: int) -> None:
    """Say so if the student tells the classes apart but calls them by other numbers."""
    if evaluation.classes_look_permuted(classes):
        note(
            f"warning: the student is right on {evaluation.class_head.top1:.1%}, but "
            f"would be on {evaluation.permuted_top1:.1%} if the classes were numbered otherwise: "
            "the validation shards' .cls may be in another order than those it was trained with"
        )


def _parse(
    arguments: Sequence[str], program: str = "train-student"
) -> tuple[TrainConfig, str | None]:
    """Return the settings, and the recipe that they began with.

    Defaults lie under a recipe's settings, those under a file's, those under the flags'.
    """
    require_own_flags(arguments)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--config", type=Path)
    given, flags = first.parse_known_args(list(arguments))
    settings: dict[str, Any] = dict.fromkeys(("labels", "shards", "output"), tyro.MISSING)
    name = given.recipe
    if name is not None:
        settings.update(recipe(name))
    if given.config is not None:
        names = [flag[2:].partition("=")[0] for flag in flags if flag.startswith("--")]
        named = {name.replace("-", "_") for name in names}
        values, own = read_run_file(given.config, named)
        settings.update(values)
        name = own or name
    parsed: TrainFlags = parse_flags(
        TrainFlags,
        program,
        flags,
        description=described(_DESCRIPTION, _FIRST, program, *_EXAMPLE),
        default=TrainFlags(**_fields(TrainConfig.of_settings(**settings))),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return TrainConfig(**_fields(parsed)), name


def _fields(config: TrainConfig) -> dict[str, Any]:
    return {one.name: getattr(config, one.name) for one in fields(TrainConfig)}


def _status_after(number: int) -> int:
    """Return the exit status of a process that a signal stopped."""
    return 128 + number


def _stop_before_training() -> None:
    note("stopped by SIGTERM before the first step; nothing was trained or written")
    sys.stderr.flush()
    os._exit(_status_after(signal.SIGTERM))  # nothing is open yet, and imports may be half done


def _run(config: TrainConfig, recipe_name: str | None, stop: StopRequest) -> None:
    config.student.check_fetched()
    if not is_url(config.output) and "RANK" not in os.environ:  # before PyTorch is loaded
        config.require_free(Path(config.output), config.resume)
    # Imported here, so that --help does not wait for PyTorch.
    from student.distributed import read_ranks

    ranks = read_ranks()
    with heard_by(steps_shown if ranks.first else None):
        _train(config, recipe_name, stop, ranks)


def _train(config: TrainConfig, recipe_name: str | None, stop: StopRequest, ranks: Ranks) -> None:
    from student.inputs import open_inputs

    inputs = open_inputs(config)
    config.teacher.check_fetched(inputs.store.identity.teacher.architecture)
    from student.engine import train  # takes seconds, since timm loads with it

    if ranks.first:
        _announce(config, inputs)
        if recipe_name is not None:
            _warn_of_other_views(inputs)
        there = open_folder(config.output).exists("last.pt")
        fresh = config.student.finetune is None and not there
        if recipe_name == "deit-384" and fresh and config.resume in (None, "auto"):
            note("warning: --recipe deit-384 without --finetune begins from untrained weights")
    logging.getLogger("student").setLevel(logging.INFO)
    with stop.training(), Progress("steps") as progress:
        show = progress.show if ranks.first else lambda done, total: None
        outcome = train(config, inputs, stop=stop, show=show, ranks=ranks)
    if outcome.stopped_by:
        if ranks.first:
            note(
                f"stopped by {signal_name(outcome.stopped_by)} after step "
                f"{outcome.steps}/{inputs.plan.steps}; {config.output_file('last.pt')} is written, "
                "continue with --resume auto"
            )
        sys.exit(_status_after(outcome.stopped_by))
    if ranks.first:
        _summarize(config, outcome, inputs.store.identity.teacher.classes)


def _announce(config: TrainConfig, inputs: Inputs) -> None:
    """Say what is about to be trained, and warn of what is missing."""
    plan, identity = inputs.plan, inputs.store.identity
    size, student = identity.augment.image_size, config.student
    resized = (
        f" resized to {student.student_size}" if student.student_size not in (None, size) else ""
    )
    labels = (
        "the teacher in the loop"
        if config.teacher.teacher_in_loop
        else f"labels of {config.labels}"
    )
    note(
        f"{student.model} on {plan.rows_per_epoch} samples at {size}x{size} pixels{resized}, "
        f"{identity.teacher.classes} classes, {labels} ({identity.teacher.architecture})"
    )
    note(
        f"{counted(config.plan.epochs, 'epoch')} from view {plan.first_view} on, "
        f"{counted(plan.steps, 'step')} of {config.plan.batch_size} rows"
        + (f"; {counted(plan.dropped_rows, 'row')} left over" if plan.dropped_rows else "")
    )
    if inputs.unnamed:
        note(f"{' and '.join(inputs.unnamed)} have no names of classes: {_NOT_COMPARED}")
    if not config.evaluation.val_shards:
        note("warning: no --val-shards, so nothing is evaluated and there is no best.pt")
    if not config.run.audit:
        note(
            "warning: --no-audit: nothing shows any more that the labels belong to the pixels "
            "that the student sees"
        )


def _warn_of_other_views(inputs: Inputs) -> None:
    """Warn if a run of one of DeiT's recipes replays views that were not drawn by it."""
    augment, mix = inputs.store.identity.augment, inputs.store.identity.mix
    deit = replace(
        PRESETS["deit"], image_size=augment.image_size, mean=augment.mean, std=augment.std
    )
    different = [
        *different_fields(asdict(augment), asdict(deit)),
        *different_fields(asdict(mix), asdict(MixConfig())),
    ]
    if different:
        note(
            f"warning: the store's views are not DeiT's (store's / DeiT's): {', '.join(different)}"
        )


def print_evaluation(title: str, evaluation: Evaluation, taught: bool = True) -> None:
    """Print a table of accuracies on stdout, of a student not ``taught`` its class head's."""
    teacher = evaluation.teacher
    more = f" {'teacher':>8}" if teacher else ""
    say(f"{title:20} {_shares_header([evaluation.class_head])}{more}")
    for name in ("class_head", "distillation_head", "mean_of_logits", "sum_of_softmaxes"):
        accuracy = getattr(evaluation, name)
        if accuracy is not None and (taught or name == "class_head"):
            alike = f" {teacher.agreement[name]:8.2%}" if teacher else ""
            label = name.replace("_", " ")
            say(f"{label:20} {_shares(accuracy)}{alike}")
    if teacher:
        say(f"{'the teacher':20} {teacher.accuracy:8.2%}")
    say(f"{'images':20} {evaluation.samples:8}")
    say(f"{'images per second':20} {evaluation.images_per_second:8.0f}")


def _summarize(config: TrainConfig, outcome: Outcome, classes: int) -> None:
    """Print the final table on stdout."""
    for title, evaluation in (
        ("raw weights", outcome.evaluation),
        ("averaged weights", outcome.ema_evaluation),
    ):
        if evaluation is not None:
            print_evaluation(title, evaluation, config.distillation.loss.taught)
            warn_of_class_order(evaluation, classes)
    if outcome.epoch_seconds:
        total = sum(seconds["total"] for seconds in outcome.epoch_seconds)
        spent = sum(seconds.get("evaluation", 0.0) for seconds in outcome.epoch_seconds)
        epochs = len(outcome.epoch_seconds)
        say(f"seconds per epoch    {(total - spent) / epochs:8.2f} (evaluation not included)")
    say(f"peak memory (MB)     {outcome.peak_memory_bytes / 1e6:8.0f}")
    say(f"views audited        {outcome.audited:8}")
    say(f"steps                {outcome.steps:8}")
    say(f"weights {config.output_file('last.pt')} sha256 {outcome.weights}")
    tell_after_training(config)


def tell_after_training(config: TrainConfig) -> None:
    """Say where a run's report is, and what to do with its checkpoint."""
    report = config.output_file("report.html")
    say(f"report {report}")
    tell_page(report)
    shards = config.evaluation.val_shards
    if shards:
        given = ("--val-shards", *some_of(shards), "--analysis")
        tell_next("evaluate-student", "--checkpoint", config.output_file("best.pt"), *given)
        return
    tell("`evaluate-student` says how good it is, with --val-shards; to use it elsewhere:")
    tell_export(config.output_file("last.pt"))


def tell_export(checkpoint: str) -> None:
    """Name the command that writes a student for other programs."""
    tell_next("export-student", checkpoint, "--to", "timm", "--out", unused("student.pth"))


if __name__ == "__main__":
    main()
