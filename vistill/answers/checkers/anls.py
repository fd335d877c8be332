"""`anls`: normalised edit distance (DocVQA, InfographicVQA)."""

from collections.abc import Sequence

from vistill.answers.checkers.text import score_words
from vistill.answers.compare import Mathematics
from vistill.answers.extract import Take
from vistill.answers.normalise import strip_markup
from vistill.answers.reading import with_golds
from vistill.answers.verdict import Verdict

#: Similarity below which an answer gets no credit.
THRESHOLD = 0.5
#: Longest answers that are compared; the distance takes their product.
MOST = 300


def distance(first: str, second: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def similarity(answer: str, gold: str) -> float:
    """1 minus the distance over the longer length, 0 below the threshold."""
    a, g = (" ".join(strip_markup(text).casefold().split())[:MOST] for text in (answer, gold))
    longer = max(len(a), len(g))
    value = 1 - distance(a, g) / longer if longer else 0.0
    return value if value >= THRESHOLD else 0.0


@with_golds
def check(
    response: str,
    answer: Sequence[str],
    choices: tuple[str, ...],
    take: Take,
    math: Mathematics | None,
) -> Verdict:
    """Average normalised Levenshtein similarity with the nearest gold answer; correct from 0.5 on.

    Source: Biten et al., Scene Text Visual Question Answering, 2019; used by DocVQA.
    """

    def rate(forms: tuple[str, ...]) -> tuple[str, float, str]:
        scores = {
            form: max((similarity(form, gold) for gold in answer), default=0.0) for form in forms
        }
        form = max(scores, key=lambda text: scores[text])
        return form, scores[form], "" if scores[form] else f"similarity below {THRESHOLD}"

    return score_words(response, take, " | ".join(answer), rate)
