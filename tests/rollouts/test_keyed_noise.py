"""Sampling noise depends on (seed, step, prompt, sibling, attempt), not on the batch."""

import pytest
import torch

from vistill.errors import ConfigError
from vistill.evaluation.settings import EvalSettings
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.hf import HFEngine, to_rollout
from vistill.rollouts.keyed_noise import GeneratorSampler, mask_outside_nucleus, rollout_seed
from vistill.rollouts.samplers import SAMPLERS
from vistill.rollouts.settings import SMALLEST_TEMPERATURE, RolloutSettings
from vistill.rollouts.shared import SharedEngine
from vistill.types import Finish

SAMPLING = Sampling(seed=3, step=7, temperature=0.7, top_p=0.95, max_new_tokens=12)


def requests(vlm, prompts, siblings=(0, 1, 2, 3)):
    return [RolloutRequest(p.id, vlm.encode(p), tuple(siblings)) for p in prompts]


def ids(groups):
    return [[r.ids for r in group] for group in groups]


@pytest.fixture(params=[HFEngine, SharedEngine], ids=["hf", "shared"])
def engine_type(request):
    return request.param


def test_the_batch_composition_changes_no_response(teacher, prompts, engine_type):
    engine = engine_type(teacher)
    batched = ids(engine.generate(requests(teacher, prompts[:4]), SAMPLING))
    alone = [ids(engine.generate(requests(teacher, [p]), SAMPLING))[0] for p in prompts[:4]]
    reversed_order = ids(engine.generate(requests(teacher, prompts[:4][::-1]), SAMPLING))[::-1]
    single = [
        [ids(engine.generate(requests(teacher, [p], (k,)), SAMPLING))[0][0] for k in range(4)]
        for p in prompts[:4]
    ]
    assert batched == alone == reversed_order == single
    assert len({r for group in batched for r in group}) > 8


def test_seed_step_and_attempt_change_the_noise(teacher, prompts, engine_type):
    from dataclasses import replace

    engine = engine_type(teacher)
    first = ids(engine.generate(requests(teacher, prompts[:1]), SAMPLING))
    for other in (replace(SAMPLING, seed=4), replace(SAMPLING, step=8)):
        assert ids(engine.generate(requests(teacher, prompts[:1]), other)) != first
    assert rollout_seed(1, 2, "a", 0, 0) != rollout_seed(1, 2, "a", 0, 1)


@pytest.mark.more
def test_sampled_frequencies_follow_the_softmax():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    draws = [
        int(
            GeneratorSampler([rollout_seed(0, 0, "x", i, 0)], 1.0, 1.0, [], 4).choose(
                logits.clone()
            )[0]
        )
        for i in range(8000)
    ]
    shares = torch.bincount(torch.tensor(draws), minlength=4) / 8000
    assert torch.allclose(shares, torch.softmax(logits[0], -1), atol=0.02)


def test_banned_tokens_and_tokens_outside_the_nucleus_are_never_chosen():
    logits = torch.tensor([[5.0, 4.0, 1.0, -3.0]])
    for i in range(300):
        chosen = int(GeneratorSampler([i], 1.0, 0.95, [0], 4).choose(logits.clone())[0])
        assert chosen in (1, 2)
    inside = torch.isfinite(mask_outside_nucleus(logits, 0.5))[0].tolist()
    assert inside == [True, False, False, False]


def test_temperature_zero_is_greedy(teacher, prompts, engine_type):
    from dataclasses import replace

    out = engine_type(teacher).generate(
        requests(teacher, prompts[:1]), replace(SAMPLING, temperature=0.0)
    )[0]
    assert len({r.ids for r in out}) == 1


def test_multimodal_tokens_are_never_sampled(teacher, prompts, engine_type):
    from dataclasses import replace

    out = engine_type(teacher).generate(
        requests(teacher, prompts[:6]),
        replace(SAMPLING, temperature=5.0, top_p=1.0, max_new_tokens=40),
    )
    banned = {*teacher.family.banned_ids(), teacher.pad_id}
    assert not banned & {i for group in out for r in group for i in r.ids}


def test_a_response_ends_with_its_first_end_of_turn_token():
    assert to_rollout([5, 9, 2, 0, 0], {2}, 1, 0).ids == (5, 9, 2)
    cut = to_rollout([5, 9, 4], {2}, 1, 0)
    assert cut.ids == (5, 9, 4)
    assert cut.finish is Finish.LENGTH
    assert cut.finish.is_truncated()


def test_each_picture_is_encoded_once_for_all_siblings(teacher, prompts, engine_type):
    seen = []
    hook = teacher.model.model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(
            args[0].shape[0] if args else kwargs["hidden_states"].shape[0]
        ),
        with_kwargs=True,
    )
    engine_type(teacher).generate(requests(teacher, prompts[:2]), SAMPLING)
    hook.remove()
    assert seen == [2 * 64]


