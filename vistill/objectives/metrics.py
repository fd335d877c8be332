"""Figures of a step that several methods log: visual advantage, visual dependency, group advantage.

A method names them in its `metrics`. Figures that do not exist (a share of nothing) are left out.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from vistill.batch import Responses, Signals
from vistill.functional.segments import segment_mean
from vistill.signals.concentration import top_mass_share


def advantage_metrics(responses: Responses, signals: Signals) -> dict[str, float]:
    """Visual advantage: its mean, its tail, its ties, and the shares of the groups.

    Reads the signals `visual_advantage`, `high_group` and `rollout_weight`.
    """
    advantage, high, weight = (
        signals[name] for name in ("visual_advantage", "high_group", "rollout_weight")
    )
    mass = float(advantage.sum())
    entropy = -(weight * weight.clamp_min(1e-30).log()).sum() / responses.num_groups
    of_rollouts = segment_mean(advantage, responses.rollout, responses.num_rollouts)
    return existing(
        {
            "va/mean": float(advantage.mean()),
            "va/mean_of_rollouts": float(of_rollouts.mean()),
            "va/top10_share": top_mass_share(advantage, 0.1),
            "va/zero_share": float((advantage == 0).float().mean()),
            "va/high_group_zero_share": share(advantage[high] == 0),
            "va/high_group_va_share": float(advantage[high].sum()) / mass if mass > 0 else math.nan,
            "weight/min": float(weight.min()),
            "weight/max": float(weight.max()),
            "weight/entropy": float(entropy),
        }
    )


def advantage_warnings(metrics: Mapping[str, float]) -> dict[str, str]:
    """A warning where no token of a step has visual advantage, from `advantage_metrics`."""
    if metrics.get("va/zero_share") != 1.0:
        return {}
    why = "the image makes no token of the response more likely for the teacher"
    return {"blind": f"no token of this step has visual advantage: {why}"}


def dependency_metrics(signals: Signals) -> dict[str, float]:
    """Visual dependency: its mean, its tail, and the gated share.

    Reads the signals `visual_dependency` and `gate`.
    """
    dependency = signals["visual_dependency"]
    return existing(
        {
            "vds/mean": float(dependency.mean()),
            "vds/top10_share": top_mass_share(dependency, 0.1),
            "vds/gated_share": share(signals["gate"]),
        }
    )


def group_metrics(signals: Signals) -> dict[str, float]:
    """Share of the rollouts without advantage: all their siblings got the same reward."""
    return existing({"reward/no_advantage_share": share(signals["group_advantage"] == 0)})


def share(mask: Tensor) -> float:
    """Mean of a mask; NaN where it is empty."""
    return float(mask.float().mean()) if len(mask) else math.nan


def existing(figures: Mapping[str, float]) -> dict[str, float]:
    """The finite figures."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}
