"""Bytes of the optimizer's state. Needs no torch."""

#: Bytes per weight of the two moments, by `train.optimizer`. bitsandbytes keeps a byte each, and a
#: float32 scale each per 256 weights.
MOMENT_BYTES = {
    "auto": 8.0,
    "adamw": 8.0,
    "adamw_fused": 8.0,
    "adamw_8bit": 2.0 + 2 * 4 / 256,
}
#: bitsandbytes keeps the moments of a tensor with fewer weights in float32, ...
MIN_8BIT_SIZE = 4096
#: ... and a table of 256 values for each moment of a larger one.
TABLE_BYTES = 2 * 256 * 4
#: Weights in bf16, with a master copy or rounded at random (`training/half_precision.py`).
HALF_PRECISIONS = ("bf16", "bf16_stochastic")
MASTER_BYTES = {"bf16": 4.0}


def state_bytes(weights: int, optimizer: str, precision: str) -> float:
    """Bytes of moments and master copies of so many weights.

    Args:
        weights: that are trained.
        optimizer: `train.optimizer`.
        precision: `student.precision`.
    """
    return weights * (MOMENT_BYTES[optimizer] + MASTER_BYTES.get(precision, 0.0))


def tensor_state_bytes(weights: int, optimizer: str, precision: str) -> float:
    """The same of one tensor, exactly."""
    if optimizer == "adamw_8bit" and weights >= MIN_8BIT_SIZE:
        moments = 2 * weights + 2 * 4 * -(-weights // 256) + TABLE_BYTES
        return moments + weights * MASTER_BYTES.get(precision, 0.0)
    return state_bytes(weights, "adamw", precision)