def sorted_nucleus(row, top_p):
    """The nucleus by sorting the whole vocabulary, in float64."""
    probabilities = torch.softmax(row.double(), -1)
    ordered, order = torch.sort(probabilities, descending=True)
    inside = (ordered.cumsum(-1) - ordered) < top_p
    inside[0] = True
    return set(order[inside].tolist())


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95])
def test_the_nucleus_from_the_most_likely_tokens_equals_the_one_from_sorting(spread, top_p):
    """Flat distributions need every candidate count, steep ones only the first."""
    logits = spread * torch.randn(6, 5000, generator=torch.Generator().manual_seed(1))
    logits[:, :3] = -torch.inf
    masked = mask_outside_nucleus(logits, top_p)
    for row, logits_inside in zip(logits, masked, strict=True):
        assert set(torch.nonzero(torch.isfinite(logits_inside))[:, 0].tolist()) == sorted_nucleus(
            row, top_p
        )
    assert torch.equal(masked[2:3], mask_outside_nucleus(logits[2:3], top_p))


def test_tied_tokens_at_the_edge_of_the_nucleus_stay_together():
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, -2.0]])
    assert torch.isfinite(mask_outside_nucleus(logits, 0.8))[0].tolist() == [True] * 4 + [False]
    assert torch.isfinite(mask_outside_nucleus(logits, 1e-9))[0].tolist() == [True] + [False] * 4


#: A seed whose noise is exactly 0 at one index, found by search: about one seed in a thousand.
SEED, ZERO_INDEX, NUMBERS = 1233, 14_140, 16_384


def test_uniform_noise_of_zero_never_loses_the_only_token_of_a_nucleus():
    """The Gumbel noise of the token was -inf, and the engine chose token 0 instead."""
    uniform = torch.empty(NUMBERS).uniform_(generator=torch.Generator().manual_seed(SEED))
    assert float(uniform[ZERO_INDEX]) == 0.0
    scores = torch.zeros(1, NUMBERS).index_fill(1, torch.tensor([ZERO_INDEX]), 50.0)
    sampler = GeneratorSampler([SEED], 1.0, 0.9, [0], NUMBERS, log_probs=True)
    assert sampler.choose(scores).tolist() == [ZERO_INDEX]
    expected = -torch.log(-torch.log(uniform))
    expected[ZERO_INDEX] = sampler.drawn[0, 0, ZERO_INDEX]
    assert torch.equal(sampler.drawn[0, 0], expected)
    assert bool(torch.isfinite(sampler.drawn).all())


def draw_ahead(monkeypatch):
    """Draw noise ahead in threads on a CPU, as on a CUDA device."""
    monkeypatch.setattr("vistill.rollouts.keyed_noise.DRAW_AHEAD", {"cpu"})


@pytest.mark.parametrize("vocabulary", [7000, 20_000])
def test_noise_that_threads_draw_ahead_is_the_same_to_the_bit(monkeypatch, vocabulary):
    """Blocks of two tokens and of one; rows leave between tokens and in the middle of a block."""

    def choose_all():
        sampler = GeneratorSampler([11, 12, 13, 14, 15], 0.7, 1.0, [3], vocabulary)
        g = torch.Generator().manual_seed(0)
        rows, chosen, noise = list(range(5)), [], []
        for keep in (None, [0, 2, 3, 4], None, [0, 3], None, None, [1], None):
            if keep is not None:
                sampler.keep(keep)
                rows = [rows[index] for index in keep]
            logits = torch.randn(5, vocabulary, generator=g)[rows]
            noise.append(sampler.noisy_logits(logits.clone()))
            chosen.append(noise[-1].argmax(-1).tolist())
        return chosen, noise, sampler

    expected, expected_noise, plain = choose_all()
    assert plain.ahead is None
    draw_ahead(monkeypatch)
    chosen, noise, sampler = choose_all()
    assert sampler.ahead is not None
    assert chosen == expected
    assert all(torch.equal(a, b) for a, b in zip(noise, expected_noise, strict=True))


def test_an_error_while_drawing_ahead_reaches_the_decoder(monkeypatch):
    draw_ahead(monkeypatch)
    sampler = GeneratorSampler([1, 2], 0.7, 1.0, [], 20_000)
    sampler.generators[1] = "no generator"
    with pytest.raises(TypeError):
        sampler.choose(torch.zeros(2, 20_000))


def test_an_engine_that_draws_ahead_writes_the_same_responses(teacher, prompts, monkeypatch):
    expected = ids(SharedEngine(teacher).generate(requests(teacher, prompts[:3]), SAMPLING))
    draw_ahead(monkeypatch)
    assert ids(SharedEngine(teacher).generate(requests(teacher, prompts[:3]), SAMPLING)) == expected


@pytest.mark.parametrize("settings", [RolloutSettings, EvalSettings])
@pytest.mark.parametrize("temperature", [1e-320, 1e-39, SMALLEST_TEMPERATURE / 2])
def test_a_temperature_by_which_no_logit_can_be_divided_is_refused(settings, temperature):
    with pytest.raises(ConfigError, match=r"0 or a number, at least 1e-30") as caught:
        settings(temperature=temperature)
    assert caught.value.code == "C002"
    assert "temperature=0" in str(caught.value.fix)
    assert settings(temperature=0).temperature == 0


@pytest.mark.parametrize("noise", SAMPLERS)
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_smallest_temperature_gives_the_likeliest_token(noise, top_p):
    logits = torch.tensor([[40.0, -60.0, 41.0, 0.5], [-90.0, -91.0, -95.0, -92.0]])
    sampler = SAMPLERS[noise]([1, 2], SMALLEST_TEMPERATURE, top_p, [], 4)
    assert sampler.choose(logits).tolist() == [2, 0]
