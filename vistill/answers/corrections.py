"""A reply that corrects itself: `The answer is A. Wait, ... So it's C`."""

import re
from collections.abc import Callable
from typing import TypeVar

from vistill.answers.extract import Commitment, Take

Form = TypeVar("Form")
#: The answer before these words is taken back.
RETRACTS = re.compile(
    r"\b(?:wait|no|oops|sorry|hmm|actually)[,.! ]{1,3}(?:(?:wait|no|actually)[,.! ]{1,3})?"
    r"(?:that|this|it)(?:'s| is| was|, that is)"
    r" (?:wrong|incorrect|not (?:quite )?(?:right|correct))"
    r"|\bi (?:made (?:a|an) (?:\w{1,12} )?(?:mistake|error)|was wrong|misread|miscounted"
    r"|miscalculated|forgot)\b|\bscratch that\b|\bcorrection:|算错了|看错了|更正[:，,]",
    re.IGNORECASE,
)
#: The reply thinks again; a later conclusion replaces the answer.
DOUBTS = re.compile(
    r"(?:^|[.!\n*]\s{0,3})(?:but )?(?:wait|hold on|hmm+|oops|等等|不对)\b|on second thought",
    re.IGNORECASE,
)
#: Characters behind an answer that are read.
WINDOW = 4000


def settle(
    text: str,
    explicit: Commitment[Form],
    take: Take,
    read_later: Callable[[str], Commitment[Form] | None],
) -> Commitment[Form] | None:
    """An explicit commitment, or what replaces it where the reply corrects itself behind it.

    The first commitment counts as it is, and so do boxes and tags: a reply that corrects those
    writes another one.

    Args:
        text: a reply after `readable`.
        explicit: its last explicit commitment.
        take: which commitment counts.
        read_later: reads the conclusion of a text; what stands before the correction is blank.
    """
    if take == "first" or explicit.rule in ("box", "tag"):
        return explicit
    limit = explicit.end + WINDOW
    retracted = RETRACTS.search(text, explicit.end, limit)
    doubted = retracted or DOUBTS.search(text, explicit.end, limit)
    if doubted is None:
        return explicit
    at = doubted.end()
    later = read_later("\n" * at + text[at:])
    if later is not None:
        return later
    return None if retracted else explicit
