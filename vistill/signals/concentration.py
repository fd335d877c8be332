"""How concentrated a signal is: the heavy tail of visual advantage."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def top_mass_share(values: Float[Tensor, " R"], share: float = 0.1) -> float:
    """Share of the total in the largest `ceil(share * n)` values. NaN if the total is 0.

    Source: VA-OPD Figure 2a (about 93 % for the top 10 % of the tokens).
    """
    total = float(values.double().sum())
    if len(values) == 0 or total <= 0:
        return math.nan
    top = torch.sort(values.double(), descending=True).values[
        : math.ceil(share * len(values) - 1e-9)
    ]
    return float(top.sum()) / total


def gini(values: Float[Tensor, " R"]) -> float:
    """Gini coefficient of non-negative values: 0 if all are equal, near 1 if one token has all."""
    n = len(values)
    total = float(values.double().sum())
    if n == 0 or total <= 0:
        return math.nan
    ordered = torch.sort(values.double()).values
    rank = torch.arange(1, n + 1, dtype=torch.float64, device=values.device)
    return float((2 * (rank * ordered).sum() / (n * total)) - (n + 1) / n)
