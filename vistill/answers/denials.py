"""Words that take back an answer: denial, doubt, a question, the opinion of another person."""

import re

#: `n't` at the end of a verb: `don't`, `isn't`.
NOT = r"(?:not|never|cannot|\w{1,8}n't)"
#: Words before `the answer is` or an option in its clause that deny or doubt it.
DENIES = re.compile(
    rf"\b(?:{NOT}|no one|no\s?body|nor|neither|doubt\w{{0,2}}|refuse\w{{0,2}}|unlikely|anything but"
    r"|(?:wrong|incorrect|false|tempting|mistake) (?:to|that)"
    r"|(?:might|may|could|would) (?:be tempted to )?(?:think|say|believe|guess|assume)"
    r"|claim(?:s|ed)?|(?:students?|people|others|many|some) (?:think|say|believe)"
    r"|suppos(?:e|ing)|assum(?:e|ing)|imagine|pretend|maybe|perhaps)\b",
    re.IGNORECASE,
)
#: An adjective directly before `answer` that makes it another answer.
OTHER_ANSWER = re.compile(
    r"\b(?:wrong|incorrect|false|previous|worst|tempting|student's|least (?:likely|plausible|"
    r"suitable|appropriate|accurate))\s(?:multiple-choice\s)?$",
    re.IGNORECASE,
)
#: Where a new clause begins: what stands before it says nothing about the answer.
NEW_CLAUSE = re.compile(
    r"[.,;:!?\n]|\b(?:but|so|and|because|since|therefore|thus|hence|which means|meaning|then)\b",
    re.IGNORECASE,
)
#: What follows an option that is denied: `(A) is wrong`, `A, but that is incorrect`.
TAKEN_BACK = re.compile(
    r"^[\s:,;.\-)]{0,4}(?:(?:which|but|though|however|and)\s)?(?:(?:that|this|it|he|she)\s)?"
    r"(?:(?:is|are|was|were|can be|could be|must be|should be|would be|seems|looks|appears)\s)?"
    r"(?:(?:also|clearly|definitely|certainly|obviously|probably|likely|therefore|thus)\s)?"
    r"(?:(?:is|was|does|do|did|has|have|can|could|would|should|are)n't\b|cannot\b|can't\b"
    r"|(?:does|do|did|can|could|would|should) not\b|not (?:the|a|an)? ?(?:correct|right|answer|true"
    r"|accurate|quite|best|possible|valid|likely|it\b|suitable|one\b)"
    r"|(?:wrong|incorrect|false|ruled out|eliminated|excluded|rejected|unlikely|impossible"
    r"|inaccurate|discarded)\b"
    r"|(?:是)?(?:错|不正确|不对|不是))",
    re.IGNORECASE,
)
#: A sentence that is no statement of its writer, or denies what it names.
DENIED = re.compile(
    rf"\b(?:{NOT}|neither|nor|incorrect|wrong|eliminate\w?|rule[ds]? out|anything but|refuse"
    r"|doubt|unlikely|suppose|assume|claims|maybe|perhaps"
    r"|no one|no\s?body|(?:might|may|could) (?:think|say|believe)|least likely)\b"
    r"|不(?:正确|对|是|选)|错误",
    re.IGNORECASE,
)
#: Words before the text of an option in its clause that deny it.
TEXT_DENIED = re.compile(
    rf"\b(?:{NOT}|no|neither|nor|without|rather than|instead of|anything but|unlike|except"
    r"|excludes?|rules? out|doubt|wrong|incorrect)\b",
    re.IGNORECASE,
)


def last_clause(before: str) -> str:
    """The clause that a text ends in."""
    ends = [match.end() for match in NEW_CLAUSE.finditer(before)]
    return before[ends[-1] :] if ends else before


def is_denied_before(before: str) -> bool:
    """Whether the clause before an answer denies or doubts it: `I don't think the answer is A`."""
    if before.endswith(("不", "不能", "不应")):
        return True
    return bool(OTHER_ANSWER.search(before) or DENIES.search(last_clause(before)))


def is_taken_back(rest: str) -> bool:
    """Whether the text behind an answer takes it back: `A, but that is wrong`."""
    return bool(TAKEN_BACK.match(rest))
