"""Evaluation: denominators, intervals, views without the image, reading, visual advantage."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import build_model
from doubles import watched_images

from vistill.data.diagrams import diagram_prompts, diagrams
from vistill.evaluation.advantage import TokenMeasurements, heavy_tail_curve, summarise_tokens
from vistill.evaluation.counterfactual import counterfactual_prompt, measure_stated_labels
from vistill.evaluation.runner import evaluate
from vistill.evaluation.settings import EvalSettings
from vistill.evaluation.statistics import mean_interval, wilson_interval
from vistill.rollouts.scripted import ScriptedEngine
from vistill.signals.concentration import gini, top_mass_share
from vistill.training.models_of_run import Models

SETTINGS = EvalSettings(limit=4, extra_limit=4, samples=2, max_new_tokens=6)


@pytest.fixture(scope="module")
def result(tokenizer, teacher):
    student = build_model(tokenizer, 0).freeze()
    models = Models(student, teacher, student.vocabulary_size)
    return evaluate(models, diagram_prompts("val", 4, 0), SETTINGS, diagrams=diagrams("val", 4, 0))


def test_the_summary_has_every_figure_with_its_denominator(result):
    expected = {
        *("accuracy", "accuracy_low", "accuracy_high", "rows", "samples", "greedy_accuracy"),
        *("accuracy/pixelated", "accuracy/text_only", "accuracy/swapped", "gap/pixelated"),
        *("reading/stated", "reading/counterfactual", "reading/items", "va/mean"),
        *("va/top10_share", "va/zero_share", "critical/share", "critical/kl_share", "tokens"),
        *("truncated_share", "unparsed_share", "kl/mean"),
    }
    assert expected <= set(result.summary)
    assert result.summary["rows"] == 4
    assert result.summary["samples"] == 2


def test_every_sample_is_written_with_its_view(result):
    counts = {}
    for sample in result.samples:
        counts[(str(sample.view), sample.mode)] = counts.get((str(sample.view), sample.mode), 0) + 1
    sampled = {(view, "sampled"): 8 for view in ("full", "pixelated", "text_only", "swapped")}
    assert counts == {**sampled, ("full", "greedy"): 4}
    assert len(result.to_lines().splitlines()) == len(result.samples)


def test_evaluation_is_reproducible_and_independent_of_the_batch_size(tokenizer, teacher, result):
    student = build_model(tokenizer, 0).freeze()
    models = Models(student, teacher, student.vocabulary_size)
    again = evaluate(
        models,
        diagram_prompts("val", 4, 0),
        replace(SETTINGS, rows_per_call=2),
        diagrams=diagrams("val", 4, 0),
    )
    assert again.to_lines() == result.to_lines()


def test_the_student_as_its_own_teacher_has_zero_kl(teacher):
    models = Models(teacher, teacher, teacher.vocabulary_size)
    out = evaluate(
        models,
        diagram_prompts("val", 2, 0),
        EvalSettings(limit=2, max_new_tokens=6, blind=False, greedy=False),
    )
    assert out.summary["kl/mean"] == pytest.approx(0, abs=1e-6)


def measurements(advantage, critical, kl, misread):
    n = len(advantage)
    t = torch.tensor
    return TokenMeasurements(
        diagram_prompts("val", 1, 0)[0],
        tuple(range(n)),
        t(advantage),
        t(critical),
        t(critical),
        t(kl),
        t(misread),
        torch.zeros(n),
        torch.zeros(n),
    )


def test_token_figures_by_hand():
    """Ten tokens: one critical and correct, one critical and misread, the rest language."""
    advantage = [3.0, 0.0] + [0.0] * 7 + [1.0]
    critical = [2.0, 1.0] + [0.0] * 8
    kl = [0.0, 6.0] + [0.25] * 8
    misread = [False, True] + [False] * 8
    facts = summarise_tokens([measurements(advantage, critical, kl, misread)], EvalSettings())
    assert facts["va/mean"] == pytest.approx(0.4)
    assert facts["va/top10_share"] == pytest.approx(0.75)
    assert facts["va/zero_share"] == pytest.approx(0.8)
    assert facts["critical/share"] == pytest.approx(0.2)
    assert facts["critical/kl_share"] == pytest.approx(6 / 8)
    assert facts["critical/misread_share"] == pytest.approx(0.5)
    assert facts["misread/in_high_group"] == 0.0
    assert facts["kl/high_group"] == pytest.approx(0.125)


def test_top_mass_and_gini_by_hand():
    values = torch.tensor([0.0] * 9 + [5.0])
    assert top_mass_share(values) == 1.0
    assert gini(values) == pytest.approx(0.9)
    assert gini(torch.ones(5)) == pytest.approx(0.0)
    assert math.isnan(top_mass_share(torch.zeros(4)))
    curve = heavy_tail_curve([measurements([1.0, 3.0], [0.0, 0.0], [0.0, 0.0], [False, False])])
    assert curve == [[0.5, 0.75], [1.0, 1.0]]


def test_intervals_by_hand():
    low, high = wilson_interval(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-3), pytest.approx(0.5962, abs=1e-3))
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert mean_interval([0.0, 1.0] * 50) == pytest.approx(wilson_interval(50, 100))
    # spread over questions 100 * 0.25^2 = 6.25, so 0.25 * 100 * 99 / 6.25 = 396 effective answers
    assert mean_interval([0.25, 0.75] * 50, 4) == pytest.approx(wilson_interval(198, 396))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("samples", [1, 8])
def test_an_interval_has_a_width_even_if_every_question_has_the_same_value(value, samples):
    low, high = mean_interval([value] * 20, samples)
    assert low <= value <= high
    assert high - low > 0.1
    assert mean_interval([], samples) == (0.0, 1.0)


def normal_interval(values):
    mean = sum(values) / len(values)
    half = 1.96 * math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return mean - half, mean + half


@pytest.mark.parametrize(("rate", "share"), [(0.15, 0.2), (0.0375, 0.8), (0.4, 0.5), (0.9, 0.9)])
def test_the_interval_of_several_samples_has_better_coverage_than_the_normal_one(rate, share):
    """30 questions, 8 samples: `share` of them are answered correctly at `rate`, others never."""
    import random

    rng, trials = random.Random(0), 1000
    covered = covered_by_normal = 0
    mean = rate * share
    for _ in range(trials):
        rates = [rate if rng.random() < share else 0.0 for _ in range(30)]
        values = [sum(rng.random() < r for _ in range(8)) / 8 for r in rates]
        low, high = mean_interval(values, 8)
        covered += low <= mean <= high
        low, high = normal_interval(values)
        covered_by_normal += low <= mean <= high
    assert covered > covered_by_normal
    assert covered / trials > 0.91


def test_a_counterfactual_changes_one_drawn_label():
    for item in diagrams("val", 30, 0):
        other, index = counterfactual_prompt(item, item.key)
        assert item.visible[index]
        assert [a == b for a, b in zip(item.values, other.values, strict=True)].count(False) == 1
        assert other.values[index] != item.values[index]


def test_stated_labels_are_compared_in_reading_order(teacher):
    from vistill.evaluation.responses import JudgedResponse
    from vistill.types import Finish, Rollout, View

    prompt = diagram_prompts("val", 1, 3)[0]

    def respond(text):
        return [
            JudgedResponse(
                prompt, View.FULL, "sampled", Rollout((1,), 0, Finish.STOP), text, None, False
            )
        ]

    assert measure_stated_labels(respond(prompt.response))["reading/stated"] == 1.0
    assert measure_stated_labels(respond("nothing"))["reading/stated"] == 0.0


def drawn(name, colour, answer="5", text="What?"):
    from PIL import Image

    from vistill.types import LoadedImage, Prompt

    return Prompt(name, (LoadedImage(Image.new("RGB", (28, 28), colour)), text), answer)


ROWS = [drawn("a", "red"), drawn("b", "red"), drawn("c", "red"), drawn("d", "blue")]


@pytest.fixture(scope="module")
def models(tokenizer, teacher):
    student = build_model(tokenizer, 0).freeze()
    return Models(student, teacher, student.vocabulary_size)


def evaluate_and_watch(models, rows, settings):
    """The result, and (id, colour) of every image shown to a row that is not its own image.

    Each row gets a question of its own, which identifies it in the encoded prompts.
    """
    encoded = []
    rows = [replace(p, parts=(*p.parts[:-1], f"What is {p.id}?")) for p in rows]
    own = {p.text: (p.id, colour_of(p.images[0].load())) for p in rows}
    watched = replace(models, student=watched_images(models.student, encoded))
    result = evaluate(watched, rows, settings)
    shown = []
    for question, images in encoded:
        name, colour = own[question]
        shown += [(name, colour_of(image)) for image in images if colour_of(image) != colour]
    return result, shown


def colour_of(image):
    return image.getpixel((0, 0))


class OneSentenceEngine(ScriptedEngine):
    """An engine whose every response is the same sentence."""

    def __init__(self, vlm, text):
        ids = tuple(vlm.response_ids(text))
        super().__init__(lambda key, sibling: ids, vlm.stop_ids[0])


QUICK = EvalSettings(max_new_tokens=3, greedy=False, advantage=False, reading=False)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_swapped_never_shows_the_same_image(models):
    result, shown = evaluate_and_watch(models, ROWS, QUICK)
    assert shown == [("a", BLUE), ("b", BLUE), ("c", BLUE), ("d", RED)]
    assert result.summary["swapped_rows"] == 4


def test_the_partner_of_a_row_does_not_depend_on_the_number_of_rows(models):
    partner = {"a": BLUE, "b": BLUE, "c": BLUE, "d": RED}
    _, shown = evaluate_and_watch(models, ROWS, replace(QUICK, limit=2))
    assert len(shown) == 2
    assert all(partner[name] == colour for name, colour in shown)


def test_rows_without_a_partner_are_left_out_of_swapped(models):
    out, shown = evaluate_and_watch(models, ROWS[:3], QUICK)
    assert shown == []
    assert out.summary["swapped_rows"] == 0
    assert out.summary["blind_rows"] == 3
    assert not {"accuracy/swapped", "gap/swapped"} & set(out.summary)
    assert "gap/pixelated" in out.summary


def test_the_swapped_gap_uses_the_same_rows_on_both_sides(models, clean_registry):
    """A row with two images has no partner, so it counts on neither side of the gap."""
    from vistill.answers import Verdict
    from vistill.registry import checkers
    from vistill.types import Prompt

    two_images = Prompt("e", (*ROWS[0].parts[:1], *ROWS[3].parts[:1], "What?"), "right")
    rows = [two_images, *(Prompt(p.id, p.parts, "wrong") for p in ROWS)]

    @checkers.register("by_gold")
    def check(response, answer, choices, take, math):
        return Verdict(None, answer == "right")

    summary = evaluate(models, rows, replace(QUICK, checker="by_gold")).summary
    assert (summary["swapped_rows"], summary["blind_rows"]) == (4, 5)
    assert summary["accuracy"] == 0.2
    assert summary["gap/swapped"] == 0.0


def test_rows_without_an_answer_count_for_visual_advantage_but_not_for_accuracy(models):
    rows = [
        drawn("a", "red"),
        drawn("b", "blue", answer=""),
        drawn("c", "green"),
        drawn("d", "white", answer=None),
    ]
    engine = OneSentenceEngine(models.student, "The answer is 5")
    out = evaluate(models, rows, replace(QUICK, greedy=True, advantage=True), engine=engine)
    assert out.summary["accuracy"] == out.summary["greedy_accuracy"] == 1.0
    assert [out.summary[key] for key in ("rows", "blind_rows", "unanswered_rows")] == [2, 2, 2]
    assert [item.prompt.id for item in out.tokens] == ["a", "b", "c"]
    assert [item["correct"] for item in out.heatmaps(models.student)] == [True, None, True]


def test_without_answered_rows_there_is_no_accuracy(models):
    summary = evaluate(
        models, [drawn("a", "red", answer="")], EvalSettings(max_new_tokens=3)
    ).summary
    assert summary["rows"] == 0
    assert not {"accuracy", "greedy_accuracy", "accuracy/pixelated"} & set(summary)


def test_shares_with_denominator_0_are_left_out():
    facts = summarise_tokens(
        [measurements([0.0, 0.0], [0.1, 0.0], [0.0, 0.0], [False, False])], EvalSettings()
    )
    assert not {"critical/kl_share", "critical/misread_share"} & set(facts)


def test_samples_carry_the_digest_of_text_and_images(models):
    import json

    def digests(rows):
        lines = evaluate(models, rows, QUICK).to_lines().splitlines()
        return {line["prompt"]: line["asked"] for line in map(json.loads, lines)}

    first = digests(ROWS)
    assert first["a"] == first["b"] != first["d"]
    assert digests([drawn("a", "red", text="Which?"), ROWS[3]])["a"] != first["a"]


def test_the_given_engine_generates_every_response(tokenizer, teacher, result):
    from vistill.rollouts.engine import WrappedEngine
    from vistill.rollouts.hf import HFEngine

    class Counting(WrappedEngine):
        calls, states = 0, []

        def generate(self, requests, sampling):
            self.calls += 1
            assert all(request.source is not None for request in requests)
            return super().generate(requests, sampling)

        def wake(self):
            self.states.append("wake")

        def sleep(self):
            self.states.append("sleep")

    student = build_model(tokenizer, 0).freeze()
    engine = Counting(HFEngine(student))
    models = Models(student, teacher, student.vocabulary_size)
    again = evaluate(
        models,
        diagram_prompts("val", 4, 0),
        SETTINGS,
        diagrams=diagrams("val", 4, 0),
        engine=engine,
    )
    assert (
        engine.calls == 7
    )  # sampled, greedy, three views without the image, diagrams and counterfactuals
    assert engine.states == ["wake", "sleep"]
    assert again.to_lines() == result.to_lines()


def test_an_empty_response_is_wrong_and_has_no_token_measurements(teacher):
    from vistill.rollouts.checked_engine import CheckedEngine
    from vistill.rollouts.scripted import ScriptedEngine

    prompts = diagram_prompts("val", 3, 0)
    correct = {p.id: teacher.response_ids(f"\\boxed{{{p.answer}}}") for p in prompts}

    def script(key, sibling):
        return () if key == prompts[0].id else correct[key]

    engine = CheckedEngine(ScriptedEngine(script, teacher.stop_ids[0]), teacher)
    settings = EvalSettings(max_new_tokens=40, blind=False, reading=False)
    out = evaluate(
        Models(teacher, teacher, teacher.vocabulary_size), prompts, settings, engine=engine
    )
    assert out.summary["accuracy"] == out.summary["greedy_accuracy"] == pytest.approx(2 / 3)
    assert out.summary["unparsed_share"] == pytest.approx(1 / 3)
    assert [item.prompt.id for item in out.tokens] == [p.id for p in prompts[1:]]
