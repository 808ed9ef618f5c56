"""Charts as SVG, drawn with the standard library alone: for papers, web pages and slides.

Text stays text, colours are those of Okabe and Ito, which colour-blind readers tell apart, and the
background is white, so that a picture reads the same on light and dark pages. The same data give
the same bytes.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Final, Literal
from xml.sax.saxutils import escape

from nanogpt_cli import ticks
from nanogpt_cli.printable import printable

# Okabe & Ito (2008): blue, vermilion, green, purple, orange, sky blue, black.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_INK, _SOFT, _GRID = "#222222", "#555555", "#e4e4e4"
_TEXT, _SMALL, _HEADING = 13.0, 11.5, 15.0  # font sizes in pixels
_ROW: Final = 18.0  # height of a row of the legend or the notes
_PLOT_HEIGHT: Final = {1: 300.0, 2: 190.0}
_WIDTH: Final = {1: 720.0, 2: 960.0}
_GAP: Final = 14.0
_KEY: Final = 26.0  # width of a sign in the legend

Kind = Literal["line", "dotted line", "dash", "dots", "band"]


@dataclass(frozen=True)
class Mark:
    """A series of a chart.

    Args:
        label: its entry in the legend; "" for none.
        x: ascending positions.
        y: values, of a band its lower edge; what is not finite leaves a gap.
        kind: how it is drawn; a dotted line has a dot at every point.
        colour: index of a colour; beyond the last one the first follows.
        high: the upper edge of a band.
        fits: whether the y axis has to hold it; what lies outside is cut off.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    kind: Kind = "line"
    colour: int = 0
    high: Sequence[float] = ()
    fits: bool = True


@dataclass(frozen=True)
class Panel:
    """One pair of axes. ``x_axis`` is "time" (seconds), "block" (whole numbers) or ""."""

    title: str
    marks: Sequence[Mark]
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    x_axis: str = ""


@dataclass(frozen=True)
class Figure:
    """Panels in one or two columns below a title; ``notes`` are sentences below them."""

    title: str
    panels: Sequence[Panel]
    columns: Literal[1, 2] = 1
    notes: Sequence[str] = field(default=())


@dataclass(frozen=True)
class _Scale:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def at(self, value: float) -> float:
        """The pixel of a value, kept near the plot; NaN where the axis has no place for it."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return math.nan
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        part = min(max((value - low) / (high - low), -9.0), 10.0)
        return self.start + (self.end - self.start) * part


def svg(figure: Figure) -> str:
    """A figure as the text of an SVG file; names may hold any characters."""
    width = _WIDTH[figure.columns]
    each = (width - _GAP * (figure.columns + 1)) / figure.columns
    margin = max(map(_margin, figure.panels))
    body: list[str] = []
    top = _GAP
    for line in wrapped(figure.title, width - 2 * _GAP, _HEADING) if figure.title else []:
        top += _HEADING + 4
        body.append(_text(width / 2, top, line, size=_HEADING, anchor="middle", weight="bold"))
    top += _GAP if figure.title else 0
    for first in range(0, len(figure.panels), figure.columns):
        row = figure.panels[first : first + figure.columns]
        keys = [_legend(panel, each - margin) for panel in row]
        head = (_ROW if any(panel.title for panel in row) else 0) + _ROW * max(map(len, keys))
        for n, (panel, legend) in enumerate(zip(row, keys, strict=True)):
            left = _GAP + n * (each + _GAP)
            height = _PLOT_HEIGHT[figure.columns]
            body += _panel(panel, legend, left, top, each, head, height, margin, f"plot{first + n}")
        top += head + _PLOT_HEIGHT[figure.columns] + 3.6 * _TEXT + _GAP
    for note in figure.notes:
        for n, line in enumerate(wrapped(note, width - 3 * _GAP, _SMALL)):
            body.append(_text(_GAP + (12 if n else 0), top, line, size=_SMALL, fill=_SOFT))
            top += _ROW - 2
    height = top + (0 if figure.notes else -_GAP / 2)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_n(width)}" height="{_n(height)}" '
        f'viewBox="0 0 {_n(width)} {_n(height)}" role="img" '
        f'font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="{_n(_TEXT)}">'
    )
    title = f"<title>{_safe(figure.title or 'chart')}</title>"
    paper = f'<rect width="{_n(width)}" height="{_n(height)}" fill="#ffffff"/>'
    return "\n".join([opening, title, paper, *body, "</svg>", ""])


def bounds(panel: Panel) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ranges of both axes of a panel: x from first to last, y with padding."""
    shown = [mark for mark in panel.marks if mark.fits] or list(panel.marks)
    xs = [x for m in panel.marks for x in m.x if math.isfinite(x) and (x > 0 or not panel.log_x)]
    if panel.x_axis != "block" and xs and min(xs) < max(xs):
        x_range = (float(min(xs)), float(max(xs)))
    else:
        x_range = ticks.padded_bounds([(x, x) for x in xs], panel.log_x)
    ys = [v for m in shown for v in (*m.y, *m.high) if math.isfinite(v)]
    ys = [v for v in ys if v > 0] if panel.log_y else ys
    return x_range, ticks.padded_bounds([(v, v) for v in ys], panel.log_y)


