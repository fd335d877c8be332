"""A summary as a plain table."""

from typing import Any

ROWS = (
    ("accuracy", "accuracy, T = 1"),
    ("greedy_accuracy", "accuracy, greedy"),
    ("accuracy/pixelated", "  picture pixelated"),
    ("accuracy/text_only", "  picture removed"),
    ("accuracy/swapped", "  picture swapped"),
    ("reading/stated", "labels stated right"),
    ("reading/follows_swap", "follows a changed digit"),
    ("va/mean", "mean visual advantage, nats per token"),
    ("va/top10_share", "share of it in the top 10 % of tokens"),
    ("critical/share", "critical tokens"),
    ("critical/kl_share", "their share of the KL to the teacher"),
    ("truncated_share", "responses cut off"),
    ("unparsed_share", "responses without an answer"),
)


def summary_table(summary: dict[str, Any]) -> str:
    """Name, value, interval; the denominator on the first line."""
    lines = [f"{int(summary.get('rows', 0)):,} questions, {int(summary.get('samples', 1))} response(s) each"]
    for key, name in ROWS:
        value = summary.get(key)
        if value is None:
            continue
        low, high = summary.get(f"{key}_low"), summary.get(f"{key}_high")
        band = f"   95 % [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
        lines.append(f"{name:<40} {value:.3f}{band}")
    return "\n".join(lines)
