"""Pairs of a reply and a gold answer whose signs, spaces, letter case or units decide."""

import json
import time
from pathlib import Path

import pytest

from vistill import judge
from vistill.answers.checkers import auto
from vistill.answers.normalise import math_form, text_form
from vistill.answers.units import parse_unit

PAIRS = [
    json.loads(line)
    for line in Path(__file__)
    .with_name("pairs_values.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]


@pytest.mark.parametrize("correct", [True, False])
def test_signs_spaces_case_and_units_decide(correct):
    pairs = [pair for pair in PAIRS if pair["correct"] is correct]
    failed = []
    for pair in pairs:
        verdict = judge(pair["reply"], pair["gold"], pair["choices"], pair["checker"], pair["take"])
        if verdict.correct is not correct:
            failed.append((pair, verdict))
    assert len(pairs) >= 100
    assert failed == []


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("km/h", "km/h"),
        ("kmph", "km/h"),
        ("m s^{-1}", "m/s"),
        ("kg m⁻³", "kg/m^3"),
        ("m/s/s", "m/s^2"),
        ("N m", "N m"),
        ("sq. cm", "cm^2"),
        ("平方米", "m^2"),
        ("degrees Celsius", "°C"),
        ("per second", "/s"),
        ("units^2", ""),
        ("mb", None),
        ("apples", None),
        ("square", None),
    ],
)
def test_a_unit_has_one_normal_form(text, form):
    assert parse_unit(text) == form


def test_normal_forms_keep_what_tells_answers_apart():
    assert math_form("1 1/2") == "1 1/2"
    assert math_form("x  +  1") == "x+1"
    assert text_form("10³") == "10^3"
    assert text_form("H₂O") == text_form("H_{2}O") == "h2o"
    assert text_form("\\Delta") != text_form("\\delta")
    assert text_form("5 MW") != text_form("5 mW")
    assert text_form("5 KG") == text_form("5 kg")


def test_long_answers_of_signs_take_milliseconds():
    start = time.process_time()
    for unit in ("1 ", "²", "½", "_{2}", "^{2}", "①、", "a.m. ", "\\color{red}", "!", "Aa1", "1-"):
        text = (unit * 2000)[:2000]
        auto.check(f"\\boxed{{{text}}}", text, (), "last", None)
        auto.check(f"\\boxed{{{text}}}", "4", (), "last", None)
    assert time.process_time() - start < 1.0


def test_options_that_differ_by_case_alone_are_two():
    options = ("2\\Delta x", "2\\delta x")
    assert judge("\\boxed{2Δx}", "A", options).correct
    assert not judge("\\boxed{2Δx}", "B", options).correct
    assert judge("STRASSE", "A", ("Straße", "Gasse")).correct
    assert judge("istanbul", "A", ("İstanbul", "Ankara")).correct
