#!/usr/bin/env python
"""Writes the report of all results in a directory; every number in it is one of theirs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

if __name__ == "__main__":  # run by path: the packages lie two directories up
    sys.path[0] = str(Path(__file__).resolve().parents[2])

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import tyro

from examples.cifar10.arms import ARMS, ArmResult, read_results
from examples.cifar10.config import SETTINGS, ArmName
from examples.cifar10.plots import Curve, draw_plots
from examples.cifar10.stores import StoreFacts, read_facts
from pipeline.errors import ConfigError
from pipeline.files.local import replace
from pipeline.store.card import markdown_table, share

__all__ = ["Check", "Evidence", "checks", "evidence_text", "read_evidence", "write_report"]

_HEADS = ("class_head", "distillation_head", "mean_of_logits")
_NOTHING = "-"
_VERDICTS = {True: "yes", False: "**no**", None: "open"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that the results in a directory say."""

    settings: Mapping[str, Any]
    stores: Mapping[str, StoreFacts]
    results: Mapping[ArmName, Mapping[int, ArmResult]]  # by arm and seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Something that was expected, and what was found."""

    expected: str
    found: str
    holds: bool | None  # None: the runs do not tell


def read_evidence(out: Path) -> Evidence:
    """Read all results. Raises ``ConfigError`` if there are none."""
    results: dict[ArmName, dict[int, ArmResult]] = {}
    for result in read_results(out):
        results.setdefault(result.arm, {})[result.seed] = result
    if not results:
        raise ConfigError(f"{out} holds no results; run examples/cifar10/run.py first")
    return Evidence(
        settings=json.loads((out / SETTINGS).read_bytes()),
        stores={one.name: one for one in read_facts(out)},
        results=results,
    )


def top1(result: ArmResult, head: str | None = None) -> float:
    """Return a run's accuracy in per cent, by default of what its arm is scored by."""
    head = head or scored_by(result.arm)
    return 100 * float(result.evaluation[head]["top1"])


def scored_by(arm: ArmName) -> str:
    """Return the head that an arm is scored by."""
    return "class_head" if ARMS[arm].distillation == "none" else "mean_of_logits"


def differences(evidence: Evidence, one: ArmName, other: ArmName) -> list[float]:
    """Return by how many points one arm is above another, of each seed that both have."""
    ours, theirs = (evidence.results.get(name, {}) for name in (one, other))
    return [top1(ours[seed]) - top1(theirs[seed]) for seed in ours if seed in theirs]


_FEWEST = 3  # seeds from which anything is concluded
_STUDENT_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom."""


def interval(points: Sequence[float]) -> tuple[float, float]:
    """Return where the mean of such differences lies with 95 % confidence.

    Of fewer than three it may lie anywhere: two that are equal by chance would leave no doubt.
    """
    if len(points) < _FEWEST:
        return -inf, inf
    freedom = min(len(points) - 1, len(_STUDENT_975))
    reach = _STUDENT_975[freedom - 1] * stdev(points) / sqrt(len(points))
    return mean(points) - reach, mean(points) + reach


def within(points: Sequence[float], low: float, high: float) -> bool | None:
    """Return whether the mean of such differences lies between two bounds, None if unknown.

    It does if all of its 95 % confidence interval does, and does not if nothing of it does.
    """
    least, most = interval(points)
    if low < least and most < high:
        return True
    return False if most <= low or least >= high else None


_COMPARED: tuple[tuple[str, ArmName, ArmName, float, float], ...] = (
    ("hard labels are 1 to 4 points above none", "hard-store", "none", 1, 4),
    ("hard labels are above static ones", "hard-store", "static", 0, inf),
    ("hard labels are above soft ones", "hard-store", "soft-store", 0, inf),
    ("soft labels of 5 classes are within a point of all", "soft-top-5", "soft-store", -1, 1),
    ("soft labels of 2 classes are within a point of all", "soft-top-2", "soft-store", -1, 1),
    ("soft labels of 1 class are below those of all", "soft-top-1", "soft-store", -inf, 0),
    ("labels of which the teacher is sure are above all", "hard-sure", "hard-store", 0, inf),
    ("labels of a majority are above one teacher's", "vote-majority", "hard-store", 0, inf),
    ("labels by the teachers' mean are above one's", "vote-mean", "hard-store", 0, inf),
    (
        "mixing in pairs costs less than a point against DeiT's mixing of the batch",
        "hard-store",
        "loop-deit-mixing",
        -1,
        inf,
    ),
)
"""What is expected of an arm less another: a mean between two bounds, in points."""


def checks(evidence: Evidence) -> Iterator[Check]:
    """Yield what the paper and its users lead one to expect, where both arms were run."""
    stored, live = (evidence.results.get(name, {}) for name in ("hard-store", "hard-loop"))
    both = [seed for seed in stored if seed in live]
    if both:
        same = sum(stored[seed].weights == live[seed].weights for seed in both)
        yield Check(
            expected="hard labels from the store and in the loop give the same weights, bit for "
            "bit",
            found=f"the same for {same} of {len(both)} seeds",
            holds=same == len(both),
        )
    for expected, one, other, low, high in _COMPARED:
        points = differences(evidence, one, other)
        if points:
            found = _points(points)
            if len(points) >= _FEWEST:
                least, most = interval(points)
                found += f", {least:+.2f} to {most:+.2f}"
            yield Check(expected=expected, found=found, holds=within(points, low, high))


def evidence_text(
    evidence: Evidence,
    plots: Sequence[tuple[str, str]] = (),
    notes: str = "",
    also: Sequence[Evidence] = (),
) -> str:
    """Return the report as Markdown; ``plots`` are (title, path) of images.

    ``notes``, Markdown too, are what a person has to say about the numbers; ``also`` are
    comparisons with other settings, of which the differences and accuracies are shown.
    """
    sections = [
        _OPENING,
        _found(evidence),
        _arms(evidence),
        "".join(f"- {name}: {ARMS[name].about}.\n" for name in evidence.results),
        "".join(f"![{title}]({path})\n\n" for title, path in plots).rstrip("\n") + "\n",
        *(_differing(one, evidence) for one in also),
        _seconds(evidence),
        _weights(evidence),
        _teacher(evidence),
        _stores(evidence),
        _settings(evidence),
        notes and f"## Notes, written by hand\n\n{notes}",
    ]
    return "\n".join(section for section in sections if section.strip())


_OPENING = """\
# Evidence

