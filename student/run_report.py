"""A training run as a page: what its log says, and what its student mistakes; or several beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.classes import class_text
from pipeline.errors import ConfigError
from pipeline.files.local import open_folder, replace
from pipeline.files.objects import is_url
from pipeline.identity import MUCH_JSON, memory_of_json, read_json
from pipeline.reporting.charts import Series, lines_chart, number_text, share_text
from pipeline.reporting.page import (
    Bar,
    Block,
    Facet,
    Gallery,
    Matrix,
    Page,
    Picture,
    Section,
    Table,
    Text,
    render,
)

if TYPE_CHECKING:
    from student.evaluation.analysis import Analysis, WorstSample
    from student.evaluation.validation import ValidationDataset

__all__ = ["REPORT", "RunRecord", "compare_runs", "read_run", "report_run"]

REPORT = "report.html"

_FUSIONS = ("class_head", "distillation_head", "mean_of_logits", "sum_of_softmaxes")
_LISTED = 1000  # rows of a table
_LONGEST = 2000  # letters of a setting
_CONFUSED = 200  # pairs of classes
_MOST_BYTES = 1 << 28  # of a file; a long run's log has some millions
_GREATEST = 1e30  # what a log may say; it may be a stranger's

_FACETS = (
    Facet(name="truth", title="True class"),
    Facet(name="called", title="Called"),
    Facet(name="teacher", title="The teacher"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a run left in its directory. Its lines are those of the metrics log, by kind."""

    name: str
    config: Mapping[str, Any]
    train: tuple[Mapping[str, Any], ...]
    epochs: tuple[Mapping[str, Any], ...]

    def series(self, kind: str, *names: str, x: str = "step") -> list[tuple[float, float]]:
        """Return (x, y) of the lines that have a number at a path of names.

        ``kind`` is train, epoch, or whole: epochs that were not broken off and resumed.
        """
        found = []
        # Lines of training say what lines of epochs do, and are more, unless a run is short.
        fine = kind == "train" and len(self.train) >= max(2, len(self.epochs))
        lines = self.train if fine else self.epochs
        if kind == "whole":
            lines = tuple(one for one in lines if "timed_from_step" not in one)
        for line in lines:
            y = _number(line, *names)
            at = _number(line, x)
            if y is not None and at is not None:
                found.append((at + (x == "epoch"), y))  # epochs count from 1 for people
        return found

    @property
    def headline(self) -> str:
        """What predictions are taken from: of one head or two."""
        last = self.epochs[-1] if self.epochs else {}
        both = _number(last, "evaluation", "mean_of_logits", "top1") is not None
        taught = self.config.get("distillation") != "none"
        return "mean_of_logits" if both and taught else "class_head"

    @property
    def has_two_heads(self) -> bool:
        """Whether an evaluation tells of a head beside the class head."""
        return any(_number(one, "evaluation", "distillation_head", "top1") for one in self.epochs)

    @property
    def has_averages(self) -> bool:
        """Whether a moving mean of the weights was evaluated too."""
        return any("ema_evaluation" in one for one in self.epochs)


def _number(line: Mapping[str, Any], *names: str) -> float | None:
    value: Any = line
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if fits and abs(value) < _GREATEST else None


def read_run(output: str | Path) -> RunRecord:
    """Read what a run left in its directory, a path or URL, finished or not.

    Raises ``ConfigError`` for a directory that holds no run, ``PipelineError`` for a file that is a
    pipe, a link out of it, or larger than a run's.
    """
    try:
        folder = open_folder(output)  # so no pipe is waited for, and no link leads out
        settings = folder.read_unwatched("config.json", _MOST_BYTES)
        config = read_json(settings).get("config", {})
        data = folder.read_unwatched("metrics.jsonl", _MOST_BYTES)
        if memory_of_json(data) > MUCH_JSON:
            raise ValueError(f"its log may take more than {MUCH_JSON >> 20} MiB of memory")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{output} holds no run that can be read ({error}); give the output directory of one"
        ) from error
    lines = list(_lines(data))
    location = str(output)
    return RunRecord(
        name=(Path(location.rstrip("/")) if is_url(location) else Path(output).resolve()).name,
        config=config if isinstance(config, dict) else {},
        train=tuple(one for one in lines if one.get("kind") == "train"),
        epochs=tuple(one for one in lines if one.get("kind") == "epoch"),
    )


