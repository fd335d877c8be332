"""Limits of image tokens: which setting of a processor keeps images small.

Each rule sets a value that should be enough. The adapter then measures images of several sizes.
"""

from collections.abc import Callable
from typing import Any

from vistill.errors import ConfigError
from vistill.models.families.processors import plain_image
from vistill.runs.model_families import CROPS, FRAME_AREA, LONGEST_EDGE, PIXEL_AREA, WITH_LIMIT
from vistill.types import PilImage

#: Sizes of large images, by which a limit of image tokens is tried.
LARGE_SIZES = ((2048, 1536), (1536, 2048), (1600, 1600), (4096, 512))


def tokens_of_large_images(image_tokens: Callable[[PilImage], int]) -> set[int]:
    """The numbers of tokens that large images of several sizes take."""
    return {image_tokens(plain_image(size)) for size in LARGE_SIZES}


def image_limit_error(limit: int, what: str, why: str, possible: int | None = None) -> ConfigError:
    """C101 for a limit of image tokens that a model does not keep; `possible` is one it keeps."""
    what = f"data.max_image_tokens = {limit}, but {what}"
    none = "data.max_image_tokens=null"
    fix = none if possible is None else f"data.max_image_tokens={possible}   or   {none}"
    return ConfigError("C101", what, why=why, fix=fix)


def rule_of(processor: Any, model_type: str) -> str:
    """The model type whose rule applies: a LLaVA with a Pixtral tower has that of Pixtral."""
    is_pixtral = type(processor.image_processor).__name__.startswith("Pixtral")
    return "pixtral" if model_type == "llava" and is_pixtral else model_type


def has_limit(processor: Any, model_type: str) -> bool:
    """Whether a rule exists."""
    return rule_of(processor, model_type) in WITH_LIMIT


def set_image_token_limit(processor: Any, model_type: str, limit: int) -> None:
    """Change the settings of a processor for a limit. The model type must have a rule."""
    rule, images = rule_of(processor, model_type), processor.image_processor
    if rule in PIXEL_AREA or rule in FRAME_AREA:
        limit_area(images, limit, frames=rule in FRAME_AREA)
    elif rule in LONGEST_EDGE:
        limit_edge(processor, limit)
    elif rule in CROPS:
        limit_crops(processor, limit)
    else:
        limit_splits(processor, limit)


def limit_area(images: Any, limit: int, frames: bool) -> None:
    """The area of an image in pixels. Some families count the frames of a patch too."""
    area = max(1, limit) * (int(images.patch_size) * int(images.merge_size)) ** 2
    area *= int(images.temporal_patch_size) if frames else 1
    smallest = min(int(images.size["shortest_edge"]), area)
    largest = min(int(images.size["longest_edge"]), area)
    images.size = type(images.size)(shortest_edge=smallest, longest_edge=max(smallest, largest))


def limit_edge(processor: Any, limit: int) -> None:
    """The longest side: a square of it has at most `limit` tokens."""
    images = processor.image_processor
    side = int(processor.patch_size) * int(processor.spatial_merge_size)
    edge = min(int(images.size["longest_edge"]), int(limit**0.5) * side)
    images.size = type(images.size)(longest_edge=max(side, edge))


def limit_crops(processor: Any, limit: int) -> None:
    """The number of crops. Several crops come with a thumbnail."""
    crops = max(1, limit // int(processor.image_seq_length) - 1)
    images = processor.image_processor
    images.max_patches = min(int(images.max_patches), crops)
    images.min_patches = min(int(images.min_patches), images.max_patches)


def limit_splits(processor: Any, limit: int) -> None:
    """The longest side before an image is split, down to one image that is not split."""
    images = processor.image_processor
    step = int(images.max_image_size["longest_edge"])
    per_image = int(processor.image_seq_len)
    splits = int((max(0, limit // per_image - 1)) ** 0.5)
    edge = min(int(images.size["longest_edge"]), step * max(1, splits))
    images.size = type(images.size)(longest_edge=edge)
    if splits < 2:
        images.do_image_splitting = False
