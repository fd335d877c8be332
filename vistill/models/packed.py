"""Every reading of a model as the `forward` of one module.

Sharding, compilation and hooks work on modules.
"""

from typing import Any

from torch import Tensor, nn

from vistill.models.families.base import Family, PackedRow, RowBatch


class PackedInput:
    """A row and the family that reads it: the argument of `PackedForward`.

    It is deliberately no dataclass. FSDP copies dataclasses and containers among the arguments of a
    module, but the reading stores keys and values in the caller's object.
    """

    def __init__(self, family: Family, row: PackedRow | RowBatch) -> None:
        self.family, self.row = family, row

    def __call__(self, model: Any) -> Tensor | tuple[Tensor, ...]:
        """Hidden states before the head, [L, H] or [N, L, H].

        For a row with a `new_cache` the result is its keys and values.
        """
        if isinstance(self.row, RowBatch):
            return self.family.backbone(model, self.row)
        return self.family.packed_states(model, self.row)


class PackedForward(nn.Module):
    """A model with vistill's own forward. Its weights are those of the model.

    Every reading enters here and calls the model's submodules. So `fully_shard(layer)` for each
    decoder layer and `fully_shard(packed)` for the rest gather the weights that a reading needs,
    and `torch.compile(packed)` compiles it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, packed_input: PackedInput) -> Tensor | tuple[Tensor, ...]:
        """Hidden states before the head, or the stored keys and values."""
        return packed_input(self.model)


def is_unmodified(module: nn.Module) -> bool:
    """Whether a call runs the module's forward only: no hooks, not sharded, not compiled."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return (
        isinstance(module, PackedForward) and module._compiled_call_impl is None and not any(hooks)
    )