Students of one small architecture, taught in several ways on the same views of CIFAR-10, in the
same order. `examples/cifar10/report.py` wrote this page from the results of
`examples/cifar10/run.py` (`make evidence`); no number but those of notes at its end was entered
by hand. Accuracies are top-1 on the validation images, means over seeds with their standard
deviation. The arm without a teacher is scored by its class head, the others by the mean of both
heads' logits.
"""


def _differing(evidence: Evidence, first: Evidence) -> str:
    """Return what was found with other settings than those of a first comparison."""
    changed = [
        f"{name} {json.dumps(value)}"
        for name, value in evidence.settings.items()
        if first.settings.get(name) != value
    ]
    tables = f"{_found(evidence)}\n{_arms(evidence)}".replace("## ", "### ").strip()
    return f"## The same with {', '.join(changed) or 'other runs'}\n\n{tables}\n"


def _found(evidence: Evidence) -> str:
    rows = [(one.expected, one.found, _VERDICTS[one.holds]) for one in checks(evidence)]
    if not rows:
        return ""
    text = (
        "## Expected and found\n\nDifferences are in points, seed by seed: their mean, each of "
        "them, and where the mean lies with 95 % confidence by Student's t, which knows of the "
        "seeds alone. What this interval does not settle is open.\n\n"
    )
    return text + markdown_table(("expected", "found", "holds"), rows)


def _arms(evidence: Evidence) -> str:
    rows = []
    for name, results in evidence.results.items():
        heads = [
            _spread([top1(one, head) for one in results.values()])
            if ARMS[name].distillation != "none" or head == "class_head"
            else _NOTHING
            for head in _HEADS
        ]
        gain = differences(evidence, name, "none") if name != "none" else []
        rows.append((name, len(results), *heads, _points(gain) if gain else _NOTHING))
    header = ("arm", "seeds", "class head", "distillation head", "mean of logits", "above none")
    return "## Accuracy, per cent\n\n" + markdown_table(header, rows)


def _seconds(evidence: Evidence) -> str:
    """Return medians over all epochs of all seeds; the first epoch also loads."""
    rows = []
    for name, results in evidence.results.items():
        epochs = [line["seconds"] for one in results.values() for line in one.epochs]
        total = median(one["total"] - one.get("evaluation", 0.0) for one in epochs)
        parts = [median(one.get(part, 0.0) for one in epochs) for part in ("data", "teacher")]
        rows.append((name, len(epochs), f"{total:.2f}", *(f"{part:.2f}" for part in parts)))
    table = markdown_table(("arm", "epochs", "an epoch", "waiting for data", "teacher"), rows)
    return "## Seconds\n\nMedians over epochs, evaluation not included.\n\n" + table


def _weights(evidence: Evidence) -> str:
    stored, live = (evidence.results.get(name, {}) for name in ("hard-store", "hard-loop"))
    rows = [
        (
            seed,
            f"`{stored[seed].weights[:16]}`",
            f"`{live[seed].weights[:16]}`",
            "the same" if stored[seed].weights == live[seed].weights else "**different**",
            stored[seed].audited,
        )
        for seed in stored
        if seed in live
    ]
    if not rows:
        return ""
    header = ("seed", "hard-store", "hard-loop", "weights", "views audited")
    return (
        "## Bit for bit\n\nThe beginning of the SHA-256 over all weights after the last step.\n\n"
        + markdown_table(header, rows)
    )


def _teacher(evidence: Evidence) -> str:
    compared = {
        name: [one.evaluation["teacher"] for one in results.values() if one.evaluation["teacher"]]
        for name, results in evidence.results.items()
    }
    rows = [
        (name, _spread([100 * one["agreement"][scored_by(name)] for one in many]))
        for name, many in compared.items()
        if many
    ]
    if not rows:
        return ""
    teacher = next(many[0] for many in compared.values() if many)
    text = (
        "## Agreement with the teacher\n\nOf the validation images the teacher names "
        f"{100 * teacher['accuracy']:.2f} % rightly ({teacher['samples']} images). Each arm says "
        "what the teacher does of, in per cent:\n\n"
    )
    return text + markdown_table(("arm", "agreement"), rows)


def _stores(evidence: Evidence) -> str:
    rows = [
        (
            one.name,
            one.labels,
            f"{one.bytes / max(1, one.labels):.2f}",
            share(one.equal, one.known),
            _percent(one.same_as_hard),
            _percent(one.sure),
            f"{one.seconds:.0f}" if one.seconds else _NOTHING,
        )
        for one in evidence.stores.values()
    ]
    if not rows:
        return ""
    header = (
        *("store", "labels", "bytes a label", "true class", "label of hard", "sure"),
        "seconds to label",
    )
    return (
        "## Stores\n\nsoft is a label job's, with probabilities; hard is soft without them; "
        "other-1, other-2, ... are other teachers' labels of the same views; majority and mean "
        "are what soft and these say together; plain has one plain view; static has the views of "
        "hard with the labels of plain; val has the validation images. On mixed views even a good "
        "teacher often names the partner's class. sure is the share of labels whose probability "
        "is at least min_confidence.\n\n" + markdown_table(header, rows)
    )


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{100 * value:.2f} %"


def _settings(evidence: Evidence) -> str:
    one = next(iter(next(iter(evidence.results.values())).values()))
    rows = [(name, json.dumps(value)) for name, value in evidence.settings.items()]
    rows += [("workers", str(one.workers)), ("processor", one.processor)]
    rows += [(name, version) for name, version in one.versions.items()]
    return "## Settings\n\n" + markdown_table(("", ""), rows)


def _spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation, or a single value alone."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _points(values: Sequence[float]) -> str:
    """Return the mean of differences, and each of several."""
    each = ", ".join(f"{value:+.2f}" for value in values)
    return f"{mean(values):+.2f}" + (f" ({each})" if len(values) > 1 else "")


def write_report(
    out: Path, report: Path, notes: Path | None = None, also: Sequence[Path] = ()
) -> Path:
    """Write the report of the results in ``out``, with its plots beside it if matplotlib is there.

    ``notes`` is a Markdown file that ends it; ``also`` are directories of results with other
    settings. Raises ``ConfigError`` if there are no results, or no such file.
    """
    evidence = read_evidence(out)
    if notes is not None and not notes.is_file():
        raise ConfigError(f"--notes {notes}: no such file")
    folder = report.parent / report.stem.lower()
    curves: dict[str, list[Curve]] = {
        name: [
            [
                (line["epoch"] + 1, 100 * line["evaluation"][scored_by(name)]["top1"])
                for line in one.epochs
                if "evaluation" in line
            ]
            for one in results.values()
        ]
        for name, results in evidence.results.items()
    }
    drawn = draw_plots(curves, _classes_known(evidence), folder)
    links = [(title, f"{folder.name}/{path.name}") for title, path in drawn]
    report.parent.mkdir(parents=True, exist_ok=True)
    text = "" if notes is None else notes.read_text(encoding="utf-8")
    others = [read_evidence(one) for one in also]
    replace(report, evidence_text(evidence, links, text, others).encode())
    return report


def _classes_known(evidence: Evidence) -> dict[str, int]:
    """Return how many of the teacher's probabilities the loss of each soft arm knows."""
    return {
        name: ARMS[name].first_classes or evidence.settings["topk"]
        for name in evidence.results
        if ARMS[name].distillation == "soft"
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReportConfig:
    """Write the report of the results that are there, of a comparison under way too."""

    out: Path = Path("evidence-output")
    """Directory of the results."""
    report: Path = Path("docs/EVIDENCE.md")
    """File to write."""
    notes: Path | None = None
    """Markdown file that ends it: what you have to say about the numbers."""
    also: tuple[Path, ...] = ()
    """Directories of results with other settings, to be shown beside these."""


def main() -> None:
    """Write the report."""
    config = tyro.cli(_ReportConfig, prog="examples/cifar10/report.py")
    try:
        report = write_report(config.out, config.report, config.notes, config.also)
        print(f"evidence: {report}")
    except ConfigError as error:
        print(f"evidence: error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
