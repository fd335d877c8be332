"""Order and noise as pure functions of a key, independent of history."""

import hashlib
from collections.abc import Callable

import numpy as np


def keyed_seed(*key: object) -> int:
    """A 63-bit seed from a key, the same on every machine: blake2b of the parts' text."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def keyed_generator(*key: object) -> np.random.Generator:
    """A new numpy generator seeded by the key."""
    return np.random.Generator(np.random.Philox(keyed_seed(*key)))


def epoch_order(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """The permutation of the rows in one epoch: `order(seed, epoch)`."""
    return keyed_generator("order", seed, epoch).permutation(num_rows)


def rows_of_step(
    step: int,
    per_step: int,
    num_rows: int,
    seed: int,
    is_replaced: Callable[[int], bool] | None = None,
) -> list[int]:
    """Row indices of step `step` (from 0): positions `step * per_step ...` of the endless epochs.

    A batch may cross the end of an epoch; every row still occurs exactly once per epoch. Any step
    is computed directly, without the steps before it. The slot of a replaced row takes the next
    row of the sequence that is neither replaced nor in this step; all other slots stay.
    """
    orders: dict[int, np.ndarray] = {}

    def row_at(position: int) -> int:
        epoch, index = divmod(position, num_rows)
        if epoch not in orders:
            orders[epoch] = epoch_order(seed, epoch, num_rows)
        return int(orders[epoch][index])

    rows = [row_at(position) for position in range(step * per_step, (step + 1) * per_step)]
    if is_replaced is None:
        return rows
    following = (step + 1) * per_step
    for slot, row in enumerate(rows):
        if is_replaced(row):
            while is_replaced(row) or row in rows:
                row, following = row_at(following), following + 1
            rows[slot] = row
    return rows


def num_steps(num_rows: int, per_step: int, epochs: float) -> int:
    """Whole steps in `epochs` passes over the rows, at least one."""
    return max(1, int(num_rows * epochs) // per_step)
