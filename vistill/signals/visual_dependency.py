"""Visual dependency: how much the picture changes what a reader expects next, and a quantile to pass."""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vistill.batch import Responses, ScoredPass
from vistill.functional.divergences import k3
from vistill.functional.segments import segment_quantile
from vistill.signals.visual_advantage import distribution_advantage

Scope = Literal["batch", "response", "micro_batch", "running"]
#: Share of the earlier threshold that a running one keeps each step.
RUNNING_DECAY = 0.9


def token_has_image(responses: Responses) -> Tensor:
    """Whether each token belongs to a prompt with a picture."""
    return responses.has_image[responses.group][responses.rollout]


@torch.no_grad()
def visual_dependency(
    full: ScoredPass, text_only: ScoredPass, responses: Responses
) -> Float[Tensor, " R"]:
    """`VDS_t = KL(q with the picture || q without)`, whole vocabulary, in nats; 0 where there is no picture.

    Teacher only. Unlike visual advantage it fires on misread tokens too. Source: VGS Eq. 12.
    """
    values = distribution_advantage(full, text_only)
    return torch.where(token_has_image(responses), values, torch.zeros_like(values))


@torch.no_grad()
def sampled_dependency(
    log_prob: Float[Tensor, " R"], masked_log_prob: Float[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """k3 of the sampled token with and without the picture, in [0, 10] (VPPO)."""
    return k3(log_prob, masked_log_prob)


@torch.no_grad()
def threshold(
    values: Float[Tensor, " R"],
    responses: Responses,
    share: float,
    scope: Scope,
    scope_prompts: int = 1,
    memory: Mapping[str, float] | None = None,
) -> Float[Tensor, " R"]:
    """The `share` quantile of a signal that each token is held against, linearly interpolated.

    Args:
        values: the signal.
        responses: where tokens belong.
        share: the quantile, 0.7 in VGS.
        scope: over all tokens of the step (`batch`), of the response, of so many prompts (`micro_batch`), or the
            step's quantile averaged over steps (`running`).
        scope_prompts: prompts of a micro-batch; it does not follow `train.micro_batch`, which never changes an update.
        memory: earlier thresholds under `threshold/SHARE`, for `running`.
    """
    if scope == "response":
        segment, num = responses.rollout, responses.num_rollouts
    elif scope == "micro_batch":
        segment = responses.group[responses.rollout] // scope_prompts
        num = int(segment.max()) + 1
    else:
        segment, num = torch.zeros_like(responses.rollout), 1
    found = segment_quantile(values, segment, num, share)
    before = (memory or {}).get(threshold_key(share))
    if scope == "running" and before is not None:
        found = RUNNING_DECAY * before + (1 - RUNNING_DECAY) * found
    return found[segment]


def threshold_key(share: float) -> str:
    """Name of a running threshold in a method's memory."""
    return f"threshold/{share:g}"
