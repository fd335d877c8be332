"""The canary's check of the engine: it writes what the student's weights say about the image."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from vistill.errors import ModelError
from vistill.models.scoring import EncodedGroup, response_states, score
from vistill.rollouts.checked_engine import keep_awake
from vistill.rollouts.engine import (
    RolloutEngine,
    RolloutRequest,
    Sampling,
    make_requests,
    weight_bytes,
)
from vistill.rollouts.samplers import make_sampler
from vistill.rollouts.settings import RolloutSettings
from vistill.training.canary.reader import BOUND, ReaderProbe
from vistill.types import Rollout, View

#: Tokens that the engine writes, and the step in their noise key: no step of a run.
TOKENS, STEP = 8, -2
#: By bytes of the precision: a token's allowed distance to the choice, in nats.
SLACK = {8: 1e-6, 4: 1e-3, 2: 0.5}
#: By bytes of the precision: share of the tokens that may exceed it.
SHARE = {8: 0.0, 4: 0.0, 2: 0.2}


def check_engine(
    probe: ReaderProbe, engine: RolloutEngine, settings: RolloutSettings, seed: int
) -> float | None:
    """V810, V811: what the engine writes is what the student's weights say about the image.

    For an engine that follows the keyed noise, every token must be the choice of that noise by the
    student's own reading. For another one, the log-probabilities that it reports
    must be those of that reading. An engine with neither (`ScriptedEngine`: responses from
    elsewhere) cannot be checked. An engine that writes with a copy of the weights in another
    precision must do both, within the bounds of that precision.

    Returns:
        The mean distance in nats per token between the log-probabilities that the engine reports
        and those of the student's reading; None if they are not compared.
    """
    keyed = engine.follows_keyed_noise
    if not (keyed or engine.reports_log_probs):
        return None
    bytes_used = min(probe.bytes_read, weight_bytes(engine) or probe.bytes_read)
    compares_log_probs = not keyed or weight_bytes(engine) is not None
    sampling = Sampling(
        seed,
        STEP,
        settings.temperature,
        settings.top_p,
        TOKENS,
        settings.rows_per_call,
        log_probs=compares_log_probs,
        noise=settings.noise,
    )
    indices = range(len(probe.prompts))
    requests = make_requests(
        [probe.prompt_under(View.FULL, i) for i in indices],
        [probe.encoded(View.FULL, i) for i in indices],
        (0,),
    )
    with keep_awake(engine):
        rollouts = [
            until_reopened(probe, group[0], settings)
            for group in engine.generate(requests, sampling)
        ]

    distances: dict[View, float] = {}

    def agrees(view: View) -> bool:
        if compares_log_probs:
            distances[view] = log_prob_distance(probe, rollouts, view)
            if distances[view] > BOUND[bytes_used]:
                return False
        if not keyed:
            return True
        share = share_of_other_choices(probe, rollouts, sampling, view, SLACK[bytes_used])
        return share <= SHARE[bytes_used]

    if agrees(View.FULL):
        return distances.get(View.FULL)
    raise wrong_engine_error(probe, agrees, keyed)


def wrong_engine_error(
    probe: ReaderProbe, agrees: Callable[[View], bool], keyed: bool
) -> ModelError:
    """V811 if the engine writes as under another view, else V810."""
    for view in (View.TEXT_ONLY, View.SWAPPED, View.PIXELATED):
        if agrees(view):
            return probe.error("V811", f"the engine writes as if it read the view {view}")
    return probe.error(
        "V810",
        "the rollout engine writes other tokens than the student's weights say"
        if keyed
        else "the rollout engine reports other log-probabilities than the student's weights say",
        "its weights are stale, were never loaded, or belong to another model",
    )


def until_reopened(probe: ReaderProbe, rollout: Rollout, settings: RolloutSettings) -> Rollout:
    """The response up to where `image_skips` reopened its turn: the rest follows other tokens."""
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


def log_prob_distance(probe: ReaderProbe, rollouts: Sequence[Rollout], view: View) -> float:
    """Mean distance in nats per token between the engine's log-probabilities and the student's."""
    written = [(index, rollout) for index, rollout in enumerate(rollouts) if rollout.ids]
    if not written:
        return 0.0
    groups = [EncodedGroup(probe.encoded(view, index), (r.ids,)) for index, r in written]
    ids = torch.tensor([i for _, rollout in written for i in rollout.ids], device=probe.vlm.device)
    with torch.no_grad(), probe.precision():
        read = score(probe.vlm, groups, ids, probe.models.vocabulary, "log_prob").sampled()
    reported = torch.tensor([value for _, rollout in written for value in rollout.log_probs or ()])
    return float((read.double().cpu() - reported.double()).abs().mean())


def share_of_other_choices(
    probe: ReaderProbe, rollouts: Sequence[Rollout], sampling: Sampling, view: View, slack: float
) -> float:
    """Share of the written tokens that the student's own reading under a view would not choose.

    A token within `slack` nats of the choice counts as chosen.
    """
    vlm = probe.vlm
    gaps: list[float] = []
    for index, rollout in enumerate(rollouts):
        ids = rollout.ids[:TOKENS]
        if not ids:
            continue
        with torch.no_grad(), probe.precision():
            states = response_states(vlm, [EncodedGroup(probe.encoded(view, index), (ids,))])
            logits = vlm.head(probe.models.vocabulary).logits(states)
        request = RolloutRequest(
            probe.prompts[index].id, probe.encoded(view, index), (0,), rollout.attempt
        )
        sampler = make_sampler(vlm, [request], sampling)
        gaps += [
            sampler.distance_to_choice(row[None].clone(), token)
            for row, token in zip(logits, ids, strict=True)
        ]
    if not gaps:
        return 0.0
    return sum(gap > slack for gap in gaps) / len(gaps)
