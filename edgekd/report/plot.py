"""A plot that fits any width: marks are SVG stretched in x alone, text is HTML at a share of it.

So lines stay thin, dots round and text readable from a phone to paper, without a script. Colours
come from the page's style sheet by class. What is written is well-formed XML.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

#: units of a plot's width; heights are CSS pixels
WIDTH = 1000.0
#: pixel columns that an envelope tells apart
COLUMNS = 800
#: plot widths below which a label that does not fit is left out, CSS pixels; see ``page.css``
_FITS = (300, 480, 640, 800, 960)
#: mean width of a character of 11.5 px text, CSS pixels
_CHARACTER_PX = 6.4


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) inside ``low..high``."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's number: a true minus, no ``-0``, thousands apart."""
    if abs(value) >= 1e6:
        return f"{value:.3g}".replace("-", "−")
    return f"{value + 0.0:,.6g}".replace("-", "−") if value else "0"


@dataclass(frozen=True)
class Scale:
    """Maps ``low..high`` to ``0..size``; ``up`` counts from the bottom, as y does."""

    low: float
    high: float
    size: float
    up: bool = False

    def at(self, value: float) -> float:
        """Place of a value; those outside lie outside."""
        part = (value - self.low) / (self.high - self.low or 1.0)
        return self.size * (1 - part if self.up else part)

    def clipped(self, value: float) -> float:
        """Place of a value, at the edge for one outside."""
        return min(max(self.at(value), 0.0), self.size)


def padded(
    values: Iterable[float], least: float, zero: bool = False, head: float = 0.12
) -> tuple[float, float]:
    """Ends of an axis around values: some air on both sides, at least ``least`` long.

    Args:
        values: at least one.
        least: shortest axis, so that noise does not fill the height.
        zero: begin at 0, or below where a value is negative.
        head: air above, with ``zero``, as a share.
    """
    found = list(values)
    low, high = min(found), max(found)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
        high += head * (high - low) or least
        return (low * 1.1 if low < 0 else 0.0), high
    lack = max(least - (high - low), 0.0) / 2
    air = 0.08 * max(high - low, least)
    floor = 0.0 if low >= 0 else -math.inf
    return max(low - lack - air, floor), high + lack + air


def envelope(
    x: FloatArray, y: FloatArray, columns: int = COLUMNS, width: float = WIDTH
) -> tuple[FloatArray, FloatArray]:
    """Fewer points that draw the same line: of each pixel column the lowest and the highest, in
    the order in which they come. Both ends stay.

    Args:
        x: places, rising, within 0 and ``width``.
        y: as many values.
    """
    if len(x) <= 2 * columns:
        return x, y
    column = np.minimum((x / width * columns).astype(np.int64), columns - 1)
    begins = np.flatnonzero(np.diff(column, prepend=-1))
    keep = {0, len(x) - 1}
    for first, last in zip(begins, [*begins[1:], len(x)], strict=True):
        part = y[first:last]
        keep |= {int(first + part.argmin()), int(first + part.argmax())}
    chosen = np.array(sorted(keep))
    return x[chosen], y[chosen]


