"""Heatmaps of tokens, which a notebook draws."""

from dataclasses import dataclass

from vistill.report.charts import scale_of, tokens_html


@dataclass(frozen=True)
class TokenAdvantage:
    """Tokens of one response with their visual advantage in nats."""

    tokens: list[str]
    values: list[float]

    def to_html(self, scale: float | None = None) -> str:
        """The heatmap; `scale` is the value of the darkest colour, in nats."""
        return tokens_html(self.tokens, self.values, scale)

    def _repr_html_(self) -> str:
        return f"{legend_html(scale_of([self.values]))}{self.to_html()}"


class TokenAdvantages(list[TokenAdvantage]):
    """The heatmaps of several responses; a notebook draws them on one scale of colours."""

    def _repr_html_(self) -> str:
        scale = scale_of([item.values for item in self])
        return "".join([legend_html(scale), *(item.to_html(scale) for item in self)])


def legend_html(scale: float) -> str:
    """What the colours mean."""
    return (
        "<p><small>visual advantage of each token; darkest orange: "
        f"{scale:.1f} nats, underlined: above half of it; the number is in the tooltip</small></p>"
    )
