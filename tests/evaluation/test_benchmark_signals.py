"""Signals of benchmark samples (`eval.signals`): the functions used elsewhere, and means."""

from dataclasses import replace

import pytest
from PIL import Image

import vistill
from vistill.evaluation.advantage import measure_tokens
from vistill.evaluation.benchmarks.measuring import measure_signals
from vistill.evaluation.benchmarks.sample_signals import (
    NAMES,
    SignalMeans,
    signal_lines,
    signal_notes,
)
from vistill.evaluation.responses import JudgedResponse
from vistill.types import Finish, LoadedImage, Prompt, Rollout, View
from vistill.views import ViewContext


def test_signals_are_those_of_the_teachers_measurement_with_the_student_as_teacher():
    vlm = vistill.load("vistill:student")
    picture = Image.linear_gradient("L").resize((48, 48)).convert("RGB")
    prompt = Prompt("q", (LoadedImage(picture), "How long is it?"), "5")
    rollouts = [Rollout((5, 6, 7), 0, Finish.LENGTH), Rollout((8, 9), 1, Finish.LENGTH)]
    empty = replace(rollouts[1], ids=())
    own = measure_signals(vlm, prompt, "greedy", [rollouts[0], empty, rollouts[1]])
    judged = [JudgedResponse(prompt, View.FULL, "greedy", one, "", None, False) for one in rollouts]
    measured = measure_tokens(vlm, vlm, judged, ViewContext())
    assert own[1] == dict.fromkeys(NAMES)
    for one, tokens in zip([own[0], own[2]], measured, strict=True):
        assert one["log_prob"] == pytest.approx(float(tokens.log_prob_full.mean()), abs=1e-5)
        assert one["visual_advantage"] == pytest.approx(float(tokens.advantage.mean()), abs=1e-5)
        assert one["visual_dependency"] == pytest.approx(float(tokens.dependency.mean()), abs=1e-5)


def test_means_are_over_responses_and_say_of_how_many():
    means = SignalMeans()
    values = {"log_prob": -1.0, "entropy": 2.0, "visual_advantage": 0.5, "visual_dependency": 0.1}
    means.add("a", "a", values)
    means.add("b", "b", {**values, "log_prob": -3.0, "visual_advantage": None})
    means.add("c", "c", None)
    signals = means.results()["signals"]
    one = signals["means"]["log_prob"]
    assert (one["value"], one["units"], one["clusters"]) == (-2.0, 2, 2)
    assert (one["low"], one["high"]) == (-3.0, -1.0)
    assert signals["means"]["visual_advantage"]["value"] == 0.5
    assert signal_notes(signals) == [
        "signals of 2 of 3 responses",
        "no visual signals for 1 responses written without a full picture",
    ]
    assert len(signal_lines(signals)) == 4 + 2


def test_nothing_is_shown_where_nothing_was_measured():
    means = SignalMeans()
    means.add("a", "a", None)
    assert means.results() == {}
    assert signal_lines({}) == []


def test_intervals_do_not_depend_on_the_order_of_the_log():
    rows = [(str(n), {"log_prob": -float(n * n)}) for n in range(9)]
    results = []
    for order in (rows, rows[::-1], rows[4:] + rows[:4]):
        means = SignalMeans()
        for row, values in order:
            means.add(row, row, values)
        one = means.results()["signals"]["means"]["log_prob"]
        results.append((one["low"], one["high"]))
    assert results[1:] == results[:-1]
