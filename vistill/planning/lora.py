"""Parameters of LoRA's adapters, from the shape of a model. Needs no torch."""

from collections.abc import Collection

from vistill.lora_settings import LoraSettings
from vistill.planning.shapes import LinearSizes, ModelShape
from vistill.training.recipe import Recipe

#: Parts of the model by target.
PARTS = {
    "language": ("language",),
    "vision": ("vision", "projector"),
    "tower": ("vision",),
    "projector": ("projector",),
}
#: Parts that a setting of `train.freeze` freezes.
FROZEN = {"language": ("language",), "vision": ("vision", "projector"), "tower": ("vision",)}


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


def lora_of(recipe: Recipe) -> LoraSettings | None:
    """The settings of LoRA, if the recipe trains adapters."""
    return recipe.student.lora if recipe.student.train == "lora" else None
