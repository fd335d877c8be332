"""The engine contract, tested on every shipped engine."""

import pytest
import torch
from conftest import build_model
from tiers import few

from vistill.errors import RolloutError
from vistill.models.scoring import EncodedGroup, score
from vistill.rollouts.build import make_engine
from vistill.rollouts.checked_engine import CheckedEngine
from vistill.rollouts.engine import RolloutEngine, Sampling, make_requests
from vistill.rollouts.scripted import ScriptedEngine
from vistill.rollouts.settings import RolloutSettings

SAMPLING = Sampling(seed=3, step=7, temperature=0.7, top_p=0.9, max_new_tokens=12, log_probs=True)


def nothing():
    pass


def scoring(vlm, request, ids):
    """Log-probabilities as a training step computes them."""
    with torch.no_grad():
        read = score(
            vlm,
            [EncodedGroup(request.prompt, (ids,))],
            torch.tensor(ids),
            vlm.vocabulary_size,
            "log_prob",
        )
    return tuple(read.sampled().tolist())


def scripted(vlm, poll):
    """Responses that depend on prompt and sibling."""

    def script(key, sibling):
        return (20 + (sum(key.encode()) + 7 * sibling) % 100, 21, vlm.stop_ids[0])

    return ScriptedEngine(
        script, vlm.stop_ids[0], lambda request, ids: scoring(vlm, request, ids), poll
    )


@pytest.fixture(params=["shared", "hf", "scripted"])
def make(request):
    """An engine as the builder returns it."""

    def make_it(vlm, poll=nothing):
        engine = scripted(vlm, poll) if request.param == "scripted" else None
        name = "shared" if engine is not None else request.param
        return make_engine(vlm, RolloutSettings(engine=name), poll, engine)

    return make_it


def make_test_requests(vlm, prompts, siblings=(0, 1, 2)):
    return make_requests(prompts, [vlm.encode(p) for p in prompts], siblings)


def test_every_engine_implements_the_protocol_and_is_checked(make, teacher):
    engine = make(teacher)
    assert isinstance(engine, CheckedEngine)
    assert isinstance(engine, RolloutEngine)
    assert isinstance(engine.inner, RolloutEngine)


def test_responses_and_log_probabilities_do_not_depend_on_the_batch(make, teacher, prompts):
    engine = make(teacher)
    batched = engine.generate(make_test_requests(teacher, prompts[:4]), SAMPLING)
    alone = [engine.generate(make_test_requests(teacher, [p]), SAMPLING)[0] for p in prompts[:4]]
    reversed_order = engine.generate(make_test_requests(teacher, prompts[:4][::-1]), SAMPLING)[::-1]
    single = [
        tuple(
            engine.generate(make_test_requests(teacher, [p], (k,)), SAMPLING)[0][0]
            for k in range(3)
        )
        for p in prompts[:4]
    ]
    assert batched == alone == reversed_order == single
    assert len({rollout.ids for group in batched for rollout in group}) > 6
    for other in (alone, reversed_order, single):
        for a, b in zip(
            (r for g in batched for r in g), (r for g in other for r in g), strict=True
        ):
            assert a.log_probs == pytest.approx(b.log_probs, abs=1e-5)


@pytest.mark.parametrize(
    ("temperature", "top_p"), few([(1.0, 1.0), (0.7, 0.5), (0.0, 1.0), (3.0, 0.95)], 1)
)
def test_log_probabilities_equal_scoring_for_all_sampling_parameters(
    make, tokenizer, prompts, temperature, top_p
):
    """The end of turn is likely, so rows are dropped early and values could move to another row."""
    vlm = build_model(tokenizer, 5)
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[vlm.stop_ids[0]] *= 3
    sampling = Sampling(0, 0, temperature, top_p, 40, 16, log_probs=True)
    requests = make_test_requests(vlm, prompts[:6])
    groups = make(vlm).generate(requests, sampling)
    for request, group in zip(requests, groups, strict=True):
        for rollout in group:
            assert rollout.log_probs == pytest.approx(scoring(vlm, request, rollout.ids), abs=1e-4)


def test_requesting_log_probabilities_changes_no_response(make, teacher, prompts):
    from dataclasses import replace

    engine, requests = make(teacher), make_test_requests(teacher, prompts[:2])
    plain = engine.generate(requests, replace(SAMPLING, log_probs=False))
    assert plain == engine.generate(requests, SAMPLING)
    assert {rollout.log_probs for group in plain for rollout in group} == {None}


def test_the_version_is_the_synced_one_and_sleep_wake_and_close_may_be_repeated(
    make, teacher, prompts
):
    with make(teacher) as engine:
        before = engine.generate(make_test_requests(teacher, prompts[:1]), SAMPLING)
        for version in (1, 2, 2, 7):
            engine.sync_weights(version)
            assert engine.version == engine.inner.version == version
        for _ in range(2):
            engine.sleep()
        for _ in range(2):
            engine.wake()
        assert engine.generate(make_test_requests(teacher, prompts[:1]), SAMPLING) == before
        engine.close()
        engine.close()
        with pytest.raises(AssertionError, match="is closed"):
            engine.generate(make_test_requests(teacher, prompts[:1]), SAMPLING)


def test_a_signal_stops_generation_and_restores_the_mode_of_the_model(make, student, prompts):
    calls = []

    def poll():
        calls.append(1)
        if len(calls) == 3:
            raise TimeoutError

    student.model.train()
    with pytest.raises(TimeoutError):
        make(student, poll).generate(make_test_requests(student, prompts[:1]), SAMPLING)
    assert len(calls) == 3
    assert student.model.training
    make(student).generate(make_test_requests(student, prompts[:1]), SAMPLING)
    assert student.model.training


def test_an_engine_without_log_probabilities_raises_when_they_are_requested(teacher, prompts):
    stop = teacher.stop_ids[0]
    engine = make_engine(
        teacher, RolloutSettings(), own=ScriptedEngine(lambda key, sibling: (20, stop), stop)
    )
    assert not engine.reports_log_probs
    with pytest.raises(RolloutError) as caught:
        engine.generate(make_test_requests(teacher, prompts[:1]), SAMPLING)
    assert caught.value.code == "R407"


@pytest.mark.parametrize("siblings", [(0, 1, 2), pytest.param((0,), marks=pytest.mark.more)])
@pytest.mark.parametrize(
    "config",
    [
        {"repetition_penalty": 60.0},
        {"min_new_tokens": 12},
        {"suppress_tokens": list(range(20, 200))},
        {"no_repeat_ngram_size": 1},
    ],
    ids=lambda config: next(iter(config)),
)
def test_the_generation_config_of_the_model_changes_no_response(
    tokenizer, prompts, config, siblings
):
    """Sampling follows the recipe alone, even if the model's config sets a repetition penalty."""
    vlm = build_model(tokenizer, 5)
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[vlm.stop_ids[0]] *= 2
    sampling, requests = (
        Sampling(0, 0, 1.0, 1.0, 20),
        make_test_requests(vlm, prompts[:3], siblings),
    )
    plain = make_engine(vlm, RolloutSettings(engine="hf")).generate(requests, sampling)
    for name, value in config.items():
        setattr(vlm.model.generation_config, name, value)
    before = vlm.model.generation_config.to_dict()
    for name in ("shared", "hf"):
        assert make_engine(vlm, RolloutSettings(engine=name)).generate(requests, sampling) == plain
    assert vlm.model.generation_config.to_dict() == before
