# SPDX-License-Identifier: Apache-2.0
"""Charts as SVG: lines over a few steps, from zero upwards."""

from __future__ import annotations

import dataclasses
import math
from xml.sax.saxutils import escape

COLOURS = "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf"
#: Of the whole, and of what stays free around the lines.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 320, 60, 190, 36, 46


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines by name, each of a y for every x; the steps along x stand evenly, as each is many times the one before."""

    name: str
    title: str
    x: str
    y: str
    steps: list[int]
    lines: dict[str, list[float]]


def svg(chart: Chart) -> str:
    """The picture, on white so that it can be read on any page."""
    top = _round_up(max(max(values) for values in chart.lines.values()))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def across(number: int) -> float:
        return round(LEFT + wide * number / max(1, len(chart.steps) - 1), 1)

    def up(value: float) -> float:
        return round(TOP + high * (1 - value / top), 1)

    def text(x: float, y: float, words: str, more: str = "") -> str:
        return f'<text x="{x}" y="{y}" {more}>{escape(words)}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(LEFT, 20, f"{chart.title}, {chart.y}", 'font-weight="bold"'),
        text(LEFT + wide / 2, HEIGHT - 8, chart.x, 'text-anchor="middle"'),
    ]
    for quarter in range(5):
        value = top * quarter / 4
        parts.append(f'<path d="M{LEFT} {up(value)}h{wide}" stroke="#ccc"/>')
        parts.append(text(LEFT - 6, up(value) + 4, f"{value:g}", 'text-anchor="end"'))
    parts += [text(across(n), HEIGHT - 26, f"{x:,}", 'text-anchor="middle"') for n, x in enumerate(chart.steps)]
    for number, (name, values) in enumerate(chart.lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{across(n)},{up(value)}" for n, value in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(text(WIDTH - RIGHT + 14, TOP + 10 + 18 * number, name, f'fill="{colour}"'))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _round_up(value: float) -> float:
    """The next number that divides well by four: 1, 2, 4 or 8 times a power of ten; 1 for nothing."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value)
