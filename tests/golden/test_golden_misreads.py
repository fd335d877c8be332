"""`grounded_opd` and `stop_at_misread` by hand: marks, weights, figures, warnings."""

import math

import pytest
import torch
from batches import logits_pass, passes_without_gradient, random_batch, responses

from vistill.batch import ScoredBatch, ScoredPass
from vistill.errors import ConfigError
from vistill.objectives import METHODS
from vistill.signals.misreads import up_to_first

GroundedOPD = METHODS["grounded_opd"]


def scored(signed, lengths=(5, 3), group=(0, 0), has_image=None):
    """A batch whose signed visual advantage is given, with a student and a teacher of logits."""
    batch, student = random_batch(list(lengths), list(group), seed=3, has_image=has_image)
    full = batch["teacher.full"]
    degraded = ScoredPass(full.log_prob - torch.tensor(signed), full.hidden, full.head)
    passes = {**batch.passes, "teacher.pixelated": degraded}
    return ScoredBatch(batch.responses, passes), student


#: Five tokens with a misread at the third (a later one does not matter), three without one.
SIGNED = [0.2, -0.9, -1.5, 2.0, -3.0, 0.0, 1.0, -1.0]


def test_tokens_after_the_first_misread_have_no_weight_and_the_misread_keeps_its_own():
    signals = GroundedOPD().signals(scored(SIGNED)[0])
    assert signals["misread"].tolist() == [False, False, True, False, True, False, False, False]
    assert signals["kept"].tolist() == [True, True, True, False, False, True, True, True]
    tenth, sixth = 1 / 10, 1 / 6
    expected = [tenth, tenth, tenth, 0.0, 0.0, sixth, sixth, sixth]
    assert signals["token_weight"].tolist() == pytest.approx(expected)
    assert signals["after_weight"].tolist() == pytest.approx([0, 0, 0, tenth, tenth, 0, 0, 0])


def test_the_kept_normaliser_gives_each_rollout_its_whole_weight():
    weight = GroundedOPD(normaliser="kept").signals(scored(SIGNED)[0])["token_weight"]
    assert weight.tolist() == pytest.approx([1 / 6] * 3 + [0.0, 0.0] + [1 / 6] * 3)
    decayed = GroundedOPD(normaliser="kept", factor_after=0.5).signals(scored(SIGNED)[0])
    assert decayed["token_weight"].tolist() == pytest.approx(
        [1 / 8] * 3 + [1 / 16] * 2 + [1 / 6] * 3
    )


def test_a_factor_after_the_misread_decays_and_does_not_renormalise():
    weight = GroundedOPD(factor_after=0.25).signals(scored(SIGNED)[0])["token_weight"]
    assert weight.tolist() == pytest.approx([0.1] * 3 + [0.025] * 2 + [1 / 6] * 3)


def test_the_weights_of_rollouts_are_those_of_va_opd():
    batch, _ = scored(SIGNED)
    ours = GroundedOPD(rollout_weights=True).signals(batch)["rollout_weight"]
    assert torch.equal(ours, METHODS["va_opd"]().signals(batch)["rollout_weight"])


def test_the_threshold_is_strict():
    marks = GroundedOPD(misread_threshold=-1.5).signals(scored(SIGNED)[0])["misread"]
    assert marks.tolist() == [False] * 4 + [True] + [False] * 3


def test_a_prompt_without_an_image_has_no_misread():
    batch, _ = scored(SIGNED, group=(0, 1), has_image=[False, True])
    method = GroundedOPD(detection="either", critical_nats=0.0)
    signals = method.signals(batch)
    assert not signals["misread"][:5].any()
    assert signals["token_weight"][:5].tolist() == pytest.approx([0.2] * 5)
    figures = GroundedOPD().metrics(batch, GroundedOPD().signals(batch))
    assert figures["misread/without_image_share"] == 0.5
    assert figures["misread/rollout_share"] == 0.0
    assert figures["misread/lowest_va"] == -1.0


READ, WRONG = [0.9, 0.05, 0.05], [0.05, 0.05, 0.9]


