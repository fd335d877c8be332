"""Visual advantage: how much the image raises the log-probability of a token, in nats."""

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
    """Log-probability of the sampled token with the image (l) minus with a degraded one (l~).

    l and l~ are the teacher's. `a = max(l - l~, 0)` (rectified, as in the paper), `l - l~` (signed)
    or its absolute value, in nats, in float32. A token that the student **misread** has l < l~, so
    its rectified advantage is 0: the rectified advantage marks tokens that were read correctly.
    Source: VA-OPD Eq. 2.
    """
    difference = log_prob_full.float() - log_prob_degraded.float()
    if score == "rectified":
        return difference.clamp_min(0)
    return difference.abs() if score == "absolute" else difference


@torch.no_grad()
def distribution_advantage(full: ScoredPass, degraded: ScoredPass) -> Float[Tensor, " R"]:
    """KL(teacher with the image || teacher with the degraded image) of each row, in nats.

    This is the expected signed advantage under the teacher. It is large on misread tokens too.
    """
    return per_row(
        reverse_kl,
        full.states(),
        full.projection(),
        [States(degraded.states(), degraded.projection())],
    )
