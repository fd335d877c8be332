"""The reading of a model as the `forward` of a module, so that what hangs on modules sees it: sharding, compilation, hooks."""

from torch import Tensor, nn

from vistill.models.families.base import Family, PackedRow, RowBatch


class PackedForward(nn.Module):
    """A model with the forward that vistill reads by. Its weights are the model's own.

    Every reading enters here and goes on through the calls of the model's submodules. So `fully_shard(layer)` for each
    decoder layer and `fully_shard(packed)` for the rest gather what a reading needs, and `torch.compile(packed)` sees it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, family: Family, row: PackedRow | RowBatch) -> Tensor | tuple[Tensor, ...]:
        """Hidden states before the head, [L, H] or [N, L, H]; of a row whose keys are kept, the keys and values."""
        if isinstance(row, RowBatch):
            return family.backbone(self.model, row)
        return family.packed_states(self.model, row)


def is_plain(module: nn.Module) -> bool:
    """Whether calling a module does nothing but its own forward: no hooks, not sharded, not compiled."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return isinstance(module, PackedForward) and module._compiled_call_impl is None and not any(hooks)
