"""A warning about responses without an answer: they count as wrong, whatever the student can do."""

from collections.abc import Mapping

#: Share of responses without an answer above which every accuracy comes with a warning.
MUCH_UNPARSED = 0.2
UNANSWERED = "of the responses contain no answer and count as wrong"


def unparsed_warning(summary: Mapping[str, float]) -> str:
    """How many responses contain no answer, if they are more than a fifth; else empty.

    Args:
        summary: of an evaluation; reads `unparsed_share`.
    """
    share = summary.get("unparsed_share") or 0
    if share <= MUCH_UNPARSED:
        return ""
    return unparsed_fact(share) + ": read some responses in samples/ before you trust the accuracy"


def unparsed_fact(share: float) -> str:
    """The share of the responses without an answer, and what it means."""
    return f"{100 * share:.1f} % {UNANSWERED}"
