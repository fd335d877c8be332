"""Any model of `AutoModelForImageTextToText`, by its own processor and transformers' public calls.

The processor encodes prompts. The model gets everything that the processor makes, so token types
and sizes reach it without code for a family. It derives positions and masks itself. The images of a
prompt are encoded once (`get_image_features`) and reach the rows of its rollouts as
`mm_encoder_outputs`. A prompt is read once for its siblings only where the configuration says that
every layer attends to all earlier tokens and to nothing else. What no rule covers is in
`deviations.py`, and the proofs at load (`proofs.py`) test the rest.
"""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vistill.flops_counter import is_counting
from vistill.models.families.base import base_model, check_number
from vistill.models.families.inputs import (
    EncodedPrompt,
    ImageStates,
    PackedRow,
    RowBatch,
    to_device,
    token_rows,
)
from vistill.models.families.layers import check_signature
from vistill.models.families.processor_family import HANDLED, TYPES, ProcessorFamily
from vistill.models.families.processors import plain_image
from vistill.models.flops import ReadTokens
from vistill.models.sharing import ATTENTION_NAME, packed_attention

#: Size in pixels of the image with which arguments are checked.
PROBE_SIZE = (64, 48)


class GenericFamily(ProcessorFamily):
    """Adapter for every model type without a file of its own."""

    name: ClassVar[str] = "generic"

    def generation_arguments(
        self, model: Any, prompts: Sequence[EncodedPrompt], siblings: int, pad_id: int
    ) -> tuple[dict[str, Any], int]:
        """Arguments of `generate`, one row per response: each prompt is repeated here.

        transformers would repeat the images of a batch for `num_return_sequences`, for some models
        in another order than the rows.
        """
        group = [g for g in range(len(prompts)) for _ in range(siblings)]
        rows = token_rows([prompts[g] for g in group], pad_id, left=True)
        arguments = {name: x.to(model.device) for name, x in rows.items()}
        return arguments | self.image_keywords(model, prompts, group), 1

    def check_arguments(self, model: Any) -> None:
        """Raise M110 if a call lacks a keyword for something that the processor makes."""
        base = base_model(model)
        arguments = ["input_ids", "attention_mask", "mm_encoder_outputs"]
        inputs = self.process(*self.only_images([plain_image(PROBE_SIZE)]))
        names = [name for name in inputs if name not in HANDLED]
        types = [name for name in names if name.endswith(TYPES)]
        check_signature(base.forward, [*arguments, *types])
        check_signature(model.forward, [*arguments[:2], "logits_to_keep"])
        sizes = set(inspect.signature(base.forward).parameters)
        pixels = [name for name in names if name not in types]
        check_signature(
            base.get_image_features,
            [n for n in pixels if n not in sizes or n.startswith("pixel")],
        )

    def image_features(self, model: Any, prompts: Sequence[EncodedPrompt]) -> Any | None:
        """The vision tower's output for the images of several prompts, or None without images.

        The tower runs once per prompt, so no image of another prompt changes a result. The outputs
        are joined in the container that the model itself uses: a tensor, a list or a tuple.
        """
        outputs = [self.features_of_prompt(model, p) for p in prompts if p.has_image]
        return join_features(outputs, range(len(outputs))) if outputs else None

    def features_of_prompt(self, model: Any, prompt: EncodedPrompt) -> Any:
        """The vision tower's output for the images of one prompt."""
        base = base_model(model)
        set_attention(getattr(model.config, "vision_config", None))
        names = inspect.signature(base.get_image_features).parameters
        pixels = {n: to_device(x, model.device) for n, x in prompt.pixels.items() if n in names}
        return base.get_image_features(**pixels, return_dict=True)

    def image_states(self, model: Any, prompts: Sequence[EncodedPrompt]) -> list[Tensor]:
        """What the decoder gets for the images of each prompt, [tokens, H] each."""
        outputs = [self.features_of_prompt(model, p) for p in prompts if p.has_image]
        return [flat_states(output.pooler_output) for output in outputs]

    def join_image_states(self, model: Any, prompts: Sequence[EncodedPrompt]) -> ImageStates | None:
        """The states of all image tokens in order, and those of DeepStack."""
        features = self.image_features(model, prompts)
        if features is None:
            return None
        states = flat_states(features.pooler_output)
        check_number(len(states), sum(p.num_image_tokens for p in prompts))
        levels = getattr(features, "deepstack_features", None) or ()
        return ImageStates(states, [flat_states(level) for level in levels])

    def image_keywords(
        self, model: Any, prompts: Sequence[EncodedPrompt], group: Sequence[int]
    ) -> dict[str, Any]:
        """The images of rows as keywords of the base model: encoded ones, and their sizes."""
        outputs = {
            g: self.features_of_prompt(model, p) for g, p in enumerate(prompts) if p.has_image
        }
        rows = [g for g in group if g in outputs]
        if not rows:
            return {}
        names = inspect.signature(base_model(model).forward).parameters
        sizes = [n for n in prompts[rows[0]].pixels if n in names and not n.startswith("pixel")]
        return {
            "mm_encoder_outputs": {"image": join_features(outputs, rows)},
            **{
                name: torch.cat([prompts[g].pixels[name] for g in rows]).to(model.device)
                for name in sizes
            },
        }

    def backbone(self, model: Any, rows: RowBatch) -> Tensor:
        """Hidden states [N, L, H] before the head. The model derives positions and masks."""
        if is_counting():
            num_prompt = sum(len(rows.prompts[g].ids) for g in rows.group)
            num_all = rows.ids.numel()
            read = ReadTokens(num_prompt, num_all - num_prompt, num_all * rows.ids.shape[1])
            self.count(model, read, rows.prompts)
        set_attention(self.decoder(model).config)
        prompts = [rows.prompts[g] for g in rows.group]
        types = token_rows(prompts, 0, left=False, width=rows.ids.shape[1])
        known = {n: x for n, x in types.items() if n.endswith(TYPES)}
        for name, x in known.items():
            for row, prompt in enumerate(prompts):
                x[row, len(prompt.ids) :] = self.response_type
            known[name] = x.to(model.device)
        output = base_model(model)(
            input_ids=rows.ids.to(model.device),
            attention_mask=rows.mask.to(model.device),
            use_cache=False,
            **known,
            **self.image_keywords(model, rows.prompts, rows.group),
        )
        return output.last_hidden_state

    def sharing_problem(self, model: Any) -> str | None:
        """Why siblings cannot attend to the keys and values of one prompt, or None."""
        problem = super().sharing_problem(model)
        if problem is not None:
            return problem
        if TYPES in inspect.signature(base_model(model).forward).parameters:
            return "tokens of its images or of its prompt attend in both directions"
        if not getattr(self.decoder(model), "_supports_attention_backend", False):
            return "its attention cannot be replaced"
        return None

    def packed_states(self, model: Any, row: PackedRow) -> Tensor | tuple[Tensor, ...]:
        """Hidden states [L, H] before the head, by the model's own decoder with our attention."""
        decoder, device, cache = self.decoder(model), model.device, row.attention.new_cache
        if is_counting():
            length = len(row.ids)
            read = ReadTokens(
                prompt_tokens=length * (cache is not None),
                response_tokens=length * (cache is None),
                num_scores=row.attention.num_scores,
            )
            self.count(model, read, row.prompts)
        ids = row.ids.to(device)
        hidden, is_image = model.get_input_embeddings()(ids), ids == self.image_id
        images, extra = self.join_image_states(model, row.prompts), {}
        if images is not None:
            hidden = hidden.masked_scatter(is_image[:, None], images.states.to(hidden.dtype))
            if images.levels:
                extra = self.image_arguments(is_image[None], images.levels)
        positions = row.positions[:, None] if len(row.positions) > 1 else row.positions
        with packed_attention(decoder.config):
            output = decoder(
                inputs_embeds=hidden[None],
                position_ids=positions.to(device),
                attend=row.attention.__call__,
                use_cache=False,
                **extra,
            )
        if cache is not None:
            return tuple(cache.tensors())
        return output.last_hidden_state[0]

    def image_arguments(self, is_image: Tensor, levels: Sequence[Tensor]) -> dict[str, Any]:
        """The arguments of DeepStack, as transformers' decoders name them."""
        return {"visual_pos_masks": is_image, "deepstack_visual_embeds": list(levels)}


def set_attention(config: Any) -> None:
    """Let a module use our attention function: transformers' own with repeatable gradients."""
    if config is not None and getattr(config, "_attn_implementation", None) == "sdpa":
        config._attn_implementation = ATTENTION_NAME


def flat_states(pooled: Any) -> Tensor:
    """The states of image tokens, [tokens, H], from a tensor, a list or a tuple."""
    x = pooled if isinstance(pooled, Tensor) else torch.cat(list(pooled))
    return x.reshape(-1, x.shape[-1])


def join_features(outputs: Any, order: Sequence[int]) -> Any:
    """The outputs of several prompts as one, in order, in the container of the model."""
    first = outputs[order[0]]

    def join(containers: list[Any]) -> Any:
        if isinstance(containers[0], Tensor):
            return torch.cat(containers)
        return type(containers[0])(x for container in containers for x in container)

    fields: dict[str, Any] = {"pooler_output": join([outputs[i].pooler_output for i in order])}
    if getattr(first, "deepstack_features", None):
        levels = zip(*(outputs[i].deepstack_features for i in order), strict=True)
        fields["deepstack_features"] = [join(list(level)) for level in levels]
    return type(first)(**fields)
