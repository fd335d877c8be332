"""Visual advantage: how much the picture supports a token, in nats."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vistill.batch import ScoredPass
from vistill.functional.divergences import reverse_kl
from vistill.functional.rows import States, per_row

Score = Literal["rectified", "signed", "absolute", "distribution"]


@torch.no_grad()
def visual_advantage(
    log_prob_full: Float[Tensor, " R"],
    log_prob_degraded: Float[Tensor, " R"],
    score: Literal["rectified", "signed", "absolute"] = "rectified",
) -> Float[Tensor, " R"]:
    """Teacher log-probability of the sampled token with the picture minus with the degraded picture.

    `a = max(l - l~, 0)` (rectified, the paper), `l - l~` (signed) or its absolute value, in nats, in float32.
    A **misread** token has l < l~, so its rectified advantage is 0: it marks correctly read tokens.
    Source: VA-OPD Eq. 2.
    """
    difference = log_prob_full.float() - log_prob_degraded.float()
    if score == "rectified":
        return difference.clamp_min(0)
    return difference.abs() if score == "absolute" else difference


@torch.no_grad()
def distribution_advantage(full: ScoredPass, degraded: ScoredPass) -> Float[Tensor, " R"]:
    """KL(teacher with the picture || teacher with the degraded picture) of each row, in nats.

    The expectation of the signed advantage under the teacher itself; it fires on misread tokens too.
    """
    return per_row(
        reverse_kl,
        full.states(),
        full.projection(),
        [States(degraded.states(), degraded.projection())],
    )
