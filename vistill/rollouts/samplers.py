"""The sampler of an engine's call, or of a check of what an engine wrote."""

from collections.abc import Sequence

from vistill.models.loading import VLM
from vistill.rollouts.checked_engine import banned_ids
from vistill.rollouts.counter_noise import CounterSampler
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.keyed_noise import GeneratorSampler, KeyedSampler, rollout_seed

SAMPLERS: dict[str, type[GeneratorSampler | CounterSampler]] = {
    "generator": GeneratorSampler,
    "counter": CounterSampler,
}


def make_sampler(vlm: VLM, requests: Sequence[RolloutRequest], sampling: Sampling) -> KeyedSampler:
    """The sampler of all rollouts of some requests, in order, with the noise of each one."""
    seeds = [
        rollout_seed(sampling.seed, sampling.step, request.key, sibling, request.attempt)
        for request in requests
        for sibling in request.siblings
    ]
    return SAMPLERS[sampling.noise](
        seeds,
        sampling.temperature,
        sampling.top_p,
        banned_ids(vlm),
        vlm.vocabulary_size,
        log_probs=sampling.log_probs,
    )
