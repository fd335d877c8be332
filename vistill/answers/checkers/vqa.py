"""`vqa`: the accuracy of VQA v2, over the answers of several people."""

import re
from collections.abc import Sequence

from vistill.answers.checkers.text import score_words
from vistill.answers.compare import Mathematics
from vistill.answers.extract import Take
from vistill.answers.normalise import strip_markup
from vistill.answers.number_words import SMALL
from vistill.answers.reading import with_golds
from vistill.answers.verdict import Verdict

DIGITS = {word: str(value) for word, value in SMALL.items() if value <= 10} | {"none": "0"}
PUNCTUATION = re.compile(r"[;/\[\]\"{}()=+\\_\-<>@`?!]")
COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))|,")
PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")
#: Answers that give full credit.
ENOUGH = 3


def vqa_form(text: str) -> str:
    """Normal form of VQA v2: lower case, digits for number words, no articles and punctuation."""
    plain = PERIOD.sub("", COMMA.sub("", PUNCTUATION.sub(" ", strip_markup(text).casefold())))
    words = [DIGITS.get(word, word) for word in plain.split()]
    return " ".join(word for word in words if word not in ("a", "an", "the"))


@with_golds
def check(
    response: str,
    answer: Sequence[str],
    choices: tuple[str, ...],
    take: Take,
    math: Mathematics | None,
) -> Verdict:
    """VQA accuracy `min(n / 3, 1)`, n people gave this answer; correct from full credit on.

    With fewer than 10 gold answers one that is equal gives full credit.
    Source: the evaluation of VQA v2 (visualqa.org), also of TextVQA.
    """
    golds = [vqa_form(gold) for gold in answer]

    def rate(forms: tuple[str, ...]) -> tuple[str, float, str]:
        plain = [vqa_form(form) for form in forms]
        form = next((form for form in plain if form in golds), plain[0])
        same = golds.count(form)
        score = float(same > 0) if len(golds) < 10 else min(same / ENOUGH, 1.0)
        reason = "" if score >= 1 else f"{same} of {len(golds)} gold answers are equal"
        return form, score, reason

    return score_words(response, take, " | ".join(dict.fromkeys(golds)), rate)
