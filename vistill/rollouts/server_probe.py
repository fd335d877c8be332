"""The probe of a server: samples of a known question, compared with the model's own reading."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vistill.data.keys import keyed_seed
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, response_states
from vistill.rollouts.checked_engine import banned_ids
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.hf import eval_mode
from vistill.rollouts.keyed_noise import mask_outside_nucleus
from vistill.rollouts.server_routes import ServerRow
from vistill.rollouts.vllm_engine import probe_prompt

#: Responses of the probe and tokens of each; responses whose logits are in memory at a time.
ROWS, TOKENS, AT_ONCE = 128, 12, 8
#: Probability by which a token may be outside of the nucleus, for rounding.
EDGE = 0.02


class TokenFacts(NamedTuple):
    """Sums over the tokens of some rows."""

    distance: float
    processed_distance: float
    difference: float
    variance: float
    outside: int


@dataclass(frozen=True)
class ProbeResult:
    """What the probe measured."""

    tokens: int
    distance: float
    """Mean distance of the reported log-probabilities to the model's, in nats per token."""
    processed_distance: float
    """The same to the model's after bans, temperature and nucleus."""
    difference: float
    """Sum over tokens of their place in the distribution that was asked for, minus 1/2.

    The place of a token is the probability of the likelier ones and half of its own. It is 1/2 on
    average, whatever came before.
    """
    variance: float
    """Of that sum."""
    outside: int
    """Tokens outside of the nucleus; at temperature 0 those that are not the likeliest."""


def probe_request(vlm: VLM) -> RolloutRequest:
    """The question with a picture."""
    prompt = probe_prompt()
    return RolloutRequest(prompt.id, vlm.encode(prompt), (0,), source=prompt)


def probe_tokens(sampling: Sampling) -> Sampling:
    """The sampling of a call, for the probe's few tokens."""
    return replace(sampling, max_new_tokens=TOKENS, log_probs=True)


def probe_seeds(sampling: Sampling) -> list[int]:
    """One seed for each response; at temperature 0 all would be the same one."""
    count = ROWS if sampling.temperature > 0 else 1
    return [keyed_seed("server probe", number) for number in range(count)]


@torch.no_grad()
def measure_probe(
    vlm: VLM, request: RolloutRequest, rows: Sequence[ServerRow], sampling: Sampling
) -> ProbeResult:
    """Compare the rows of a server with the model's reading of them."""
    written = [row for row in rows if row.ids]
    facts: list[TokenFacts] = []
    with eval_mode(vlm.model), vlm.on_device():
        head = vlm.head(vlm.vocabulary_size)
        for start in range(0, len(written), AT_ONCE):
            part = written[start : start + AT_ONCE]
            group = EncodedGroup(request.prompt, tuple(tuple(row.ids) for row in part))
            logits = head.logits(response_states(vlm, [group])).float().cpu()
            facts.append(token_facts(logits, part, sampling, banned_ids(vlm)))
    tokens = sum(len(row.ids) for row in written)
    sums = TokenFacts(*(sum(values) for values in zip(*facts, strict=True)))
    return ProbeResult(
        tokens,
        sums.distance / max(1, tokens),
        sums.processed_distance / max(1, tokens),
        sums.difference,
        sums.variance,
        int(sums.outside),
    )


def token_facts(
    logits: Tensor, rows: Sequence[ServerRow], sampling: Sampling, banned: Sequence[int]
) -> TokenFacts:
    """The sums of some rows, from the model's logits [R, V] of their tokens."""
    ids = torch.tensor([token for row in rows for token in row.ids])[:, None]
    reported = torch.tensor([value for row in rows for value in row.log_probs]).double()
    raw = logits.double().log_softmax(-1)
    allowed = logits.double().index_fill(1, torch.tensor(list(banned)), -torch.inf)
    own = raw.gather(1, ids)[:, 0]
    if sampling.temperature == 0:
        below = allowed.max(-1).values - allowed.gather(1, ids)[:, 0]
        outside = int((below > EDGE).sum())
        distance = float((reported - own).abs().sum())
        return TokenFacts(distance, distance, 0.0, 0.0, outside)
    warm = (allowed / sampling.temperature).log_softmax(-1)
    inside = mask_outside_nucleus(warm, sampling.top_p).log_softmax(-1)
    chances = inside.exp()
    chance = chances.gather(1, ids)[:, 0]
    likelier = torch.where(warm > warm.gather(1, ids), warm.exp(), 0.0).sum(-1)
    before = torch.where(chances > chance[:, None], chances, 0.0).sum(-1)
    equal = torch.where(chances == chance[:, None], chances, 0.0).sum(-1)
    place = before + equal / 2  # 1/2 on average, with a variance of (1 - sum q^3) / 12
    outside = (likelier >= sampling.top_p + EDGE) if sampling.top_p < 1 else likelier < 0
    processed = inside.gather(1, ids)[:, 0]
    return TokenFacts(
        float((reported - own).abs().sum()),
        float((reported - processed).abs().clamp(max=100.0).sum()),
        float((place - 0.5).sum()),
        float(((1 - chances.pow(3).sum(-1)) / 12).sum()),
        int(outside.sum()),
    )
