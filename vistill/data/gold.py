r"""Read gold answers and options as data sets store them, by convention; else D104.

Conventions of a gold answer: text; a number; a list of accepted forms (any of them is right); a
mapping with `ground_truth`, `answer` or `text`; such a list or mapping as text, but not a list of
numbers, which is an answer; `<answer>X</answer>`, `\boxed{X}` or `#### X`; with options a letter,
an index counted from 0, or an option with its letter ("B. 40").
"""

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np

from vistill.answers.boxes import find_boxes
from vistill.answers.checkers.maze import is_maze
from vistill.data.stored_text import STARTS, collection_in_text, holds_numbers_alone
from vistill.errors import DataError

#: Options have one letter each.
MAX_OPTIONS = 26
#: Keys of a mapping that hold the gold answer; the first one that is there.
GOLD_KEYS = ("ground_truth", "answer", "text", "value")
OPEN_TAG, CLOSE_TAG, BOX = "<answer>", "</answer>", "\\boxed{"
#: The end of a worked solution (GSM8K).
HASHES = "#### "
#: `B. 40`, `(B) 40`, `B) 40`, `B: 40`.
LETTER_AND_TEXT = re.compile(r"\(?([A-Za-z])(?:[.):]|\s*[-–])\s*(.+)", re.DOTALL)
LETTER = re.compile(r"\(?[A-Z]\)?")
BETWEEN_LETTERS = re.compile(r"[,;&\n]|and")
#: Words that programs write for a missing value.
MISSING_WORDS = ("None", "nan", "NaN", "null", "NULL", "<NA>", "NaT")

Gold = str | tuple[str, ...] | None


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: null, NaN, or blank text."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    return isinstance(value, Real) and not isinstance(value, bool) and math.isnan(value)


def read_gold(
    value: Any,
    choices: Sequence[str],
    where: str,
    numbers_are_values: bool = False,
    index_base: int = 0,
) -> Gold:
    """The gold answer of a row: a text, several accepted texts, or None where there is none.

    Args:
        value: the cell.
        choices: the options of the row, as `read_options` returns them.
        where: the row, for messages.
        numbers_are_values: a whole number is never the index of an option in this source.
        index_base: the index of the first option, 0 or 1.

    Raises:
        DataError: D104, there is no convention for the value, or it fits two options.
    """
    is_option = isinstance(value, str) and any(same_text(choice, value) for choice in choices)
    golds = [value] if is_option else gold_texts(value, where)
    if len(set(golds)) == 1:  # repeats count where people disagree: `vqa`
        golds = golds[:1]
    if choices:
        base = None if numbers_are_values else index_base
        read = [with_option(gold, value, choices, where, base) for gold in golds]
        golds = list(dict.fromkeys(read))
    if len(golds) > 1 and choices and all(is_letter(gold, choices) for gold in golds):
        raise gold_error(
            value,
            "several different options are listed: is any of them right, or all together?",
            f'write all that belong to the answer as one text: "{", ".join(golds)}"',
            where,
        )
    return (golds[0] if len(golds) == 1 else tuple(golds)) if golds else None


def gold_texts(value: Any, where: str) -> list[str]:
    """All accepted forms of a gold answer, as texts."""
    if is_missing(value):
        return []
    if isinstance(value, np.ndarray | np.generic):
        value = shortest(value) if isinstance(value, np.floating) else value.tolist()
    if isinstance(value, bool):
        return ["Yes", "True"] if value else ["No", "False"]
    if isinstance(value, str):
        return golds_in_text(value, where)
    if isinstance(value, Decimal | Real):
        return [number_text(value, where)]
    if isinstance(value, Mapping):
        key = next((key for key in GOLD_KEYS if key in value), None)
        if key is not None:
            return gold_texts(value[key], where)
    if isinstance(value, list | tuple | set | frozenset):
        items = ["/".join(value)] if is_maze([*value]) else value
        return [text for item in items for text in gold_texts(item, where)]
    raise gold_error(
        value,
        f"a {type(value).__name__} is no text, number, list of texts or mapping with "
        f"{' or '.join(GOLD_KEYS[:2])}",
        "write the answer as text, or name the right column: data.columns.answer=COLUMN",
        where,
    )


def golds_in_text(text: str, where: str) -> list[str]:
    """The accepted forms in a text: those of a list or mapping that it spells, else one."""
    plain = text.strip()
    if plain in MISSING_WORDS:
        raise gold_error(
            text,
            "it is a word, or what a program writes for a missing value",
            'leave the cell empty, or write the word in another way, such as "none"',
            where,
        )
    stored = collection_in_text(plain)
    if isinstance(stored, list | dict):
        is_grid = isinstance(stored, list) and all(isinstance(row, list) for row in stored)
        is_answer = plain == "{}" or (stored and (is_grid or holds_numbers_alone(stored)))
        return [text] if is_answer else gold_texts(stored, where)
    if plain.startswith(STARTS):
        raise gold_error(
            text,
            "it begins like a list or mapping and does not end like one",
            "correct the row, or name the right column: data.columns.answer=COLUMN",
            where,
        )
    return [gold_in_text(text)]


