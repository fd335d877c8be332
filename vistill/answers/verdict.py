"""The verdict on one reply: what it commits to, by which rule, and whether that is correct."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """What a checker decides about one reply. Checkers of plug-ins may give the first two alone."""

    extracted: str | None
    """The span of the reply that is its answer, as written; None if the reply commits to none."""
    correct: bool
    rule: str = ""
    """The rule that chose the span: `box`, `tag`, `phrase`, `bare`, ... (docs/answers.md)."""
    position: tuple[int, int] | None = None
    """Begin and end of the span in the reply, in characters."""
    reply_form: str = ""
    """Normal form of the extracted answer that was compared."""
    gold_form: str = ""
    """Normal form of the gold answer that was compared."""
    reason: str = ""
    """Why the answer is not correct; empty if it is."""
    checker: str = ""
    """The checker that decided; `auto` names the one that it chose."""
    score: float | None = None
    """Credit between 0 and 1 for metrics that give parts (`vqa`, `anls`); None elsewhere."""

    @property
    def unparsed(self) -> bool:
        """Whether the reply commits to no answer."""
        return self.extracted is None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `vistill judge`."""
        plain = {
            "correct": self.correct,
            "extracted": self.extracted,
            "rule": self.rule,
            "position": None if self.position is None else list(self.position),
            "reply_form": self.reply_form,
            "gold_form": self.gold_form,
            "reason": self.reason,
            "unparsed": self.unparsed,
            "checker": self.checker,
        }
        return plain if self.score is None else {**plain, "score": self.score}
