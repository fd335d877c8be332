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
#: The sentence directly behind an answer that takes it back: `This is incorrect.`
DENIED_NEXT = re.compile(
    r"[\s.*_)}\]\"$\\]{0,12}(?:(?:no|wait|hmm|oops|actually|but|however|unfortunately)[,.! ]{1,3}"
    r"(?:(?:wait|no|actually)[,.! ]{1,3})?)?"
    r"(?:(?:this|that|it|(?:this|that|my) (?:answer|choice|result))"
    r"(?:(?: is|'s| was| must be| seems| looks)(?: clearly| actually| also| obviously)?"
    r" (?:wrong|incorrect|false|mistaken|a mistake|an error"
    r"|not (?:quite )?(?:right|correct|true))|(?: is|'s)n't (?:right|correct|true)"
    r"| (?:can't|cannot|can not) be (?:right|correct|true))"
    r"|(?:wait, )?no"
    r"|(?:(?:但是?|不过|然而|可是),?(?:这|那)?|(?:这|那))(?:个|一)?(?:答案|选项|结果)?"
    r"是?(?:错|不对|不正确)(?:误|的){0,2})"
    r"\s?(?:[.!\n\u2026]|$)",
    re.IGNORECASE,
)
#: The reply thinks again; a later conclusion replaces the answer.
DOUBTS = re.compile(
    r"(?:^|[.!\n*]\s{0,3})(?:but )?(?:wait|hold on|hmm+|oops|等等|不对)\b|on second thought"
    r"|(?:^|[.!\n*]\s{0,3})(?:but |hmm, )?(?:let me|i (?:need|have|should) to|i should)"
    r" (?:re-?(?:check|examine|consider|count|calculate|read|visit|evaluate)"
    r"|check again|look again)"
    r"|\b(?:on|upon) (?:a )?(?:closer|further|second) (?:inspection|look|examination|review)",
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

    The first commitment counts as it is. A reply that corrects a box or a tag writes another one,
    or takes it back in the next sentence.

    Args:
        text: a reply after `readable`.
        explicit: its last explicit commitment.
        take: which commitment counts.
        read_later: reads the conclusion of a text; what stands before the correction is blank.
    """
    if take == "first":
        return explicit
    limit = explicit.end + WINDOW
    retracted = DENIED_NEXT.match(text, explicit.end, limit)
    if retracted is None and explicit.rule in ("box", "tag"):
        return explicit
    retracted = retracted or RETRACTS.search(text, explicit.end, limit)
    doubted = retracted or DOUBTS.search(text, explicit.end, limit)
    if doubted is None:
        return explicit
    at = doubted.end()
    later = read_later("\n" * at + text[at:])
    if later is not None:
        return later
    return None if retracted else explicit
