"""The Qwen3-VL family: 2B, 4B, 8B, 32B and tiny ones from the same classes.

Inputs come from the tokenizer and the PIL image processor, not from `Qwen3VLProcessor`, which cannot be constructed
without torchvision; a test holds them equal to the real processor.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from vistill.errors import DataError, ModelError
from vistill.meter import is_heard
from vistill.models.family import Costs, DecoderStep, EncodedPrompt, PackedRow, RowBatch, left_pad
from vistill.models.one_each import OneEach
from vistill.models.qwen3_vl_step import FusedDecoder, fits
from vistill.models.sharing import ATTENTION
from vistill.models.work import Read, count_reading, learns, linear_costs
from vistill.types import Picture


class Qwen3VLFamily:
    """Adapter for `Qwen3VLForConditionalGeneration`."""

    name = "qwen3_vl"

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerBase, processor: Qwen2VLImageProcessorPil) -> None:
        check_config(config)
        self.config, self.tokenizer, self.processor = config, tokenizer, processor
        self.image_id = int(config.image_token_id)
        self.merge = int(config.vision_config.spatial_merge_size)
        placeholder = tokenizer.convert_ids_to_tokens(self.image_id)
        assert isinstance(placeholder, str)
        self.placeholder = placeholder

    def encode(self, messages: list[dict[str, Any]], images: Sequence[Picture]) -> EncodedPrompt:
        """Render the chat template, put image tokens in place, compute three-axis positions."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids.count(self.image_id) != len(images):
            raise DataError(
                "D103",
                f"{ids.count(self.image_id)} image placeholders, but {len(images)} pictures",
                why=f"text of the prompt holds {self.placeholder!r} itself, or the chat template drops pictures",
                fix="remove the placeholder token from the question",
            )
        if not images:
            positions = torch.arange(len(ids)).expand(3, -1)
            return EncodedPrompt(tuple(ids), {}, positions, len(ids), 0)
        made = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        grids = made["image_grid_thw"]
        expanded, positions, following = place_images(ids, self.image_id, grids, self.merge)
        pixels = {"pixel_values": made["pixel_values"], "image_grid_thw": grids}
        num_image_tokens = expanded.count(self.image_id)
        return EncodedPrompt(tuple(expanded), pixels, positions, following, num_image_tokens)

    def backbone(self, model: Any, rows: RowBatch) -> Tensor:
        """One call of the decoder; the vision tower runs once per prompt, not once per rollout."""
        device = model.device
        extra: dict[str, Any] = {}
        features = self.image_features(model, rows.prompts)
        if features is not None:
            extra["mm_encoder_outputs"] = {"image": repeat_features(features, rows)}
        if is_heard():
            prompts, every = sum(len(rows.prompts[g].ids) for g in rows.group), rows.ids.numel()
            cells = every * rows.ids.shape[1]
            count_reading(self.costs(model), Read(prompts, every - prompts, cells, rows.prompts))
        text_positions = (rows.mask.cumsum(-1) - 1).clamp_min(0)[None]
        positions = torch.cat([text_positions, rows.positions]).to(device)
        output = model.model(
            input_ids=rows.ids.to(device),
            attention_mask=rows.mask.to(device),
            position_ids=positions,
            use_cache=False,
            **extra,
        )
        return output.last_hidden_state

    def shares_prompts(self, model: Any) -> bool:
        """With torch's own attention; another kernel was chosen by somebody for a reason."""
        return model.model.language_model.config._attn_implementation in {"sdpa", ATTENTION}

    def packed_states(self, model: Any, row: PackedRow) -> Tensor:
        """The model's own embedding, layers and norm, with our attention between the tokens of one packed row."""
        decoder, device = model.model.language_model, model.device
        decoder.config._attn_implementation = ATTENTION
        if is_heard():
            made, kept = len(row.ids), row.attend.kept is not None
            read = Read(made * kept, made * (not kept), row.attend.cells, row.prompts, keys_only=kept)
            count_reading(self.costs(model), read)
        ids = row.ids.to(device)
        hidden, deepstack, seen = decoder.embed_tokens(ids), [], ids == self.image_id
        features = self.image_features(model, row.prompts)
        if features is not None:
            hidden = hidden.masked_scatter(seen[:, None], torch.cat(features.pooler_output).to(hidden.dtype))
            deepstack = [torch.cat(level) for level in features.deepstack_features]
        hidden = hidden[None]
        options = {"position_embeddings": decoder.rotary_emb(hidden, row.positions[:, None].to(device))}
        last = len(decoder.layers) - 1
        for index, layer in enumerate(decoder.layers):
            if row.attend.kept is not None and index == last:
                row.attend.last_layer = last
                layer.self_attn(layer.input_layernorm(hidden), attention_mask=None, attend=row.attend, **options)
                return hidden.new_zeros(0, hidden.shape[-1])
            hidden = layer(hidden, attend=row.attend, **options)
            if index < len(deepstack):
                hidden = decoder._deepstack_process(hidden, seen[None], deepstack[index])
        return decoder.norm(hidden)[0]

    def decoder_step(self, model: Any) -> DecoderStep:
        """A fused step for a small float32 model, else `packed_states`."""
        decoder = model.model.language_model
        fused = FusedDecoder(decoder) if fits(decoder) else None

        def step(ids: Tensor, positions: Tensor, attend: OneEach) -> Tensor:
            if fused is None:
                return self.packed_states(model, PackedRow(ids, positions, attend))
            if is_heard():
                count_reading(self.costs(model), Read(response_tokens=len(ids), cells=attend.cells))
            return fused(ids, positions, attend)

        return step

    def costs(self, model: Any) -> Costs:
        """What a token and a patch cost."""
        text, vision, decoder = model.config.text_config, model.config.vision_config, model.model.language_model
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        tower, seeing = model.model.visual, learns(model.model.visual)
        mergers = linear_costs([tower.merger, *tower.deepstack_merger_list]) / self.merge**2
        return Costs(
            token=linear_costs(decoder.layers),
            last_feed_forward=linear_costs([decoder.layers[-1].mlp]),
            cell=4.0 * text.num_attention_heads * width,
            layers=len(decoder.layers),
            patch=linear_costs([tower.patch_embed, *tower.blocks]) + mergers,
            patch_pair=4.0 * vision.hidden_size * vision.depth,
            text_backward=float(learns(decoder)) + float(learns(decoder) or seeing),
            vision_backward=2.0 * seeing,
        )

    def image_features(self, model: Any, prompts: Sequence[EncodedPrompt]) -> Any | None:
        """Encode the pictures of several prompts, in order."""
        seen = [prompt for prompt in prompts if prompt.has_image]
        if not seen:
            return None
        return model.model.get_image_features(
            torch.cat([p.pixels["pixel_values"] for p in seen]).to(model.device),
            torch.cat([p.pixels["image_grid_thw"] for p in seen]).to(model.device),
            return_dict=True,
        )

    def wrong_encoding(self, prompt: EncodedPrompt, images: Sequence[Picture]) -> str | None:
        """Grids follow from the pictures' sizes alone; patches and image tokens follow from the grids."""
        size, patch = dict(self.processor.size), int(self.config.vision_config.patch_size)
        expected = []
        for image in images:
            height, width = smart_resize(
                image.height, image.width, patch * self.merge, int(size["shortest_edge"]), int(size["longest_edge"])
            )
            expected.append([1, height // patch, width // patch])
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

    def picture_states(self, model: Any, prompts: Sequence[EncodedPrompt]) -> list[Tensor]:
        """The vision tower's output, DeepStack left out."""
        features = self.image_features(model, prompts)
        return [] if features is None else list(features.pooler_output)

    def generation_inputs(self, prompts: Sequence[EncodedPrompt], pad_id: int) -> dict[str, Tensor]:
        """Arguments for `generate`; positions follow from the grids and token types."""
        ids, mask = left_pad([p.ids for p in prompts], pad_id)
        inputs = {"input_ids": ids, "attention_mask": mask}
        seen = [p for p in prompts if p.has_image]
        if seen:
            inputs["pixel_values"] = torch.cat([p.pixels["pixel_values"] for p in seen])
            inputs["image_grid_thw"] = torch.cat([p.pixels["image_grid_thw"] for p in seen])
            inputs["mm_token_type_ids"] = ((ids == self.image_id) & (mask == 1)).int()
        return inputs

    def banned_ids(self) -> list[int]:
        """Image, video and vision start/end tokens: one that is sampled breaks the next forward."""
        c = self.config
        ids = (c.image_token_id, c.video_token_id, c.vision_start_token_id, c.vision_end_token_id)
        return sorted({int(i) for i in ids if i is not None})

    def image_grid(self) -> dict[str, Any]:
        """Patch, merge and size limits."""
        size = {key: value for key, value in dict(self.processor.size).items() if value is not None}
        return {
            "patch": int(self.config.vision_config.patch_size),
            "merge": self.merge,
            "min_pixels": size.get("shortest_edge"),
            "max_pixels": size.get("longest_edge"),
        }

    def limit_image_tokens(self, limit: int) -> None:
        """Shrink larger pictures to at most `limit` image tokens each."""
        area = limit * (int(self.config.vision_config.patch_size) * self.merge) ** 2
        size = dict(self.processor.size)
        smallest = min(int(size["shortest_edge"]), area)
        self.processor.size = type(self.processor.size)(shortest_edge=smallest, longest_edge=area)


def place_images(ids: Sequence[int], image_id: int, grids: Tensor, merge: int) -> tuple[list[int], Tensor, int]:
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
        axes = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
        columns.append(torch.stack(axes).reshape(3, -1) + at)
        at += max(height, width)
    return expanded, torch.cat(columns, dim=1), at


def repeat_features(features: Any, rows: RowBatch) -> BaseModelOutputWithPooling:
    """Features per picture, repeated for each rollout of its prompt, in row order."""
    of_group: list[range] = []
    start = 0
    for prompt in rows.prompts:
        count = len(prompt.pixels["image_grid_thw"]) if prompt.has_image else 0
        of_group.append(range(start, start + count))
        start += count
    order = [i for g in rows.group for i in of_group[g]]
    output = BaseModelOutputWithPooling(pooler_output=tuple(features.pooler_output[i] for i in order))  # pyright: ignore[reportArgumentType]
    output["deepstack_features"] = [tuple(level[i] for i in order) for level in features.deepstack_features]
    return output


def check_config(config: Any) -> None:
    """Refuse values that transformers would ignore or clamp without a word (M104)."""
    text, vision = config.text_config, config.vision_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    section = (getattr(text, "rope_parameters", None) or {}).get("mrope_section", [24, 20, 20])
    levels = list(vision.deepstack_visual_indexes)
    vision_head = vision.hidden_size // vision.num_heads
    problems = [
        (len(section) != 3, f"mrope_section {section} must have three entries (time, height, width)"),
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
