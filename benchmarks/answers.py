"""Rows of `make bench` about answers: verdicts per second, and the longest text.

Processor seconds of one thread, best of several; `auto` without math-verify.
"""

import json
import tempfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

from task_inputs import key, made_mmstar

from vistill.answers import normalise, values
from vistill.answers.checkers import auto
from vistill.answers.math_process import shared_judge
from vistill.answers.verdict import Verdict
from vistill.evaluation.benchmarks.benchmark import BenchmarkRow
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS
from vistill.evaluation.benchmarks.results import task_results
from vistill.evaluation.benchmarks.sample_log import KIND, VERSION, new_sample, read_samples
from vistill.runs.storage import append_line
from vistill.types import Finish, Rollout

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
    rows.append(row("verdict_100k_characters_ms", 1000 * times[worst], "ms", about))
    return [*rows, *scoring_rows(row)]


def scoring_rows(row):
    """Seconds for judging, logging, reading and scoring 1,000 samples of a benchmark, once.

    Processor seconds of vistill for choices. Mathematics waits for a process of its own, so it is
    measured by the clock.
    """
    rows = []
    cases = (
        ("choice", "mmstar", time.process_time, "limit: 2 s; processor seconds"),
        ("mathematics", "mathverse", time.perf_counter, "formulas, by math-verify; by the clock"),
    )
    for name, task, clock, about in cases:
        begin = clock()
        score_samples(task)
        rows.append(row(f"score_1000_{name}_samples_seconds", clock() - begin, "s", about))
    few, many = scoring_peak(8), scoring_peak(32)
    about = (
        f"500 rows, 8 and 32 samples each: {few / 1e6:.1f} and {many / 1e6:.1f} MB; texts not kept"
    )
    rows.append(row("score_bytes_per_sample", (many - few) / (500 * 24), "bytes", about))
    return rows


def scoring_peak(count):
    """Peak memory in bytes of the metrics of 500 rows with so many samples each."""
    one, reply = choice_sample(0)
    verdicts = {"choice": Verdict("B", True)}
    samples = (
        new_sample((replace(one, id=str(number)), "", "?"), [], "sampled",
                   (Rollout((1,), sample, Finish.STOP), reply * 10, 0.0), verdicts)
        for number in range(500)
        for sample in range(count)
    )  # fmt: skip
    tracemalloc.start()
    task_results(BENCHMARKS["mmstar"], samples, {"sampled": count})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def score_samples(task):
    """Judge 1,000 made samples, write them to a log, read it and compute metrics."""
    benchmark, count = BENCHMARKS[task], 1000
    make = {"mmstar": choice_sample, "mathverse": formula_sample}[task]
    rule = next(iter(benchmark.rules))
    with tempfile.TemporaryDirectory() as folder, shared_judge() as math:
        log = Path(folder) / "log.jsonl"
        append_line(log, {"log": KIND, "version": VERSION})
        for number in range(count):
            one, reply = make(number)
            verdict = benchmark.rules[rule](reply, one, "last", math)
            answered = Rollout((1,), 0, Finish.STOP), reply, 0.0
            sample = new_sample((one, "", one.question), [], "greedy", answered, {rule: verdict})
            append_line(log, sample.to_dict())
        results = task_results(benchmark, read_samples(log), {"greedy": 1})
    assert results["modes"]["greedy"]["replies"] == count


def choice_sample(number):
    """A row of MMStar and a reply."""
    one = made_mmstar(number, key("bench", number))
    row = BENCHMARKS["mmstar"].read_row(one)
    return row, f"{PROSE}\nThe answer is ({'ABCD'[number % 4]})."


def formula_sample(number):
    """A row of MathVerse with a fraction as gold answer, and a reply in another form."""
    top, bottom = number % 97 + 1, number % 13 + 2
    facts = {"version": "Vision Only", "type": "free_form", "subject": "s", "subfield": "f"}
    row = BenchmarkRow(f"m{number}", "?", answer=f"\\frac{{{top}}}{{{bottom}}}", facts=facts)
    return row, f"{PROSE}\n\\boxed{{\\frac{{{2 * top} \\sqrt{{4}}}}{{{4 * bottom}}}}}"