def _panel(
    panel: Panel, legend: list[list[Mark]], left: float, top: float, width: float, head: float,
    height: float, margin: float, name: str,
) -> list[str]:  # fmt: skip
    """A panel whose upper left corner lies at (left, top)."""
    (x_low, x_high), (y_low, y_high) = bounds(panel)
    y0, y1 = top + head + height, top + head
    y_at, y_names = _y_labels(panel)
    x0 = left + margin
    x1 = left + width - 8
    y, x = _Scale(y_low, y_high, y0, y1, panel.log_y), _Scale(x_low, x_high, x0, x1, panel.log_x)
    x_at = ticks.values(x_low, x_high, max(2, int(width // 70)), panel.log_x, panel.x_axis)
    out: list[str] = []
    if panel.title:
        out.append(_text(x0, top + _TEXT, panel.title, weight="bold"))
    out += _keys(legend, x0, y1 - _ROW * len(legend))
    grid = [f"M{_n(x0)},{_n(y.at(v))}H{_n(x1)}" for v in y_at]
    grid += [f"M{_n(x.at(v))},{_n(y0)}V{_n(y1)}" for v in x_at]
    out.append(f'<path d="{"".join(grid)}" stroke="{_GRID}" fill="none"/>')
    frame = (x0, y1, x1 - x0, y0 - y1)
    corner = " ".join(
        f'{k}="{_n(v)}"' for k, v in zip(("x", "y", "width", "height"), frame, strict=True)
    )
    out.append(f'<clipPath id="{name}"><rect {corner}/></clipPath>')
    out.append(f'<g clip-path="url(#{name})">')
    order = ("band", "dash", "line", "dotted line", "dots")
    for mark in sorted(panel.marks, key=lambda mark: order.index(mark.kind)):
        out += _mark(mark, x, y)
    out.append("</g>")
    out.append(f'<path d="M{_n(x0)},{_n(y1)}V{_n(y0)}H{_n(x1)}" stroke="{_SOFT}" fill="none"/>')
    for value, text in zip(y_at, y_names, strict=True):
        out.append(_text(x0 - 6, y.at(value) + 4, text, size=_SMALL, anchor="end", fill=_SOFT))
    for value, text in zip(x_at, ticks.labels(x_at, panel.x_axis), strict=True):
        at = x.at(value)
        anchor = "end" if at + text_width(text, _SMALL) / 2 > x1 + 8 else "middle"
        out.append(_text(at, y0 + 16, text, size=_SMALL, anchor=anchor, fill=_SOFT))
    if panel.x_label:
        out.append(_text((x0 + x1) / 2, y0 + 34, panel.x_label, anchor="middle"))
    if panel.y_label:
        at, middle = left + _TEXT, (y0 + y1) / 2
        turn = f' transform="rotate(-90 {_n(at)} {_n(middle)})"'
        out.append(_text(at, middle, panel.y_label, anchor="middle", more=turn))
    return out


def _y_labels(panel: Panel) -> tuple[list[float], list[str]]:
    low, high = bounds(panel)[1]
    at = ticks.values(low, high, 6, panel.log_y)
    return at, ticks.labels(at)


def _margin(panel: Panel) -> float:
    """Room for the y axis's labels and title."""
    widest = max((text_width(text, _SMALL) for text in _y_labels(panel)[1]), default=0.0)
    return 10 + widest + (_TEXT + 4 if panel.y_label else 0)


def _mark(mark: Mark, x: _Scale, y: _Scale) -> Iterator[str]:
    """A series as elements."""
    colour = _colour(mark)
    if mark.kind == "band":
        for low in _pieces(mark.x, mark.y, x, y, mark.high):
            edge = [(px, min(a, b)) for px, a, b in low] + [
                (px, max(a, b)) for px, a, b in low[::-1]
            ]
            yield f'<path d="{_path(edge)}Z" fill="{colour}" fill-opacity="0.2"/>'
        return
    for piece in _pieces(mark.x, mark.y, x, y):
        points = [(px, py) for px, py, _ in piece]
        if mark.kind in ("dots", "dotted line"):
            yield from (
                f'<circle cx="{_n(a)}" cy="{_n(b)}" r="2.4" fill="{colour}"/>' for a, b in points
            )
        if mark.kind != "dots":
            dash = ' stroke-dasharray="6 4"' if _dashed(mark) else ""
            yield (
                f'<path d="{_path(points)}" fill="none" stroke="{colour}" stroke-width="1.6" '
                f'stroke-linejoin="round"{dash}/>'
            )


def _pieces(
    xs: Sequence[float], ys: Sequence[float], x: _Scale, y: _Scale, highs: Sequence[float] = ()
) -> Iterator[list[tuple[float, float, float]]]:
    """Runs of neighbouring points in pixels, thinned: (x, y, upper y).

    Of the points in one column of pixels the first, the lowest, the highest and the last are kept,
    so that a line of a million points looks like the whole and has no more than four for a pixel.
    """
    places = [(x.at(a), y.at(b), y.at(c)) for a, b, c in zip(xs, ys, highs or ys, strict=True)]
    if highs and y.log:  # a band may reach below what a logarithmic axis can show
        places = [(a, y.start + 9 if math.isnan(b) else b, c) for a, b, c in places]
    for gap, group in groupby(places, key=lambda place: any(map(math.isnan, place))):
        if gap:
            continue
        kept: list[tuple[float, float, float]] = []
        for _, column in groupby(group, key=lambda place: int(place[0])):
            points = list(column)
            if len(points) > 4:
                rows = range(len(points))
                low, high = (
                    max(rows, key=lambda i: points[i][1]),
                    min(rows, key=lambda i: points[i][2]),
                )
                points = [points[i] for i in sorted({0, low, high, len(points) - 1})]
            kept += points
        yield kept


def _path(points: Sequence[tuple[float, float]]) -> str:
    start, *rest = [f"{_n(x)},{_n(y)}" for x, y in points]
    return f"M{start}" + ("L" + " ".join(rest) if rest else "")


def _legend(panel: Panel, width: float) -> list[list[Mark]]:
    """The marks with a label, in rows that fit the width; none for a single series."""
    rows: list[list[Mark]] = []
    used = width
    for mark in (mark for mark in panel.marks if mark.label):
        need = _KEY + text_width(_short(mark.label), _SMALL) + 14
        if not rows or used + need > width:
            rows.append([])
            used = 0.0
        rows[-1].append(mark)
        used += need
    return rows


def _keys(rows: list[list[Mark]], left: float, top: float) -> Iterator[str]:
    for n, row in enumerate(rows):
        at, y = left, top + _ROW * n + 8
        for mark in row:
            sign = _Scale(0, 1, at, at + _KEY - 6, False), _Scale(0, 1, y + 5, y - 5, False)
            if mark.kind == "band":
                key = replace(mark, x=[0, 1], y=[0, 0], high=[1, 1])
            else:
                xs = [0.5] if mark.kind == "dots" else [0, 0.5, 1]
                key = replace(mark, x=xs, y=[0.5] * len(xs))
            yield from _mark(key, *sign)
            yield _text(at + _KEY, y + 4, _short(mark.label), size=_SMALL)
            at += _KEY + text_width(_short(mark.label), _SMALL) + 14


def _short(label: str, most: int = 60) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _colour(mark: Mark) -> str:
    return COLOURS[mark.colour % len(COLOURS)] if mark.colour >= 0 else "#777777"


def _dashed(mark: Mark) -> bool:
    """Lines beyond the last colour are dashed, so that no two look the same."""
    return mark.kind == "dash" or mark.colour // len(COLOURS) % 2 == 1


def _text(
    x: float, y: float, text: str, *, size: float = _TEXT, anchor: str = "start",
    fill: str = _INK, weight: str = "", more: str = "",
) -> str:  # fmt: skip
    kept = f' font-weight="{weight}"' if weight else ""
    kept += f' text-anchor="{anchor}"' if anchor != "start" else ""
    kept += f' font-size="{_n(size)}"' if size != _TEXT else ""
    return f'<text x="{_n(x)}" y="{_n(y)}" fill="{fill}"{kept}{more}>{_safe(text)}</text>'


def _safe(text: str) -> str:
    """Any text as character data of XML; control characters become visible."""
    return escape(printable(text, keep=""))


def text_width(text: str, size: float) -> float:
    """About the width of a text in a common sans-serif font, rather too much than too little."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return size * (0.56 * (len(text) - wide) + wide)


def wrapped(text: str, width: float, size: float) -> list[str]:
    """The lines of a text that is broken at spaces to fit a width in pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _n(value: float) -> str:
    """A number of pixels with at most one decimal."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text
