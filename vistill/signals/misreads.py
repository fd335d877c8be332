"""Misreads: sampled tokens that the image contradicts, and the tokens before and after the first.

A rollout goes on from its misread as from a true statement. A teacher that sees the image then
scores text whose premise it knows to be false.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vistill.batch import ScoredPass
from vistill.functional.segments import sum_before
from vistill.functional.tiles import TILE_ROWS

Detection = Literal["advantage", "argmax", "both", "either"]


@torch.no_grad()
def misread_by_advantage(signed: Float[Tensor, " R"], threshold: float) -> Bool[Tensor, " R"]:
    """`a_t < threshold`: the image makes the token less likely by more than `-threshold` nats.

    `a_t = log pT(y_t | v) - log pT(y_t | degraded v)` is the signed visual advantage.
    """
    return signed < threshold


@torch.no_grad()
def misread_by_argmax(
    full: ScoredPass, ids: Int[Tensor, " R"], critical: Bool[Tensor, " R"]
) -> Bool[Tensor, " R"]:
    """A critical token that is not the teacher's most likely one with the image.

    The head runs on the critical tokens alone.
    """
    misread = torch.zeros_like(critical)
    head, states = full.projection(), full.states()[critical]
    if len(states):
        chosen = torch.cat([head.logits(h).argmax(-1) for h in states.split(TILE_ROWS)])
        misread[critical] = chosen != ids[critical]
    return misread


def combined(
    detection: Detection, by_advantage: Bool[Tensor, " R"], by_argmax: Bool[Tensor, " R"]
) -> Bool[Tensor, " R"]:
    """Tokens that one detection marks, `both` mark, or `either` marks."""
    if detection == "both":
        return by_advantage & by_argmax
    if detection == "either":
        return by_advantage | by_argmax
    return by_advantage if detection == "advantage" else by_argmax


def up_to_first(
    misread: Bool[Tensor, " R"], rollout: Int[Tensor, " R"], num: int
) -> Bool[Tensor, " R"]:
    """Tokens up to the first misread of their rollout, that token included."""
    return sum_before(misread.float(), rollout, num) == 0
