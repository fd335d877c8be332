"""Why an oracle's verdict differs from ours: kinds of disagreements, each with a rule.

A rule looks at the question, our verdict and the oracle's state (benchmarks/oracles.py).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from vistill.answers import Verdict


@dataclass(frozen=True)
class Case:
    """One question on which an oracle and our checker differ."""

    row: dict
    """A line of the replies or pairs: reply, gold, choices."""
    ours: Verdict
    state: str
    """What the oracle says: a character of benchmarks/oracles.py."""

    @property
    def reply(self) -> str:
        """The text of the reply."""
        return self.row["reply"]

    @property
    def golds(self) -> list[str]:
        """The gold answers; several mean any of them."""
        gold = self.row["gold"]
        return [str(g) for g in (gold if isinstance(gold, list) else [gold])]

    @property
    def has_letter(self) -> bool:
        """Whether the gold answer is one option letter."""
        return len(self.golds) == 1 and re.fullmatch(r"[A-Z]", self.golds[0]) is not None

    @property
    def letters(self) -> str:
        """The option letters; A to D where the row shows none."""
        return "".join(chr(ord("A") + i) for i in range(len(self.row["choices"]) or 4))

    @property
    def accepts(self) -> bool:
        """Whether the oracle accepts what we refuse."""
        return self.state == "1"


@dataclass(frozen=True)
class Kind:
    """A kind of disagreement with one oracle."""

    name: str
    oracle: str
    reason: str
    """What the oracle does, for the page."""
    holds: Callable[[Case], object]


def last_box(reply: str) -> str | None:
    """The content of the last box; None without a closed one."""
    start = reply.rfind("\\boxed{")
    depth = 0
    for end in range(start + 6, len(reply)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(reply[end], 0)
        if depth == 0:
            return reply[start + 7 : end].strip()
    return None


def words(reply: str) -> list[str]:
    """The words of a reply as `can_infer` splits them."""
    return re.sub(r"[.()\[\],:;!*#{}]", " ", reply).split()


def lone_letters(case: Case) -> set[str]:
    """The option letters that are words of the reply."""
    return set(case.letters) & set(words(case.reply))


def is_early(case: Case) -> bool:
    """Whether the only lone letter is not among the last five words."""
    letters = lone_letters(case)
    every = words(case.reply)
    return len(letters) == 1 and every.index(next(iter(letters))) <= len(every) - 5


PREFIXES = ("The best answer is", "The correct answer is", "The answer is", "The answer")


def first_capital(case: Case) -> re.Match[str] | None:
    """The first capital A to E, which `extract_characters_regex` takes."""
    reply = case.reply.strip()
    for prefix in PREFIXES:
        reply = reply.replace(prefix, "")
    return re.search("[ABCDE]", reply)


def is_in_word(case: Case) -> bool:
    """Whether the first capital A to E is a letter of a word."""
    match = first_capital(case)
    around = match.string[max(0, match.start() - 1) : match.end() + 1] if match else ""
    return match is not None and re.search(r"[A-Za-z]{2}", around) is not None


def mmmu_text(case: Case) -> str:
    """A reply as MMMU's parser looks at it."""
    return f" {case.reply.strip(',.!?;:' + chr(39))} "


def mmmu_branch(case: Case) -> str:
    """Where MMMU's parser finds an option: the first place with any."""
    text = mmmu_text(case)
    for branch, form in (("bracket", "({})"), ("space", "{} "), ("stop", "{}.")):
        if any(form.format(letter) in text for letter in case.letters):
            return branch
    return "text"


#: Signs and wrappers that the mathematical oracles do not read as the answer they are.
NOTATION = re.compile(
    r"[^\x00-\x7f]|\\,|\{,\}|\*\*|<[^>]*>|\d \d+/\d|\^|\\(?:text|mathrm)|\b(?:cm|m)\b"
    r"|^\S* ?\[|is \[|: \[|(?:Answer|is):? .*\\"
)
#: A unit, a direction, or a word in an answer.
WORD = re.compile(r"[A-Za-z]")
TOLERANT = ("number", "relaxed")


def is_tolerated(case: Case) -> bool:
    """Whether the row's checker rounds, allows 5 %, or drops a percent sign."""
    return case.row.get("checker") in TOLERANT and not case.accepts


def rounds_to_gold(case: Case) -> bool:
    """Whether the answer is a gold answer after rounding to two decimals."""
    try:
        answer = float(case.ours.reply_form)
        return any(round(answer, 2) == round(float(gold), 2) for gold in case.golds)
    except ValueError:
        return False


