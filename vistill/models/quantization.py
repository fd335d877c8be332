"""Frozen weights in 8 or 4 bits: the linear layers of the decoder.

Vision tower, projector, embeddings, norms and head keep their precision, so images and logits do.
`int8` has one scale per output of a layer and needs no package. `nf4` is that of bitsandbytes
(Dettmers et al. 2023, QLoRA, section 3), with one scale per 64 weights. Only weights are quantised:
activations are not, so the result of a row never depends on the rows next to it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistill.errors import MissingExtraError
from vistill.models.adapters import linear_layers, weights_in

#: Weights per scale of nf4.
BLOCK = 64


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weights are made from 8 or 4 bits when it is called."""

    scale: nn.Parameter
    """Float32: one per output, or one per block."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.scale = (
            nn.Parameter(x, requires_grad=False) for x in self.quantized(layer.weight.detach())
        )
        self.bias = layer.bias

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Integers and scales of a weight [outputs, inputs]."""
        raise NotImplementedError

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [outputs, inputs] that the layer multiplies by."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """`x W^T + bias`, in the precision of autocast or of x."""
        x, device = input, input.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            product: Tensor = DequantizedProduct.apply(x, self)  # pyright: ignore[reportAssignmentType]
        return product if self.bias is None else product + self.bias.to(product.dtype)


class DequantizedProduct(torch.autograd.Function):
    """`x W^T` of a quantised layer. Backward makes W again, so that it is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        """[..., inputs] to [..., outputs] in the precision of x."""
        ctx.layer = layer
        return F.linear(x, layer.dequantized(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient of x."""
        return grads[0] @ ctx.layer.dequantized(grads[0].dtype), None


class Int8Linear(QuantizedLinear):
    """Weights of 8 bits, with a scale per output."""

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The largest entry of an output is 127."""
        exact = weight.float()
        scale = exact.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        return (exact / scale[:, None]).round().to(torch.int8), scale

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """`scale * weight`, rounded once."""
        return (self.weight * self.scale[:, None]).to(dtype)


class Nf4Linear(QuantizedLinear):
    """Weights of 4 bits by bitsandbytes, two per byte, with a scale per block.

    Its own layer is not used: on a CPU it changes its weights at the first call and gives no
    gradient.
    """

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Each block of 64 weights is divided by its largest entry and rounded to 16 values."""
        functional = require_bitsandbytes().functional
        packed, state = functional.quantize_4bit(
            weight.contiguous(), blocksize=BLOCK, compress_statistics=False, quant_type="nf4"
        )
        return packed, state.absmax

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """One of 16 values times the scale of its block."""
        functional = require_bitsandbytes().functional
        known = dtype if dtype in (torch.float32, torch.bfloat16, torch.float16) else torch.float32
        state = functional.QuantState(
            absmax=self.scale,
            shape=torch.Size((self.out_features, self.in_features)),
            dtype=known,
            blocksize=BLOCK,
            quant_type="nf4",
        )
        return functional.dequantize_4bit(self.weight, state).to(dtype)


LAYERS: dict[str, type[QuantizedLinear]] = {"int8": Int8Linear, "nf4": Nf4Linear}


def require_bitsandbytes(
    what: str = "nf4", why: str = "it quantises weights to 4 bits; int8 needs no package"
) -> Any:
    """The module bitsandbytes (E301 if it is not installed).

    Args:
        what: what needs it.
        why: what for.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingExtraError(
            "E301",
            f"{what} needs the package bitsandbytes",
            why=why,
            fix="pip install 'vistill[quantized]'",
        ) from error
    return bitsandbytes


def quantize(vlm: Any, kind: str, device: str | torch.device) -> int:
    """Quantise a model in place, layer by layer, and move it to a device.

    Args:
        vlm: the model, usually in host memory. All its weights are frozen.
        kind: `int8` or `nf4`.
        device: where the model goes.

    Returns:
        The number of quantised layers.

    Raises:
        MissingExtraError: E301, bitsandbytes is not installed.
    """
    model = vlm.model
    model.requires_grad_(False)
    inside = weights_in(vlm.family.parts(model)["language"])
    layers = {n: m for n, m in linear_layers(model).items() if id(m.weight) in inside}
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LAYERS[kind](layer.to(device)))
    model.to(device)
    return len(layers)


def num_parameters(model: nn.Module) -> int:
    """Parameters of a model: every weight of a quantised layer, packed or not, and no scale."""
    quantized = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    stored = sum(m.weight.numel() + m.scale.numel() for m in quantized)
    weights = sum(m.in_features * m.out_features for m in quantized)
    return sum(p.numel() for p in model.parameters()) - stored + weights


def is_quantized(model: nn.Module) -> bool:
    """Whether a model has quantised layers."""
    return any(not p.is_floating_point() for p in model.parameters())
