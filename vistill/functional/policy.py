"""Policy-gradient pieces: group advantages and the clipped surrogate (methods 4.4)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vistill.functional.segments import segment_count, segment_mean, segment_sum

#: Added to the standard deviation of a group's rewards.
REWARD_EPSILON = 1e-6


def group_advantage(reward: Float[Tensor, " N"], group: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """`(r - mean) / (std + 1e-6)` over the siblings of a prompt.

    The deviation is the **unbiased** one (ddof 1), computed in float64. Equal rewards give 0,
    and so does a rollout without siblings.
    """
    num = int(group.max()) + 1
    values = reward.double()
    centered = values - segment_mean(values, group, num)[group]
    degrees = (segment_count(group, num) - 1).clamp_min(1)
    deviation = (segment_sum(centered**2, group, num) / degrees).sqrt()
    return (centered / (deviation[group] + REWARD_EPSILON)).to(reward.dtype)


def probability_ratio(
    log_prob: Float[Tensor, " R"], old_log_prob: Float[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """`exp(clamp(log pi - log pi_old, +-20))`."""
    return (log_prob - old_log_prob).clamp(-20, 20).exp()


def clipped_surrogate(
    ratio: Float[Tensor, " R"],
    advantage: Float[Tensor, " R"],
    clip_low: float = 0.2,
    clip_high: float = 0.3,
    dual_clip: float = 3.0,
) -> Float[Tensor, " R"]:
    """The loss `-min(rho A, clip(rho, 1 - low, 1 + high) A)`, per token.

    If A < 0, the loss is at most `-dual_clip A`.
    """
    inside = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantage, inside * advantage)
    bounded = torch.maximum(surrogate, dual_clip * advantage)
    return -torch.where(advantage < 0, bounded, surrogate)
