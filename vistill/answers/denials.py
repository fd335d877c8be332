"""Words that take back an answer: denial, doubt, a question, the opinion of another person."""

import re

#: `n't` at the end of a verb: `don't`, `isn't`.
NOT = r"(?:not|never|cannot|\w{1,8}n't)"
#: Words before `the answer is` or an option in its clause that deny or doubt it.
DENIES = re.compile(
    rf"\b(?:{NOT}|no one|no\s?body|nor|neither|doubt\w{{0,2}}|refuse\w{{0,2}}|unlikely|anything but"
    r"|(?:wrong|incorrect|false|tempting|mistake)(?: is)? (?:to|that)"
    r"|(?:might|may|could|would) (?:be tempted to )?(?:think|say|believe|guess|assume)"
    r"|you (?:think|thought|say|said|believed?|claim(?:ed)?|suggest(?:ed)?|stated)"
    r"|(?:might|may|could) be (?:inclined|tempted)|i (?:\w{1,10} )?thought|claim(?:s|ed)?"
    r"|(?:students?|people|others|many|some|he|she|they|friend|teacher|textbook|someone)"
    r" (?:think|say|believe)s?|suppos(?:e|ing)|assum(?:e|ing)|imagine|pretend|maybe|perhaps)\b",
    re.IGNORECASE,
)
#: Other people before `choose`: `Students often choose A`.
OTHERS = re.compile(
    r"\b(?:students?|people|others|many|some|someone)\s(?:\w{1,12}\s)?$", re.IGNORECASE
)
#: An adjective directly before `answer` that makes it another answer.
OTHER_ANSWER = re.compile(
    r"\b(?:wrong|incorrect|false|previous|worst|tempting|student's|trap|naive"
    r"|second[ -]best|next best|least (?:likely|plausible|suitable|appropriate|accurate))"
    r"\s(?:multiple-choice\s)?$",
    re.IGNORECASE,
)
#: Characters that a match of `OTHER_ANSWER` has at most.
LONGEST_ADJECTIVE = 40
#: Where a new clause begins: what stands before it says nothing about the answer.
NEW_CLAUSE = re.compile(
    r"[.,;:!?\n]|\b(?:but|so|and|because|since|therefore|thus|hence|which means|meaning|then)\b",
    re.IGNORECASE,
)
#: Ends a sentence, or a part of one.
STOP = re.compile(r"[.!?\n]")
#: What follows an option that is denied: `(A) is wrong`, `A, but that is incorrect`.
TAKEN_BACK = re.compile(
    r"^[\s:,;.\-)]{0,4}(?:(?:which|but|though|however|and)\s)?(?:(?:that|this|it|he|she)\s)?"
    r"(?:(?:is|are|was|were|can be|could be|must be|should be|would be|seems|looks|appears)\s)?"
    r"(?:(?:also|clearly|definitely|certainly|obviously|probably|likely|therefore|thus)\s)?"
    r"(?:(?:is|was|does|do|did|has|have|can|could|would|should|are)n't\b|cannot\b|can't\b"
    r"|(?:does|do|did|can|could|would|should) not\b|not (?:the|a|an)? ?(?:correct|right|answer|true"
    r"|accurate|quite|best|possible|valid|likely|it\b|suitable|one\b)"
    r"|(?:wrong|incorrect|false|ruled out|eliminated|excluded|rejected|unlikely|impossible"
    r"|inaccurate|discarded|mistaken|(?:a|my) (?:mistake|error))\b"
    r"|\((?:wrong|incorrect|false|not (?:right|correct))\)"
    r"|(?:是)?(?:错|不正确|不对)|(?<![\s:,;.\-)])不是|[\u2717\u2718\u274c])",
    re.IGNORECASE,
)
#: What follows an option in Chinese that is denied: `选项C不符合图片内容`.
CHINESE_AGAINST = re.compile(
    r"(?:选项|项)?(?:与[^,.;]{1,8}?)?(?:明显|显然|并|也|都)?"
    r"(?:不(?![仅但错止过变])|没有(?![错误问])|有误|无关|(?:可以|应该?|可|被)?(?:排除|删去|去掉))"
)
#: A sentence that is no statement of its writer, or denies what it names.
DENIED = re.compile(
    rf"\b(?:{NOT}|neither|nor|incorrect|wrong|eliminate\w?|rule[ds]? out|anything but|refuse"
    r"|(?:second|next)[ -]best|doubt|unlikely|suppose|assume|claim(?:s|ed)|maybe|perhaps"
    r"|no one|no\s?body|(?:false|untrue) that|if you (?:think|believe)"
    r"|you (?:said|thought|claimed|suggested)"
    r"|(?:might|may|could) (?:think|say|believe|answer|choose|pick|be (?:inclined|tempted))"
    r"|i (?:first |initially |originally )?thought"
    r"|(?:students?|people|others|many|some|he|she|they|friend|teacher|textbook|someone)"
    r" (?:\w{1,9} )?(?:think|say|believe|choose|pick|answer|select)(?:s|d|ed)?|trap|naive"
    r"|least likely)\b"
    r"|不(?:正确|对|是|选|应|认为|觉得|能|一定|确定)|错误|并非|如果|假如|可能|也许|或许|错",
    re.IGNORECASE,
)
#: Words with `doubt` or `not` that confirm.
CERTAIN = re.compile(
    r"\b(?:there(?: is|'s) )?no doubt(?: about it)?(?: that)?"
    r"|\b(?:without|beyond) (?:a |any )?doubt\b",
    re.IGNORECASE,
)
#: One of several cases: `If x=2, the answer is 12; otherwise 13`.
CASES = re.compile(
    r"\b(?:if|when)\b[^.\n]{1,120}(?:\botherwise\b|\belse\b|"
    r"[;,]\s(?:but |and )?(?:if|when)\s[a-z]\s?[=<>])",
    re.IGNORECASE,
)
#: What would hold in another case: `B would be correct if the triangle were isosceles`.
WOULD = re.compile(r"\bwould\b", re.IGNORECASE)
UNREAL = re.compile(
    r"\bif (?!(?:i|we|one|you) (?:had|have|were) to)"
    r"[^.;\n]{0,80}\b(?:were|was|had|wasn't|weren't|hadn't)\b|\bunless\b"
    r"|\bwould\b[^.;\n]{1,80}\bif\b"
    r"|\b(?:had|were) (?:the|it|this|that|there|they|we|one)\b",
    re.IGNORECASE,
)
#: A condition that the reply leaves open: `If the scale is linear, the answer is C`.
OPEN_CONDITION = re.compile(
    r"\W{0,3}(?:only )?if (?:the|this|that|it|there|both|all)\b[^.,;\n]{0,60}"
    r"\b(?:is|are|was|were)\b[^.,;\n]{0,40}, (?:then )?the (?:(?:correct|right|final|best) )?"
    r"(?:answer|option|choice)\b",
    re.IGNORECASE,
)
#: A condition in Chinese without a conclusion.
CHINESE_IF = re.compile(r"如果|假如|假设|倘若")
CHINESE_SO = re.compile(r"所以|因此|故|综上")
CHINESE_DENIES = re.compile(r"不(?:认为|觉得|能说|一定|确定)|并非|怀疑|[不非]$|不[能应]$")
#: A sentence that only looks at an option: `Let's examine option B.`
INSPECTS = re.compile(
    r"^\W{0,3}(?:(?:now|first|next|then|ok(?:ay)?),?\s)?(?:let(?:'s| us| me)\s(?!go with|choose"
    r"|pick|select|say|answer)|consider\b|examin\w{1,3}\b|look(?:ing)? at\b|check(?:ing)?\b)"
    r"(?! the (?:table|graph|chart|figure|image|picture|diagram|photo|plot|map|data)\b(?! [A-Z]\b))"
    r"(?![^.\n]{0,200},\s(?:which|so|therefore|thus|hence)\b)",
    re.IGNORECASE,
)
#: The option of an undenied clause: `B is correct`, and `B is` behind a denial.
AFFIRMED = re.compile(
    r"(?<![A-Za-z0-9])[(\[]?([A-Z])[)\]]?(?:选项|项)?才?\s?(?:(?:is|是)\s?(?:definitely |clearly )?"
    r"(?:(?:the )?(?:correct|right|true|best)(?: (?:one|answer|option|choice))?|the answer)"
    r"|是?(?:正确|对)"
    r"|is)(?:的|了)?\W{0,3}$|正确的(?:选项|答案)?[是为]\s?([A-Z])\W{0,3}$"
)
#: What ends a list of denied options: `not a cat or a dog, but a bird`.
ENDS_LIST = re.compile(
    r"[;.!?:]|\b(?:but|so|it|is|are|rather|instead|this|that|because|since|which|there|therefore|only|just)\b"
    r"|[是而选]",
    re.IGNORECASE,
)
CLAUSES = re.compile(r"[,;]|\b(?:but|while|whereas|and|so)\b", re.IGNORECASE)
IFS = re.compile(r"\b(?:if|whether|unless|think|thinks|claim|say|says)\b|如果|认为", re.IGNORECASE)
#: Words before the text of an option in its clause that deny it.
TEXT_DENIED = re.compile(
    rf"\b(?:{NOT}|no|neither|nor|without|rather than|instead of|anything but|unlike|except"
    r"|excludes?|rules? out|doubt|wrong|incorrect)\b|不|并非|没有|而非|无",
    re.IGNORECASE,
)


