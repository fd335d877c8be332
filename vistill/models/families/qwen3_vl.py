"""The Qwen3-VL family: 2B, 4B, 8B, 32B and tiny ones from the same classes.

Inputs come from the tokenizer and the PIL image processor, not from `Qwen3VLProcessor`, which cannot be constructed
without torchvision; a test holds them equal to the real processor.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
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
    text_costs,
)
from vistill.models.families.qwen3_vl_step import FusedDecoder, fits
from vistill.models.flops import ModelFlops, ReadTokens, learns, linear_costs
from vistill.types import PilImage


class Qwen3VLFamily(Family):
    """Adapter for `Qwen3VLForConditionalGeneration`."""

    name = "qwen3_vl"
    processor_type = Qwen2VLImageProcessorPil

    def __init__(
        self, config: Any, tokenizer: PreTrainedTokenizerBase, processor: Qwen2VLImageProcessorPil
    ) -> None:
        check_config(config)
        super().__init__(config, tokenizer, processor)
        self.merge = int(config.vision_config.spatial_merge_size)

    def image_tokens(self, image: PilImage) -> int:
        """Merged patches of the picture as it is resized."""
        _, height, width = self.expected_grid(image)
        return height * width // self.merge**2

    def expected_grid(self, image: PilImage) -> list[int]:
        """Frames, rows and columns of patches, from the picture's size alone."""
        size, patch = dict(self.processor.size), int(self.config.vision_config.patch_size)
        height, width = smart_resize(
            image.height,
            image.width,
            patch * self.merge,
            int(size["shortest_edge"]),
            int(size["longest_edge"]),
        )
        return [1, height // patch, width // patch]

    def place(
        self, ids: Sequence[int], images: Sequence[PilImage], pixels: Pixels
    ) -> tuple[list[int], Tensor, int]:
        """Image tokens as the grids say; three-axis positions."""
        if not images:
            return list(ids), torch.arange(len(ids)).expand(3, -1), len(ids)
        return place_images(ids, self.image_id, pixels["image_grid_thw"], self.merge)

    def generation_inputs(self, prompts: Sequence[EncodedPrompt], pad_id: int) -> dict[str, Tensor]:
        """Arguments for `generate`; positions follow from the grids and token types."""
        inputs = super().generation_inputs(prompts, pad_id)
        if any(p.has_image for p in prompts):
            seen = (inputs["input_ids"] == self.image_id) & (inputs["attention_mask"] == 1)
            inputs["mm_token_type_ids"] = seen.int()
        return inputs

    def picture_arguments(self, seen: Tensor, levels: Sequence[Tensor]) -> dict[str, Any]:
        """DeepStack."""
        return {"visual_pos_masks": seen, "deepstack_visual_embeds": list(levels)}

    def decoder_step(self, model: Any) -> DecoderStep | None:
        """A fused step for a small float32 model."""
        decoder = self.decoder(model)
        if not fits(decoder):
            return None
        fused = FusedDecoder(decoder)

        def step(ids: Tensor, positions: Tensor, attend: DecodeAttention) -> Tensor:
            if is_counting():
                self.count(model, ReadTokens(response_tokens=len(ids), cells=attend.cells), ())
            return fused(ids, positions, attend)

        return step

    def patch_grids(self, prompt: EncodedPrompt) -> Iterable[tuple[int, int, int]]:
        """As the processor made them."""
        return [(f, h, w) for f, h, w in prompt.pixels["image_grid_thw"].tolist()]

    def costs(self, model: Any) -> ModelFlops:
        """What a token and a patch cost; the mergers run on merged patches."""
        tower, vision = model.model.visual, model.config.vision_config
        mergers = linear_costs([tower.merger, *tower.deepstack_merger_list]) / self.merge**2
        return text_costs(self.decoder(model), learns(tower)).with_vision(
            patch=linear_costs([tower.patch_embed, *tower.blocks]) + mergers,
            patch_pair=4.0 * vision.hidden_size * vision.depth,
            backward=2.0 * learns(tower),
        )

    def wrong_encoding(self, prompt: EncodedPrompt, images: Sequence[PilImage]) -> str | None:
        """Grids follow from the pictures' sizes alone; patches and image tokens follow from the grids."""
        expected = [self.expected_grid(image) for image in images]
        tokens = sum(h * w // self.merge**2 for _, h, w in expected)
        found = prompt.ids.count(self.image_id)
        if found != tokens:
            return f"{found} image tokens, the pictures ask for {tokens}"
        if not images:
            return None
        if "pixel_values" not in prompt.pixels:
            return "the picture's pixels are missing"
        grids = prompt.pixels["image_grid_thw"].tolist()
        if grids != expected:
            return f"grids {grids}, the pictures ask for {expected}"
        patches, needed = len(prompt.pixels["pixel_values"]), sum(h * w for _, h, w in expected)
        return None if patches == needed else f"{patches} patches, the pictures ask for {needed}"

    def image_grid(self) -> dict[str, Any]:
        """Patch, merge and size limits."""
        size = {key: value for key, value in dict(self.processor.size).items() if value is not None}
        return {
            "patch": int(self.config.vision_config.patch_size),
            "merge": self.merge,
            "min_pixels": size.get("shortest_edge"),
            "max_pixels": size.get("longest_edge"),
        }

    def grid_in_words(self) -> str:
        """The grid in a message."""
        g = self.image_grid()
        return f"patch {g['patch']}, merge {g['merge']}, {g['min_pixels']:,} to {g['max_pixels']:,} pixels"

    def limit_image_tokens(self, limit: int) -> None:
        """Shrink larger pictures to at most `limit` image tokens each."""
        area = limit * (int(self.config.vision_config.patch_size) * self.merge) ** 2
        size = dict(self.processor.size)
        smallest = min(int(size["shortest_edge"]), area)
        self.processor.size = type(self.processor.size)(shortest_edge=smallest, longest_edge=area)


def place_images(
    ids: Sequence[int], image_id: int, grids: Tensor, merge: int
) -> tuple[list[int], Tensor, int]:
    """Expand each image placeholder to its tokens and give every token its (time, height, width) position.

    Text advances all three axes by one; a picture of h x w merged tokens advances them by max(h, w).

    Returns:
        Expanded ids, positions [3, P], and the position of the token that follows.
    """
    expanded: list[int] = []
    columns: list[Tensor] = []
    at, pictures = 0, iter(grids.tolist())
    for token in ids:
        if token != image_id:
            expanded.append(token)
            columns.append(torch.full((3, 1), at))
            at += 1
            continue
        frames, height, width = next(pictures)
        height, width = height // merge, width // merge
        expanded += [image_id] * (frames * height * width)
        axes = torch.meshgrid(
            torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij"
        )
        columns.append(torch.stack(axes).reshape(3, -1) + at)
        at += max(height, width)
    return expanded, torch.cat(columns, dim=1), at


def check_config(config: Any) -> None:
    """Refuse values that transformers would ignore or clamp silently (M104)."""
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
            f"mrope_section {section} sums to {sum(section)}, half the head dimension is {head_dim // 2}",
        ),
        (min(section) == 0, f"mrope_section {section} leaves an axis without a frequency"),
        (
            bool(levels) and max(levels) >= vision.depth,
            f"deepstack_visual_indexes {levels} must lie below depth {vision.depth}",
        ),
        (len(set(levels)) != len(levels), f"deepstack_visual_indexes {levels} repeats a layer"),
        (
            len(levels) > text.num_hidden_layers,
            f"{len(levels)} deepstack levels, but {text.num_hidden_layers} text layers",
        ),
        (
            vision.out_hidden_size != text.hidden_size,
            f"vision out_hidden_size {vision.out_hidden_size} is not the text hidden_size {text.hidden_size}",
        ),
        (vision_head % 4 != 0, f"vision head dimension {vision_head} must be a multiple of 4"),
        (
            int(vision.num_position_embeddings**0.5) ** 2 != vision.num_position_embeddings,
            f"num_position_embeddings {vision.num_position_embeddings} must be a square",
        ),
    ]
    for wrong, message in problems:
        if wrong:
            raise ModelError(
                "M104",
                message,
                where="config.json",
                why="transformers accepts this silently and the model would be built differently from what it says",
                fix="correct config.json, or build the model again",
            )
