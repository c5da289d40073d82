"""Pictures of the report as inline SVG: small, sharp in print, coloured by the page's CSS variables in light and dark.

Colours are the classes c1 … c5, `axis`, `grid`, defined in report.css.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 30
MAX_POINTS = 240

Points = Sequence[tuple[float, float]]


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    return [round(step * k, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number as an axis shows it: 12k, 0.5, 2e-4."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e4:
        return f"{value / 1e3:g}k"
    if 0 < size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:g}"


def thin(points: Points) -> Points:
    """At most MAX_POINTS points, each the mean of its neighbours."""
    if len(points) <= MAX_POINTS:
        return points
    return [
        (float(part[:, 0].mean()), float(part[:, 1].mean())) for part in np.array_split(np.array(points), MAX_POINTS)
    ]


def smooth(points: Points) -> Points:
    """Mean over about a thirtieth of the points around each; the window shrinks towards both ends."""
    sums = np.concatenate(([0.0], np.cumsum([y for _, y in points])))
    reach, last, out = len(points) // 60, len(points) - 1, []
    for place, (x, _) in enumerate(points):
        side = min(reach, place, last - place)
        out.append((x, float(sums[place + side + 1] - sums[place - side]) / (2 * side + 1)))
    return out


class _Frame:
    """Maps data to the drawing and draws the axes."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], *, width: int = WIDTH, height: int = HEIGHT
    ) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height

    def at(self, x: float, y: float) -> str:
        (x0, x1), (y0, y1) = self.x, self.y
        right = LEFT + (x - x0) / ((x1 - x0) or 1) * (self.width - LEFT - RIGHT)
        share = min(1.0, max(0.0, (y - y0) / ((y1 - y0) or 1)))  # what is outside touches the edge
        return f"{right:.1f},{TOP + (1 - share) * (self.height - TOP - BOTTOM):.1f}"

    def axes(self, x_label: str) -> str:
        parts = []
        for value in ticks(*self.y):
            height = self.at(self.x[0], value).split(",")[1]
            parts.append(f'<path class="grid" d="M{LEFT},{height}H{self.width - RIGHT}"/>')
            parts.append(label(LEFT - 6, float(height) + 4, short(value)))
        return "".join(parts) + self.steps(x_label)

    def steps(self, x_label: str) -> str:
        """The axis below."""
        places = [(self.at(value, self.y[0]).split(",")[0], value) for value in ticks(*self.x)]
        parts = [label(x, self.height - BOTTOM + 16, short(value), anchor="middle") for x, value in places]
        parts.append(label(self.width - RIGHT, self.height - 2, x_label))
        return "".join(parts)


def label(x: float | str, y: float, words: str, *, anchor: str = "end", kind: str = "axis") -> str:
    """Words whose `anchor` is at x."""
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def figure(title: str, drawing: str, *, width: int = WIDTH, height: int = HEIGHT, legend: Sequence[str] = ()) -> str:
    """A titled picture with its legend."""
    keys = "".join(f'<span class="key k{index}">{escape(name)}</span>' for index, name in enumerate(legend, 1))
    caption = f"<figcaption><b>{escape(title)}</b>{keys}</figcaption>"
    words, widest = escape(title, quote=True), max(width, 560)
    return (
        f'<figure>{caption}<svg viewBox="0 0 {width} {height}" style="max-width:{widest}px" role="img" '
        f'aria-label="{words}">{drawing}</svg></figure>'
    )


def line_chart(title: str, series: dict[str, Points], *, x_label: str = "step", from_zero: bool = False) -> str:
    """Curves over steps: what was measured, pale, and its running mean. Empty series are left out."""
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    xs = [x for points in series.values() for x, _ in points]
    ys = np.array([y for points in series.values() for _, y in points])
    low, high = float(ys.min()), float(np.quantile(ys, 0.995))
    if from_zero:
        low = min(0.0, low)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    frame = _Frame((min(xs), max(xs)), (low if from_zero else low - margin, high + margin))
    drawing = [frame.axes(x_label)]
    for index, points in enumerate(series.values(), 1):
        for kind, line in (("raw", thin(points)), ("mean", thin(smooth(points)))):
            path = " ".join(frame.at(x, y) for x, y in line)
            drawing.append(f'<polyline class="line c{index} {kind}" points="{path}"/>')
    return figure(title, "".join(drawing), legend=list(series) if len(series) > 1 else ())


SHADES = 4
"""Steps of a load map's colours either way of even; one is a factor of the square root of 2."""