class Plot:
    """Collects marks and texts.

    Args:
        x, y: scales; x to :data:`WIDTH`, y to the height.
        label: what a screen reader says.
        kind: more classes.
    """

    def __init__(self, x: Scale, y: Scale, label: str, kind: str = "") -> None:
        self.x, self.y = x, y
        self._head = (
            f'<div class="plot {kind}" style="height:{y.size:g}px" role="img" '
            f'aria-label="{html.escape(label)}">'
        )
        self._marks: list[str] = []
        self._texts: list[str] = []

    def rect(self, x0: float, x1: float, y0: float, y1: float, kind: str) -> None:
        """A box between two values of x and two of y; never thinner than a unit."""
        left, right = sorted((self.x.clipped(x0), self.x.clipped(x1)))
        top, bottom = sorted((self.y.clipped(y0), self.y.clipped(y1)))
        self._marks.append(
            f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" '
            f'width="{max(right - left, 1):.1f}" height="{max(bottom - top, 0.5):.1f}"/>'
        )

    def band(self, x0: float, x1: float, kind: str) -> None:
        """A box over the whole height."""
        self.rect(x0, x1, self.y.low, self.y.high, kind)

    def line(self, x0: float, y0: float, x1: float, y1: float, kind: str) -> None:
        """A line between two points."""
        a, b = self.x.clipped(x0), self.x.clipped(x1)
        c, d = self.y.clipped(y0), self.y.clipped(y1)
        self._marks.append(
            f'<line class="{kind}" x1="{a:.1f}" y1="{c:.1f}" x2="{b:.1f}" y2="{d:.1f}"/>'
        )

    def curve(self, x: Sequence[float] | FloatArray, y: Sequence[float] | FloatArray,
              kind: str, gap: float = math.inf) -> None:  # fmt: skip
        """A line through points, broken where two are more than ``gap`` apart in x."""
        values, heights = np.asarray(x, np.float64), np.asarray(y, np.float64)
        pieces = np.split(np.arange(len(values)), np.flatnonzero(np.diff(values) > gap) + 1)
        columns = max(COLUMNS // len(pieces), 2)
        steps = []
        for piece in pieces:
            places = np.array([self.x.clipped(value) for value in values[piece]])
            span = float(places[-1] - places[0]) or 1.0
            mine = max(round(COLUMNS * span / WIDTH), columns if len(pieces) == 1 else 2)
            shown, tall = envelope(places - places[0], heights[piece], mine, span)
            for number, (left, value) in enumerate(zip(shown + places[0], tall, strict=True)):
                steps.append(
                    f"{'L' if number else 'M'}{left:.1f} {self.y.clipped(float(value)):.1f}"
                )
        self._marks.append(f'<path class="{kind}" d="{"".join(steps)}"/>')

    def dots(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        """Round dots of the stroke's width: lines of no length, which do not stretch."""
        steps = "".join(f"M{self.x.clipped(a):.1f} {self.y.clipped(b):.1f}h0" for a, b in points)
        if steps:
            self._marks.append(f'<path class="{kind}" d="{steps}"/>')

    def bars(self, ranges: Iterable[tuple[float, float, float]], kind: str) -> None:
        """Upright lines (x, from, to)."""
        steps = "".join(
            f"M{self.x.clipped(a):.1f} {self.y.clipped(b):.1f}V{self.y.clipped(c) - 0.5:.1f}"
            for a, b, c in ranges
        )
        if steps:
            self._marks.append(f'<path class="{kind}" d="{steps}"/>')

    def whisker(self, y: float, low: float, high: float, kind: str) -> None:
        """A level interval with caps."""
        self.line(low, y, high, y, kind)
        at = self.y.at(y)
        for value in (low, high):
            place = self.x.clipped(value)
            self._marks.append(
                f'<line class="{kind}" x1="{place:.1f}" y1="{at - 4:.1f}" x2="{place:.1f}" '
                f'y2="{at + 4:.1f}"/>'
            )

    def text(self, x: float, y: float, text: str, kind: str = "", up_px: float = 0.0) -> None:
        """Text beside a point: class ``mid``, ``end`` or neither says how it is aligned.

        Args:
            up_px: how far above the point.
        """
        left, top = self.x.clipped(x) / WIDTH * 100, self.y.clipped(y) - up_px
        self._texts.append(
            f'<span class="t {kind}" style="left:{left:.2f}%;top:{top:.1f}px">'
            f"{html.escape(text)}</span>"
        )

    def marker(self, x: float, y: float, kind: str) -> None:
        """A single large dot, in HTML: round on paper too."""
        left, top = self.x.clipped(x) / WIDTH * 100, self.y.clipped(y)
        self._texts.append(f'<i class="{kind}" style="left:{left:.2f}%;top:{top:.1f}px"></i>')

    def fitting(self, x0: float, x1: float, text: str) -> str:
        """Class that hides a text where the plot is too narrow for it between two values."""
        share = abs(self.x.clipped(x1) - self.x.clipped(x0)) / WIDTH
        return fit_class(share, text)

    def y_ticks(self, count: int = 4) -> None:
        """Grid lines with their numbers in the margin."""
        for tick in nice_ticks(self.y.low, self.y.high, count):
            place = self.y.at(tick)
            kind = "grid zero" if tick == 0 else "grid"
            self._marks.append(
                f'<line class="{kind}" x1="0" y1="{place:.1f}" x2="{WIDTH:g}" y2="{place:.1f}"/>'
            )
            self._texts.append(
                f'<span class="t ytick" style="top:{place:.1f}px">{tick_text(tick)}</span>'
            )

    def x_grid(self, count: int = 6) -> None:
        """Upright grid lines."""
        for tick in nice_ticks(self.x.low, self.x.high, count):
            self.line(tick, self.y.low, tick, self.y.high, "grid")

    def x_axis(self, title: str, count: int = 6) -> str:
        """Numbers and title below the plot, to be put behind :meth:`html`."""
        parts = []
        ticks = nice_ticks(self.x.low, self.x.high, count)
        for number, tick in enumerate(ticks):
            left = self.x.at(tick) / WIDTH * 100
            kind = "t xtick odd" if number % 2 and len(ticks) > 4 else "t xtick"
            parts.append(f'<span class="{kind}" style="left:{left:.2f}%">{tick_text(tick)}</span>')
        return (
            f'<div class="xaxis">{"".join(parts)}<span class="xtitle">{html.escape(title)}</span>'
            "</div>"
        )

    def html(self) -> str:
        """The plot."""
        return (
            f'{self._head}<svg viewBox="0 0 {WIDTH:g} {self.y.size:g}" preserveAspectRatio="none" '
            f'aria-hidden="true">{"".join(self._marks)}</svg>{"".join(self._texts)}</div>'
        )


def fit_class(share: float, text: str) -> str:
    """``fit480`` and the like: shown where the plot is at least that wide, ``fit0`` always."""
    needed = (_CHARACTER_PX * len(text) + 6) / max(share, 1e-6)
    if needed <= _FITS[0]:
        return "fit0"
    wide = [width for width in _FITS if needed <= width]
    return f"fit{wide[0]}" if wide else "fitno"
