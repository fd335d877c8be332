"""Noise by counter: numbers of SplitMix64, distribution of the samples, equal responses."""

import math
from dataclasses import replace

import pytest
import torch
from tiers import few
from torch.utils._python_dispatch import TorchDispatchMode

from vistill.rollouts.counter_noise import (
    BITS,
    GOLDEN,
    WHOLE_VOCABULARY,
    CounterSampler,
    mix,
    numbers_at,
    to_signed,
    uniform_at,
)
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.keyed_noise import NUCLEUS_CANDIDATES, rollout_seed
from vistill.rollouts.shared import SharedEngine, TokenBlocks

SAMPLING = Sampling(3, 7, 0.7, 0.95, 24, noise="counter")


def requests(vlm, prompts, siblings=(0, 1, 2, 3)):
    return [RolloutRequest(p.id, vlm.encode(p), tuple(siblings)) for p in prompts]


def ids(groups):
    return [[r.ids for r in group] for group in groups]


def python_number(seed, index):
    return mix(seed + (index + 1) * GOLDEN)


def test_the_numbers_are_those_of_splitmix64():
    """The known answers of the reference program in C for the seed 1234567."""
    known = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431)
    assert tuple(python_number(1234567, n) for n in range(4)) == known
    numbers = numbers_at(torch.tensor([1234567]), torch.arange(4)[None])
    assert numbers[0].tolist() == [to_signed(n) for n in known]


def test_tensors_and_integers_of_python_give_the_same_bits():
    seeds = [0, 1, 2**63 - 1, to_signed(2**64 - 1), rollout_seed(1, 2, "a", 0, 0)]
    index = torch.tensor([[0, 1, 150_000, WHOLE_VOCABULARY]])
    uniform = uniform_at(torch.tensor(seeds), index)
    for row, seed in zip(uniform.tolist(), seeds, strict=True):
        expected = [
            ((python_number(seed, n) >> (64 - BITS)) + 0.5) / 2**BITS for n in index[0].tolist()
        ]
        assert row == expected
        assert all(0.0 < value < 1.0 for value in row)


def choice_of_python(seed, position, logits, temperature, top_p):
    """The token by lists of floats: sort, cut the nucleus, add Gumbel noise."""
    scaled = [x / temperature for x in logits]
    highest = max(scaled)
    weights = [math.exp(x - highest) for x in scaled]
    total = sum(weights)
    own = python_number(seed, position)
    if top_p >= 1:
        target = ((python_number(own, WHOLE_VOCABULARY) >> (64 - BITS)) + 0.5) / 2**BITS * total
        cumulative = 0.0
        for token, weight in enumerate(weights):
            cumulative += weight
            if cumulative > target:
                return token
    best, before = (-math.inf, -1), 0.0
    for token in sorted(range(len(weights)), key=lambda t: -weights[t]):
        if before >= top_p and before > 0:
            break
        before += weights[token] / total
        uniform = ((python_number(own, token) >> (64 - BITS)) + 0.5) / 2**BITS
        best = max(best, (scaled[token] - math.log(-math.log(uniform)), token))
    return best[1]


