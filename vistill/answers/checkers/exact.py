"""`exact`: the same characters."""

from vistill.answers.checkers.text import find_words
from vistill.answers.compare import Mathematics
from vistill.answers.extract import Take
from vistill.answers.normalise import strip_markup
from vistill.answers.reading import with_gold
from vistill.answers.verdict import Verdict


@with_gold
def check(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """The same characters, case included, without wrappers and spaces at the ends.

    Source: `exact_match` of lmms-eval, without its switches.
    """
    commit = find_words(response, take)
    gold = strip_markup(answer)
    if commit is None:
        return Verdict(None, False, gold_form=gold, reason="the reply commits to no answer")
    form, where = strip_markup(commit.text), (commit.start, commit.end)
    reason = "" if form == gold else "other characters"
    return Verdict(commit.text, not reason, commit.rule, where, form, gold, reason)
