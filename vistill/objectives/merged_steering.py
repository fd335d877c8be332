"""The standard and the steering term of VGS as one divergence: the same gradient from one teacher projection."""

from collections.abc import Sequence

from torch import Tensor

from vistill.batch import LossTerm, ScoredPass
from vistill.errors import ConfigError
from vistill.functional.rows import Target, reverse_kl_from_hidden


def merged_steering(readings: Sequence[ScoredPass], weights: Tensor, strength: Tensor) -> LossTerm:
    """`(1 + s) KL(p || r)`, `r ~ q^(1/(1+s)) q*^(s/(1+s))`: KL(p||q) + s KL(p||q*) up to what no student changes.

    `log r = z_T - c z_Tx + c z_Sx` with `c = s / (1 + s)`: both teacher states are added up before the head.

    Args:
        readings: student with the picture, the only one with gradient; teacher with it; teacher and student without.
        weights: of KL(p||q), per token.
        strength: s of each token.

    Raises:
        ConfigError: C002 for a head with bias or softcap.
    """
    own, full, blind, own_blind = readings
    if not (full.projection().is_linear and own_blind.projection().is_linear):
        raise nonlinear_head_error(
            "heads without bias and softcap",
            "states are added up before the head, which must be linear",
        )
    share = (strength / (1 + strength))[:, None]
    targets = (
        Target(1.0, full.states() - share * blind.states(), full.projection()),
        Target(1.0, share * own_blind.states().detach(), own_blind.projection()),
    )
    kept = weights * (1 + strength)
    return LossTerm(
        "steered_kl", reverse_kl_from_hidden(own.states(), own.projection(), targets, kept), kept
    )


def require_linear_head(other_steering: bool, clamped: bool, supported: bool, eta: str) -> None:
    """C002 for settings under which the terms cannot be added up."""
    if clamped or supported:
        raise nonlinear_head_error(
            "the plain ratio", "ratio_clamp and support bend the logits that are added up"
        )
    if other_steering or eta == "dynamic":
        raise nonlinear_head_error(
            "plain visual steering", "a dynamic eta and vgs_language need the terms apart"
        )


def nonlinear_head_error(needs: str, why: str) -> ConfigError:
    """C002."""
    return ConfigError("C002", f"vgs.merged = true needs {needs}", why=why, fix="vgs.merged=false")
