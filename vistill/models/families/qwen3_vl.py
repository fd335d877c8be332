"""The Qwen3-VL family: 2B, 4B, 8B, 32B, and tiny models of the same classes.

Inputs come from the tokenizer and the PIL image processor. `Qwen3VLProcessor` needs torchvision. A
test shows that both give equal inputs.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from vistill.errors import ModelError
from vistill.flops_counter import is_counting
from vistill.models.decode_attention import DecodeAttention
from vistill.models.families.base import (
    DecoderStep,
    EncodedPrompt,
    Family,
    Pixels,
)
from vistill.models.families.qwen3_vl_step import FusedDecoder, can_fuse
from vistill.models.flops import (
    ModelFlops,
    ReadTokens,
    backward_cost,
    decoder_flops,
    is_trainable,
    linear_flops,
)
from vistill.types import PilImage


class Qwen3VLFamily(Family):
    """Adapter for `Qwen3VLForConditionalGeneration`."""

    name = "qwen3_vl"
    is_proven = True
    encodes_in_threads = True
    processor_type = Qwen2VLImageProcessorPil

    def __init__(
        self, config: Any, tokenizer: PreTrainedTokenizerBase, processor: Qwen2VLImageProcessorPil
    ) -> None:
        check_config(config)
        super().__init__(config, tokenizer, processor)
        self.merge = int(config.vision_config.spatial_merge_size)

    def image_tokens(self, image: PilImage) -> int:
        """Merged patches of the resized image."""
        _, height, width = self.expected_grid(image)
        return height * width // self.merge**2

    def expected_grid(self, image: PilImage) -> list[int]:
        """Frames, rows and columns of patches. They depend on the size of the image only."""
        size, patch = dict(self.processor.size), int(self.config.vision_config.patch_size)
        height, width = smart_resize(
            image.height,
            image.width,
            patch * self.merge,
            int(size["shortest_edge"]),
            int(size["longest_edge"]),
        )
        return [1, height // patch, width // patch]

    def expand_placeholders(
        self, ids: Sequence[int], images: Sequence[PilImage], pixels: Pixels
    ) -> tuple[list[int], Tensor, int]:
        """Expand each placeholder by its grid, with positions on three axes."""
        if not images:
            return list(ids), torch.arange(len(ids)).expand(3, -1), len(ids)
        return place_images(ids, self.image_id, pixels["image_grid_thw"], self.merge)

    def generation_inputs(self, prompts: Sequence[EncodedPrompt], pad_id: int) -> dict[str, Tensor]:
        """Arguments of `generate`. Positions follow from the grids and the token types."""
        inputs = super().generation_inputs(prompts, pad_id)
        if any(p.has_image for p in prompts):
            is_image = (inputs["input_ids"] == self.image_id) & (inputs["attention_mask"] == 1)
            inputs["mm_token_type_ids"] = is_image.int()
        return inputs

    def image_arguments(self, is_image: Tensor, levels: Sequence[Tensor]) -> dict[str, Any]:
        """The arguments of DeepStack."""
        return {"visual_pos_masks": is_image, "deepstack_visual_embeds": list(levels)}

    def decoder_step(self, model: Any) -> DecoderStep | None:
        """A fused step, for a small float32 model."""
        decoder = self.decoder(model)
        if not can_fuse(decoder):
            return None
        fused = FusedDecoder(decoder)

        def step(ids: Tensor, positions: Tensor, attention: DecodeAttention) -> Tensor:
            if is_counting():
                read = ReadTokens(response_tokens=len(ids), num_scores=attention.num_scores)
                self.count(model, read, ())
            return fused(ids, positions, attention)

        return step

    def patch_grids(self, prompt: EncodedPrompt) -> Iterable[tuple[int, int, int]]:
        """The grids of the processor."""
        return [(f, h, w) for f, h, w in prompt.pixels["image_grid_thw"].tolist()]

    def images_as_read(self, prompt: EncodedPrompt) -> list[PilImage]:
        """The images after the processor resized them: the exact inverse of its patches.

        Another image processor resizes in another way; these need no resizing any more.
        """
        if not prompt.has_image:
            return []
        patch = int(self.config.vision_config.patch_size)
        counts = [h * w for _, h, w in self.patch_grids(prompt)]
        images = []
        for patches, (_, rows, columns) in zip(
            prompt.pixels["pixel_values"].cpu().double().split(counts), self.patch_grids(prompt),
            strict=True,
        ):  # fmt: skip
            grid = (rows // self.merge, columns // self.merge, self.merge, self.merge)
            x = patches.reshape(*grid, 3, -1, patch, patch)[:, :, :, :, :, 0]
            x = x.permute(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3)
            mean, std = (
                torch.tensor(getattr(self.processor, name), dtype=torch.float64)
                for name in ("image_mean", "image_std")
            )
            bytes_ = ((x * std + mean) / self.processor.rescale_factor).round().clamp(0, 255)
            images.append(Image.fromarray(bytes_.to(torch.uint8).numpy()))
        return images

    def costs(self, model: Any) -> ModelFlops:
        """Operations per token and per patch. The mergers run on merged patches."""
        tower, vision = model.model.visual, model.config.vision_config
        mergers = linear_flops([tower.merger, *tower.deepstack_merger_list]) / self.merge**2
        return decoder_flops(self.decoder(model), is_trainable(tower)).with_vision(
            patch=linear_flops([tower.patch_embed, *tower.blocks]) + mergers,
            patch_pair=4.0 * vision.hidden_size * vision.depth,
            backward=backward_cost([tower], is_reached=False),
        )

    def encoding_problem(self, prompt: EncodedPrompt, images: Sequence[PilImage]) -> str | None:
        """Compare grids with the image sizes, then patches and image tokens with the grids."""
        expected = [self.expected_grid(image) for image in images]
        tokens = sum(h * w // self.merge**2 for _, h, w in expected)
        present = prompt.ids.count(self.image_id)
        if present != tokens:
            return f"{present} image tokens, but the images need {tokens}"
        if not images:
            return None
        if "pixel_values" not in prompt.pixels:
            return "the pixels of the image are missing"
        grids = prompt.pixels["image_grid_thw"].tolist()
        if grids != expected:
            return f"grids {grids}, but the images need {expected}"
        patches, needed = len(prompt.pixels["pixel_values"]), sum(h * w for _, h, w in expected)
        return None if patches == needed else f"{patches} patches, but the images need {needed}"

    def image_grid(self) -> dict[str, Any]:
        """Patch size, merge size and size limits."""
        size = {key: value for key, value in dict(self.processor.size).items() if value is not None}
        return {
            "patch": int(self.config.vision_config.patch_size),
            "merge": self.merge,
            "min_pixels": size.get("shortest_edge"),
            "max_pixels": size.get("longest_edge"),
        }

    def describe_grid(self) -> str:
        """The image grid in words, for messages."""
        grid = self.image_grid()
        limits = f"{grid['min_pixels']:,} to {grid['max_pixels']:,} pixels"
        return f"patch {grid['patch']}, merge {grid['merge']}, {limits}"

    def common_limit(self, other: dict[str, Any]) -> int | None:
        """A limit of image tokens under which the grid equals another one, or None."""
        ours, keys = self.image_grid(), ("patch", "merge", "min_pixels", "max_pixels")
        if ours.keys() != other.keys() or any(ours[k] != other[k] for k in keys[:2]):
            return None
        key = keys[3] if ours["min_pixels"] == other["min_pixels"] else keys[2]
        return max(1, min(int(ours[key]), int(other[key])) // (ours["patch"] * self.merge) ** 2)

    def limit_image_tokens(self, limit: int) -> None:
        """Shrink larger images to at most `limit` image tokens."""
        area = limit * (int(self.config.vision_config.patch_size) * self.merge) ** 2
        size = dict(self.processor.size)
        smallest = min(int(size["shortest_edge"]), area)
        self.processor.size = type(self.processor.size)(shortest_edge=smallest, longest_edge=area)


def place_images(
    ids: Sequence[int], image_id: int, grids: Tensor, merge: int
) -> tuple[list[int], Tensor, int]:
    """Expand each image placeholder to its tokens, with (time, height, width) positions.

    A text token advances all three axes by 1. An image of h x w merged tokens advances them by
    max(h, w).

    Returns:
        Expanded ids, positions [3, P], and the position of the next token.
    """
    expanded: list[int] = []
    columns: list[Tensor] = []
    position, grid_of_image = 0, iter(grids.tolist())
    for token in ids:
        if token != image_id:
            expanded.append(token)
            columns.append(torch.full((3, 1), position))
            position += 1
            continue
        frames, height, width = next(grid_of_image)
        height, width = height // merge, width // merge
        expanded += [image_id] * (frames * height * width)
        axes = torch.meshgrid(
            torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij"
        )
        columns.append(torch.stack(axes).reshape(3, -1) + position)
        position += max(height, width)
    return expanded, torch.cat(columns, dim=1), position


def check_config(config: Any) -> None:
    """Raise M104 for values that transformers would silently ignore or clamp."""
    text, vision = config.text_config, config.vision_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    section = (getattr(text, "rope_parameters", None) or {}).get("mrope_section", [24, 20, 20])
    levels = list(vision.deepstack_visual_indexes)
    vision_head = vision.hidden_size // vision.num_heads
    problems = [
        (
            len(section) != 3,
            f"mrope_section {section} must have three entries (time, height, width)",
        ),
        (
            sum(section) != head_dim // 2,
            f"mrope_section {section} sums to {sum(section)},"
            f" half the head dimension is {head_dim // 2}",
        ),
        (min(section) == 0, f"mrope_section {section} leaves an axis without a frequency"),
        (
            bool(levels) and max(levels) >= vision.depth,
            f"deepstack_visual_indexes {levels} must be below depth {vision.depth}",
        ),
        (len(set(levels)) != len(levels), f"deepstack_visual_indexes {levels} repeats a layer"),
        (
            len(levels) > text.num_hidden_layers,
            f"{len(levels)} deepstack levels, but {text.num_hidden_layers} text layers",
        ),
        (
            vision.out_hidden_size != text.hidden_size,
            f"vision out_hidden_size {vision.out_hidden_size} is not the text hidden_size"
            f" {text.hidden_size}",
        ),
        (vision_head % 4 != 0, f"vision head dimension {vision_head} must be a multiple of 4"),
        (
            int(vision.num_position_embeddings**0.5) ** 2 != vision.num_position_embeddings,
            f"num_position_embeddings {vision.num_position_embeddings} must be a square",
        ),
    ]
    for is_wrong, message in problems:
        if is_wrong:
            raise ModelError(
                "M104",
                message,
                where="config.json",
                why="transformers accepts this silently and builds another model",
                fix="correct config.json, or create the model again",
            )
