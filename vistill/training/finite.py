"""Find values that are not finite before the update: passes, signals, memory. Skip such a step.

A NaN in a pass does not always make the loss NaN: a comparison silently drops its token, a sort may
put it anywhere, a quantile moves. So the passes and signals themselves are checked, for every
method.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vistill.batch import ScoredBatch, ScoredPass, Signals


def non_finite_readings(batch: ScoredBatch) -> dict[str, Tensor]:
    """Rows where a pass is not finite, as masks by `reading/PASS`, without finite passes."""
    masks = {f"reading/{name}": ~finite_rows(scored) for name, scored in batch.passes.items()}
    return {name: mask for name, mask in masks.items() if bool(mask.any())}


@torch.no_grad()
def finite_rows(scored: ScoredPass) -> Tensor:
    """Whether each row of a pass is finite, without a copy of its hidden states."""
    checks = []
    if scored.log_prob is not None:
        checks.append(torch.isfinite(scored.log_prob))
    if scored.hidden is not None:
        low, high = scored.hidden.amin(-1), scored.hidden.amax(-1)  # a NaN makes both NaN
        checks.append(torch.isfinite(low) & torch.isfinite(high))
    return torch.stack(checks).all(0)


def non_finite_signals(signals: Signals) -> dict[str, Tensor]:
    """Values of a signal that are not finite, as masks by `signal/NAME`, without finite signals."""
    masks = {f"signal/{name}": ~torch.isfinite(value) for name, value in signals.items()}
    return {name: mask for name, mask in masks.items() if bool(mask.any())}


def non_finite_memory(memory: Mapping[str, float]) -> dict[str, int]:
    """A count of 1 for each value of a method's memory that is not finite, by `memory/NAME`."""
    return {f"memory/{name}": 1 for name, value in memory.items() if not math.isfinite(value)}


def count_places(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """How many values each mask marks."""
    return {name: int(mask.sum()) for name, mask in masks.items()}
