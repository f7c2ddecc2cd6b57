"""Charts as plain SVG, drawn from numbers; colors are the page's, so light and dark are one file.

Elements are built by ElementTree, which escapes whatever a name holds. A chart comes with its
numbers as a table, for whoever cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from pipeline.reporting.page import Chart, Legend, Table

__all__ = ["Series", "columns_chart", "lines_chart", "number_text", "share_text"]

_WIDTH, _HEIGHT = 480, 262  # units of the view box
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 14, 28, 46
_LETTER = 9.6  # units that one takes, on a narrow screen at most
_LINE = 18  # units between two slanted labels
_SINE = math.sin(math.radians(35))  # of their slope
_BETWEEN = 8  # units between two labels
_LONGEST, _SHORTEST = 14, 8  # letters of a column's label; shorter ones say too little
_POINTS = 240  # of a line; longer series are drawn as means of equal pieces
_ROWS = 120  # of a line chart's table
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 3")
_GREATEST, _LEAST = 1e300, 1e-300  # so that neither spans nor means overflow, nor steps vanish


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line of (x, y) points, by rising x."""

    name: str
    points: Sequence[tuple[float, float]]


def number_text(value: float) -> str:
    """Return a number to four digits, or to the unit; with an exponent where it needs one."""
    if abs(value) >= 1e15:
        return f"{value:.3e}"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2e}" if abs(value) < 1e-3 else f"{value:.4g}"


def share_text(value: float) -> str:
    """Return a share of 1 in per cent."""
    return f"{100 * value:.2f} %" if abs(value) < 1e9 else f"{value:.3e}"


