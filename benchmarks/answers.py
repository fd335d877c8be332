"""Rows of `make bench` about answers: verdicts per second, and the longest text.

Processor seconds of one thread, best of several; `auto` without math-verify.
"""

import json
import time
from pathlib import Path

from vistill.answers import normalise, values
from vistill.answers.checkers import auto

PAIRS = Path(__file__).parent.parent / "tests" / "answers" / "pairs.jsonl"
#: Prose before an answer, as long as the reply of a small model.
PROSE = "The figure shows a circle with radius 3. So we compute its area, which is 9 pi. " * 8
LENGTH = 100_000
#: Texts that are repeated up to `LENGTH` characters.
HOSTILE = (
    "\\boxed{",
    "\\boxed{4}",
    "the answer is ",
    "Answer: ",
    "{",
    "$",
    "<think>",
    "</think>",
    "1",
    " ",
    "cm",
    "12 m ",
    "A or ",
    "(A) ",
    "<answer>",
    "\\text{",
    "答案是",
    "choose ",
    "la respuesta es ",
    "答えは",
)


def seconds(function, repeats):
    """The best processor seconds of a function."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best


def answer_rows(row, repeats):
    """Verdicts per second, and milliseconds for 100,000 characters."""
    pairs = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    pairs = [pair for pair in pairs if pair["checker"] == "auto"]
    replies = [
        (reply, pair["gold"], tuple(pair["choices"]))
        for pair in pairs
        for reply in (pair["reply"], f"{PROSE}\n{pair['reply']}")
    ]

    def judge_all():
        for cached in (normalise.strip_markup, normalise.text_form, normalise.math_form):
            cached.cache_clear()
        values.parse_value.cache_clear()
        for reply, gold, choices in replies:
            auto.check(reply, gold, choices, "last", None)

    rate = len(replies) / seconds(judge_all, repeats)
    rows = [row("verdicts_per_second", rate, "1/s", "limit: 5,000; half of them behind prose")]
    times = {}
    for text in HOSTILE:
        long = (text * LENGTH)[:LENGTH]
        for gold, choices in (("4", ()), ("B", ("30", "40", "60")), ("red", ())):
            times[text, gold] = seconds(
                lambda t=long, g=gold, c=choices: auto.check(t, g, c, "last", None), repeats
            )
    worst = max(times, key=times.get)
    about = f"limit: 50 ms; worst of {len(HOSTILE)} hostile texts: {worst[0].strip()!r}"
    return [*rows, row("verdict_100k_characters_ms", 1000 * times[worst], "ms", about)]
