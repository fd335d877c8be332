"""The canary's part about the rollout engine: what it wrote is what the student's weights say."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vistill.models.scoring import EncodedGroup, response_states, score
from vistill.rollouts.checked_engine import banned_ids, keep_awake
from vistill.rollouts.engine import RolloutEngine, Sampling, make_requests
from vistill.rollouts.keyed_noise import KeyedSampler, rollout_seed
from vistill.rollouts.settings import RolloutSettings
from vistill.training.canary.reader import ReaderProbe
from vistill.types import Rollout, View

#: Tokens the engine writes, and the step its noise belongs to: none of a run's.
TOKENS, STEP = 8, -2
#: How far below the best a token may lie that the engine chose, in nats, by bytes; and how often it may lie lower.
SLACK, SHARE = {8: 1e-6, 4: 1e-3, 2: 0.5}, {8: 0.0, 4: 0.0, 2: 0.2}


def check_engine(
    probe: ReaderProbe, engine: RolloutEngine, settings: RolloutSettings, seed: int
) -> None:
    """V810, V811: what the engine wrote is what the student's weights say about the picture.

    Of an engine that follows the keyed noise every token must be the largest of `logits / T + Gumbel` of
    the student's own reading; of another one the log-probabilities that it reports must be those of that
    reading. An engine that does neither (`ScriptedEngine`: responses from elsewhere) cannot be checked.
    """
    if not (engine.follows_keyed_noise or engine.reports_log_probs):
        return
    keyed = engine.follows_keyed_noise
    sampling = Sampling(
        seed,
        STEP,
        settings.temperature,
        settings.top_p,
        TOKENS,
        settings.rows_per_call,
        log_probs=not keyed,
    )
    indices = range(len(probe.prompts))
    requests = make_requests(
        [probe.seen(View.FULL, i) for i in indices],
        [probe.encoded(View.FULL, i) for i in indices],
        (0,),
    )
    with keep_awake(engine):
        written = [
            first_round(probe, group[0], settings) for group in engine.write(requests, sampling)
        ]
    agrees: Callable[[View], bool] = (
        (lambda view: share_below(probe, written, sampling, view) <= SHARE[probe.bytes_read])
        if keyed
        else (lambda view: log_prob_distance(probe, written, view) <= probe.bound)
    )
    if agrees(View.FULL):
        return
    for view in (View.TEXT_ONLY, View.SWAPPED, View.PIXELATED):
        if agrees(view):
            raise probe.error("V811", f"the engine writes as if it were shown the view {view}")
    raise probe.error(
        "V810",
        "the rollout engine writes other tokens than the student's weights say"
        if keyed
        else "the rollout engine reports other log-probabilities than the student's weights say",
        "its weights are stale, were never loaded, or belong to another model",
    )


def first_round(probe: ReaderProbe, rollout: Rollout, settings: RolloutSettings) -> Rollout:
    """The response up to where its turn was reopened, if it was: what follows was written after other tokens."""
    if settings.image_skips == 0:
        return rollout
    decode = probe.vlm.tokenizer.decode
    marked = (
        n
        for n in range(1, len(rollout.ids))
        if settings.image_marker in decode(list(rollout.ids[:n]))
    )
    end = next(marked, len(rollout.ids))
    values = None if rollout.log_probs is None else rollout.log_probs[:end]
    return replace(rollout, ids=rollout.ids[:end], log_probs=values)


def log_prob_distance(probe: ReaderProbe, written: Sequence[Rollout], view: View) -> float:
    """Mean distance in nats a token between what the engine reports and the student's own reading under a view."""
    kept = [(index, rollout) for index, rollout in enumerate(written) if rollout.ids]
    if not kept:
        return 0.0
    groups = [EncodedGroup(probe.encoded(view, index), (rollout.ids,)) for index, rollout in kept]
    ids = torch.tensor([i for _, rollout in kept for i in rollout.ids], device=probe.vlm.device)
    with torch.no_grad(), probe.precision():
        read = score(probe.vlm, groups, ids, probe.models.vocabulary, "log_prob").sampled()
    reported = torch.tensor([value for _, rollout in kept for value in rollout.log_probs or ()])
    return float((read.double().cpu() - reported.double()).abs().mean())


def share_below(
    probe: ReaderProbe, written: list[Rollout], sampling: Sampling, view: View
) -> float:
    """Share of the written tokens that the student's own reading under a view would not have chosen."""
    below: list[Tensor] = []
    for index, rollout in enumerate(written):
        ids = rollout.ids[:TOKENS]
        if not ids:
            continue
        with torch.no_grad(), probe.precision():
            states = response_states(probe.vlm, [EncodedGroup(probe.encoded(view, index), (ids,))])
            logits = probe.vlm.head(probe.models.vocabulary).logits(states)
        key = rollout_seed(
            sampling.seed, sampling.step, probe.prompts[index].id, 0, rollout.attempt
        )
        vlm = probe.vlm
        sampler = KeyedSampler(
            [key], sampling.temperature, sampling.top_p, banned_ids(vlm), vlm.vocabulary_size
        )
        for row, token in zip(logits, ids, strict=True):
            values = sampler.noisy(row[None].clone())[0]
            below.append(values.max() - values[token])
    if not below:
        return 0.0
    gaps = torch.stack(below).float()
    return float((gaps > SLACK[probe.bytes_read]).float().mean())