def load_map(title: str, steps: Sequence[float], share_TE: NDArray[np.float64]) -> str:
    """Experts from top to bottom, steps from left to right: even is blank, the busier and the idler the darker.

    Cells of one shade are one path, runs of them along a row one stroke, counted in cells: 128 experts stay a few tens
    of kilobytes.
    """
    bins, experts = min(len(steps), 60), share_TE.shape[1]
    edges = np.linspace(0, len(steps), bins + 1).round().astype(int)
    ratio_BE = np.array([share_TE[a:b].mean(0) for a, b in pairwise(edges)]) * experts
    shade_BE = np.clip(np.round(2 * np.log2(np.maximum(ratio_BE, 1e-9))), -SHADES, SHADES).astype(int)
    frame = _Frame((float(steps[0]), float(steps[-1])), (0.0, 1.0))
    wide, tall = (WIDTH - LEFT - RIGHT) / bins, (HEIGHT - TOP - BOTTOM) / experts
    paths: dict[int, list[str]] = {}
    for expert in range(experts):
        row_B = shade_BE[:, expert]
        starts = [0, *(np.flatnonzero(np.diff(row_B)) + 1).tolist(), bins]
        for begin, end in pairwise(starts):
            if shade := int(row_B[begin]):
                paths.setdefault(shade, []).append(f"M{begin} {expert}h{end - begin}")
    drawing = [f'<g transform="translate({LEFT},{TOP + tall / 2:.3f}) scale({wide:.4f},{tall:.4f})">']
    for shade, strokes in sorted(paths.items()):
        kind, opacity = "over" if shade > 0 else "under", abs(shade) / SHADES
        drawing.append(f'<path class="{kind}" stroke-opacity="{opacity:.2f}" d="{"".join(strokes)}"/>')
    drawing.append("</g>")
    outline = f"M{LEFT},{TOP}H{WIDTH - RIGHT}V{HEIGHT - BOTTOM}H{LEFT}z"
    drawing.append(f'<path class="grid" d="{outline}"/>{frame.steps("step")}')
    named = {1, experts, *(number for number in ticks(1, experts, count=4) if number < 0.93 * experts)}
    drawing += [label(LEFT - 6, TOP + (number - 0.5) * tall + 4, f"{number:.0f}") for number in sorted(named)]
    return figure(title, "".join(drawing), legend=["idler than even", "busier"])


def heat_map(title: str, rows: Mapping[str, Sequence[float]], *, note: str) -> str:
    """Cells shaded by load relative to an even one (1.00), up to twice as much."""
    columns = max(map(len, rows.values()))
    cell, line, gap = max(16, min(44, 704 // columns)), 26, 74
    width, height = gap + columns * cell + 4, len(rows) * line + 20
    drawing = []
    for place, (name, values) in enumerate(rows.items()):
        top = place * line
        drawing.append(label(gap - 8, top + 17, name))
        for column, value in enumerate(values):
            left = gap + column * cell
            shade = min(1.0, value / 2)
            ink = "on-dark" if shade > 0.6 else "on-light"
            drawing.append(
                f'<rect class="cell" x="{left}" y="{top + 1}" width="{cell - 2}" height="{line - 2}" '
                f'fill-opacity="{shade:.2f}"/>'
            )
            if cell >= 34:
                drawing.append(label(left + cell / 2 - 1, top + 17, f"{value:.2f}", anchor="middle", kind=ink))
    drawing.append(label(gap, height - 4, note, anchor="start"))
    return figure(title, "".join(drawing), width=width, height=height)


def dot_plot(title: str, rows: dict[str, dict[str, float]], *, legend: dict[str, str], x_label: str) -> str:
    """One line a row, one dot a competitor: `rows[row][competitor]`; the first competitor is the large dot."""
    line, width = 22, 480
    height = TOP + len(rows) * line + BOTTOM + 8
    values = [value for row in rows.values() for value in row.values()]
    frame = _Frame((min(values) * 0.92, max(values) * 1.03), (0.0, 1.0), width=width, height=height)
    drawing = []
    for value in ticks(*frame.x):
        place = frame.at(value, 0).split(",")[0]
        drawing.append(f'<path class="grid" d="M{place},{TOP}V{height - BOTTOM}"/>')
        drawing.append(label(place, height - BOTTOM + 16, short(value), anchor="middle"))
    drawing.append(label(width - RIGHT, height - 2, x_label))
    for count, (name, row) in enumerate(rows.items()):
        middle = TOP + count * line + line / 2
        drawing.append(label(LEFT - 12, middle + 4, name))
        for index, key in reversed(list(enumerate(legend, 1))):
            if key in row:
                x = frame.at(row[key], 0).split(",")[0]
                drawing.append(f'<circle class="dot c{index}" cx="{x}" cy="{middle}" r="{6 if index == 1 else 4}"/>')
    return figure(title, "".join(drawing), width=width, height=height, legend=list(legend.values()))


def recall_map(rows: Mapping[str, Sequence[float]], columns: Sequence[str]) -> str:
    """Shares of right answers, white for none, blue for all: a complete picture, with colours of its own."""
    cell, line, gap = 64, 26, 16 + 7 * max(map(len, rows))
    width, height = gap + len(columns) * cell + 4, (len(rows) + 1) * line + 6
    drawing = []
    for place, (name, values) in enumerate(rows.items()):
        top = place * line
        drawing.append(f'<text x="{gap - 8}" y="{top + 17}" text-anchor="end">{escape(name)}</text>')
        for column, value in enumerate(values):
            left, ink = gap + column * cell, "#fff" if value > 0.6 else "#222"
            drawing.append(
                f'<rect x="{left}" y="{top + 1}" width="{cell - 2}" height="{line - 2}" fill="#2456a6" '
                f'fill-opacity="{value:.2f}" stroke="#ccc" stroke-width=".5"/><text x="{left + cell / 2 - 1}" '
                f'y="{top + 17}" text-anchor="middle" fill="{ink}">{100 * value:.0f}</text>'
            )
    for column, name in enumerate(columns):
        middle = gap + column * cell + cell / 2 - 1
        drawing.append(f'<text x="{middle}" y="{height - 12}" text-anchor="middle">{escape(name)}</text>')
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    box = f'viewBox="0 0 {width} {height}" width="{width}"'
    body = f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(drawing)}'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} {style}>{body}</svg>\n'