def columns_chart(
    caption: str,
    columns: Sequence[tuple[str, int]],
    *,
    x_label: str,
    y_label: str,
    table: Table | None = None,
) -> Chart:
    """Return a histogram: a column for each (label, count); ``table`` has more numbers."""
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(columns))
    room = int((step - _BETWEEN) / _LETTER)
    letters = min(room, _LONGEST) if room >= _SHORTEST else _LONGEST
    labels = [_shortened(label.split(" to ")[0], letters) for label, _ in columns]
    longest = _LETTER * max(map(len, labels), default=0)
    # As many as have room beside each other; of names all, slanted, where there is room for that.
    every, slanted = max(1, math.ceil((longest + _BETWEEN) / step)), 0.0
    if every > 1 and step >= _LINE and not any(" to " in label for label, _ in columns):
        every, slanted = 1, longest
    svg, plot = _empty(caption, x_label, y_label, more=slanted * _SINE)
    top = max((count for _, count in columns), default=0)
    ticks = [tick for tick in _ticks(0, max(1, top)) if tick == int(tick)]  # of counts
    scale = _Scale(0, ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    _y_axis(plot, scale, ticks, _tick_text)
    for number, (label, count) in enumerate(columns):
        left, height = _LEFT + number * step, scale(0) - scale(count)
        size = {"x": left + step * 0.08, "y": scale(count), "width": step * 0.84, "height": height}
        column = SubElement(plot, "rect", {"class": "column", **_numbers(size)})
        SubElement(column, "title").text = f"{label}: {count:,}"
        if slanted:
            _slanted_text(plot, left + step / 2, labels[number])
        elif number % every == 0:
            _x_text(plot, left + step / 2, labels[number])
    table = table or Table(header=(x_label, y_label), rows=tuple(columns))
    return Chart(caption=caption, svg=tostring(svg, "unicode"), table=table)


def lines_chart(
    caption: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    shares: bool = False,
    from_zero: bool = False,
    table: Table | None = None,
) -> Chart:
    """Return a chart of lines, which differ by color and dashes; ``shares`` are of 1.

    ``table`` has more numbers than its points. Points that are not finite are left out, and
    numbers beyond 1e300 are drawn there.
    """
    drawn = [Series(name=one.name, points=_thinned(one.points)) for one in series]
    drawn = [one for one in drawn if one.points]
    xs = [x for one in drawn for x, _ in one.points] or [0.0]
    ys = [y for one in drawn for _, y in one.points] or [0.0]
    ys += [0.0] * from_zero
    svg, plot = _empty(caption, x_label, y_label)
    y_ticks = _ticks(min(ys), max(ys))
    y_scale = _Scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    x_scale = _Scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    text = _share_tick if shares else _tick_text
    _y_axis(plot, y_scale, y_ticks, text)
    for tick in _ticks(min(xs), max(xs), inside=True):
        _x_text(plot, x_scale(tick), _tick_text(tick))
    for number, one in enumerate(drawn):
        _line(plot, one, number, x_scale, y_scale)
    value = share_text if shares else number_text
    legend = [Legend(name=one.name, color=_color(n), dash=_dash(n)) for n, one in enumerate(drawn)]
    return Chart(
        caption=caption,
        svg=tostring(svg, "unicode"),
        table=table or _points_table(x_label, drawn, value),
        legend=tuple(legend),
    )


def _points_table(x_label: str, drawn: Sequence[Series], value: Callable[[float], str]) -> Table:
    by_x = [dict(one.points) for one in drawn]
    xs = sorted({x for points in by_x for x in points})
    xs = xs[:: max(1, math.ceil(len(xs) / _ROWS))]
    return Table(
        header=(x_label, *(one.name for one in drawn)),
        rows=tuple(
            (number_text(x), *(value(one[x]) if x in one else "-" for one in by_x)) for x in xs
        ),
    )


class _Scale:
    """Maps numbers of a range to units of the view box; a range without a span to one end."""

    def __init__(self, low: float, high: float, at_low: float, at_high: float) -> None:
        self._low, self._span = low, (high - low) or 1.0
        self._at_low, self._length = at_low, at_high - at_low

    def __call__(self, value: float) -> float:
        return self._at_low + (value - self._low) / self._span * self._length


def _empty(
    caption: str, x_label: str, y_label: str, *, more: float = 0.0
) -> tuple[Element, Element]:
    """Return a picture and its plot, with ``more`` units of height for what is below the axis."""
    height = math.ceil(_HEIGHT + more)
    box = f"0 0 {_WIDTH} {height}"
    svg = Element("svg", {"viewBox": box, "role": "img", "aria-label": caption, "class": "chart"})
    plot = SubElement(svg, "g")
    middle = _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2
    _text(plot, middle, height - 8, x_label, "middle", "axis")
    _text(plot, 4, 10, y_label, "start", "axis")
    return svg, plot


def _y_axis(
    plot: Element, scale: _Scale, ticks: Sequence[float], text: Callable[[float], str]
) -> None:
    for tick in ticks:
        y = scale(tick)
        ends = {"x1": _LEFT, "x2": _WIDTH - _RIGHT, "y1": y, "y2": y}
        SubElement(plot, "line", {"class": "grid", **_numbers(ends)})
        _text(plot, _LEFT - 6, y + 4, text(tick), "end")


def _x_text(plot: Element, x: float, text: str) -> None:
    """Write below the plot: at ``x``, or beside it where the picture or the other axis ends."""
    half = _LETTER * len(text) / 2
    x = min(max(x, _LEFT - 4 + half), _WIDTH - half)
    _text(plot, x, _HEIGHT - _BOTTOM + 18, text, "middle")


def _slanted_text(plot: Element, x: float, text: str) -> None:
    """Write below the plot, up to ``x`` from the left below."""
    y = _HEIGHT - _BOTTOM + 14
    place = {"class": "tick", "text-anchor": "end", "transform": f"rotate(-35 {x:.2f} {y})"}
    SubElement(plot, "text", {**place, **_numbers({"x": x, "y": y})}).text = text


def _shortened(label: str, letters: int) -> str:
    return label if len(label) <= letters else f"{label[: letters - 3]}..."


def _line(plot: Element, one: Series, number: int, x_scale: _Scale, y_scale: _Scale) -> None:
    places = [(x_scale(x), y_scale(y)) for x, y in one.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    shape = {"points": path, "class": f"line {_color(number)}", "stroke-dasharray": _dash(number)}
    SubElement(SubElement(plot, "polyline", shape), "title").text = one.name
    if len(places) <= 30:  # where there is room, each point is marked
        for x, y in places:
            mark = {"class": f"mark {_color(number)}", **_numbers({"cx": x, "cy": y, "r": 2.5})}
            SubElement(plot, "circle", mark)


def _color(number: int) -> str:
    return f"c{number % 8}"


def _dash(number: int) -> str:
    return _DASHES[number % len(_DASHES)]


def _text(plot: Element, x: float, y: float, text: str, anchor: str, kind: str = "tick") -> None:
    place = {"class": kind, "text-anchor": anchor, **_numbers({"x": x, "y": y})}
    SubElement(plot, "text", place).text = text


def _numbers(values: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.2f}" for name, value in values.items()}


def _tick_text(value: float) -> str:
    if abs(value) >= 1e15:
        return f"{value:.4g}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:.4g}"


def _share_tick(value: float) -> str:
    return f"{100 * value:.4g} %" if abs(value) < 1e9 else f"{value:.4g}"


def _ticks(low: float, high: float, *, inside: bool = False) -> list[float]:
    """Return round numbers from one not above ``low`` to one not below ``high``.

    With ``inside``, those between them; the one number where there is no more.
    """
    span, size = high - low, max(abs(low), abs(high))
    if span <= 1e-9 * size:  # of numbers that are equal, but for what floats cannot tell apart
        if inside:
            return [low]
        span = size
    span = span or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(n for n in (1, 2, 5, 10) if span / (step * n) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:  # of one number: the range ends at it, or begins at 0
        first, last = (first - 1, last) if first > 0 else (first, last + 1)
    ticks = [number * step for number in range(first, last + 1)]
    slack = 1e-9 * span
    return [one for one in ticks if low - slack <= one <= high + slack] if inside else ticks


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the finite points, or where they are too many to see the means of equal pieces."""
    kept = [(_bounded(x), _bounded(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    piece = math.ceil(len(kept) / _POINTS)
    if piece <= 1:
        return kept
    pieces = [kept[start : start + piece] for start in range(0, len(kept), piece)]
    return [(many[-1][0], math.fsum(y for _, y in many) / len(many)) for many in pieces]


def _bounded(value: float) -> float:
    """Return a finite number, or the nearest that can be drawn."""
    value = max(-_GREATEST, min(_GREATEST, value))
    return value if abs(value) >= _LEAST else 0.0
