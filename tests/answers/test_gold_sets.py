"""`auto` accepts the gold answers of every real set, and no other letter."""

import json

import pytest

from vistill import judge
from vistill.answers import gold_response

SETS = (
    "geometry_mathv",
    "geometry3k_sample",
    "puzzlevqa",
    "mathverse",
    "mathvision_testmini",
    "wemath",
    "blink_jigsaw",
    "vlms_are_blind",
    "annotations_hallusionbench",
    "annotations_ocrbench",
)
#: What replies look like around an answer.
FORMS = (
    "{}",
    "The answer is {}.",
    "To answer this, look at the figure.\n\\boxed{{{}}}",
    "\\boxed{{\\text{{{}}}}}",
    "**Answer: {}**",
    "<answer>{}</answer>",
    "thinking \\boxed{{0}}</think>Answer: {}",
)


def rows(shared_data, name):
    for line in (shared_data / name / "data.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["answer"] is not None:
            yield str(row["answer"]), tuple(str(c) for c in row.get("choices") or ())


@pytest.mark.parametrize("name", SETS)
def test_the_checker_accepts_gold_answers_of_every_real_set(shared_data, name):
    unique = dict.fromkeys(rows(shared_data, name))
    assert unique
    assert [
        (a, c) for a, c in unique if not judge(gold_response(a), a, c, take="first").correct
    ] == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", ["mathvision_testmini", "wemath", "geometry3k_sample", "puzzlevqa"]
)
def test_the_same_answer_is_accepted_in_the_forms_of_real_replies(shared_data, name, form):
    unique = list(dict.fromkeys(rows(shared_data, name)))
    failed = [
        (a, c)
        for a, c in unique
        for take in ("first", "last")
        if not judge(form.format(a), a, c, take=take).correct
    ]
    assert failed == []


@pytest.mark.parametrize(
    "name", ["geometry_mathv", "mathvision_testmini", "wemath", "blink_jigsaw"]
)
def test_another_letter_is_never_correct(shared_data, name):
    unique = dict.fromkeys(rows(shared_data, name))
    with_letters = [(a, c) for a, c in unique if c and len(a) == 1]
    assert with_letters
    for answer, choices in with_letters:
        wrong = chr(ord("A") + (ord(answer) - ord("A") + 1) % len(choices))
        for form in FORMS:
            assert not judge(form.format(wrong), answer, choices).correct
