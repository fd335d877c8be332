"""Weights of sibling rollouts and of token groups (VA-OPD, steps 3 and 4)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vistill.functional.segments import segment_count, segment_mean, segment_sum

#: Added to the standard deviation before dividing (VA-OPD: "small constant").
SIGMA_EPSILON = 1e-6


def sibling_softmax(
    means: Float[Tensor, " N"], group: Int[Tensor, " N"], temperature: float = 1.0
) -> Float[Tensor, " N"]:
    """Rollout weights: a softmax of the siblings' z-scores. They sum to 1 in each group.

    `z = (mean - mu) / (sigma + 1e-6)` with the **population** standard deviation, and
    `w = softmax(z / temperature)`. Computed in float64. Equal siblings get equal weights.
    Source: VA-OPD Eq. 3-4 (`temperature` = tau).
    """
    num = int(group.max()) + 1
    values = means.double()
    mu = segment_mean(values, group, num)
    sigma = segment_mean((values - mu[group]) ** 2, group, num).sqrt()
    z = (values - mu[group]) / (sigma[group] + SIGMA_EPSILON) / temperature
    peak = torch.full((num,), -torch.inf, dtype=z.dtype, device=z.device).scatter_reduce_(
        0, group, z, "amax"
    )
    exp = (z - peak[group]).exp()
    return (exp / segment_sum(exp, group, num)[group]).to(means.dtype)


def uniform_siblings(group: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """`1/K` for each of the K siblings present in a group."""
    return 1.0 / segment_count(group, int(group.max()) + 1)[group].to(torch.get_default_dtype())


def mean_coefficients(
    rollout_weight: Float[Tensor, " N"],
    rollout: Int[Tensor, " R"],
    keep: Bool[Tensor, " R"] | None = None,
) -> Float[Tensor, " R"]:
    """`w[n] / T_n` for each token of rollout n, where T_n counts its tokens.

    With `keep` it counts the tokens to keep, and the others get 0.
    """
    keep = torch.ones_like(rollout, dtype=torch.bool) if keep is None else keep
    count = segment_sum(keep.to(rollout_weight.dtype), rollout, len(rollout_weight))
    return torch.where(
        keep, rollout_weight[rollout] / count.clamp_min(1)[rollout], rollout_weight.new_zeros(())
    )


def token_group_coefficients(
    rollout_weight: Float[Tensor, " N"],
    high: Bool[Tensor, " R"],
    rollout: Int[Tensor, " R"],
    high_weight: float,
) -> Float[Tensor, " R"]:
    """Coefficient of each token, from the high group V and the low group L of its rollout.

    `w lambda / |V|` in the high group, `w (1 - lambda) / |L|` in the low group. If the low group is
    empty, every token gets `w / |V|`. The coefficients of a rollout sum to its weight `w[n]`.
    Source: VA-OPD Eq. 5-6 (`high_weight` = lambda).
    """
    num = len(rollout_weight)
    num_high = segment_sum(high.to(rollout_weight.dtype), rollout, num)
    num_low = segment_sum((~high).to(rollout_weight.dtype), rollout, num)
    no_low = num_low == 0
    in_high = torch.where(
        no_low, rollout_weight, rollout_weight * high_weight
    ) / num_high.clamp_min(1)
    in_low = rollout_weight * (1 - high_weight) / num_low.clamp_min(1)
    return torch.where(high, in_high[rollout], in_low[rollout])