@pytest.mark.parametrize(
    ("detection", "expected"),
    [
        ("advantage", [False, True, False, False]),
        ("argmax", [False, True, False, True]),
        ("both", [False, True, False, False]),
        ("either", [False, True, False, True]),
    ],
)
def test_the_detections_of_a_read_a_misread_a_free_and_a_doubtful_token(detection, expected):
    """Token 0 is sampled each time. KL(READ || uniform) is 0.70 nats, of the last row 0.58."""
    uniform, doubtful = [1 / 3] * 3, [0.2, 0.79, 0.01]
    r = responses([1, 1, 1, 1], [0, 0, 0, 0], vocabulary=1)
    full = torch.tensor([READ, WRONG, uniform, doubtful]).log()
    degraded = torch.tensor([uniform] * 4).log()
    batch = ScoredBatch(
        r,
        {
            "teacher.full": logits_pass(full, r.ids),
            "teacher.pixelated": logits_pass(degraded, r.ids),
        },
    )
    signals = GroundedOPD(detection=detection).signals(batch)
    assert signals["misread"].tolist() == expected


def test_up_to_first_counts_within_each_rollout():
    marks = torch.tensor([1, 0, 0, 1, 0, 0, 0, 1, 1], dtype=torch.bool)
    rollout = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 3])
    kept = up_to_first(marks, rollout, 4)
    assert kept.tolist() == [True, False, True, True, False, True, True, True, False]


def test_the_figures_of_a_step_say_how_many_rollouts_and_where():
    batch, _ = scored(SIGNED)
    figures = GroundedOPD().metrics(batch, GroundedOPD().signals(batch))
    assert figures["misread/rollout_share"] == 0.5
    assert figures["misread/position"] == pytest.approx(3 / 5)
    assert figures["misread/kept_share"] == pytest.approx(6 / 8)
    assert figures["misread/token_share"] == pytest.approx(2 / 8)
    assert figures["misread/lowest_va"] == -3.0
    assert figures["va/mean"] == pytest.approx(3.2 / 8)


def test_a_teacher_that_never_contradicts_is_said_with_numbers():
    batch, _ = scored([0.0, 0.1, -0.25, 0.0, 0.0, 0.3, 0.0, 0.0])
    method = GroundedOPD()
    figures = method.metrics(batch, method.signals(batch))
    assert "misread/position" not in figures
    (text,) = method.warnings(figures).values()
    assert "no rollout of this step has a misread" in text
    assert "-0.250 nats" in text
    assert "misread_threshold=-1" in text


def test_a_threshold_that_marks_everything_is_said_with_numbers():
    batch, _ = scored([-0.5] * 40, lengths=(20, 20))
    method = GroundedOPD(misread_threshold=-0.01)
    figures = method.metrics(batch, method.signals(batch))
    (text,) = method.warnings(figures).values()
    assert "only 5.0 % of the tokens" in text
    assert "100 % of the rollouts" in text
    assert GroundedOPD().warnings(GroundedOPD().metrics(*with_signals(scored(SIGNED)[0]))) == {}


def test_prompts_without_an_image_do_not_hide_a_threshold_that_marks_everything():
    batch, _ = scored([-0.5] * 40, lengths=(20, 20), group=(0, 1), has_image=[True, False])
    method = GroundedOPD(misread_threshold=-0.01)
    (text,) = method.warnings(method.metrics(batch, method.signals(batch))).values()
    assert "only 52.5 % of the tokens of this step are learned from" in text
    assert "100 % of the rollouts have a misread and 100 % of the tokens are marked" in text


@pytest.mark.parametrize("name", ["grounded_opd", "va_opd"])
def test_short_responses_do_not_hide_a_threshold_that_marks_everything(name):
    option = {} if name == "grounded_opd" else {"stop_at_misread": True}
    batch, _ = scored([-0.5] * 8)
    method = METHODS[name](misread_threshold=-0.01, **option)
    texts = method.warnings(method.metrics(batch, method.signals(batch)))
    assert "only 25.0 % of the tokens of this step are learned from" in texts["all_misread"]


