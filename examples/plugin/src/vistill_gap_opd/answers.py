"""A checker and a reward of this package: `eval.checker: year`, `reward.extra: {brief: 0.1}`."""

import re

from vistill.answers import Verdict

YEAR = re.compile(r"(?<!\d)[12]\d{3}(?!\d)")


def year(response, answer, choices, take, math) -> Verdict:
    """The first or last year that a reply names must be the gold year."""
    years = list(YEAR.finditer(response))
    if not years:
        return Verdict(None, correct=False, reason="the reply names no year")
    match = years[0 if take == "first" else -1]
    correct = match.group() == answer.strip()
    reason = "" if correct else "another year"
    return Verdict(match.group(), correct, rule="year", position=match.span(), reason=reason)


def brief(response, prompt, settings, math) -> float:
    """1 for an empty reply, less for a longer one, 0 from 2,000 characters on."""
    return max(0.0, 1 - len(response) / 2000)
