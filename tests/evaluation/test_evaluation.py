"""Evaluation: denominators, intervals, blind views, reading, visual advantage, explaining figures."""

import math

import pytest
import torch
from conftest import build_model

from vistill.data.diagrams import diagram_prompts, diagrams
from vistill.evaluation.advantage import TokenReading, heavy_tail_curve, summarise_tokens
from vistill.evaluation.counterfactual import counterfactual_prompt, stated_share
from vistill.evaluation.runner import evaluate
from vistill.evaluation.settings import EvalSettings
from vistill.evaluation.statistics import mean_interval, wilson
from vistill.signals.concentration import gini, top_mass_share
from vistill.training.models_of_run import Models

SETTINGS = EvalSettings(limit=4, extra_limit=4, samples=2, max_new_tokens=6)


@pytest.fixture(scope="module")
def result(tokenizer, teacher):
    student = build_model(tokenizer, 0).freeze()
    models = Models(student, teacher, student.vocabulary_size)
    return evaluate(models, diagram_prompts("val", 4, 0), SETTINGS, diagrams=diagrams("val", 4, 0))


def test_the_summary_has_every_figure_with_its_denominator(result):
    wanted = {"accuracy", "accuracy_low", "accuracy_high", "rows", "samples", "greedy_accuracy", "accuracy/pixelated",
              "accuracy/text_only", "accuracy/swapped", "gap/pixelated", "reading/stated", "reading/counterfactual",
              "reading/items", "va/mean", "va/top10_share", "critical/share", "critical/kl_share", "truncated_share",
              "unparsed_share", "kl/mean", "va/zero_share", "tokens"}  # fmt: skip
    assert wanted <= set(result.summary)
    assert result.summary["rows"] == 4
    assert result.summary["samples"] == 2


def test_every_sample_is_written_with_its_view(result):
    counts = {}
    for sample in result.samples:
        counts[(str(sample.view), sample.mode)] = counts.get((str(sample.view), sample.mode), 0) + 1
    assert counts == {("full", "sampled"): 8, ("full", "greedy"): 4, ("pixelated", "sampled"): 8,
                      ("text_only", "sampled"): 8, ("swapped", "sampled"): 8}  # fmt: skip
    assert len(result.to_lines().splitlines()) == len(result.samples)


def test_evaluation_is_reproducible_and_independent_of_how_rows_are_batched(
    tokenizer, teacher, result
):
    from dataclasses import replace

    student = build_model(tokenizer, 0).freeze()
    models = Models(student, teacher, student.vocabulary_size)
    again = evaluate(
        models,
        diagram_prompts("val", 4, 0),
        replace(SETTINGS, rows_per_call=2),
        diagrams=diagrams("val", 4, 0),
    )
    assert again.to_lines() == result.to_lines()


def test_the_student_as_its_own_teacher_has_no_kl(teacher):
    models = Models(teacher, teacher, teacher.vocabulary_size)
    out = evaluate(
        models,
        diagram_prompts("val", 2, 0),
        EvalSettings(limit=2, max_new_tokens=6, blind=False, greedy=False),
    )
    assert out.summary["kl/mean"] == pytest.approx(0, abs=1e-6)


def reading(advantage, critical, kl, misread):
    n = len(advantage)
    t = lambda x: torch.tensor(x)
    return TokenReading(
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


def test_explaining_figures_by_hand():
    """Ten tokens: one critical and read, one critical and misread, the rest language."""
    advantage = [3.0, 0.0] + [0.0] * 7 + [1.0]
    critical = [2.0, 1.0] + [0.0] * 8
    kl = [0.0, 6.0] + [0.25] * 8
    misread = [False, True] + [False] * 8
    facts = summarise_tokens([reading(advantage, critical, kl, misread)], EvalSettings())
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
    curve = heavy_tail_curve([reading([1.0, 3.0], [0.0, 0.0], [0.0, 0.0], [False, False])])
    assert curve == [[0.5, 0.75], [1.0, 1.0]]


def test_intervals_by_hand():
    low, high = wilson(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-3), pytest.approx(0.5962, abs=1e-3))
    assert wilson(0, 0) == (0.0, 1.0)
    assert mean_interval([0.0, 1.0] * 50) == pytest.approx(wilson(50, 100))
    # spread over questions 2 * 0.25^2 * 50 = 6.25: worth 0.25 * 100 * 99 / 6.25 = 396 answers of the 400
    assert mean_interval([0.25, 0.75] * 50, 4) == pytest.approx(wilson(198, 396))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("samples", [1, 8])