def test_a_warning_says_what_the_factor_and_the_detection_are():
    batch, _ = scored([-0.5] * 8)

    def warning(**knobs):
        method = GroundedOPD(misread_threshold=-0.01, **knobs)
        return "".join(method.warnings(method.metrics(batch, method.signals(batch))).values())

    assert "25.0 % of the tokens of this step keep their whole weight" in warning(factor_after=0.5)
    assert warning(factor_after=1.0) == ""  # it cuts nothing: `opd`
    by_argmax = warning(detection="argmax", critical_nats=1e6)
    assert "no rollout of this step has a misread" in by_argmax
    assert by_argmax.endswith("detection=argmax, critical_nats=1e+06")
    assert warning(detection="either").endswith("misread_threshold=-0.01, critical_nats=0.5")


def with_signals(batch):
    return batch, GroundedOPD().signals(batch)


def test_a_step_of_text_alone_warns_of_nothing_and_counts_it():
    batch, _ = scored(SIGNED, group=(0, 1), has_image=[False, False])
    figures = GroundedOPD().metrics(*with_signals(batch))
    assert figures["misread/without_image_share"] == 1.0
    assert "misread/rollout_share" not in figures
    assert GroundedOPD().warnings(figures) == {}


@pytest.mark.parametrize("threshold", [0.0, 0.5, -101.0, math.nan])
def test_a_threshold_that_is_not_below_zero_is_refused(threshold):
    for name in ("grounded_opd", "va_opd", "vgs"):
        with pytest.raises(ConfigError) as caught:
            METHODS[name](misread_threshold=threshold)
        assert caught.value.code == "C002"


def test_what_follows_a_misread_is_logged_on_request_and_never_learned():
    batch, student = scored(SIGNED)
    method = GroundedOPD(watch_after=True)
    terms = {t.name: t for t in method.terms(batch, method.signals(batch))}
    after = terms["reverse_kl_after_misread"]
    assert not after.minimised
    assert after.values[:3].tolist() == [0.0, 0.0, 0.0]
    assert float(after.values[3:5].min()) > 0
    plain = {t.name: t for t in GroundedOPD().terms(batch, GroundedOPD().signals(batch))}
    assert plain.keys() == {"reverse_kl"}
    whole = METHODS["opd"]()
    (opd,) = whole.terms(batch, whole.signals(batch))
    total = sum(float((t.weights * t.values).sum()) for t in terms.values())
    assert total == pytest.approx(float((opd.weights * opd.values).sum()), abs=1e-6)
    (terms["reverse_kl"].weights * terms["reverse_kl"].values).sum().backward()
    assert float(student.grad[3:5].abs().max()) == 0.0


@pytest.mark.parametrize("name", ["va_opd", "vgs", "vgs_language", "grpo_opd", "grpo_va_opd"])
def test_the_option_changes_no_signal_and_no_pass_where_it_is_off(name):
    from batches import method_batch

    plain = METHODS[name]()
    other = METHODS[name](misread_threshold=-0.1)
    assert [(p.name, p.keep) for p in plain.passes()] == [(p.name, p.keep) for p in other.passes()]
    batch, _ = method_batch(plain, [4, 5, 3, 4], [0, 0, 1, 1], seed=6)
    seen = passes_without_gradient(plain, batch)
    ours, theirs = plain.signals(seen), other.signals(seen)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert "misread" not in ours
    assert not any(key.startswith("misread/") for key in plain.metrics(seen, ours))


@pytest.mark.parametrize("name", ["va_opd", "vgs", "grpo_opd", "grpo_vgs", "grpo_va_opd"])
def test_a_method_with_the_option_warns_and_counts_as_grounded_opd_does(name):
    from batches import method_batch

    method = METHODS[name](stop_at_misread=True, misread_threshold=-100.0)
    batch, _ = method_batch(method, [4, 5, 3, 4], [0, 0, 1, 1], seed=6)
    seen = passes_without_gradient(method, batch)
    figures = method.metrics(seen, method.signals(seen))
    assert figures["misread/rollout_share"] == 0.0
    assert "no_misread" in method.warnings(figures)
