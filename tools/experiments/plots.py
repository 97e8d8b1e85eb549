"""Plots as SVG, from the standard library alone: bars in groups, and lines."""

import html
import math

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 64, 62
COLOURS = ("#2f6fb2", "#d9822b", "#4b9b5f", "#9b59a8", "#b23a48", "#6b7280")
TEXT, GRID = "#333333", "#dddddd"


def short(value):
    """1,234 for people: "950", "1.5k", "2M"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def nice_ticks(top, count=5):
    """Round steps from 0 to not less than `top`."""
    if top <= 0:
        return [0.0, 1.0]
    step = 10 ** math.floor(math.log10(top / count))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if top / (step * factor) <= count)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


class Canvas:
    def __init__(self, title, caption, top, unit, reference=None):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'font-family="sans-serif" font-size="12" fill="{TEXT}">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        ]
        self.ticks = nice_ticks(top)
        self.text(LEFT, 22, title, size=15, weight="bold")
        self.text(LEFT, HEIGHT - 10, caption, size=10)
        for tick in self.ticks:
            y = self.y(tick)
            self.line(LEFT, y, WIDTH - RIGHT, y, GRID)
            self.text(LEFT - 8, y + 4, short(tick), anchor="end")
        self.text(LEFT, TOP - 12, unit, size=11)
        self.legend_x = LEFT + 20 + 6.5 * len(unit)
        if reference is not None:
            self.line(LEFT, self.y(reference), WIDTH - RIGHT, self.y(reference), TEXT, "4 3")

    def y(self, value):
        share = max(value, 0) / self.ticks[-1]
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def text(self, x, y, words, size=12, anchor="start", weight="normal"):
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{html.escape(str(words))}</text>'
        )

    def line(self, x1, y1, x2, y2, colour, dashes=""):
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-dasharray="{dashes}"/>'
        )

    def box(self, x, y, width, height, colour):
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="{colour}"/>'
        )

    def legend(self, names):
        x = self.legend_x
        for name, colour in zip(names, COLOURS):
            self.box(x, TOP - 22, 12, 12, colour)
            self.text(x + 17, TOP - 12, name)
            x += 40 + 7 * len(name)

    def done(self):
        return "\n".join([*self.parts, "</svg>\n"])


def bars(title, caption, unit, groups, series, reference=None):
    """`series`: {name: [a value a group, or None]}."""
    values = [v for row in series.values() for v in row if v is not None]
    canvas = Canvas(title, caption, max([*values, reference or 0]), unit, reference)
    room = (WIDTH - LEFT - RIGHT) / max(len(groups), 1)
    width = min(0.8 * room / max(len(series), 1), 46)
    for g, group in enumerate(groups):
        middle = LEFT + room * (g + 0.5)
        canvas.text(middle, HEIGHT - BOTTOM + 18, group, anchor="middle", size=11)
        for s, row in enumerate(series.values()):
            if row[g] is None:
                continue
            x = middle + (s - len(series) / 2) * width
            y = canvas.y(row[g])
            canvas.box(x, y, width - 2, HEIGHT - BOTTOM - y, COLOURS[s % len(COLOURS)])
            canvas.text(x + width / 2 - 1, y - 4, short(row[g]), anchor="middle", size=9)
    canvas.legend(series)
    return canvas.done()


def lines(title, caption, unit, ticks, series, reference=None):
    """`ticks`: the values of x, at equal distances. `series`: {name: {x: y}}."""
    values = [v for points in series.values() for v in points.values()]
    canvas = Canvas(title, caption, max([*values, reference or 0]), unit, reference)
    room = (WIDTH - LEFT - RIGHT) / max(len(ticks), 1)
    place = {tick: LEFT + room * (i + 0.5) for i, tick in enumerate(ticks)}
    for tick, x in place.items():
        label = f"{tick:,}" if isinstance(tick, int) else tick
        canvas.text(x, HEIGHT - BOTTOM + 18, label, anchor="middle", size=11)
    for s, points in enumerate(series.values()):
        colour = COLOURS[s % len(COLOURS)]
        path = [(place[x], canvas.y(points[x])) for x in ticks if x in points]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
        canvas.parts.append(
            f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        for x, y in path:
            canvas.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
    canvas.legend(series)
    return canvas.done()