def _lines(data: bytes) -> Iterator[Mapping[str, Any]]:
    """Yield the whole lines of a log; a torn last one is left out."""
    for line in data.splitlines():
        try:
            value = read_json(line)
        except ValueError:
            return
        if isinstance(value, dict):
            yield value


def report_run(
    output: Path,
    analysis: Analysis | None = None,
    validation: ValidationDataset | None = None,
    *,
    names: Sequence[str] | None = None,
    pictures: int = 24,
) -> Path:
    """Write report.html into a run's directory, and return its path.

    ``analysis`` says what the student mistakes, with ``pictures`` of the worst of ``validation``;
    ``names`` are those of the classes. Raises ``ConfigError`` for a directory without a run.
    """
    run = read_run(output)
    sections = [*_course([run]), *_accuracy([run]), *_speed([run])]
    if analysis is not None:
        sections += _mistakes(analysis, names)
        worst = analysis.worst[:pictures] if validation is not None else ()
        if validation is not None and worst:
            gallery = _worst_images(worst, validation, names)
            sections.append(gallery)
    sections.append(_settings([run]))
    path = output / REPORT
    replace(path, render(_page(f"Run {run.name}", [run], sections)).encode())
    return path


def compare_runs(outputs: Sequence[str | Path]) -> str:
    """Return a page, as HTML, that shows runs beside each other, finished or not.

    Raises ``ConfigError`` for a directory without a run.
    """
    if not outputs:
        raise ConfigError("`runs` is empty; give the output directory of one run at least")
    runs = [read_run(one) for one in outputs]
    twice = len({one.name for one in runs}) < len(runs)
    if twice:
        runs = [
            RunRecord(name=str(path), config=one.config, train=one.train, epochs=one.epochs)
            for path, one in zip(outputs, runs, strict=True)
        ]
    sections = [*_course(runs), *_accuracy(runs), *_speed(runs), _settings(runs)]
    title = f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"
    return render(_page(title, runs, sections))


def _page(title: str, runs: Sequence[RunRecord], sections: Sequence[Section]) -> Page:
    best = [(max((y for _, y in _top1(one)), default=None), one) for one in runs]
    known = [(top1, one) for top1, one in best if top1 is not None]
    figures = [("runs", str(len(runs)))] if len(runs) > 1 else _figures(runs[0])
    if known:
        top1, run = max(known, key=lambda one: one[0])
        text = share_text(top1) + (f", {run.name}" if len(runs) > 1 else "")
        what = "best top-1 of an epoch" if len(runs) > 1 else "best top-1, that of best.pt"
        figures.append((f"{what}, by the {_words(run.headline)}", text))
    return Page(
        title=title,
        subtitle=", ".join(dict.fromkeys(str(one.config.get("model", "")) for one in runs)),
        figures=tuple(figures),
        sections=tuple(sections),
    )


def _figures(run: RunRecord) -> list[tuple[str, str]]:
    losses, speeds = run.series("epoch", "loss"), run.series("epoch", "rows_per_second")
    steps = max((int(_number(one, "step") or 0) for one in (*run.train, *run.epochs)), default=0)
    figures = [
        ("epochs", f"{len(run.epochs)} of {run.config.get('epochs', '?')}"),
        ("steps", f"{steps:,}"),
    ]
    if losses:
        figures.append(("last epoch's loss", f"{losses[-1][1]:.4f}"))
    if speeds:
        figures.append(("images per second", number_text(round(speeds[-1][1]))))
    memory = [y for _, y in run.series("epoch", "peak_memory_bytes")]
    if memory:
        figures.append(("peak memory", f"{max(memory) / 1e6:,.0f} MB"))
    return figures


