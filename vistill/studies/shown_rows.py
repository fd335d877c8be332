"""Rows in the output of `vistill check`: the prompt as the model reads it, and what is judged."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from vistill.answers.judge import gold_response, right_answer
from vistill.answers.math_process import MathJudge, shared_judge
from vistill.answers.verdict import Verdict
from vistill.data.judging import JudgeSettings, judge_response
from vistill.errors import DataError
from vistill.redaction import for_terminal
from vistill.training.checks.check import CheckResult
from vistill.types import Prompt

#: Rows that are shown, and characters of a prompt at its beginning and end.
ROWS, SHOWN = 3, 400
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

#: (prompt) -> (text as the model reads it, tokens, image tokens).
Render = Callable[[Prompt], tuple[str, int, int]]


def rows_in_words(
    train: Sequence[Prompt], evaluation: Sequence[Prompt], settings: JudgeSettings, render: Render
) -> list[CheckResult]:
    """Two training rows and an evaluation row; three training rows where there is no other.

    Args:
        train: training rows.
        evaluation: evaluation rows.
        settings: checker and commitment of the evaluation.
        render: text and lengths of a prompt.
    """
    chosen = list(evaluation[:1])
    count = min(len(train), ROWS - len(chosen))
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
    """The gold answer, and what the checker says to it in three forms, and to a wrong answer."""
    if not prompt.golds:
        return ["gold: none, so the row counts in no accuracy"]
    checker = prompt.labels.get("checker") or settings.checker
    most = max(prompt.golds, key=prompt.golds.count)  # of several people, for `vqa`
    gold = right_answer(checker, most)
    choices = f" of options {', '.join(prompt.choices)}" if prompt.choices else ""
    lines = [f"gold: {prompt.gold_text}{choices}"]
    is_read = gold != most  # another text than the cell
    replies = (f"The answer is {gold}.", gold_response(gold), gold)
    right = [(reply, judge_response(reply, prompt, settings, math)) for reply in replies]
    wrong = gold_response(wrong_answer(replace(prompt, answer=gold) if is_read else prompt))
    other = judge_response(wrong, prompt, settings, math)
    parts = [f"`{reply}` {verdict_in_words(verdict)}" for reply, verdict in right]
    if not all(verdict.correct for _, verdict in right):
        parts.append("so a right answer in this form counts as wrong")
    lines.append(f"checker: {'; '.join(parts)}")
    unexpected = "" if not other.correct else ": this wrong answer is accepted"
    lines.append(f"checker: `{wrong}` {verdict_in_words(other)}{unexpected}")
    return lines


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
