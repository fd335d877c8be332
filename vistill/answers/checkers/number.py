"""`number`: a number with its unit, to the decimals that the gold answer states."""

from fractions import Fraction

from vistill.answers.checkers.math import Reading, find_math
from vistill.answers.compare import Mathematics, same_number, same_units
from vistill.answers.extract import Take
from vistill.answers.normalise import strip_markup
from vistill.answers.reading import with_gold
from vistill.answers.values import Value, parse_value
from vistill.answers.verdict import Verdict


def decimals(form: str) -> int:
    """Decimals that a number states: 2 for `3.14`, 0 for `3` and `1/3`."""
    _, dot, tail = form.partition(".")
    return len(tail) if dot and tail.isdigit() else 0


def is_close(value: Value, gold: Value) -> bool:
    """Whether a number rounds to the gold answer at its decimals; a whole number must be equal.

    `50%` is also `0.5`, as for `math`.
    """
    if {value.unit, gold.unit} == {"", "%"} and same_number(value, gold):
        return True
    if value.number is None or gold.number is None or not same_units(value, gold):
        return False
    places = decimals(gold.form)
    if places == 0:
        return value.number == gold.number
    return abs(value.number - gold.number) <= Fraction(1, 2 * 10**places)


def best_value(reading: Reading, gold: Value) -> Value:
    """The reading that is close to the gold answer, else the first number."""
    values = [parse_value(strip_markup(form)) for form in reading.forms]
    close = [value for value in values if is_close(value, gold)]
    numbers = [value for value in values if value.number is not None]
    return (close or numbers or values)[0]


@with_gold
def check(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """A number that rounds to the gold answer at the decimals which the gold answer states.

    Source: MathVista rounds a prediction to the `precision` of its row. Needs no mathematics.
    """
    gold = parse_value(strip_markup(answer))
    commit = find_math(response, take)
    if commit is None or commit.form is None:
        reason = "the reply commits to no number"
        return Verdict(None, False, gold_form=str(gold), reason=reason)
    value = best_value(commit.form, gold)
    if gold.number is None:
        reason = "the gold answer is no number"
    elif value.number is None:
        reason = "the answer is no number"
    elif is_close(value, gold):
        reason = ""
    else:
        reason = "another number" if same_units(value, gold) else "another unit"
    where = (commit.start, commit.end)
    return Verdict(commit.text, not reason, commit.rule, where, str(value), str(gold), reason)
