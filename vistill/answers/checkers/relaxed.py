"""`relaxed`: numbers within 5 % (ChartQA)."""

from fractions import Fraction

from vistill.answers.checkers.math import find_math
from vistill.answers.checkers.text import find_words
from vistill.answers.compare import Mathematics, same_text
from vistill.answers.extract import Take
from vistill.answers.normalise import strip_markup, text_form
from vistill.answers.reading import with_gold
from vistill.answers.values import Value, parse_value
from vistill.answers.verdict import Verdict

#: Largest relative error of a number.
TOLERANCE = Fraction(5, 100)


def is_near(value: Value, gold: Value) -> bool:
    """Whether a number is within 5 % of the gold answer; percents are hundredths if both differ."""
    if value.number is None or gold.number is None:
        return False
    numbers = [value.number]
    if {value.unit, gold.unit} == {"", "%"}:
        if value.unit and abs(gold.number) <= 1:
            numbers = [value.number / 100]
        elif gold.unit and abs(value.number) <= 1:
            numbers += [value.number * 100]
    return any(abs(number - gold.number) <= TOLERANCE * abs(gold.number) for number in numbers)


@with_gold
def check(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """A number within 5 % of the gold answer; other answers must have the same words.

    Source: relaxed accuracy of ChartQA (Masry et al., 2022; from PlotQA).
    """
    gold = parse_value(strip_markup(answer))
    if gold.number is None:
        commit = find_words(response, take)
        forms = commit.form.forms if commit and commit.form else ()
        correct = any(same_text(form, answer) for form in forms)
        shown, gold_form = text_form(forms[0]) if forms else "", text_form(answer)
    else:
        commit = find_math(response, take)
        forms = commit.form.forms if commit and commit.form else ()
        values = [parse_value(strip_markup(form)) for form in forms]
        correct = any(is_near(value, gold) for value in values)
        shown, gold_form = str(values[0]) if values else "", str(gold)
    if commit is None or not forms:
        reason = "the reply commits to no answer"
        return Verdict(None, False, gold_form=gold_form, reason=reason)
    reason = "" if correct else "another value"
    where = (commit.start, commit.end)
    return Verdict(commit.text, correct, commit.rule, where, shown, gold_form, reason)