def test_an_interval_has_a_width_where_every_question_has_the_same_value(value, samples):
    low, high = mean_interval([value] * 20, samples)
    assert low <= value <= high
    assert high - low > 0.1
    assert mean_interval([], samples) == (0.0, 1.0)


def normal_interval(values):
    mean = sum(values) / len(values)
    half = 1.96 * math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return mean - half, mean + half


@pytest.mark.parametrize(("rate", "share"), [(0.15, 0.2), (0.0375, 0.8), (0.4, 0.5), (0.9, 0.9)])
def test_the_interval_of_several_samples_holds_more_often_than_the_normal_one(rate, share):
    """30 questions with 8 samples; a share of them is answered right at a rate, the others never."""
    import random

    rng, held, normal, trials = random.Random(0), 0, 0, 1000
    for _ in range(trials):
        rates = [rate if rng.random() < share else 0.0 for _ in range(30)]
        values = [sum(rng.random() < r for _ in range(8)) / 8 for r in rates]
        inside = lambda interval: interval[0] <= rate * share <= interval[1]
        held += inside(mean_interval(values, 8))
        normal += inside(normal_interval(values))
    assert held > normal
    assert held / trials > 0.91


def test_a_twin_changes_one_drawn_label():
    for item in diagrams("val", 30, 0):
        other, index = counterfactual_prompt(item, item.key)
        assert item.visible[index]
        assert [a == b for a, b in zip(item.values, other.values, strict=True)].count(False) == 1
        assert other.values[index] != item.values[index]


def test_stated_labels_are_counted_in_reading_order(teacher):
    from vistill.evaluation.answering import Answered
    from vistill.types import Finish, Rollout, View

    prompt = diagram_prompts("val", 1, 3)[0]

    def say(text):
        return [
            Answered(prompt, View.FULL, "sampled", Rollout((1,), 0, Finish.STOP), text, None, False)
        ]

    assert stated_share(say(prompt.response))["reading/stated"] == 1.0
    assert stated_share(say("nothing"))["reading/stated"] == 0.0


def drawn(name, colour, answer="5", text="What?"):
    from PIL import Image

    from vistill.types import LoadedImage, Prompt

    return Prompt(name, (LoadedImage(Image.new("RGB", (28, 28), colour)), text), answer)


ROWS = [drawn("a", "red"), drawn("b", "red"), drawn("c", "red"), drawn("d", "blue")]


@pytest.fixture(scope="module")
def models(tokenizer, teacher):
    student = build_model(tokenizer, 0).freeze()
    return Models(student, teacher, student.vocabulary_size)


@pytest.fixture
def shown(monkeypatch):
    """(id, colour of the picture) of every row that was answered with a swapped picture."""
    from vistill.evaluation import answering
    from vistill.types import View

    seen, see = [], answering.see

    def watch(prompt, view, context):
        out = see(prompt, view, context)
        if view is View.SWAPPED:
            seen.append((prompt.id, out.images[0].load().getpixel((0, 0))))
        return out

    monkeypatch.setattr(answering, "apply_view", watch)
    return seen


QUICK = EvalSettings(max_new_tokens=3, greedy=False, advantage=False, reading=False)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_swapped_never_shows_a_row_its_own_picture_again(models, shown):
    summary = evaluate(models, ROWS, QUICK).summary
    assert shown == [("a", BLUE), ("b", BLUE), ("c", BLUE), ("d", RED)]
    assert summary["swapped_rows"] == 4


def test_a_row_has_the_same_partner_however_many_rows_are_evaluated(models, shown):
    from dataclasses import replace

    partner = {"a": BLUE, "b": BLUE, "c": BLUE, "d": RED}
    evaluate(models, ROWS, replace(QUICK, limit=2))
    assert len(shown) == 2
    assert all(partner[name] == colour for name, colour in shown)


def test_rows_that_no_other_picture_can_be_shown_to_are_left_out_and_counted(models, shown):
    out = evaluate(models, ROWS[:3], QUICK)
    assert shown == []
    assert out.summary["swapped_rows"] == 0
    assert out.summary["blind_rows"] == 3
    assert not {"accuracy/swapped", "gap/swapped"} & set(out.summary)
    assert "gap/pixelated" in out.summary