def last_clause(before: str) -> str:
    """The clause that a text ends in."""
    ends = [match.end() for match in NEW_CLAUSE.finditer(before)]
    return before[ends[-1] :] if ends else before


def is_denied_before(before: str) -> bool:
    """Whether the clause before an answer denies or doubts it: `I don't think the answer is A`."""
    clause = last_clause(before)
    if "doubt" in clause:
        clause = CERTAIN.sub("", clause)
    adjective = OTHER_ANSWER.search(before, max(0, len(before) - LONGEST_ADJECTIVE))
    if adjective or DENIES.search(clause):
        return True
    if before.isascii():
        return False
    if CHINESE_DENIES.search(clause):
        return True
    sentence = STOP.split(before)[-1]
    return bool(CHINESE_IF.search(sentence)) and not CHINESE_SO.search(sentence)


def is_unreal(sentence: str) -> bool:
    """Whether a sentence says what would hold in another case."""
    if WOULD.search(sentence) and UNREAL.search(sentence):
        return True
    return bool(OPEN_CONDITION.match(sentence) or CASES.search(sentence))


def is_no_statement(sentence: str) -> bool:
    """Whether a sentence denies or doubts what it names, or only looks at it."""
    plain = CERTAIN.sub("", sentence) if "doubt" in sentence else sentence
    denied = DENIED.search(plain) or INSPECTS.match(sentence)
    return bool(denied) or is_unreal(sentence)


def affirmed_letter(sentence: str) -> str:
    """The one option that a clause affirms next to denied ones: `A is wrong, B is correct`."""
    if IFS.search(sentence) or is_unreal(sentence):
        return ""
    clauses = [clause for clause in CLAUSES.split(sentence) if clause and clause.strip()]
    affirmed = [AFFIRMED.search(clause) for clause in clauses if not DENIED.search(clause)]
    letters = {match.group(1) or match.group(2) for match in affirmed if match}
    return min(letters) if len(letters) == 1 else ""


def is_denied_text_before(before: str) -> bool:
    """Whether the words before the text of an option deny it: `not a wolf, a cat or a`."""
    before = CERTAIN.sub("", before) if "doubt" in before else before
    if TEXT_DENIED.search(last_clause(before)):
        return True
    denials = list(TEXT_DENIED.finditer(before))
    return bool(denials) and not ENDS_LIST.search(before, denials[-1].end())


def is_taken_back(rest: str) -> bool:
    """Whether the text behind an answer takes it back: `A, but that is wrong`."""
    return bool(TAKEN_BACK.match(rest))
