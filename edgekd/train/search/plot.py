"""How far a search came with how many trainings, as an SVG of its own: no library is needed."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

_WIDTH_PX, _HEIGHT_PX = 720, 380
_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 64, 20, 46, 62
#: colours that are told apart without colour vision too; random draws are dashed besides
_COLOURS = {"de": "#117733", "random": "#aa4499"}
_NAMES = {"de": "differential evolution", "random": "random draws"}
_STEPS = (1, 2, 5)
#: number of a candidate, or a value, to CSS pixels
Place = Callable[[float], float]


def draw(
    title: str,
    runs: Sequence[tuple[str, int, Sequence[float | None]]],
    written: float | None,
) -> str:
    """Best so far over candidates, a line per run and a dot per candidate.

    Args:
        title: above.
        runs: (method, seed, value of each candidate in order, None: diverged).
        written: value of the recipe as it is written, drawn across; None: not tried.
    """
    known = [value for _, _, values in runs for value in values if value is not None]
    count = max((len(values) for _, _, values in runs), default=1)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    step = _step(max(high - low, 0.01) / 5)
    low, high = step * int(low / step), step * (int(high / step) + 1)

    def x(number: float) -> float:
        return _LEFT_PX + (_WIDTH_PX - _LEFT_PX - _RIGHT_PX) * (number - 0.5) / count

    def y(value: float) -> float:
        inside = _HEIGHT_PX - _TOP_PX - _BOTTOM_PX
        return _HEIGHT_PX - _BOTTOM_PX - inside * (value - low) / (high - low)

    said = html.escape(title)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH_PX} {_HEIGHT_PX}" '
        f'width="{_WIDTH_PX}" height="{_HEIGHT_PX}" role="img" font-family="sans-serif" '
        f'font-size="12" fill="#222"><title>{said}</title>',
        f'<rect width="{_WIDTH_PX}" height="{_HEIGHT_PX}" fill="#fff"/>',
        f'<text x="{_LEFT_PX}" y="24" font-size="14">{said}</text>',
    ]
    for at in range(round((high - low) / step) + 1):
        value = low + at * step
        parts.append(_line(_LEFT_PX, y(value), _WIDTH_PX - _RIGHT_PX, y(value), "#ddd"))
        parts.append(
            f'<text x="{_LEFT_PX - 8}" y="{y(value) + 4:.1f}" text-anchor="end">'
            f"{100 * value:.4g} %</text>"
        )
    every = max(1, _step(count / 8))
    for number in sorted({1, *range(int(every), count + 1, int(every))}):
        parts.append(
            f'<text x="{x(number):.1f}" y="{_HEIGHT_PX - _BOTTOM_PX + 18}" '
            f'text-anchor="middle">{number}</text>'
        )
    if written is not None:
        parts.append(_line(_LEFT_PX, y(written), _WIDTH_PX - _RIGHT_PX, y(written), "#666", "2 3"))
    for method, seed, values in runs:
        parts += _run(method, seed, values, x, y)
    foot = _HEIGHT_PX - 14
    parts.append(f'<text x="{_LEFT_PX}" y="{foot}">candidates tried</text>')
    place = 190.0
    for method in dict.fromkeys(method for method, _, _ in runs):
        parts.append(
            _line(place, foot - 4, place + 26, foot - 4, _COLOURS[method], _dashes(method), 2)
        )
        parts.append(f'<text x="{place + 32}" y="{foot}">{_NAMES[method]}</text>')
        place += 190
    if written is not None:
        parts.append(_line(place, foot - 4, place + 26, foot - 4, "#666", "2 3"))
        parts.append(f'<text x="{place + 32}" y="{foot}">as written</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _run(method: str, seed: int, values: Sequence[float | None], x: Place, y: Place) -> list[str]:
    """Dots, and the best so far as a stair."""
    colour = _COLOURS[method]
    dots = [
        f'<circle cx="{x(number):.1f}" cy="{y(value):.1f}" r="2.5" fill="{colour}" '
        f'fill-opacity="0.35"/>'
        for number, value in enumerate(values, start=1)
        if value is not None
    ]
    points: list[str] = []
    best: float | None = None
    for number, value in enumerate(values, start=1):
        if best is not None:
            points.append(f"{x(number):.1f},{y(best):.1f}")
        if value is not None and (best is None or value > best):
            best = value
            points.append(f"{x(number):.1f},{y(best):.1f}")
    name = html.escape(f"{_NAMES[method]}, seed {seed}")
    dash = f' stroke-dasharray="{_dashes(method)}"' if _dashes(method) else ""
    stair = (
        f'<polyline fill="none" stroke="{colour}" stroke-width="2"{dash} '
        f'points="{" ".join(points)}"><title>{name}</title></polyline>'
    )
    return [*dots, stair] if points else dots


def _dashes(method: str) -> str:
    return "" if method == "de" else "6 4"


def _line(
    x0: float, y0: float, x1: float, y1: float, colour: str, dashes: str = "", width: int = 1
) -> str:
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"{dash}/>'
    )


def _step(about: float) -> float:
    """1, 2 or 5 times a power of ten, at least ``about``."""
    power = 1e-6
    while True:
        for factor in _STEPS:
            if factor * power >= about:
                return factor * power
        power *= 10
