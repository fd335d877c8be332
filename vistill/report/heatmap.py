"""Tokens coloured by visual advantage: spans and CSS, text only in text nodes."""

from collections.abc import Sequence

from markupsafe import Markup

from vistill.redaction import escape_control_characters


def scale_of(values: Sequence[Sequence[float]], share: float = 0.99) -> float:
    """One colour scale for several panels: the 99th percentile of the positive values, at least one nat."""
    pooled = sorted(v for row in values for v in row if v > 0)
    return max(1.0, pooled[min(len(pooled) - 1, int(share * len(pooled)))]) if pooled else 1.0


def tokens_html(
    tokens: Sequence[str],
    values: Sequence[float],
    scale: float | None = None,
    titles: Sequence[str] = (),
) -> Markup:
    """One span a token: darker orange means a larger advantage; above half of the scale it is underlined too."""
    top = scale if scale is not None else scale_of([values])
    spans = []
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        share = min(1.0, max(0.0, value / top))
        style = f"background:rgba(213,94,0,{0.85 * share:.2f})" + (
            ";border-bottom:2px solid #7a2e00" if share > 0.5 else ""
        )
        title = titles[i] if titles else f"{value:.2f} nats"
        spans.append(
            Markup('<span class="t" style="{}" title="{}">{}</span>').format(
                style, title, escape_control_characters(token)
            )
        )
    return Markup('<p class="tokens">{}</p>').format(Markup("").join(spans))
