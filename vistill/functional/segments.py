"""Means, sums and ranks over segments of the flat response axis. There is no padding."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vistill.functional.running_sums import running_sum


def segment_sum(
    values: Float[Tensor, " R"], segment: Int[Tensor, " R"], num: int
) -> Float[Tensor, " S"]:
    """Sum of the values of each segment: `out[s] = sum of values[r] with segment[r] = s`."""
    return values.new_zeros(num).index_add_(0, segment, values)


def segment_count(segment: Int[Tensor, " R"], num: int) -> Int[Tensor, " S"]:
    """Number of elements of each segment."""
    return torch.bincount(segment, minlength=num)


def segment_mean(
    values: Float[Tensor, " R"], segment: Int[Tensor, " R"], num: int
) -> Float[Tensor, " S"]:
    """Mean of the values of each segment. A segment without elements is a programming error."""
    count = segment_count(segment, num)
    assert bool((count > 0).all()), "a segment is empty"
    return segment_sum(values, segment, num) / count


def segment_rank(
    values: Float[Tensor, " R"],
    segment: Int[Tensor, " R"],
    tie_noise: Float[Tensor, " R"] | None = None,
) -> Int[Tensor, " R"]:
    """Rank of each value within its segment, 0 for the largest.

    Ties keep their order on the axis. With `tie_noise` the larger noise comes first.
    """
    order = torch.arange(len(values), device=values.device)
    if tie_noise is not None:
        order = order[torch.argsort(tie_noise[order], descending=True, stable=True)]
    order = order[torch.argsort(values[order], descending=True, stable=True)]
    order = order[torch.argsort(segment[order], stable=True)]
    count = segment_count(segment, int(segment.max()) + 1 if len(segment) else 0)
    start = torch.cumsum(count, 0) - count
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(values), device=values.device) - start[segment[order]]
    return ranks


def top_share_size(lengths: Int[Tensor, " N"], share: float) -> Int[Tensor, " N"]:
    """`max(1, ceil(share * T))` for a rollout of T tokens. Source: VA-OPD section 3.2.

    The epsilon keeps a product such as `0.2 * 5` from being rounded up.
    """
    return torch.ceil(lengths.double() * share - 1e-9).long().clamp_min(1)


def top_share(
    values: Float[Tensor, " R"],
    rollout: Int[Tensor, " R"],
    lengths: Int[Tensor, " N"],
    share: float,
    tie_noise: Float[Tensor, " R"] | None = None,
) -> Bool[Tensor, " R"]:
    """Mark the `max(1, ceil(share * T))` largest values of each rollout."""
    return segment_rank(values, rollout, tie_noise) < top_share_size(lengths, share)[rollout]


def segment_quantile(
    values: Float[Tensor, " R"], segment: Int[Tensor, " R"], num: int, share: float
) -> Float[Tensor, " S"]:
    """The `share` quantile of each segment, with linear interpolation (numpy's default)."""
    order = torch.argsort(values, stable=True)
    order = order[torch.argsort(segment[order], stable=True)]
    ranked = values[order]
    count = segment_count(segment, num)
    assert bool((count > 0).all()), "a segment is empty"
    start = torch.cumsum(count, 0) - count
    position = (count - 1).double() * share
    below = position.floor().long()
    above = torch.minimum(below + 1, count - 1)
    low, high = ranked[start + below], ranked[start + above]
    return low + (high - low) * (position - below).to(values.dtype)


def sum_before(
    values: Float[Tensor, " R"], segment: Int[Tensor, " R"], num: int
) -> Float[Tensor, " R"]:
    """Sum of the earlier values of the same segment, 0 for its first. Segments are contiguous."""
    running = running_sum(values.double()) - values.double()
    count = segment_count(segment, num)
    first = (torch.cumsum(count, 0) - count).clamp_max(max(0, len(values) - 1))
    return (running - running[first][segment]).to(values.dtype)


def segment_extremes(
    values: Float[Tensor, " R"], segment: Int[Tensor, " R"], num: int
) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """Smallest and largest value of each segment."""
    infinity = torch.full((num,), torch.inf, dtype=values.dtype, device=values.device)
    return (
        infinity.scatter_reduce(0, segment, values, "amin"),
        (-infinity).scatter_reduce(0, segment, values, "amax"),
    )
