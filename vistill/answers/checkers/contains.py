"""`contains`: the gold answer occurs in the reply (OCRBench)."""

from vistill.answers.compare import Mathematics
from vistill.answers.extract import Take, whole
from vistill.answers.reading import with_gold
from vistill.answers.verdict import Verdict


def plain(text: str) -> str:
    """In lower case, line breaks as spaces."""
    return " ".join(text.casefold().split())


@with_gold
def check(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """The gold answer occurs in the reply, without case; line breaks are spaces.

    Source: OCRBench. Its handwritten formulas (HME100k) are compared without spaces: formulas.
    """
    span = whole(response)
    text, gold = plain(response), plain(answer)
    if not text:
        return Verdict(None, False, gold_form=gold, reason="the reply is empty")
    inside = bool(gold) and gold in text
    if not inside and any(sign in answer for sign in "\\^_{"):
        inside = gold.replace(" ", "") in text.replace(" ", "")
    where = (span.start, span.end)
    raw = response[span.start : span.end]
    return Verdict(
        raw, inside, "contains", where, text[:200], gold, "" if inside else "not in the reply"
    )
