"""Parameters of LoRA's adapters and bytes of quantised weights, from the shape of a model.

Needs no torch.
"""

from collections.abc import Collection

from vistill.lora_settings import LoraSettings
from vistill.planning.shapes import LinearSizes, ModelShape

#: Parts of the model by target.
PARTS = {
    "language": ("language",),
    "vision": ("vision", "projector"),
    "tower": ("vision",),
    "projector": ("projector",),
}
#: Parts that a setting of `train.freeze` freezes.
FROZEN = {"language": ("language",), "vision": ("vision", "projector"), "tower": ("vision",)}

#: Bits of a quantised weight, scales of nf4 included (`models/quantization.py`).
BITS = {"int8": 8.0, "nf4": 4.5}


def weight_bytes(shape: ModelShape, size: int, precision: str) -> float:
    """All weights of a model; the linear layers of its decoder may be quantised.

    Args:
        shape: of the model.
        size: bytes of a weight that is not quantised.
        precision: `int8`, `nf4`, or another.
    """
    quantized = shape.linear_weights if precision in BITS else 0
    kept = size * (shape.parameters.total - quantized)
    return kept + quantized * BITS.get(precision, 0) / 8


def adapted_parts(settings: LoraSettings, frozen: Collection[str] = ()) -> set[str]:
    """Parts of the model whose adapters are trained."""
    kept = {part for name in frozen for part in FROZEN.get(name, ())}
    return {part for target in settings.targets for part in PARTS[target]} - kept


def linear_sizes(shape: ModelShape) -> LinearSizes:
    """Inputs plus outputs of all linear layers: counted, or those of Qwen3-VL's classes."""
    if shape.linear_sizes is not None:
        return shape.linear_sizes
    attention, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    products = 4 * shape.hidden + 2 * (attention + keys)
    language = shape.layers * (products + 3 * (shape.hidden + shape.feed_forward))
    vision = shape.vision
    if vision is None:
        return LinearSizes(0, 0, language)
    block = 6 * vision.width + 2 * (vision.width + vision.feed_forward)
    merger = 3 * vision.merged + vision.out
    return LinearSizes(vision.depth * block, (vision.levels + 1) * merger, language)


def adapter_parameters(
    shape: ModelShape, settings: LoraSettings, frozen: Collection[str] = ()
) -> int:
    """Parameters of all adapters that are trained: A is [rank, inputs], B is [outputs, rank]."""
    sizes = linear_sizes(shape)
    return settings.rank * sum(getattr(sizes, part) for part in adapted_parts(settings, frozen))
