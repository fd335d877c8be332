"""Visual dependency: how much the image changes the next-token distribution. With its threshold."""

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
#: Weight of the earlier threshold in the moving average of the scope `running`.
RUNNING_DECAY = 0.9


def token_has_image(responses: Responses) -> Tensor:
    """Whether each token belongs to a prompt with an image."""
    return responses.has_image[responses.group][responses.rollout]


@torch.no_grad()
def visual_dependency(
    full: ScoredPass, text_only: ScoredPass, responses: Responses
) -> Float[Tensor, " R"]:
    """`VDS_t = KL(q with the image || q without)`, over the whole vocabulary, in nats.

    q is the teacher. The value is 0 if the prompt has no image. Unlike visual advantage it is large
    on misread tokens too. Source: VGS Eq. 12.
    """
    values = distribution_advantage(full, text_only)
    return torch.where(token_has_image(responses), values, torch.zeros_like(values))


@torch.no_grad()
def sampled_dependency(
    log_prob: Float[Tensor, " R"], masked_log_prob: Float[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """k3 of the sampled token with and without the image, in [0, 10]. Source: VPPO."""
    return k3(log_prob, masked_log_prob)


@torch.no_grad()
def quantile_threshold(
    values: Float[Tensor, " R"],
    responses: Responses,
    share: float,
    scope: Scope,
    scope_prompts: int = 1,
    memory: Mapping[str, float] | None = None,
) -> Float[Tensor, " R"]:
    """The threshold of each token: the `share` quantile of a signal, with linear interpolation.

    Args:
        values: the signal.
        responses: the rollout and the prompt of each token.
        share: the quantile, 0.7 in VGS.
        scope: take the quantile over all tokens of the step (`batch`), of the response, or of
            `scope_prompts` prompts (`micro_batch`), or average the step's quantile over steps
            (`running`).
        scope_prompts: prompts of a micro-batch. It is independent of `train.micro_batch`, which
            never changes an update.
        memory: earlier thresholds under `threshold/SHARE`, for `running`.
    """
    if scope == "response":
        segment, num = responses.rollout, responses.num_rollouts
    elif scope == "micro_batch":
        segment = responses.group[responses.rollout] // scope_prompts
        num = int(segment.max()) + 1
    else:
        segment, num = torch.zeros_like(responses.rollout), 1
    quantile = segment_quantile(values, segment, num, share)
    previous = (memory or {}).get(threshold_key(share))
    if scope == "running" and previous is not None:
        quantile = RUNNING_DECAY * previous + (1 - RUNNING_DECAY) * quantile
    return quantile[segment]


def threshold_key(share: float) -> str:
    """Name of a running threshold in a method's memory."""
    return f"threshold/{share:g}"
