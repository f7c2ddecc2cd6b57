"""Draws accuracy by arm and by epoch, if matplotlib is there."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

__all__ = ["Curve", "draw_plots"]

Curve: TypeAlias = Sequence[tuple[int, float]]
"""(epochs done, accuracy in per cent) of one run."""

_WIDTH = 8  # inches


def draw_plots(
    curves: Mapping[str, Sequence[Curve]], classes: Mapping[str, int], folder: Path
) -> list[tuple[str, Path]]:
    """Draw the accuracies of each arm's runs, and return (title, file) of each plot.

    ``classes`` has the arms whose loss knows so many of the teacher's probabilities; two of them
    or more have a plot of their own. Without matplotlib it says so, and draws nothing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        print(
            "evidence: no plots, since matplotlib is missing: install the extra 'plots' and write "
            "the report again with examples/cifar10/report.py",
            file=sys.stderr,
        )
        return []
    folder.mkdir(parents=True, exist_ok=True)
    plots: list[tuple[str, Path]] = []
    # A salt and no date, so that the same results give the same files.
    with matplotlib.rc_context({"svg.hashsalt": "evidence", "svg.fonttype": "none"}):
        for title, name, draw in (
            ("Accuracy after the last epoch", "accuracy.svg", _draw_last),
            ("Accuracy by epoch, mean over seeds", "epochs.svg", _draw_curves),
            (
                "Accuracy by classes with probabilities",
                "classes.svg",
                partial(_draw_classes, classes),
            ),
        ):
            if name == "classes.svg" and len(classes) < 2:
                continue
            figure = Figure(figsize=(_WIDTH, 3.5), layout="constrained")
            draw(figure.subplots(), curves)
            figure.savefig(folder / name, metadata={"Date": None})
            plots.append((title, folder / name))
    return plots


def _draw_last(axes: Any, curves: Mapping[str, Sequence[Curve]]) -> None:
    """Draw a point for each seed, and a line at their mean."""
    for position, runs in enumerate(curves.values()):
        last = [curve[-1][1] for curve in runs]
        axes.plot(last, [position] * len(last), "o", color=f"C{position}", alpha=0.6)
        axes.plot(
            [mean(last)] * 2, [position - 0.3, position + 0.3], color=f"C{position}", linewidth=2
        )
    axes.set_yticks(range(len(curves)), list(curves))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel="top-1, per cent")


def _draw_classes(
    classes: Mapping[str, int], axes: Any, curves: Mapping[str, Sequence[Curve]]
) -> None:
    """Draw a point for each seed of the soft arms, and their means."""
    counts = sorted(classes.items(), key=lambda one: one[1])
    last = [[curve[-1][1] for curve in curves[name]] for name, _ in counts]
    for (_, count), values in zip(counts, last, strict=True):
        axes.plot([count] * len(values), values, "o", color="C0", alpha=0.6)
    axes.plot([count for _, count in counts], [mean(values) for values in last], color="C0")
    axes.set_xticks([count for _, count in counts])
    axes.grid(alpha=0.3)
    axes.set(xlabel="classes with probabilities", ylabel="top-1, per cent")


def _draw_curves(axes: Any, curves: Mapping[str, Sequence[Curve]]) -> None:
    for position, (name, runs) in enumerate(curves.items()):
        epochs = [epoch for epoch, _ in runs[0]]
        shared = [run for run in runs if [epoch for epoch, _ in run] == epochs]
        means = [
            mean(points) for points in zip(*([y for _, y in run] for run in shared), strict=True)
        ]
        axes.plot(epochs, means, marker=".", color=f"C{position}", label=name)
    axes.grid(alpha=0.3)
    axes.set(xlabel="epoch", ylabel="top-1, per cent")
    axes.legend(fontsize="small")