def gold_in_text(text: str) -> str:
    """The answer in a text: in a tag at its end, in its last box, behind `####`; else the text."""
    _, tag, inside = text.rstrip().removesuffix(CLOSE_TAG).rpartition(OPEN_TAG)
    if tag and text.rstrip().endswith(CLOSE_TAG) and inside.strip():
        return gold_in_text(inside.strip()) if BOX in inside else inside.strip()
    boxed = last_box(text)
    if boxed:
        return boxed
    before, hashes, last = text.rpartition(HASHES)
    if hashes and last.strip() and (not before or before.endswith("\n")):
        return last.strip()
    return text


def last_box(text: str) -> str:
    r"""The content of the last `\boxed{` of a text; empty without one.

    A formula that was recognised in a picture is spelt `\boxed { 7 }`: the box is part of it.
    """
    boxes = [box for box in find_boxes(text) if text.startswith(BOX, box.start - len(BOX))]
    return text[boxes[-1].start : boxes[-1].end].strip() if boxes else ""


def number_text(value: Any, where: str) -> str:
    """A number as people write it: `7` for 7.0, `0.1` for 0.1 in 32 bits."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise gold_error(value, "it is not finite", "write the answer as text", where)
        return format(value, "f")
    if isinstance(value, Integral):
        return str(int(value))
    if math.isinf(value):
        raise gold_error(value, "it is not finite", "write the answer as text", where)
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else shortest(number)


def shortest(number: Any) -> str:
    """The shortest decimal of a float; of a float of 16 or 32 bits, its own, without noise."""
    if isinstance(number, np.floating):
        return str(number)
    wide = repr(float(number))
    for kind in (np.float16, np.float32):
        if abs(number) <= float(np.finfo(kind).max):
            narrow = str(kind(number))
            if float(kind(number)) == float(number) and len(narrow) + 4 < len(wide):
                return narrow
    return wide


def is_quantity(option: str) -> bool:
    """Whether an option is a number, perhaps with a unit."""
    number = re.match(r"\W?[-+]?[\d.,/ ]+", option.strip())
    return number is not None and not re.search(r"\d", option.strip()[number.end() :])


def with_option(gold: str, value: Any, choices: Sequence[str], where: str, base: int | None) -> str:
    """A gold answer of a row with options: the letter of the option that it names.

    A text that equals an option stays as it is. So does a text that names no option: the checker
    compares it with what a response says. A `base` of None means that no number is an index.
    """
    text = gold.strip()
    same = [i for i, choice in enumerate(choices) if same_text(choice, text)]
    named = letter_index(text, choices)
    if named is not None and same and named not in same:
        raise ambiguous_option_error(value, named, same[0], choices, where)
    if named is not None:
        return chr(ord("A") + named)
    match = LETTER_AND_TEXT.fullmatch(text)
    if match and not same:
        return letter_of_text(match, value, choices, where, gold)
    if re.fullmatch(r"\d{1,4}", text):
        if base is None and (same or all(map(is_quantity, choices))):
            return choices[same[0]] if same else text
        return option_at(int(text), value, same, choices, where, base or 0)
    if same or not are_letters(text.upper() if len(text) == 1 else text):
        return gold
    letters = sorted(set(re.findall(r"[A-Z]", text.upper() if len(text) == 1 else text)))
    outside = [letter for letter in letters if ord(letter) - ord("A") >= len(choices)]
    if outside:
        raise gold_error(
            value,
            f"there is no option {outside[0]}: the row has {len(choices)} options",
            "correct the row, or name the right column: data.columns.choices=COLUMN",
            where,
        )
    return gold


def are_letters(text: str) -> bool:
    """Whether a text is one letter or lists several: `B`, `(A), (C)`, `A and C`, one a line."""
    pieces = [piece.strip() for piece in BETWEEN_LETTERS.split(text.removesuffix("."))]
    present = [piece for piece in pieces if piece]
    return bool(present) and all(LETTER.fullmatch(piece) for piece in present)


def letter_index(text: str, choices: Sequence[str]) -> int | None:
    """The index of the option that a bare letter names: `B`, `(B)`, `b`, `B.`."""
    bare = text.strip("().: ")
    if len(bare) != 1 or not bare.isascii() or not bare.isalpha():
        return None
    index = ord(bare.upper()) - ord("A")
    return index if index < len(choices) else None


def letter_of_text(
    match: "re.Match[str]", value: Any, choices: Sequence[str], where: str, gold: str
) -> str:
    """The letter of `B. 40`, if option B is 40 (D104 if it is not, and another option is)."""
    index = ord(match.group(1).upper()) - ord("A")
    same = [i for i, choice in enumerate(choices) if same_text(choice, match.group(2))]
    if index in same:
        return chr(ord("A") + index)
    if same and index < len(choices):
        raise ambiguous_option_error(value, index, same[0], choices, where)
    return gold


def option_at(
    number: int, value: Any, same: Sequence[int], choices: Sequence[str], where: str, base: int
) -> str:
    """The answer of a row with options whose gold answer is a whole number.

    It is an option's text where it equals one, and the index of an option otherwise.
    """
    index = number - base
    is_index = 0 <= index < len(choices)
    if same:
        is_number = not isinstance(value, str)
        if is_number and is_index and index not in same:
            raise gold_error(
                value,
                f"it is the text of option {chr(65 + same[0])} and the index of option "
                f"{chr(65 + index)}",
                "write the letter of the option",
                where,
            )
        return choices[same[0]]
    if is_index:
        return chr(ord("A") + index)
    if all(map(is_quantity, choices)):
        return str(number)  # a value among values: the checker compares it
    raise gold_error(
        value,
        f"there is no option of that index: the row has {len(choices)}, counted from {base}",
        "write the letter of the option",
        where,
    )


def is_letter(gold: str, choices: Sequence[str]) -> bool:
    """Whether a gold answer is the letter of an option."""
    return len(gold) == 1 and letter_index(gold, choices) is not None


def same_text(choice: str, text: str) -> bool:
    """Whether an option and a text are equal; a letter in front of the option does not count."""
    match = LETTER_AND_TEXT.fullmatch(choice.strip())
    forms = [choice, match.group(2)] if match else [choice]
    plain = " ".join(text.split()).casefold()
    return any(" ".join(form.split()).casefold() == plain for form in forms)


def gold_error(value: Any, why: str, fix: str, where: str) -> DataError:
    """D104 for a gold answer."""
    return DataError(
        "D104", f"the gold answer cannot be read: {value!r:.60}", where=where, why=why, fix=fix
    )


def ambiguous_option_error(
    value: Any, letter: int, text: int, choices: Sequence[str], where: str
) -> DataError:
    """D104 for a gold answer that names one option by letter and another one by text."""
    return gold_error(
        value,
        f"by its letter it is option {chr(65 + letter)}, {choices[letter]!r:.30}; "
        f"by its text it is option {chr(65 + text)}",
        "write the letter and the text of the same option",
        where,
    )


def read_options(value: Any, where: str) -> tuple[str, ...]:
    """The options of a question as texts, in the order of their letters.

    They may be a list of texts and numbers, such a list as text, a mapping from letters, or a
    mapping of two lists (`text` and `label`). Empty options at the end do not exist.

    Raises:
        DataError: D104 for anything else, for an empty option between others, and for more options
            than letters.
    """
    if is_missing(value):
        return ()
    if isinstance(value, str):
        value = collection_in_text(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        value = options_of_mapping(value, where)
    if not isinstance(value, list | tuple):
        raise options_error(value, "each option gets its own letter", where)
    options = list(value)
    while options and is_missing(options[-1]):
        options.pop()
    if any(is_missing(option) for option in options):
        raise options_error(value, "an empty option between others shifts their letters", where)
    if len(options) > MAX_OPTIONS:
        raise options_error(value, f"{len(options)} options, but {MAX_OPTIONS} letters", where)
    return tuple(option_text(option, value, where) for option in options)


def option_text(option: Any, value: Any, where: str) -> str:
    """One option as text."""
    if isinstance(option, str):
        return option
    if isinstance(option, bool):
        return str(option)
    if isinstance(option, Decimal | Real | np.generic):
        return number_text(option.item() if isinstance(option, np.integer) else option, where)
    raise options_error(value, "an option is a text or a number", where)


def options_of_mapping(value: Mapping[Any, Any], where: str) -> list[Any]:
    """Options of `{"A": .., "B": ..}`, or of `{"text": [..], "label": [..]}`."""
    keys = [str(key) for key in value]
    letters = [chr(ord("A") + i) for i in range(len(keys))]
    if keys and sorted(key.upper() for key in keys) == letters:
        return [value[key] for key in sorted(value, key=lambda key: str(key).upper())]
    texts, labels = value.get("text"), value.get("label")
    if isinstance(texts, list | tuple) and isinstance(labels, list | tuple):
        in_order = [str(label) for label in labels] in (
            [chr(ord("A") + i) for i in range(len(texts))],
            [str(i) for i in range(len(texts))],
            [str(i + 1) for i in range(len(texts))],
        )
        if in_order:
            return list(texts)
    raise options_error(value, "a mapping has the keys A, B, C, ..., or text and label", where)


def options_error(value: Any, why: str, where: str) -> DataError:
    """D104 for options."""
    return DataError(
        "D104",
        f"the choices are not a list of texts: {value!r:.60}",
        where=where,
        why=why,
        fix="correct the row, or name the right column: data.columns.choices=COLUMN",
    )
