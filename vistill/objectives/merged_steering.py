"""The standard and the steering term of VGS as one divergence.

The gradient is the same, and the teacher's head runs once instead of twice.
"""

from collections.abc import Sequence

from torch import Tensor

from vistill.batch import LossTerm, ScoredPass
from vistill.errors import ConfigError
from vistill.functional.rows import Target, reverse_kl_from_hidden


def merged_steering(readings: Sequence[ScoredPass], weights: Tensor, strength: Tensor) -> LossTerm:
    """`(1 + s) KL(p || r)`, `r ~ q^(1/(1+s)) q*^(s/(1+s))`.

    It equals KL(p||q) + s KL(p||q*) up to a constant that does not depend on the student.
    `log r = z_T - c z_Tx + c z_Sx` with `c = s / (1 + s)`: both teacher states are added up before
    the head.

    Args:
        readings: student with the image, the only one with gradient; teacher with the image;
            teacher and student without the image.
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
            "a ratio without clamp and support", "both change the logits that are added up"
        )
    if other_steering or eta == "dynamic":
        raise nonlinear_head_error(
            "visual steering without a dynamic eta", "dynamic eta and vgs_language need both terms"
        )


def nonlinear_head_error(needs: str, why: str) -> ConfigError:
    """C002."""
    return ConfigError("C002", f"vgs.merged = true needs {needs}", why=why, fix="vgs.merged=false")
