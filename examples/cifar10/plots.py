"""Draws accuracy by arm and by epoch, if matplotlib is there."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

__all__ = ["Curve", "draw_plots"]

Curve: TypeAlias = Sequence[tuple[int, float]]
"""(epochs done, accuracy in per cent) of one run."""

_WIDTH = 8  # inches


def draw_plots(curves: Mapping[str, Sequence[Curve]], folder: Path) -> list[tuple[str, Path]]:
    """Draw the accuracies of each arm's runs, and return (title, file) of each plot.

    Without matplotlib it says so, and draws nothing.
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
        ):
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
