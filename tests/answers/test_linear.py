"""The time of a verdict is linear in the length of any text.

Times vary with the load of a machine, so most tests count: tokens that the scanners look at, and
characters that each pattern can take. The times are in the benchmark.
"""

import importlib
import pkgutil
import re
import time
from re import _compiler, _parser

import pytest

import vistill.answers
from vistill.answers import boxes, characters, denials, extract, normalise, translate
from vistill.answers.checkers import auto, choice

FAMILIES = {
    "nested boxes": "\\boxed{",
    "boxes": "\\boxed{4}",
    "answer": "answer ",
    "answer is": "the answer is ",
    "Answer:": "Answer: ",
    "braces": "{",
    "closing braces": "}",
    "dollars": "$",
    "thoughts": "<think>",
    "closed thoughts": "</think>",
    "digits": "1",
    "spaces": " ",
    "lines": "\n",
    "units": "cm",
    "numbers with units": "12 m ",
    "letters": "A ",
    "marked letters": "(A) ",
    "options": "the correct option is ",
    "commas": "1,",
    "tags": "<answer>",
    "angle brackets": "<",
    "backslashes": "\\",
    "stars": "*",
    "text commands": "\\text{",
    "roots": "\\sqrt",
    "hedges": "A or ",
    "comparisons": "Therefore, A is closer than ",
    "Chinese": "答案是",
    "choose": "choose ",
    "equations": "x=",
    "dots": ". ",
}
ROWS = [
    ("4", ()),
    ("B", ()),
    ("B", ("30", "40", "60")),
    ("red", ()),
    ("yes", ()),
    ("2\\sqrt{3}", ()),
    ("a square", ("a circle", "a square", "the cat on the mat")),
]


def modules():
    for info in pkgutil.walk_packages(vistill.answers.__path__, "vistill.answers."):
        yield importlib.import_module(info.name)


def patterns():
    """Every compiled pattern of the package."""
    for module in modules():
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                yield f"{module.__name__}.{name}", value


def unbounded(tree, inside=False):
    """The repeats of a pattern that have no limit, and whether they stand in another repeat."""
    for operation, argument in tree:
        name = str(operation)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            _, most, body = argument
            if most == _parser.MAXREPEAT:
                yield inside
            yield from unbounded(body, inside or most > 1)
        elif name == "SUBPATTERN":
            yield from unbounded(argument[3], inside)
        elif name == "BRANCH":
            for branch in argument[1]:
                yield from unbounded(branch, inside)
        elif name in ("ASSERT", "ASSERT_NOT"):
            yield from unbounded(argument[1], inside)


@pytest.mark.parametrize(("name", "pattern"), sorted(patterns()), ids=lambda value: str(value)[:60])
def test_no_pattern_has_a_repeat_without_limit_inside_another(name, pattern):
    assert not any(unbounded(_parser.parse(pattern.pattern, pattern.flags)))


@pytest.mark.parametrize(
    "pattern",
    [
        boxes.BRACE,
        boxes.BARE_BOX,
        boxes.TAG,
        extract.MARK,
        extract.SENTENCE_END,
        characters.THOUGHT,
        characters.SPECIAL,
    ],
)
def test_patterns_that_scan_whole_replies_have_bounded_length(pattern):
    assert not list(unbounded(_parser.parse(pattern.pattern, pattern.flags)))


@pytest.mark.parametrize(
    "pattern",
    [
        boxes.BRACE,
        boxes.TAG,
        extract.MARK,
        extract.SENTENCE_END,
        characters.THOUGHT,
        characters.SPECIAL,
        characters.TYPOGRAPHIC,
        normalise.MARKUP,
        translate.GROUPS_AND_COMMA,
        translate.SEVERAL_GROUPS,
        translate.THREE_DECIMALS,
        translate.DECIMALS,
    ],
)
def test_patterns_that_scan_whole_replies_begin_with_characters_that_re_skips_to(pattern):
    tree = _parser.parse(pattern.pattern, pattern.flags)
    literal, *_ = _compiler._get_literal_prefix(tree, pattern.flags)
    assert literal or _compiler._get_charset_prefix(tree, pattern.flags)


@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        (extract.DOUBT, extract.LONGEST_DOUBT),
        (denials.OTHER_ANSWER, denials.LONGEST_ADJECTIVE),
        (choice.LINE_END_LETTER, choice.LONGEST_LABEL),
    ],
)
def test_a_match_at_the_end_of_a_text_is_no_longer_than_what_is_read_for_it(pattern, most):
    longest = _parser.parse(pattern.pattern, pattern.flags).getwidth()[1]
    assert longest + len("\n") <= most  # `$` stands before a line break at the end, too


class Counter:
    """Counts how often a checker reads a sentence, and the characters that it gets."""

    def __init__(self):
        self.characters = 0

    def __call__(self, plain, rule):
        self.characters += len(plain)


@pytest.mark.parametrize("take", ["first", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_characters_that_a_checker_reads_do_not_grow_with_the_reply(family, take):
    counts = []
    for length in (50_000, 100_000):
        text = (FAMILIES[family] * length)[:length]
        counter = Counter()
        extract.find_explicit(characters.readable(text), take, counter)
        counts.append(counter.characters)
    assert counts[1] <= 2 * counts[0] + 1
    assert counts[1] <= (extract.MOST_READ + 1) * boxes.WINDOW + extract.MOST_CHARACTERS


@pytest.mark.parametrize("family", FAMILIES)
def test_scanners_find_at_most_one_span_per_token(family):
    text = (FAMILIES[family] * 20_000)[:20_000]
    assert len(boxes.find_strong(text)) <= 20_000 // 8
    assert len(characters.outside_thoughts(text)) <= 20_000 // 7 + 1


def test_a_gold_answer_of_units_takes_milliseconds():
    start = time.process_time()
    for text in ("h" + "m" * 60 + "!", "cm" * 60, "m/" * 60, "12" + " m" * 60):
        auto.check(f"\\boxed{{{text}}}", text, (), "last", None)
        auto.check("\\boxed{4}", text, (), "last", None)
    assert time.process_time() - start < 0.5


def seconds(text, gold, choices):
    """Processor seconds of a verdict, the best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        auto.check(text, gold, choices, "last", None)
        best = min(best, time.process_time() - start)
    return best


def best_seconds(whole, gold, choices):
    """Best processor seconds of half a text and of the whole; again if a busy machine disturbs."""
    best = [float("inf")] * 2
    for _ in range(5):
        for i, length in enumerate((50_000, 100_000)):
            best[i] = min(best[i], seconds(whole[:length], gold, choices))
        if best[1] < max(2.5 * best[0], 0.04):
            break
    return best


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_twice_the_text_takes_at_most_two_and_a_half_times_as_long(family):
    for gold, choices in ROWS:
        whole = (FAMILIES[family] * 100_000)[:100_000]
        half, full = best_seconds(whole, gold, choices)
        assert full < max(2.5 * half, 0.04), (family, gold, half, full)