KINDS = (
    Kind("E1", "evalscope", "cannot read the gold answer", lambda c: c.state == "g"),
    Kind("E2", "evalscope", "is not told the row's tolerance", is_tolerated),
    Kind(
        "E3",
        "evalscope",
        "takes a number of a reply that commits to none, or to two",
        lambda c: c.accepts and (c.ours.unparsed or " or " in (c.ours.extracted or "")),
    ),
    Kind(
        "E4",
        "evalscope",
        "takes a ratio or a time as a quotient",
        lambda c: c.accepts and ":" in c.golds[0],
    ),
    Kind(
        "E5",
        "evalscope",
        "drops a unit, a word or a sign behind a number",
        lambda c: c.accepts and (WORD.search(c.ours.extracted or "") or "π" in c.reply),
    ),
    Kind(
        "E6",
        "evalscope",
        "does not read a sign, a mark or a wrapper",
        lambda c: not c.accepts and (NOTATION.search(c.reply) or NOTATION.search(c.golds[0])),
    ),
    Kind("R1", "mathruler", "sees boxes only", lambda c: last_box(c.reply) is None),
    Kind(
        "R2",
        "mathruler",
        "compares a letter with a box that holds the option's text, or letter and text",
        lambda c: not c.accepts and c.has_letter and last_box(c.reply) != c.golds[0],
    ),
    Kind(
        "R3",
        "mathruler",
        "refuses an equal value in another form",
        lambda c: not c.accepts and c.ours.rule == "box",
    ),
    Kind(
        "R4",
        "mathruler",
        "drops a word behind a number",
        lambda c: c.accepts and WORD.search(last_box(c.reply) or ""),
    ),
    Kind(
        "C1",
        "can_infer",
        "finds no option where the reply has several letters",
        lambda c: c.state == "u" and len(lone_letters(c)) > 1,
    ),
    Kind(
        "C2",
        "can_infer",
        "looks at the last five words only",
        lambda c: c.state == "u" and is_early(c),
    ),
    Kind(
        "C3",
        "can_infer",
        "finds no letter: the reply gives a value or text, or signs stand at its letter",
        lambda c: c.state == "u" and not lone_letters(c),
    ),
    Kind(
        "C4",
        "can_infer",
        "takes the text of an option inside a word or a value",
        lambda c: c.state in "01" and not lone_letters(c),
    ),
    Kind(
        "C5",
        "can_infer",
        "takes an article or the name of an angle",
        lambda c: c.state in "01" and len(lone_letters(c)) == 1,
    ),
    Kind(
        "F1",
        "characters",
        "knows A to E only; the reply has no such capital",
        lambda c: c.state == "u" and first_capital(c) is None,
    ),
    Kind("F2", "characters", "takes the first capital, here of a word", is_in_word),
    Kind(
        "F3",
        "characters",
        "takes the first letter, here an article, a name or another option",
        lambda c: first_capital(c) is not None,
    ),
    Kind(
        "M1",
        "mmmu",
        "finds no letter before a space or a full stop, or in round brackets",
        lambda c: c.has_letter and c.state == "u",
    ),
    Kind(
        "M2",
        "mmmu",
        "takes the last letter in brackets, wherever it is",
        lambda c: c.has_letter and mmmu_branch(c) == "bracket",
    ),
    Kind(
        "M3",
        "mmmu",
        "takes the last letter before a space or a full stop, articles and names too",
        lambda c: c.has_letter and mmmu_branch(c) in ("space", "stop"),
    ),
    Kind(
        "M4",
        "mmmu",
        "takes the text of an option anywhere",
        lambda c: c.has_letter and mmmu_branch(c) == "text",
    ),
    Kind("M5", "mmmu", "rounds to two decimals", lambda c: c.accepts and rounds_to_gold(c)),
    Kind(
        "M6",
        "mmmu",
        "takes any number or text behind `is`, `so` or `=`, and in the last line",
        lambda c: not c.has_letter and c.accepts,
    ),
    Kind("M7", "mmmu", "is not told the row's tolerance", is_tolerated),
    Kind(
        "M8",
        "mmmu",
        "compares texts, and numbers without LaTeX",
        lambda c: not c.has_letter and not c.accepts,
    ),
    Kind(
        "X1",
        "relaxed",
        "compares the whole reply; a sentence, a sign or a comma is a difference",
        lambda c: not c.accepts and c.reply.strip() not in c.golds,
    ),
    Kind("O1", "ocrbench", "reads thoughts", lambda c: c.accepts and "<think>" in c.reply),
    Kind(
        "O2",
        "ocrbench",
        "keeps spaces outside its category of formulas",
        lambda c: not c.accepts and " " in c.reply,
    ),
)


def kind_of(oracle: str, case: Case) -> Kind | None:
    """The first kind of the oracle whose rule holds."""
    return next((k for k in KINDS if k.oracle == oracle and k.holds(case)), None)
