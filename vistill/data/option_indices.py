"""Whether the whole numbers among gold answers count the options from 0 or from 1."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from vistill.answers.normalise import strip_markup
from vistill.answers.values import parse_value
from vistill.data.gold import gold_texts, is_quantity, same_text
from vistill.errors import DataError, quote_setting

#: Indices without a 0 from which on the base is called uncertain.
MANY = 20
#: Indices among options that are numbers from which on they are taken for indices.
SEVERAL = 5


@dataclass
class IndexCounts:
    """How the whole-number gold answers of a source compare with the number of options."""

    zeros: int = 0
    inside: int = 0
    """From 1 to the number of options less 1."""
    ends: int = 0
    """Equal to the number of options."""
    worded_ends: int = 0
    """The same, in rows whose options are not all numbers."""
    beyond: int = 0
    """Larger than the number of options."""
    values: int = 0
    """Equal to an option: no indices."""
    first_end: str = ""
    first_zero: str = ""

    def add(self, value: Any, choices: Sequence[str], where: str) -> None:
        """Count the gold answer of a row with options."""
        index = whole_number(value) if choices else None
        if index is None:
            return
        if any(is_value(choice, index) for choice in choices):
            self.values += 1
        elif index == 0:
            self.zeros += 1
            self.first_zero = self.first_zero or where
        elif index < len(choices):
            self.inside += 1
        elif index == len(choices):
            self.ends += 1
            self.worded_ends += not all(map(is_quantity, choices))
            self.first_end = self.first_end or where
        else:
            self.beyond += 1

    def base(self) -> int | None:
        """The index of the first option; None where the answers do not show it."""
        if self.beyond or bool(self.zeros) == bool(self.ends):
            return None
        if self.zeros:
            return 0
        are_indices = not self.values and self.inside + self.ends >= SEVERAL
        return 1 if self.worded_ends or are_indices else None

    def is_uncertain(self) -> bool:
        """Whether many indices are neither 0 nor the number of options."""
        others = self.zeros + self.ends + self.beyond + self.values
        return not others and self.inside >= MANY

    def note(self, base: int) -> str:
        """What to tell the user of an uncertain base; empty where it shows, or is set to 1."""
        if base or not self.is_uncertain():
            return ""
        return (
            f"{self.inside:,} gold answers are indices of options and none is 0: they are counted "
            "from 0, so 1 means option B. If 1 means option A: data.index_base=1"
        )

    def check(self, base: int) -> None:
        """D104 if the answers count the options from another base than the recipe says."""
        shown = self.base()
        if shown is None or shown == base:
            return
        reason = f"{self.zeros:,} are 0, and none is the number of options"
        if shown:
            reason = f"none is 0, and {self.ends:,} equal the number of options"
        raise DataError(
            "D104",
            f"the gold answers count the options from {shown}, and data.index_base = {base}",
            where=self.first_end if shown else self.first_zero,
            why=f"{reason}; counted from {base}, each answer would name the option next to it",
            fix=quote_setting("data.index_base", str(shown)),
        )


def numbers_are_values(golds: Sequence[Any], options: Sequence[Any], base: int = 0) -> bool:
    """Whether whole numbers among the gold answers of a source are values, not indices of options.

    They are if one of them is no index: a larger number than its row has options, in a row whose
    options are numbers too.
    """
    for gold, choices in zip(golds, options, strict=True):
        whole = isinstance(gold, Integral) or re.fullmatch(r"\d{1,9}", str(gold).strip())
        if (
            whole
            and choices
            and int(gold) >= len(choices) + base
            and all(map(is_quantity, choices))
        ):
            return True
    return False


def whole_number(value: Any) -> int | None:
    """The whole number that a gold answer is; None for anything else."""
    try:
        texts = gold_texts(value, "")
    except DataError:
        return None
    is_whole = len(texts) == 1 and re.fullmatch(r"\s*\d{1,4}\s*", texts[0])
    return int(texts[0]) if is_whole else None


def is_value(choice: str, number: int) -> bool:
    """Whether an option says a number: `3`, `(A) 3`, `3 cm`."""
    if same_text(choice, str(number)):
        return True
    return is_quantity(choice) and parse_value(strip_markup(choice)).number == number
