r"""Whether an expression is too large to compute: `99999999!`, `9^{9^{9}}`. Linear in its length.

It bounds the decimal logarithm of every power, factorial and binomial coefficient from above, as
math-verify would compute them: `3!!` is `(3!)!`. Letters and functions have no size.
"""

import math
import re
from dataclasses import dataclass

#: Digits of the largest number that is computed.
MOST_DIGITS = 20_000
#: Largest power of a sum that is multiplied out.
MOST_POWER = 1_000
#: Digits of the largest number whose root is taken: math-verify looks for its factors.
MOST_ROOT_DIGITS = 1_000
#: Groups inside each other.
MOST_NESTED = 50
#: Numbers above 10 to this power are all the same.
LARGE = 9.0
TOKEN = re.compile(r"\d{1,4000}(?:\.\d{1,4000})?|\.\d{1,4000}|\*\*|\\[A-Za-z]{1,20}|[A-Za-z]|\S")
OPEN, CLOSE = "{([", "})]"
BINOMIAL = re.compile(r"\\[td]?binom")
#: Signs and commands without which no part of an expression is large.
GROWS = re.compile(r"[\^!]|\*\*|binom|\\choose")
#: Commands that are no factor of their own.
SILENT = re.compile(r"\\(?:left|right|[dtc]?frac|cdot|times|div|sqrt|displaystyle|text|mathrm)")


class TooLargeError(Exception):
    """A power, factorial or binomial coefficient of the expression has too many digits."""


@dataclass(frozen=True)
class Size:
    """A bound of a part of an expression."""

    digits: float
    """Its decimal logarithm, at most."""
    is_number: bool = True
    is_group: bool = False


def is_too_large(form: str) -> bool:
    """Whether a part of an expression has too many digits to be computed."""
    if not GROWS.search(form):
        return False
    try:
        Measure(TOKEN.findall(form), "\\int" in form).sequence(depth=0)
    except TooLargeError:
        return True
    return False


class Measure:
    """Reads the tokens of an expression once, from left to right."""

    def __init__(self, tokens: list[str], has_integral: bool) -> None:
        self.tokens, self.place, self.has_integral = tokens, 0, has_integral

    def peek(self) -> str:
        """The next token; "" at the end."""
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def sequence(self, depth: int) -> Size:
        """The size of terms and factors up to the end or a closing bracket."""
        if depth > MOST_NESTED:
            raise TooLargeError
        total, count, is_number = 0.0, 0, True
        above: Size | None = None
        while self.peek() and (depth == 0 or self.peek() not in CLOSE):
            if self.peek() == "\\choose":
                self.place += 1
                above = Size(total, is_number)
                total, count, is_number = 0.0, 0, True
                continue
            part = self.part(depth)
            if part is not None:
                total, count = total + part.digits, count + 1
                is_number = is_number and part.is_number
        self.place += 1  # the closing bracket
        size = Size(total + math.log10(max(1, count)), is_number, True)
        return size if above is None else binomial(above, size)

    def part(self, depth: int) -> Size | None:
        """The size of a number, letter or group with its powers and factorials; None for signs."""
        size = self.primary(depth)
        while size is not None and self.peek() in ("^", "**", "!"):
            sign = self.peek()
            self.place += 1
            if sign == "!":
                size = factorial(size)
                continue
            exponent = self.exponent(depth)
            if (
                self.has_integral
                and not size.is_number
                and exponent.digits > math.log10(MOST_POWER)
            ):
                raise TooLargeError
            size = power(size, exponent)
        return size

    def primary(self, depth: int) -> Size | None:
        """The size of a number, letter or group; None for signs."""
        token = self.peek()
        self.place += 1
        if token in OPEN:
            return self.sequence(depth + 1)
        if BINOMIAL.fullmatch(token):
            return binomial(self.argument(depth), self.argument(depth))
        if token == "\\sqrt":
            return self.root(depth)
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return Size(digits_of(token))
        is_name = token[0].isalpha() or (token[0] == "\\" and len(token) > 1)
        return Size(0.0, is_number=False) if is_name and not SILENT.fullmatch(token) else None

    def argument(self, depth: int) -> Size:
        """The size of the next argument of a command; 1 where there is none."""
        is_there = self.peek() and self.peek() not in CLOSE
        return (self.primary(depth) if is_there else None) or Size(0.0)

    def root(self, depth: int) -> Size:
        """The size of the argument of a root, which is larger than the root."""
        if self.peek() == "[":
            self.argument(depth)
        size = self.argument(depth)
        if size.is_number and size.digits > MOST_ROOT_DIGITS:
            raise TooLargeError
        return size

    def exponent(self, depth: int) -> Size:
        """The size of an exponent, with exponents of its own."""
        sizes = []
        while True:
            size = None
            while size is None and self.peek() and self.peek() not in CLOSE:
                size = self.primary(depth)
            sizes.append(size or Size(0.0))
            if self.peek() not in ("^", "**"):
                break
            self.place += 1
        total = sizes.pop()
        while sizes:
            total = power(sizes.pop(), total)
        return total


def digits_of(token: str) -> float:
    """The size of the decimal logarithm of a number; 0 for 0."""
    whole, _, fraction = token.partition(".")
    if len(whole.lstrip("0")) > 15:
        return float(len(whole))
    number = float(f"{whole or 0}.{fraction[:300] or 0}")
    return abs(math.log10(number)) if number else 0.0


def factorial(size: Size) -> Size:
    """The size of a factorial."""
    if not size.is_number:
        return size
    number = 10 ** min(size.digits, LARGE)
    return checked(math.lgamma(number + 1) / math.log(10))


def binomial(above: Size, below: Size) -> Size:
    """The size of a binomial coefficient: at most `2^n` and at most `n^k`."""
    if not above.is_number or not below.is_number:
        return Size(0.0, is_number=False)
    n, k = (10 ** min(size.digits, LARGE) for size in (above, below))
    return checked(min(n * math.log10(2), k * above.digits))


def power(base: Size, exponent: Size) -> Size:
    """The size of a power. A power of a single letter is not computed."""
    times = 10 ** min(exponent.digits, LARGE) if exponent.is_number else 1.0
    if base.is_number:
        return checked(base.digits * times, exponent.is_number)
    if base.is_group and times > MOST_POWER:
        raise TooLargeError
    return Size(0.0, is_number=False)


def checked(digits: float, is_number: bool = True) -> Size:
    """A size within the limit."""
    if digits > MOST_DIGITS:
        raise TooLargeError
    return Size(digits, is_number)
