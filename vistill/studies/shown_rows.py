"""Rows in the output of `vistill check`: the prompt as the model reads it, and what is judged."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from vistill.answers.judge import gold_response, right_answer
from vistill.answers.math_process import MathJudge, shared_judge
from vistill.answers.options import gold_letters, read_options
from vistill.answers.verdict import Verdict
from vistill.data.judging import JudgeSettings, judge_response
from vistill.data.mixture import set_of
from vistill.errors import DataError
from vistill.redaction import for_terminal
from vistill.training.checks.check import CheckResult
from vistill.types import Prompt

#: Rows that are shown, and characters of a prompt at its beginning and end.
ROWS, SHOWN = 3, 400
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
#: Checkers that accept more than the gold answer, and by which rule.
TOLERANT = {
    "relaxed": "within 5 % of the gold answer",
    "anls": "a similarity of at least 0.5",
    "contains": "the gold answer occurs in the reply",
    "vqa": "3 of 10 people gave this answer",
}

#: (prompt) -> (text as the model reads it, tokens, image tokens).
Render = Callable[[Prompt], tuple[str, int, int]]


def rows_in_words(
    train: Sequence[Prompt], evaluation: Sequence[Prompt], settings: JudgeSettings, render: Render
) -> list[CheckResult]:
    """Two training rows and an evaluation row; three training rows where there is no other.

    Of several data sets, a training row of each.

    Args:
        train: training rows.
        evaluation: evaluation rows.
        settings: checker and commitment of the evaluation.
        render: text and lengths of a prompt.
    """
    chosen = list(evaluation[:1])
    count = min(len(train), ROWS - len(chosen))
    names = sorted({set_of(p) for p in train})
    if len(names) > 1:  # of several data sets one row each
        chosen = [*(next(p for p in train if set_of(p) == name) for name in names), *chosen]
    else:
        chosen = [*(train[i * len(train) // count] for i in range(count)), *chosen]
    with shared_judge() as math:
        return [CheckResult("row", row_in_words(p, settings, render, math)) for p in chosen]


def row_in_words(prompt: Prompt, settings: JudgeSettings, render: Render, math: MathJudge) -> str:
    """Place, pictures, lengths, prompt, gold answer and verdicts of a row, a line each."""
    try:
        sizes = ["{} x {}".format(*ref.load().size) for ref in prompt.images]
        text, tokens, image_tokens = render(prompt)
    except DataError as error:
        sizes, text, tokens, image_tokens = [], f"{error.code} {error.what}", 0, 0
    facts = [prompt.labels.get("row", prompt.id)]
    facts += [f"pictures {', '.join(sizes)} pixels"] if sizes else ["no picture"]
    facts += [f"{tokens:,} tokens, {image_tokens:,} of them of images"] if tokens else []
    lines = ["; ".join(facts), *(f"| {line}" for line in shortened(text).splitlines())]
    return for_terminal("\n".join([*lines, *judged_lines(prompt, settings, math)]))


def shortened(text: str) -> str:
    """A text without its middle, if it is long."""
    if len(text) <= 2 * SHOWN:
        return text
    left_out = len(text) - 2 * SHOWN
    return f"{text[:SHOWN]}\n... {left_out:,} characters ...\n{text[-SHOWN:]}"


def judged_lines(prompt: Prompt, settings: JudgeSettings, math: MathJudge) -> list[str]:
    """The gold answer, and what the checker says to it in several forms, and to a wrong answer."""
    if not prompt.golds:
        return ["gold: none, so the row counts in no accuracy"]
    checker = prompt.labels.get("checker") or settings.checker
    most = max(prompt.golds, key=prompt.golds.count)  # of several people, for `vqa`
    gold = right_answer(checker, most)
    letter = letter_of(gold, prompt, checker)
    own_letter = f" ({letter})" if letter and most == prompt.gold_text else ""
    shown = f"{prompt.gold_text}{own_letter}"
    choices = f" of options {', '.join(prompt.choices)}" if prompt.choices else ""

    def judge(reply: str) -> Verdict:
        return judge_response(reply, prompt, settings, math)

    sentence = f"The answer is {gold}" + ("" if gold.endswith((".", "!", "?")) else ".")
    boxes = [gold_response(form) for form in (letter, gold) if form]
    right = [(reply, judge(reply)) for reply in (sentence, *boxes, gold)]
    parts = [f"`{reply}` {verdict_in_words(verdict)}" for reply, verdict in right]
    lines = [f"gold: {shown}{choices}", f"checker: {'; '.join(parts)}"]
    if not all(verdict.correct for _, verdict in right):
        lines.append(f"note: {lost_forms(right, prompt)}")
    asked = replace(prompt, answer=gold) if gold != most else prompt  # another text than the cell
    return [*lines, *wrong_lines(asked, checker, judge)]


def letter_of(gold: str, prompt: Prompt, checker: str) -> str:
    """The letter of the option whose text or value is the gold answer; empty if it is a letter."""
    if not prompt.choices or checker not in ("auto", "choice"):
        return ""
    letters = gold_letters(gold, read_options(prompt.choices))
    letter = next(iter(letters)) if len(letters) == 1 else ""
    return "" if letter == gold.strip("() ").upper() else letter


def lost_forms(right: Sequence[tuple[str, Verdict]], prompt: Prompt) -> str:
    """Say which forms of a right answer count, and whether the question asks for one of them."""
    counted = [reply for reply, verdict in right if verdict.correct]
    if not counted:
        return "no form of the gold answer counts here"
    asks = any("\\boxed" in reply for reply in counted) and "\\boxed" in prompt.text
    form = "in a box" if asks else f"as `{counted[0]}`"
    goes_on = ", and the question asks for it" if asks else "; ask for it in data.template"
    return f"the other form is not read. A right answer counts {form}{goes_on}"


def wrong_lines(prompt: Prompt, checker: str, judge: Callable[[str], Verdict]) -> list[str]:
    """What the checker says to a wrong answer; to a near miss and a wrong one by its rule.

    Args:
        prompt: with the gold answer as a right reply states it.
        checker: of the row.
        judge: gives the verdict on a reply.
    """
    moves = [*"LRUD"] if checker in ("maze", "maze_strict") else []
    wrongs = [gold_response(answer) for answer in moves or [wrong_answer(prompt)]]
    wrong = next((reply for reply in wrongs if not judge(reply).correct), wrongs[0])
    verdict = judge(wrong)
    if not verdict.correct:
        return [f"checker: `{wrong}` {verdict_in_words(verdict)}"]
    if checker not in TOLERANT:
        return [f"checker: `{wrong}` {verdict_in_words(verdict)}: this wrong answer is accepted"]
    lines = [f"checker: `{wrong}` {verdict_in_words(verdict)}: by its rule, {TOLERANT[checker]}"]
    for answer in far_answers(prompt.golds[0]):
        verdict = judge(gold_response(answer))
        if not verdict.correct:
            reply = gold_response(answer)
            return [*lines, f"checker: `{reply}` {verdict_in_words(verdict)}"]
    return [*lines, "note: no wrong answer was refused"]


def far_answers(gold: str) -> list[str]:
    """Answers that no rule takes for the gold answer: another number or other words."""
    number = NUMBER.search(gold)
    numbers = []
    if number is not None:
        numbers = [f"{gold[: number.start()]}{3 * float(number[0]) + 7:g}{gold[number.end() :]}"]
    return [*numbers, "something else", "none of these", "?"]


def verdict_in_words(verdict: Verdict) -> str:
    """`correct (choice, box)`, or why not."""
    by = ", ".join(word for word in (verdict.checker, verdict.rule) if word)
    word = "correct" if verdict.correct else "wrong"
    text = f"{word} ({by})" if by else word
    return f"{text}, {verdict.reason}" if verdict.reason else text


def wrong_answer(prompt: Prompt) -> str:
    """An answer that is not the gold answer: another letter, option, number or word."""
    golds = {gold.casefold() for gold in prompt.golds}
    if prompt.choices:
        letters = [chr(ord("A") + i) for i in range(len(prompt.choices))]
        if golds & {letter.casefold() for letter in letters}:
            return next((one for one in letters if one.casefold() not in golds), "none")
        return next((one for one in prompt.choices if one.casefold() not in golds), "none")
    if golds & {"yes", "no"}:
        return "No" if "yes" in golds else "Yes"
    gold = prompt.golds[0]
    if len(gold) == 1 and gold.isalpha():
        return "B" if gold.casefold() != "b" else "A"
    number = NUMBER.search(gold)
    if number is None:
        return "something else"
    before, value, after = gold[: number.start()], float(number[0]), gold[number.end() :]
    others = (f"{before}{value + step:g}{after}" for step in range(1, len(golds) + 2))
    return next(other for other in others if other.casefold() not in golds)
