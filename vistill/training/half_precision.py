"""AdamW for bf16 weights: the update is made in float32, tensor by tensor, and then rounded.

A bf16 number has 8 bits of precision. Rounded to the nearest one, an update below 1/512 of a weight
is lost, and updates of 1e-6 always are. Two ways keep them: a float32 master copy of what is
trained, or stochastic rounding. That rounds x to one of its two bf16 neighbours, up with the
probability of its distance to the lower one, so the mean of the result is x.

The random bits are a pure function of (seed, step, name of the weight, index), so a resume and
every device have the same ones.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vistill.data.keys import keyed_seed
from vistill.rollouts.counter_noise import numbers_at

#: Weights that are rounded at a time: their random bits need 2 bytes each, and copies.
CHUNK = 1 << 22
#: Weights that one random number of 64 bits serves.
PER_NUMBER = 4
#: Name of the master copy in the optimizer's state.
MASTER = "master"

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class HalfPrecisionOptimizer(torch.optim.Optimizer):
    """Updates bf16 weights by an optimizer for float32 weights.

    The state is that of the optimizer, by the bf16 weight, and the master copy if there is no
    stochastic rounding.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        make: MakeOptimizer,
        names: Mapping[nn.Parameter, str],
        seed: int | None,
    ) -> None:
        """Make the optimizer.

        Args:
            groups: bf16 weights, and the settings of `make` as in a group of torch.
            make: the optimizer for float32 weights, from groups.
            names: of the weights.
            seed: of stochastic rounding; None keeps master copies.
        """
        super().__init__(groups, {})
        self.make, self.names, self.seed = make, names, seed

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every weight with a gradient."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.update(weight, group)

    def update(self, weight: nn.Parameter, group: Mapping[str, Any]) -> None:
        """One update of a weight, by an optimizer for it alone with the state it had."""
        assert weight.grad is not None
        slots = dict(self.state[weight])
        master = slots.pop(MASTER, None)
        exact = nn.Parameter(weight.detach().float() if master is None else master)
        exact.grad = weight.grad.float()
        optimizer = self.make([{**group, "params": [exact]}])
        if slots:
            optimizer.state[exact] = slots
        optimizer.step()
        slots = dict(optimizer.state[exact])
        if self.seed is None:
            slots[MASTER] = exact.detach()
            weight.copy_(exact.detach())
        else:
            round_into(weight, exact.detach(), self.seed, self.names[weight], int(slots["step"]))
        self.state[weight] = slots


def round_into(weight: Tensor, exact: Tensor, *key: object, chunk: int = CHUNK) -> None:
    """Write float32 values into a bf16 tensor of the same shape, rounded at random.

    Args:
        weight: gets the values. It is contiguous.
        exact: float32.
        *key: decides the random bits.
        chunk: weights that are rounded at a time. It does not change the bits.
    """
    seeds = torch.tensor([keyed_seed("rounding", *key)], device=exact.device)
    flat, source = weight.view(-1), exact.reshape(-1)
    for start in range(0, source.numel(), chunk):
        part = source[start : start + chunk]
        first = start // PER_NUMBER
        index = torch.arange(first, first + -(-len(part) // PER_NUMBER), device=exact.device)
        noise = numbers_at(seeds, index[None])[0].view(torch.int16)[: len(part)]
        # the upper 16 bits of a float32 are a bf16: a carry out of the lower ones rounds up
        bits = part.view(torch.int32) + (noise.int() & 0xFFFF)
        flat[start : start + chunk] = (bits & -0x10000).view(torch.float32)


def move_towards(average: Tensor, value: Tensor, key: tuple[object, ...], rate: float) -> None:
    """`average <- (1 - rate) average + rate value`. A bf16 average is rounded at random."""
    if average.dtype != torch.bfloat16:
        average.lerp_(value.detach().to(average.dtype), rate)
        return
    round_into(average, average.float().lerp_(value.detach().float(), rate), "average", *key)
