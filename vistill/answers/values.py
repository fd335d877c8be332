"""Read an answer as a value: an exact number with its unit, a ratio, a date, or mathematics."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from vistill.answers.normalise import VULGAR, math_form, vulgar_fraction
from vistill.answers.number_words import PARTS, SCALES, SMALL, parse_word_number
from vistill.answers.units import parse_unit, split_currency

UNSIGNED = r"(?:\d{1,3}(?:[, ]\d{3}){1,8}(?!\d)|\d{1,60})?(?:\.\d{1,60})?"
NUMBER_HEAD = re.compile(rf"[-+]?\s?{UNSIGNED}(?:[eE][-+]?\d{{1,3}}(?!\d))?")
PLAIN_NUMBER = re.compile(r"[-+]?(?:\d{1,60}(?:\.\d{0,60})?|\.\d{1,60})(?:e[-+]?\d{1,3})?", re.I)
GROUPED = re.compile(r"(?<![\d.])(\d{1,3}(?:,\d{3}){1,8})(?![\d,])")
SPACED = re.compile(r"(?<![\d.])(\d{1,3}(?: \d{3}){1,8})(?![\d ])")
FRACTION = re.compile(r"(-?)\\frac\{(-?[\d.]{1,60})\}\{(-?[\d.]{1,60})\}")
MIXED = re.compile(r"(-?)(\d{1,20})\s{1,2}(\d{1,20})/(\d{1,20})")
MIXED_LATEX = re.compile(r"(-?)(\d{1,20})\s?\\frac\{(\d{1,20})\}\{(\d{1,20})\}")
SCIENTIFIC = re.compile(r"(-?[\d.]{1,40})\s?[*×x]\s?10\s?\^\s?\{?\s?([-+]?\d{1,3})\s?\}?")
POWER = re.compile(r"(-?[\d.]{1,20})\^\{?(\d{1,2})\}?")
FACTORIAL = re.compile(r"(\d{1,2})!")
REPEATING = re.compile(r"(-?)(\d{0,20})\.(\d{0,20})\\(?:overline|dot|bar)(?:\{(\d{1,20})\}|(\d))")
#: Letters of words in other languages; Greek ones are mathematics.
OTHER_LETTERS = (
    "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0400-\u04ff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3"
)
TAIL = re.compile(rf"/(?=[A-Za-z]{{2}})|[A-Za-z°%‰$€£¥￥₹₩¢Ωμµ'\"\\{OTHER_LETTERS}]")
RATIO = re.compile(r"^-?[\w.\\{}^+*()/-]{1,60}(?:\s?:\s?-?[\w.\\{}^+*()/-]{1,60}){1,5}$")
#: A range, a telephone number: `1990-1995` is no difference.
RANGE = re.compile(r"^\+?\d{1,9}(?:-\d{1,9}){1,5}$")
DATE = re.compile(r"^\d{1,4}([/-])\d{1,2}\1\d{1,4}$")
#: Words that count or divide: no label of what is counted begins with one.
NUMBER_WORDS = frozenset([*SMALL, *SCALES, *PARTS, "point"])
#: Letters close to an amount of money: `$12M`.
MONEY = {"K": 1000, "k": 1000, "M": 10**6, "m": 10**6, "B": 10**9, "b": 10**9, "T": 10**12}
#: Words behind a number that make it another one: `12 below zero`, `12 doubled`.
OTHER_NUMBER = frozenset(
    ["below", "above", "under", "over", "doubled", "tripled", "halved", "factorial"]
)
#: Words of mathematics; any other word is no mathematics.
FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "tanh",
        "log",
        "ln",
        "lg",
        "exp",
        "sqrt",
        "frac",
        "pi",
        "max",
        "min",
        "lim",
        "gcd",
        "lcm",
        "mod",
        "infty",
        "infinity",
        "inf",
        "oo",
        "or",
        "and",
        "le",
        "ge",
        "ne",
        "in",
        "cup",
        "cap",
        "lt",
        "gt",
        "pm",
        "mp",
        "cdot",
        "times",
        "text",
        "theta",
        "alpha",
        "beta",
        "gamma",
        "delta",
        "lambda",
        "mu",
        "phi",
        "psi",
        "omega",
        "sigma",
        "tau",
        "rho",
        "epsilon",
        "emptyset",
        "mathbb",
        "R",
        "N",
        "Z",
        "angle",
        "sum",
        "int",
        "binom",
        "overline",
        "vec",
        "deg",
        "end",
        "begin",
        "matrix",
        "pmatrix",
        "bmatrix",
        "left",
        "right",
    ]
)
#: An angle in degrees, minutes and seconds: `12° 30'`.
MINUTES = re.compile(
    r"(-?)(\d{1,4})\s?°\s?(\d{1,2}(?:\.\d{1,9})?)\s?(?:'|\^\{?\s?\\prime\s?\}?)"
    r"(?:\s?(\d{1,2}(?:\.\d{1,9})?)\s?(?:''|\"|\u2033|\^\{?\s?\\prime\s?\\prime\s?\}?))?"
)
WORD = re.compile(r"\\?[A-Za-z]{2,}")
LABEL_WORD = re.compile("[A-Za-z\u00c0-\u024f\u0400-\u04ff'-]{2,20}")
VARIABLES = re.compile(r"[A-Za-z]{2,3}")
SHORT_WORDS = frozenset(["st", "nd", "rd", "th", "am", "pm", "pc", "pcs", "pt", "pts", "px"])
ANGLE_FUNCTION = re.compile(r"(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
#: A chemical formula; the order of its parts counts.
FORMULA = re.compile(
    r"(?=.{0,40}\d)(?=.{0,40}[A-Z].{0,40}[A-Z])(?:[A-Z][a-z]?_?\{?\d{0,3}\}?){2,10}"
)
OTHER_LETTER = re.compile(f"[{OTHER_LETTERS}]")
#: What is counted in Chinese, Japanese and Korean.
CHINESE_LABEL = re.compile("[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]{1,8}")
#: Characters that change the number before them: `3万`, `3分之1`, `5点`, `2倍`, `3만`.
CHINESE_NUMBER = re.compile(
    "[万亿億千百十几多余或和到至点倍半の만억천백십배의]|分之|분의|以[上下内外]|左右|이상|이하"
)
#: Two points in one number, as in a network address.
ADDRESS = re.compile(r"\d\.\d{1,20}\.\d")
#: `3,5` and `0,25 m`, but not `1,234`.
DECIMAL_COMMA = re.compile(
    r"[-+]?(?:\d{1,9},(?:\d{1,2}|\d{4,9})|0,\d{3}|\d{1,3}(?:\.\d{3}){1,4},\d{1,9})(?:\s?[^\d\s,;][^\d,;]{0,12})?"
)
OPERATOR = re.compile(r"[\d+*/^=<>()\[\]{}\\-]")


@dataclass(frozen=True)
class Value:
    """An answer as a value."""

    form: str
    """Normal form, without the unit if it is a number."""
    number: Fraction | None = None
    """The exact number, if it is one."""
    unit: str = ""
    """Normal form of the unit; "" for none."""
    label: str = ""
    """Words behind the number that are no unit, such as what is counted."""

    def is_mathematics(self) -> bool:
        """Whether it is an expression that is no number: `10π`, not `Point A`."""
        return (
            self.number is None
            and any(map(str.isdigit, self.form))
            and is_mathematical(self.form)
            and not is_time_or_date(self.form)
        )

    def __str__(self) -> str:
        return f"{self.form} {self.unit}".strip()


def parse_number(text: str) -> Fraction | None:
    r"""The exact number that a text is: `1,234`, `-1/2`, `\frac{1}{2}`, `1 1/2`, `1.2e3`, `5²`."""
    bare = VULGAR.sub(vulgar_fraction, text.strip().rstrip("."))
    if not bare or len(bare) > 200:
        return None
    if not any(map(str.isdigit, bare)):
        return parse_word_number(bare)
    try:
        mixed = parse_mixed(bare.strip())
        return mixed if mixed is not None else parse_form(math_form(without_groups(bare)))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def has_decimal_comma(text: str) -> bool:
    """Whether a text looks like a decimal with a comma: `3,5`. It is read as two numbers."""
    return DECIMAL_COMMA.fullmatch(text.strip()) is not None


def parse_form(form: str) -> Fraction | None:
    """The number of a mathematical form: a factorial, a repeating decimal or a simple number."""
    if factorial := FACTORIAL.fullmatch(form):
        return Fraction(math.factorial(int(factorial.group(1))))
    return parse_repeating(form) or parse_simple(form)


def without_groups(text: str) -> str:
    """Digits without the commas or spaces between groups of three."""
    text = GROUPED.sub(lambda m: m.group(1).replace(",", ""), text)
    return SPACED.sub(lambda m: m.group(1).replace(" ", ""), text)


def parse_mixed(text: str) -> Fraction | None:
    """A whole number with a fraction: `1 1/2`."""
    match = MIXED.fullmatch(text) or MIXED_LATEX.fullmatch(text)
    if match is None:
        return None
    minus, whole, top, bottom = match.groups()
    value = int(whole) + Fraction(int(top), int(bottom))
    return -value if minus else value


def parse_simple(bare: str) -> Fraction | None:
    """A decimal, a fraction, a power of ten, a power or a product of decimals, without spaces."""
    bare = bare.lstrip("+")
    if PLAIN_NUMBER.fullmatch(bare):
        return Fraction(bare)
    if match := FRACTION.fullmatch(bare):
        value = Fraction(match.group(2)) / Fraction(match.group(3))
        return -value if match.group(1) else value
    if match := SCIENTIFIC.fullmatch(bare):
        return Fraction(match.group(1)) * Fraction(10) ** int(match.group(2))
    if (match := POWER.fullmatch(bare)) and int(match.group(2)) <= 20:
        base, exponent = Fraction(match.group(1)), int(match.group(2))
        return -(abs(base) ** exponent) if match.group(1).startswith("-") else base**exponent
    for operator in ("*", "/"):
        parts = bare.split(operator)
        if len(parts) == 2 and all(PLAIN_NUMBER.fullmatch(part) for part in parts):
            first, second = map(Fraction, parts)
            return first * second if operator == "*" else first / second
    return None


def parse_repeating(bare: str) -> Fraction | None:
    r"""A repeating decimal: `0.1\overline{6}` is 1/6."""
    match = REPEATING.fullmatch(bare)
    if match is None:
        return None
    minus, whole, fixed, several, one = match.groups()
    period = several or one
    value = Fraction(f"{whole or 0}.{fixed or 0}")
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
    return -value if minus else value


@lru_cache(maxsize=4096)
def parse_value(plain: str) -> Value:  # noqa: PLR0911 - one return per form
    """Read an answer without wrappers as a value; the unit is split off if the rest is a number.

    Args:
        plain: an answer after `strip_markup`.
    """
    if angle := MINUTES.fullmatch(plain):
        minus, degrees, minutes, seconds = angle.groups()
        size = int(degrees) + Fraction(minutes) / 60 + Fraction(seconds or 0) / 3600
        return Value(math_form(plain), -size if minus else size, "°")
    currency, bare = split_currency(plain)
    number = parse_number(bare)
    if number is not None:
        return Value(math_form(bare), number, currency)
    for start, tail in tails(bare):
        number = parse_number(bare[:start])
        if currency and number is not None and tail in MONEY and bare[start - 1].isdigit():
            return Value(math_form(bare), number * MONEY[tail], currency)
        unit = parse_unit(tail)
        scale = SCALES.get(tail.split()[0].casefold()) if tail.split() else None
        if number is not None and scale:
            rest = parse_unit(tail.split(maxsplit=1)[1]) if " " in tail else ""
            if rest is not None:
                return Value(math_form(bare[:start]), number * scale, currency or rest)
        if unit is not None and (number is not None or is_expression(bare[:start], tail)):
            unit = currency + unit if currency and unit.startswith("/") else currency or unit
            return Value(math_form(bare[:start]), number, unit)
        if number is not None and is_label(tail, bare[:start][-1:].isdigit()):
            return Value(math_form(bare[:start]), number, currency, tail.casefold())
    return Value(math_form(bare), None, currency)


def tails(text: str) -> list[tuple[int, str]]:
    """Where a unit could begin: at a space, or between a digit or bracket and a letter."""
    places = []
    for match in TAIL.finditer(text[:200]):
        at = match.start()
        before = text[at - 1] if at else ""
        if before in " ~" or (before and (before.isdigit() or before in ")}π")):
            places.append((at, text[at:].strip()))
    return [p for p in places if p[0] > 0][:12]


def is_expression(head: str, tail: str) -> bool:
    """Whether `head` is mathematics that a unit may follow: `144π`, not `y = 3` or `x`."""
    if ANGLE_FUNCTION.search(head) and tail.startswith(("°", "deg")):
        return False
    if "=" in head or not any(map(str.isdigit, head)):
        return False
    # A single letter directly behind mathematics is a variable: `2√3 m` has a unit, `2xm` has not.
    return is_mathematical(head) and not re.search(r"(?<![A-Za-z\\])[a-zA-Z](?![A-Za-z])", head)


def is_label(tail: str, close: bool) -> bool:
    """Whether the words behind a number say what is counted: `apples`, `of the cake`, `个苹果`.

    Two or three letters that stand close to the number are variables: `2xy`.
    """
    if CHINESE_LABEL.fullmatch(tail):
        return not CHINESE_NUMBER.search(tail)
    words = tail.split()
    if words[:2] == ["of", "the"]:
        words = words[2:]
    if close and VARIABLES.fullmatch(tail) and tail.casefold() not in SHORT_WORDS:
        return False
    stops = {"or", "and", "to", "times", "plus", "minus", "more", "less", "than", "not", "by", "of"}
    return (
        0 < len(words) <= 4
        and all(LABEL_WORD.fullmatch(word) for word in words)
        and not stops & {word.casefold() for word in words}
        and words[0].casefold().partition("-")[0] not in NUMBER_WORDS | OTHER_NUMBER
    )


def is_mathematical(text: str) -> bool:
    """Whether a text can be given to a mathematics parser: it has no words.

    Up to three letters next to an operator or a digit are a product of variables (`3ab`).
    """
    if ADDRESS.search(text) or OTHER_LETTER.search(text):
        return False
    if not text or not OPERATOR.search(text):
        return bool(re.fullmatch(r"[a-zA-Z]|\\[a-zA-Z]{1,20}", text))
    for word in WORD.findall(text):
        if word.startswith("\\"):
            continue
        if word in FUNCTIONS or len(word) <= 3:
            continue
        return False
    return True


def is_time_or_date(text: str) -> bool:
    """Whether a text is a clock time, a ratio or a date, whose parts are compared one by one."""
    if not any(sign in text for sign in ":-/"):
        return False
    return bool(DATE.match(text) or RANGE.match(text) or RATIO.match(text))
