"""Compare two answers: as words, as exact numbers with units, and as mathematics."""

import re
from typing import Protocol

from vistill.answers.normalise import (
    FORMULA_INDEX,
    GREEK,
    fold_case,
    math_form,
    strip_markup,
    text_form,
)
from vistill.answers.values import (
    ANGLE_FUNCTION,
    FORMULA,
    Value,
    is_mathematical,
    is_time_or_date,
    parse_number,
    parse_value,
)

COMMAND = re.compile(r"\\[A-Za-z]{1,20}|(?<![A-Za-z])(?:sin|cos|tan|log|ln|arc)")
FRACTION = re.compile(r"(?:\\frac\{)?(\d{1,9})(?:\}\{|/)(\d{1,9})\}?")
VARIABLE = re.compile(r"[A-Za-z]")
GREEK_NAME = re.compile(rf"\\(?:var)?({'|'.join(GREEK.values())})(?![A-Za-z])")
#: Names of angles and the like; the order of their letters counts.
NAME = re.compile(r"\\(?:angle|triangle|parallel|perp|vec|overrightarrow)\s?\{?([A-Za-z]{1,6})")


FUNCTION = re.compile(r"(?<![A-Za-z\\])(sin|cos|tan|cot|sec|csc)(?![a-z])")
DEGREES = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)°")
MIXED = re.compile(r"(?<![\d.^])(\d{1,20}) (\d{1,20})/(\d{1,20})(?!\d)")
ARROW = re.compile(r"\u2192|->|\\(?:to|rightarrow)(?![a-z])")
#: `12K` is 12 thousand, or a temperature; never 12 of another unit.
THOUSANDS = re.compile(r"-?[\d.,]{1,20}K")
TWO_NUMBERS = re.compile(r"\d \d")
BASE = re.compile(r"\d_\{?(\w{1,9})")


class Mathematics(Protocol):
    """What compares expressions: the process with math-verify."""

    def equal(self, gold: str, answer: str) -> bool:
        """Whether two expressions are equal."""
        ...


def same_text(answer: str, gold: str) -> bool:
    """Whether two answers have the same normal form of words."""
    form = text_form(gold)
    return bool(form) and text_form(answer) == form


def same_units(answer: Value, gold: Value) -> bool:
    """Whether the units of two values agree: ignored where the gold answer has none.

    A degree sign may be missing: `90` is `90°`.
    """
    if gold.label and gold.label != answer.label:
        return False
    if not gold.unit:
        return True
    return answer.unit == gold.unit or (gold.unit == "°" and not answer.unit and not answer.label)


def same_number(answer: Value, gold: Value) -> bool | None:
    """Whether two exact numbers with units are equal; None where one of them is no number."""
    if answer.number is None or gold.number is None:
        return None
    if answer.number == gold.number and same_units(answer, gold):
        return True
    if {answer.unit, gold.unit} == {"", "%"}:
        percent, other = (answer, gold) if answer.unit else (gold, answer)
        return percent.number == 100 * (other.number or 0)
    return False


def same_value(answer: str, gold: str, math: Mathematics | None) -> bool:
    """Whether two answers are equal as text, as number, or as mathematics.

    Args:
        answer: the answer of a reply.
        gold: the gold answer.
        math: compares what is neither equal as text nor a number; None compares no further.
    """
    if same_text(answer, gold):
        return True
    plain, plain_gold = strip_markup(answer), strip_markup(gold)
    if not plain or not plain_gold:
        return False
    if fold_case(math_form(plain)) == fold_case(math_form(plain_gold)):
        return True
    if is_same_formula(plain, plain_gold):
        return True
    value, gold_value = parse_value(plain), parse_value(plain_gold)
    if THOUSANDS.fullmatch(plain) and not gold_value.unit:
        return value.number is not None and value.number * 1000 == gold_value.number
    decided = same_number(value, gold_value)
    if decided is None:
        decided = same_units(value, gold_value) and same_mathematics(value, gold_value, math)
    return decided


def is_same_formula(plain: str, gold: str) -> bool:
    """Whether two answers are one chemical formula, with or without the signs of its indices."""
    if len(plain) > 60 or len(gold) > 60:
        return False
    forms = [FORMULA_INDEX.sub(r"\1\2", math_form(text)) for text in (plain, gold)]
    return forms[0] == forms[1] and FORMULA.fullmatch(forms[0]) is not None


def same_mathematics(value: Value, gold: Value, math: Mathematics | None) -> bool:
    """Whether two values that are not both numbers are equal as mathematics; words never are."""
    if fold_case(value.form) == fold_case(gold.form) and value.form:
        return True
    if is_time_or_date(value.form) or is_time_or_date(gold.form):
        return same_parts(value.form, gold.form)
    if math is None or not may_be_equal(value, gold):
        return False
    return math.equal(math_question(gold.form), math_question(value.form))


def may_be_equal(value: Value, gold: Value) -> bool:
    """Whether math-verify may decide: it drops signs, bases, names and spaces that differ here."""
    forms = (value.form, gold.form)
    if not all(is_mathematical(form) and not FORMULA.fullmatch(form) for form in forms):
        return False
    if any(ARROW.search(form) for form in forms):
        return False
    if any(TWO_NUMBERS.search(math_question(form)) for form in forms):
        return False
    if any(form[-1] in "+-*/=<>?" for form in forms):
        return False
    if gold.number is not None and not re.search(r"[\d\\]", value.form):
        return False
    return (
        variables(value.form) == variables(gold.form)
        and names(value.form) == names(gold.form)
        and BASE.findall(value.form) == BASE.findall(gold.form)
    )


def math_question(form: str) -> str:
    """A form as math-verify reads it: mixed numbers as sums, angles of functions in radians."""
    form = MIXED.sub(r"(\1+\\frac{\2}{\3})", form)
    if not ANGLE_FUNCTION.search(form):
        return form
    return DEGREES.sub(r"{(\1*\\frac{\\pi}{180})}", FUNCTION.sub(r"\\\1 ", form))


def variables(form: str) -> set[str]:
    """The letters of an expression behind its last `=`: math-verify reads some of them as units.

    Greek letters count, except the number pi.
    """
    side = form.rpartition("=")[2]
    greek = set(GREEK_NAME.findall(side)) - {"pi"}
    return greek | set(VARIABLE.findall(COMMAND.sub(" ", side)))


def names(form: str) -> list[str]:
    """The letters of the angles, triangles and directions behind the last `=`."""
    return NAME.findall(form.rpartition("=")[2])


def same_parts(answer: str, gold: str) -> bool:
    """Whether two ratios have the same terms: `3 : 2` and `3:2`, but `6:4` is another one."""
    parts, gold_parts = terms(answer), terms(gold)
    if len(parts) != len(gold_parts):
        return False
    for part, gold_part in zip(parts, gold_parts, strict=True):
        number, gold_number = parse_number(part), parse_number(gold_part)
        same = number == gold_number if number is not None else part == gold_part
        if not same:
            return False
    return True


def terms(form: str) -> list[str]:
    """The terms of a ratio: `1:3`, or the fraction `1/3`."""
    fraction = FRACTION.fullmatch(form)
    return list(fraction.groups()[:2]) if fraction else form.split(":")