def _top1(run: RunRecord) -> list[tuple[float, float]]:
    """Return the better top-1 of raw and averaged weights by epoch."""
    lines = [
        dict(run.series("epoch", kind, run.headline, "top1", x="epoch"))
        for kind in ("evaluation", "ema_evaluation")
    ]
    return [
        (epoch, max(one[epoch] for one in lines if epoch in one))
        for epoch in sorted({*lines[0], *lines[1]})
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _each(runs: Sequence[RunRecord], kind: str, *names: str, x: str = "step") -> list[Series]:
    """Return a line for each run."""
    return [Series(name=one.name, points=one.series(kind, *names, x=x)) for one in runs]


def _several(run: RunRecord, kind: str, *names: str) -> list[Series]:
    """Return a line for each of some numbers of one run."""
    return [Series(name=_words(name), points=run.series(kind, name)) for name in names]


def _course(runs: Sequence[RunRecord]) -> list[Section]:
    if len(runs) == 1:
        losses = _several(runs[0], "train", "loss", "class_loss", "distillation_loss")
        alike = _several(runs[0], "train", "agreement", "teacher_accuracy")
    else:
        losses = _each(runs, "train", "loss")
        alike = _each(runs, "train", "agreement")
    rates = _each(runs, "train", "lr")
    if len(runs) == 1:
        rates = [Series(name="learning rate", points=rates[0].points)]
    head = "distillation head" if any(one.has_two_heads for one in runs) else "prediction"
    text = (
        f"Agreement is the share of training views where the student's {head} says what "
        "the teacher does, teacher accuracy that of those where the teacher names a class of the "
        "mixed image."
    )
    return [
        Section(
            name="course",
            title="Course",
            blocks=(
                lines_chart("Loss", losses, x_label="step", y_label="loss"),
                lines_chart("Learning rate", rates, x_label="step", y_label="learning rate"),
                lines_chart(
                    "Agreement with the teacher, on training views",
                    alike,
                    x_label="step",
                    y_label="share of views",
                    shares=True,
                ),
                Text(paragraphs=(text,), half=True),
            ),
        )
    ]


def _accuracy(runs: Sequence[RunRecord]) -> list[Section]:
    if not any(_top1(one) for one in runs):
        return [
            Section(
                name="accuracy",
                title="Accuracy",
                blocks=(Text(paragraphs=("Nothing was evaluated: there are no such shards.",)),),
            )
        ]
    charts: list[Block] = []
    if len(runs) == 1:
        charts.append(_epochs_chart("Top-1 by epoch", _fusion_lines(runs[0], "top1")))
        if top5 := _fusion_lines(runs[0], "top5"):
            charts.append(_epochs_chart("Top-5 by epoch", top5))
        losses = _fusion_lines(runs[0], "loss")
        alike = [
            Series(
                name=_words(name),
                points=runs[0].series(
                    "epoch", "evaluation", "teacher", "agreement", name, x="epoch"
                ),
            )
            for name in _FUSIONS
        ]
    else:
        losses = [
            Series(
                name=one.name,
                points=one.series("epoch", "evaluation", one.headline, "loss", x="epoch"),
            )
            for one in runs
        ]
        charts.append(
            _epochs_chart(
                "Top-1 by epoch", [Series(name=one.name, points=_top1(one)) for one in runs]
            )
        )
        alike = [
            Series(
                name=one.name,
                points=one.series(
                    "epoch", "evaluation", "teacher", "agreement", one.headline, x="epoch"
                ),
            )
            for one in runs
        ]
    if any(one.points for one in losses):
        caption = "Loss on validation images"
        charts.append(lines_chart(caption, losses, x_label="epoch", y_label="loss"))
    if any(one.points for one in alike):
        charts.append(_epochs_chart("Agreement with the teacher, on validation images", alike))
    texts = []
    if any(one.has_two_heads for one in runs):
        texts.append(
            "A student of two heads is asked for the class by the class head, by the distillation "
            "head, which learns from the teacher, or by both: by the mean of their logits, or by "
            "the sum of their softmaxes."
        )
    if any(one.has_averages for one in runs):
        texts.append("Averaged weights are a moving mean over the steps, raw ones the last step's.")
    if texts:  # beside the last chart
        charts.append(Text(paragraphs=(" ".join(texts),), half=len(charts) % 2 == 1))
    return [Section(name="accuracy", title="Accuracy", blocks=(*charts, _final(runs)))]


def _epochs_chart(caption: str, series: Sequence[Series]) -> Block:
    return lines_chart(caption, series, x_label="epoch", y_label="share of images", shares=True)


def _fusion_lines(run: RunRecord, what: str) -> list[Series]:
    found = [
        Series(
            name=_words(name) + (", averaged" if kind == "ema_evaluation" else ""),
            points=run.series("epoch", kind, name, what, x="epoch"),
        )
        for kind in ("evaluation", "ema_evaluation")
        for name in _FUSIONS
    ]
    return [one for one in found if one.points]


def _final(runs: Sequence[RunRecord]) -> Table:
    """Return the last evaluation's accuracies: of each head and fusion, raw and averaged."""
    rows = []
    five = any(_fusion_lines(one, "top5") for one in runs)  # few classes have no top-5
    known = any(
        one.series("epoch", "evaluation", "teacher", "agreement", name)
        for one in runs
        for name in _FUSIONS
    )
    for run in runs:
        nothing: Mapping[str, Any] = {}
        last = next((one for one in reversed(run.epochs) if "evaluation" in one), nothing)
        for kind, weights in (("evaluation", "raw"), ("ema_evaluation", "averaged")):
            for name in _FUSIONS:
                top1 = _number(last, kind, name, "top1")
                if top1 is None:
                    continue
                top5 = _number(last, kind, name, "top5")
                loss = _number(last, kind, name, "loss")
                alike = _number(last, kind, "teacher", "agreement", name)
                rows.append(
                    (
                        *((run.name,) if len(runs) > 1 else ()),
                        _words(name),
                        weights,
                        Bar(text=share_text(top1), share=top1),
                        *(("-" if top5 is None else share_text(top5),) if five else ()),
                        "-" if loss is None else f"{loss:.4f}",
                        *(("-" if alike is None else share_text(alike),) if known else ()),
                    )
                )
    head = (*(("run",) if len(runs) > 1 else ()), "prediction from", "weights", "top-1")
    return Table(
        name="final",
        caption="The last evaluation, of last.pt",
        header=(
            *head,
            *(("top-5",) if five else ()),
            "loss",
            *(("agrees with the teacher",) if known else ()),
        ),
        rows=tuple(rows),
    )


def _speed(runs: Sequence[RunRecord]) -> list[Section]:
    speeds = _each(runs, "epoch", "rows_per_second", x="epoch")
    if len(runs) == 1:
        speeds = [Series(name="images per second", points=speeds[0].points)]
        kinds = ("data", "student", "teacher", "evaluation")
        seconds = [
            Series(name=kind, points=runs[0].series("whole", "seconds", kind, x="epoch"))
            for kind in kinds
        ]
        caption = "Seconds of an epoch, by what they were spent on"
    else:
        seconds = _each(runs, "whole", "seconds", "data", x="epoch")
        caption = "Seconds of an epoch that were spent waiting for data"
    text = (
        "Images are those of training, evaluation not included. Data is the wait for the next "
        "batch. On a GPU, whose work goes on meanwhile, data and student are right in their sum. "
        "Of an epoch in which the run was resumed, the throughput is that of the steps since then, "
        "and its seconds are left out."
    )
    return [
        Section(
            name="speed",
            title="Speed",
            blocks=(
                lines_chart(
                    "Throughput",
                    speeds,
                    x_label="epoch",
                    y_label="images per second",
                    from_zero=True,
                ),
                lines_chart(caption, seconds, x_label="epoch", y_label="seconds", from_zero=True),
                Text(paragraphs=(text,)),
            ),
        )
    ]


def _mistakes(analysis: Analysis, names: Sequence[str] | None) -> list[Section]:
    worst = sorted(analysis.classes, key=lambda one: (one.right / one.samples, one.number))
    most = analysis.confused[0].samples if analysis.confused else 1
    text = (
        f"Classes are called by the {_words(analysis.prediction)}, on center views of "
        f"{sum(one.samples for one in analysis.classes):,} validation images, with the weights of "
        "the last step (last.pt). What best.pt mistakes, evaluate-student says."
    )
    compared = Matrix(
        name="disagreement",
        caption=f"Disagreement: share of {analysis.samples:,} images that two call differently",
        names=tuple(map(_words, analysis.names)),
        shares=analysis.disagreement,
    )
    blocks: list[Block] = [
        Text(paragraphs=(text,)),
        *([compared] if len(analysis.names) > 2 else []),  # of two it says what top-1 does
        Table(
            name="classes",
            half=True,
            caption="Top-1 by true class, the lowest first",
            header=("true class", "images", "right", "top-1"),
            rows=tuple(
                (
                    class_text(one.number, names),
                    one.samples,
                    one.right,
                    Bar(text=share_text(one.right / one.samples), share=one.right / one.samples),
                )
                for one in worst[:_LISTED]
            ),
            more=max(0, len(worst) - _LISTED),
        ),
        Table(
            name="confused",
            half=True,
            caption="Classes that are mistaken most often",
            header=("true class", "called", "images"),
            rows=tuple(
                (
                    class_text(one.target, names),
                    class_text(one.called, names),
                    Bar(text=f"{one.samples:,}", share=one.samples / most),
                )
                for one in analysis.confused[:_CONFUSED]
            ),
            more=max(0, len(analysis.confused) - _CONFUSED),
        ),
    ]
    if analysis.token_cosine is not None:
        points = [(float(layer), value) for layer, value in enumerate(analysis.token_cosine)]
        blocks.append(
            lines_chart(
                "Cosine of class and distillation token, by layer",
                [Series(name="cosine", points=points)],
                x_label="layer, 0 is the input",
                y_label="cosine",
            )
        )
    return [Section(name="mistakes", title="Mistakes", blocks=tuple(blocks))]


def _worst_images(
    worst: Sequence[WorstSample], validation: ValidationDataset, names: Sequence[str] | None
) -> Section:
    text = (
        f"The {len(worst)} validation images to whose true class the student gives the lowest "
        "probability, as it saw them."
    )
    gallery = Gallery(
        caption="The worst images",
        facets=_FACETS,
        pictures=tuple(_worst_picture(one, validation, names) for one in worst),
    )
    return Section(name="worst", title="Worst images", blocks=(Text(paragraphs=(text,)), gallery))


def _worst_picture(
    one: WorstSample, validation: ValidationDataset, names: Sequence[str] | None
) -> Picture:
    from pipeline.reporting.images import SMALL, image_url

    pixels = validation.view_of(one.row)
    truth, called = class_text(one.target, names), class_text(one.called, names)
    teacher = "unknown" if one.teacher is None else class_text(one.teacher, names)
    lines = [f"truth: {truth} ({one.probability:.1%})", f"student: {called} ({one.confidence:.0%})"]
    return Picture(
        source=image_url(pixels),
        alt=", ".join((one.key, *lines)),
        title=one.key,
        stressed=lines[1] if one.called != one.target else "",
        lines=(*lines, *([] if one.teacher is None else [f"teacher: {teacher}"])),
        pixelated=max(pixels.shape) <= SMALL,
        facets={
            "truth": truth,
            "called": called,
            "teacher": "is not known"
            if one.teacher is None
            else "is right"
            if one.teacher == one.target
            else "says what the student does"
            if one.teacher == one.called
            else "says another class",
        },
    )


def _settings(runs: Sequence[RunRecord]) -> Section:
    """Return the settings: of several runs first those that differ."""
    fields = list(dict.fromkeys(name for one in runs for name in one.config))
    more, fields = max(0, len(fields) - _LISTED), fields[:_LISTED]
    rows = [(_value(name), *(_value(one.config.get(name)) for one in runs)) for name in fields]
    header = ("setting", *(one.name if len(runs) > 1 else "value" for one in runs))
    blocks: list[Block] = []
    if len(runs) > 1:
        different = tuple(row for row in rows if len(set(row[1:])) > 1)
        blocks.append(
            Table(name="different", caption="They differ in", header=header, rows=different)
        )
    blocks.append(
        Table(
            name="settings",
            caption="All settings",
            folded=True,
            header=header,
            rows=tuple(rows),
            more=more,
        )
    )
    return Section(name="settings", title="Settings", blocks=tuple(blocks))


def _value(value: Any) -> str:
    """Return a setting as text: of one that is long, such as a thousand shards, its beginning."""
    words = " ".join(map(str, value[:_LISTED])) if isinstance(value, list) else str(value)
    text = "" if value is None else words
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
