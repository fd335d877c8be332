"""The canary's part about the rollout engine: given the same noise, the student's own reading picks the same tokens."""

import torch
from torch import Tensor

from vistill.models.scoring import EncodedGroup, response_states
from vistill.rollouts.engine import RolloutEngine, RolloutRequest, Sampling
from vistill.rollouts.hf import banned_ids
from vistill.rollouts.noise import KeyedSampler, rollout_seed
from vistill.rollouts.scripted import ScriptedEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.training.canary import Witness
from vistill.types import Rollout, View

#: Tokens the engine writes, and the step its noise belongs to: none of a run's.
TOKENS, STEP = 8, -2
#: How far below the best a token may lie that the engine chose, in nats, by bytes; and how often it may lie lower.
SLACK, SHARE = {8: 1e-6, 4: 1e-3, 2: 0.5}, {8: 0.0, 4: 0.0, 2: 0.2}


def check_engine(witness: Witness, engine: RolloutEngine, settings: RolloutSettings, seed: int) -> None:
    """V810, V811: what the engine wrote is what the student's weights say about the picture it was shown.

    Writing and reading use the same keyed noise, so every token is the largest of `logits / T + Gumbel` of the
    student's own reading; a scripted engine follows no weights and is left out.
    """
    if isinstance(engine, ScriptedEngine):
        return
    sampling = Sampling(seed, STEP, settings.temperature, settings.top_p, TOKENS, settings.rows_per_call)
    indices = range(len(witness.prompts))
    requests = [RolloutRequest(witness.prompts[i].id, witness.encoded(View.FULL, i), (0,)) for i in indices]
    written = [group[0] for group in engine.write(requests, sampling)]
    if share_below(witness, written, sampling, View.FULL) <= SHARE[witness.bytes_read]:
        return
    for view in (View.TEXT_ONLY, View.SWAPPED, View.PIXELATED):
        if share_below(witness, written, sampling, view) <= SHARE[witness.bytes_read]:
            raise witness.error("V811", f"the engine writes as if it were shown the view {view}")
    raise witness.error(
        "V810",
        "the rollout engine writes other tokens than the student's weights say",
        "its weights are stale, were never loaded, or belong to another model",
    )


def share_below(witness: Witness, written: list[Rollout], sampling: Sampling, view: View) -> float:
    """Share of the written tokens that the student's own reading under a view would not have chosen."""
    below: list[Tensor] = []
    for index, rollout in enumerate(written):
        ids = rollout.ids[:TOKENS]
        if not ids:
            continue
        with torch.no_grad(), witness.precision():
            states = response_states(witness.vlm, [EncodedGroup(witness.encoded(view, index), (ids,))])
            logits = witness.vlm.head(witness.cast.vocabulary).logits(states)
        key = rollout_seed(sampling.seed, sampling.step, witness.prompts[index].id, 0, rollout.attempt)
        vlm = witness.vlm
        sampler = KeyedSampler([key], sampling.temperature, sampling.top_p, banned_ids(vlm), vlm.vocabulary_size)
        for row, token in zip(logits, ids, strict=True):
            values = sampler.noisy(row[None].clone())[0]
            below.append(values.max() - values[token])
    if not below:
        return 0.0
    gaps = torch.stack(below).float()
    return float((gaps > SLACK[witness.bytes_read]).float().mean())
