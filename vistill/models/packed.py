"""The reading of a model as the `forward` of a module: sharding, compilation and hooks work on modules."""

from typing import Any

from torch import Tensor, nn

from vistill.models.families.base import Family, PackedRow, RowBatch


class Reading:
    """A row and the family that reads it.

    Not a dataclass, on purpose: FSDP copies dataclasses and containers among a module's arguments to
    follow their tensors, but keys and values are stored in the very object that the caller holds.
    """

    def __init__(self, family: Family, row: PackedRow | RowBatch) -> None:
        self.family, self.row = family, row

    def __call__(self, model: Any) -> Tensor | tuple[Tensor, ...]:
        """Hidden states before the head, [L, H] or [N, L, H]; of a row whose keys are kept, the keys and values."""
        if isinstance(self.row, RowBatch):
            return self.family.backbone(model, self.row)
        return self.family.packed_states(model, self.row)


class PackedForward(nn.Module):
    """A model with the forward that vistill reads by. Its weights are the model's own.

    Every reading enters here and goes on through calls of the model's submodules. So
    `fully_shard(layer)` for each decoder layer and `fully_shard(packed)` for the rest gather what a
    reading needs, and `torch.compile(packed)` sees it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, reading: Reading) -> Tensor | tuple[Tensor, ...]:
        """Hidden states before the head, or the keys and values that are kept."""
        return reading(self.model)


def is_plain(module: nn.Module) -> bool:
    """Whether calling a module does nothing but its own forward: no hooks, not sharded, not compiled."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return (
        isinstance(module, PackedForward) and module._compiled_call_impl is None and not any(hooks)
    )