@pytest.mark.parametrize("spread", few([0.05, 1.0, 5.0], 1))
@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
def test_every_choice_is_that_of_a_program_without_tensors(spread, top_p):
    """A flat distribution needs more candidates than are taken first."""
    g = torch.Generator().manual_seed(5)
    seeds = [rollout_seed(0, 0, "x", k, 0) for k in range(6)]
    sampler = CounterSampler(seeds, 0.8, top_p, [], 1500)
    for position in range(5):
        logits = spread * torch.randn(6, 1500, generator=g)
        expected = [
            choice_of_python(seed, position, row, 0.8, top_p)
            for seed, row in zip(seeds, logits.double().tolist(), strict=True)
        ]
        assert sampler.choose(logits).tolist() == expected


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_sampled_frequencies_follow_the_distribution(top_p):
    """A chi-squared test at 1e-6 over rollouts, and one over positions of one rollout."""
    logits = torch.tensor([2.0, 1.0, -torch.inf, 0.0, -1.0, -3.0])
    probabilities = torch.softmax(logits, -1)
    if top_p < 1:
        probabilities[[4, 5]] = 0.0  # 0.64, 0.24 and 0.09 before them
        probabilities /= probabilities.sum()
    num = 20_000
    seeds = [rollout_seed(0, 0, "x", k, 0) for k in range(num)]
    of_rollouts = CounterSampler(seeds, 1.0, top_p, [], 6).choose(logits.expand(num, -1).clone())
    one = CounterSampler(seeds[:1], 1.0, top_p, [], 6)
    of_positions = torch.cat([one.choose(logits[None].clone()) for _ in range(num // 10)])
    for drawn in (of_rollouts, of_positions):
        counts = torch.bincount(drawn, minlength=6).double()
        expected = probabilities.double() * len(drawn)
        assert not counts[expected == 0].any()
        inside = expected > 0
        distance = ((counts - expected) ** 2 / expected.clamp_min(1e-9))[inside].sum()
        freedom = int(inside.sum()) - 1
        tail = 1 - torch.special.gammainc(torch.tensor(freedom / 2), distance / 2)
        assert float(tail) > 1e-6


def test_numbers_of_neighbours_are_not_correlated():
    """Neighbouring rollouts, positions and token ids: |r| of 65,536 pairs below 5 / 256."""
    seeds = torch.tensor([rollout_seed(0, 0, "x", k, 0) for k in range(257)])
    of_rollouts = uniform_at(seeds, torch.arange(257)[None])
    positions = numbers_at(seeds[:1], torch.arange(257)[None])[0]
    of_positions = uniform_at(positions, torch.arange(257)[None])
    for table in (of_rollouts, of_positions):
        for a, b in ((table[1:, :-1], table[:-1, :-1]), (table[:-1, 1:], table[:-1, :-1])):
            assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.02
        assert float(table.mean()) == pytest.approx(0.5, abs=0.006)
        assert float(table.var()) == pytest.approx(1 / 12, abs=0.003)


@pytest.mark.parametrize("top_p", [0.95, 1.0])
def test_the_distance_is_zero_for_the_choice_and_large_for_another(top_p):
    logits = torch.randn(4, 900, generator=torch.Generator().manual_seed(2))
    seeds = [11, 12, 13, 14]
    chosen = CounterSampler(seeds, 1.0, top_p, [3], 900).choose(logits.clone()).tolist()
    for seed, row, token in zip(seeds, logits, chosen, strict=True):
        for other in (token, (token + 450) % 900):
            sampler = CounterSampler([seed], 1.0, top_p, [3], 900)
            distance = sampler.distance_to_choice(row[None].clone(), other)
            assert distance == 0.0 if other == token else distance > 0.05


@pytest.fixture(params=[0.95, 1.0])
def sampling(request):
    return replace(SAMPLING, top_p=request.param, temperature=1.3, log_probs=True)


def test_engines_and_batches_write_the_same_responses(teacher, prompts, sampling):
    expected = SharedEngine(teacher).generate(requests(teacher, prompts[:4]), sampling)
    generated = HFEngine(teacher).generate(requests(teacher, prompts[:4]), sampling)
    assert ids(generated) == ids(expected)
    alone = [
        SharedEngine(teacher).generate(requests(teacher, [p], (k,)), sampling)[0][0].ids
        for p in prompts[:2]
        for k in range(4)
    ]
    assert alone == [r for group in ids(expected)[:2] for r in group]
    assert len({r for group in ids(expected) for r in group}) > 8
    with_generator = replace(sampling, noise="generator")
    other = SharedEngine(teacher).generate(requests(teacher, prompts[:4]), with_generator)
    assert ids(other) != ids(expected)


@pytest.mark.parametrize("block", few([2, 7, 64], 1))
@pytest.mark.parametrize("temperature", [1.3, 20.0])
def test_blocks_of_tokens_write_the_same_responses(teacher, prompts, sampling, block, temperature):
    """At a high temperature the first nucleus is too small: the block is written again."""
    sampling = replace(sampling, temperature=temperature)
    expected = SharedEngine(teacher).generate(requests(teacher, prompts[:3]), sampling)
    engine = SharedEngine(teacher, block_tokens=block)
    written = engine.generate(requests(teacher, prompts[:3]), sampling)
    assert ids(written) == ids(expected)
    for a, b in zip(sum(written, ()), sum(expected, ()), strict=True):
        assert a.finish == b.finish
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-5)


def test_a_nucleus_beyond_the_candidates_is_written_again_with_more_of_them(teacher, prompts):
    blocks = TokenBlocks(
        teacher, requests(teacher, prompts[:1]), [0] * 4, replace(SAMPLING, temperature=20.0), 8
    )
    written, _ = blocks.write(8)
    assert len(written[0]) == blocks.decoder.attention.num_added > 0
    assert blocks.sampler.candidates > NUCLEUS_CANDIDATES


@pytest.mark.parametrize("noise", ["counter", "generator"])
def test_greedy_responses_depend_on_neither_noise_nor_block(teacher, prompts, noise):
    greedy = replace(SAMPLING, temperature=0.0, noise=noise)
    expected = SharedEngine(teacher).generate(
        requests(teacher, prompts[:2]), replace(greedy, noise="generator")
    )
    engine = SharedEngine(teacher, block_tokens=5)
    assert ids(engine.generate(requests(teacher, prompts[:2]), greedy)) == ids(expected)


class HostWaits(TorchDispatchMode):
    """Counts the operations for which the host of an accelerator waits."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        to_host = name == "aten::_to_copy" and str((kwargs or {}).get("device")) == "cpu"
        waiting = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount")
        if to_host or any(part in name for part in waiting):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("top_p", [0.95, 1.0])
def test_the_host_waits_once_per_block_of_tokens(teacher, prompts, top_p):
    """Counted as the difference of two lengths, so that reading the prompts does not count."""

    def waits(tokens):
        engine = SharedEngine(teacher, block_tokens=16)
        sampling = replace(SAMPLING, top_p=top_p, max_new_tokens=tokens)
        with HostWaits() as counter:
            out = engine.generate(requests(teacher, prompts[:1]), sampling)
        assert max(len(r.ids) for r in out[0]) == tokens, "a row is still running at the end"
        return counter.names

    short, long = waits(16), waits(32)
    assert len(long) - len(short) == 1, long