def test_the_swapped_gap_is_taken_on_the_rows_that_were_swapped(models, monkeypatch):
    """Rows with two pictures, one of which all rows share: only rows that see another one count, on both sides."""
    from vistill.data.answers import Verdict
    from vistill.evaluation import answering
    from vistill.types import Prompt

    two = Prompt("e", (*ROWS[0].parts[:1], *ROWS[3].parts[:1], "What?"), "right")
    rows = [
        two,
        *(Prompt(p.id, p.parts, "wrong") for p in ROWS),
    ]  # no row has a third picture to show to `e`
    monkeypatch.setattr(
        answering, "judge_answer", lambda text, gold, *rest: Verdict(None, gold == "right")
    )
    summary = evaluate(models, rows, QUICK).summary
    assert (summary["swapped_rows"], summary["blind_rows"]) == (4, 5)
    assert summary["accuracy"] == 0.2
    assert summary["gap/swapped"] == 0.0


def test_rows_without_an_answer_are_read_but_judged_nowhere(models, monkeypatch):
    from dataclasses import replace

    from vistill.data.answers import Verdict
    from vistill.evaluation import answering

    monkeypatch.setattr(
        answering, "judge_answer", lambda text, gold, *rest: Verdict(gold, bool(gold))
    )
    rows = [
        drawn("a", "red"),
        drawn("b", "blue", answer=""),
        drawn("c", "green"),
        drawn("d", "white", answer=None),
    ]
    out = evaluate(models, rows, replace(QUICK, greedy=True, advantage=True))
    assert out.summary["accuracy"] == out.summary["greedy_accuracy"] == 1.0
    assert (out.summary["rows"], out.summary["blind_rows"], out.summary["unanswered_rows"]) == (
        2,
        2,
        2,
    )
    assert [reading.prompt.id for reading in out.tokens] == ["a", "b", "c"]
    assert [item["correct"] for item in out.heatmaps(models.student)] == [True, None, True]


def test_nothing_to_judge_gives_no_share(models):
    summary = evaluate(
        models, [drawn("a", "red", answer="")], EvalSettings(max_new_tokens=3)
    ).summary
    assert summary["rows"] == 0
    assert not {"accuracy", "greedy_accuracy", "accuracy/pixelated"} & set(summary)


def test_shares_of_nothing_are_left_out():
    facts = summarise_tokens(
        [reading([0.0, 0.0], [0.1, 0.0], [0.0, 0.0], [False, False])], EvalSettings()
    )
    assert not {"critical/kl_share", "critical/misread_share"} & set(facts)


def test_samples_carry_the_digest_of_question_and_pictures(models):
    import json

    def asked(rows):
        lines = evaluate(models, rows, QUICK).to_lines().splitlines()
        return {line["prompt"]: line["asked"] for line in map(json.loads, lines)}

    first = asked(ROWS)
    assert first["a"] == first["b"] != first["d"]
    assert asked([drawn("a", "red", text="Which?"), ROWS[3]])["a"] != first["a"]


def test_the_engine_that_is_handed_over_writes_every_answer(tokenizer, teacher, result):
    from vistill.rollouts.engine import WrappedEngine
    from vistill.rollouts.hf import HFEngine

    class Counting(WrappedEngine):
        calls, states = 0, []

        def write(self, requests, sampling):
            self.calls += 1
            assert all(request.source is not None for request in requests)
            return super().write(requests, sampling)

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
    assert engine.calls == 7  # sampled, greedy, three blind views, a diagram and its twin
    assert engine.states == ["wake", "sleep"]
    assert again.to_lines() == result.to_lines()


def test_an_empty_answer_is_a_wrong_one_and_has_no_tokens_to_read(teacher):
    from vistill.rollouts.checked_engine import CheckedEngine
    from vistill.rollouts.scripted import ScriptedEngine

    prompts = diagram_prompts("val", 3, 0)
    right = {p.id: teacher.response_ids(f"\\boxed{{{p.answer}}}") for p in prompts}
    script = lambda key, sibling: () if key == prompts[0].id else right[key]
    engine = CheckedEngine(ScriptedEngine(script, teacher.stop_ids[0]), teacher)
    settings = EvalSettings(max_new_tokens=40, blind=False, reading=False)
    out = evaluate(
        Models(teacher, teacher, teacher.vocabulary_size), prompts, settings, engine=engine
    )
    assert out.summary["accuracy"] == out.summary["greedy_accuracy"] == pytest.approx(2 / 3)
    assert out.summary["unparsed_share"] == pytest.approx(1 / 3)
    assert [reading.prompt.id for reading in out.tokens] == [p.id for p in prompts[1:]]
