"""What the reading of replies in another language needs to know: its phrases, and its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Language:
    """The phrases of a language around an answer, and how it writes numbers.

    Phrases are in lower case, separated by `|`. One space of a phrase is one or two in a reply,
    and a comma before it may be missing or added. The longest phrase counts.
    """

    name: str
    clues: str
    """Frequent words, separated by spaces. Two of them tell the language, or one answer word."""
    answer_words: str
    """Words that tell the language alone, such as its word for `answer`."""
    phrases: Mapping[str, str]
    """English words -> phrases of this language with the same meaning."""
    patterns: tuple[tuple[str, str], ...] = ()
    """Regular expressions and their replacements, after the phrases, in order."""
    script: str = ""
    """The characters of its script, as a class of a regular expression; "" for Latin."""
    has_spaces: bool = True
    """Whether spaces separate its words."""
    decimal_comma: bool = True
    """Whether `3,5` is a decimal."""
    point_groups: bool = False
    """Whether `1.234` may be 1234."""
    comma_groups: bool = False
    """Whether `1,234` may be 1234, although `3,5` is a decimal: in a part of its countries."""
