"""Static SVG line charts in colours for colour-blind readers, and token heatmaps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from vistill.redaction import escape_control_characters

#: The palette of Okabe and Ito.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 40
#: Width of a letter of a label, at most.
LETTER = 7


@dataclass(frozen=True)
class Series:
    """One named line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    arrow: bool = False
    """Mark the start (circle) and the end (square) of a path in time."""
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high) of an interval."""


@dataclass(frozen=True)
class Axes:
    """Titles and limits of a chart."""

    title: str
    x: str
    y: str
    y_from_zero: bool = True
    marks: Sequence[tuple[float, str]] = ()
    """Vertical marks."""


def escape_text(words: str) -> Markup:
    """Escape control characters and markup, for a text node or a quoted attribute."""
    return escape(escape_control_characters(words))


def nice_ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """Round numbers that cover a range; a range below 1e-8 counts as flat.

    `whole` gives whole numbers only, as for steps.
    """
    if high - low <= 1e-8:
        high = low + 1.0
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    power = max(1, power) if whole else power
    sizes = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(m * power for m in sizes if m * power >= raw - 1e-12)
    first = math.floor(low / step + 1e-9) * step
    ticks = []
    while not ticks or ticks[-1] < high - 1e-9:
        ticks.append(round(first + len(ticks) * step, 10))
    return ticks


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """Format a tick with enough decimals to distinguish it from its neighbours."""
    step = ticks[1] - ticks[0]
    decimals = max(0, math.ceil(-math.log10(step) - 1e-9)) if step < 1 else 0
    decimals += 1 if decimals and round(step * 10**decimals, 6) % 1 else 0
    return f"{value:,.{decimals}f}"


def line_chart(series: Sequence[Series], axes: Axes) -> Markup:
    """An SVG line chart with a legend, or a note if there is no data."""
    drawn = [s for s in series if s.points]
    if not drawn:
        return Markup('<p class="empty">{}: no data.</p>').format(escape_text(axes.title))
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points] + [
        v for s in drawn for _, lo, hi in s.band for v in (lo, hi)
    ]
    is_whole = all(float(x).is_integer() for x in xs)
    x_ticks = nice_ticks(min(xs), max(xs), count=4, whole=is_whole)
    y_ticks = nice_ticks(min(0.0, *ys) if axes.y_from_zero else min(ys), max(ys))

    def px(x: float) -> float:
        return LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return (
            HEIGHT
            - BOTTOM
            - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)
        )

    parts = [draw_frame(x_ticks, y_ticks, px, py, axes)]
    for s in drawn:
        colour = COLOURS[s.colour % len(COLOURS)]
        if s.band:
            up = [f"{px(x):.1f},{py(hi):.1f}" for x, _, hi in s.band]
            down = [f"{px(x):.1f},{py(lo):.1f}" for x, lo, _ in reversed(s.band)]
            parts.append(
                f'<polygon points="{" ".join(up + down)}" fill="{colour}" opacity="0.14"/>'
            )
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in s.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        dots = s.points if len(s.points) <= 24 else ()
        parts += [
            f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.5" fill="{colour}"/>' for x, y in dots
        ]
        if s.arrow:
            (x0, y0), (x1, y1) = s.points[0], s.points[-1]
            parts.append(
                f'<circle cx="{px(x0):.1f}" cy="{py(y0):.1f}" r="5" fill="#fff"'
                f' stroke="{colour}" stroke-width="2"/>'
            )
            parts.append(
                f'<rect x="{px(x1) - 5:.1f}" y="{py(y1) - 5:.1f}" width="10" height="10"'
                f' fill="{colour}"/>'
            )
    legend = "".join(
        f'<span class="key"><i style="background:{COLOURS[s.colour % len(COLOURS)]}"></i>'
        f"{escape_text(s.name)}</span>"
        for s in drawn
    )
    title = escape_text(axes.title)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
    svg += f"{''.join(parts)}</svg>"
    return Markup(  # noqa: S704  every text in it went through `text_of`
        f'<figure class="chart"><figcaption>{title}</figcaption>{svg}<div>{legend}</div></figure>'
    )


def draw_frame(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    px: Callable[[float], float],
    py: Callable[[float], float],
    axes: Axes,
) -> str:
    """Draw the grid, ticks, axis titles and vertical marks."""
    base, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    out = []
    for y in y_ticks:
        out.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}"'
            f' stroke="#e4e4e4"/>'
        )
        out.append(
            f'<text x="{LEFT - 6}" y="{py(y) + 4:.1f}" text-anchor="end">'
            f"{tick_text(y, y_ticks)}</text>"
        )
    for x in x_ticks:
        text = tick_text(x, x_ticks)
        anchor = "end" if px(x) + LETTER * len(text) / 2 > WIDTH else "middle"
        out.append(f'<text x="{px(x):.1f}" y="{base + 16}" text-anchor="{anchor}">{text}</text>')
    for x, name in axes.marks:
        at = f"{px(x):.1f}"
        out.append(
            f'<line x1="{at}" x2="{at}" y1="{TOP}" y2="{base}" stroke="#888"'
            f' stroke-dasharray="4 3"/>'
        )
        out.append(f'<text x="{px(x) + 4:.1f}" y="{base - 8}">{escape_text(name)}</text>')
    centre = f"{(LEFT + WIDTH - RIGHT) / 2:.0f}"
    out.append(
        f'<text x="{centre}" y="{HEIGHT - 6}" text-anchor="middle" class="axis">'
        f"{escape_text(axes.x)}</text>"
    )
    turn = f"translate(12,{middle:.0f}) rotate(-90)"
    out.append(
        f'<text transform="{turn}" text-anchor="middle" class="axis">{escape_text(axes.y)}</text>'
    )
    return "".join(out)


def scale_of(values: Sequence[Sequence[float]], share: float = 0.99) -> float:
    """A common colour scale: the 99th percentile of the positive values, at least 1 nat."""
    pooled = sorted(v for row in values for v in row if v > 0)
    return max(1.0, pooled[min(len(pooled) - 1, int(share * len(pooled)))]) if pooled else 1.0


def tokens_html(
    tokens: Sequence[str],
    values: Sequence[float],
    scale: float | None = None,
    titles: Sequence[str] = (),
    underlined: Sequence[bool] | None = None,
) -> Markup:
    """One span per token: darker orange is a larger value.

    Without `underlined`, an underline is above half the scale.
    """
    top = scale if scale is not None else scale_of([values])
    spans = []
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        share = min(1.0, max(0.0, value / top))
        is_underlined = share > 0.5 if underlined is None else underlined[i]
        style = f"background:rgba(213,94,0,{0.85 * share:.2f})" + (
            ";border-bottom:2px solid #7a2e00" if is_underlined else ""
        )
        title = titles[i] if titles else f"{value:.2f} nats"
        spans.append(
            Markup('<span class="t" style="{}" title="{}">{}</span>').format(
                style, title, escape_control_characters(token)
            )
        )
    return Markup('<p class="tokens">{}</p>').format(Markup("").join(spans))
