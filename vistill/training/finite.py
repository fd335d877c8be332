"""What is not finite in a step before it is learnt from: readings, signals, memory. Such a step is skipped.

A NaN reading need not make the loss NaN: a comparison drops its token silently, a sort puts it anywhere, a
quantile moves. So the readings and signals are looked at themselves, once, for every method.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vistill.batch import ScoredBatch, ScoredPass, Signals


def non_finite_readings(batch: ScoredBatch) -> dict[str, Tensor]:
    """Rows of the response axis where a pass is not finite, by `reading/PASS`; passes without any are left out."""
    rows = {f"reading/{name}": ~finite_rows(scored) for name, scored in batch.passes.items()}
    return {name: bad for name, bad in rows.items() if bool(bad.any())}


@torch.no_grad()
def finite_rows(scored: ScoredPass) -> Tensor:
    """Whether each row of a pass is finite, without a copy of its hidden states."""
    checks = []
    if scored.log_prob is not None:
        checks.append(torch.isfinite(scored.log_prob))
    if scored.hidden is not None:
        low, high = scored.hidden.amin(-1), scored.hidden.amax(-1)  # both carry a NaN on
        checks.append(torch.isfinite(low) & torch.isfinite(high))
    return torch.stack(checks).all(0)


def non_finite_signals(signals: Signals) -> dict[str, Tensor]:
    """Places where a signal is not finite, by `signal/NAME`; finite signals are left out."""
    places = {f"signal/{name}": ~torch.isfinite(value) for name, value in signals.items()}
    return {name: bad for name, bad in places.items() if bool(bad.any())}


def non_finite_memory(memory: Mapping[str, float]) -> dict[str, int]:
    """Values that a method wants to remember although they are not finite, by `memory/NAME`."""
    return {f"memory/{name}": 1 for name, value in memory.items() if not math.isfinite(value)}


def counts_of(places: Mapping[str, Tensor]) -> dict[str, int]:
    """How many places each name has."""
    return {name: int(bad.sum()) for name, bad in places.items()}
