"""Bytes that autograd saves for the backward pass, counted from the shape of a model.

The counts follow `SharedReading` (`models/scoring.py`) and the layers of transformers' Qwen3-VL, in
float32 or under bf16 autocast. Decoders of other families with gated feed-forward layers save
nearly the same. Needs no torch; `tests/planning` compares with the tensors that autograd saves.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from vistill.planning.shapes import ModelShape, layer_weights
from vistill.training.held_bytes import HeldBytes

FLOAT, HALF = 4, 2


@dataclass(frozen=True)
class Activations:
    """What readings of a student save with gradient."""

    shape: ModelShape
    is_half: bool
    """bf16 autocast; else float32."""
    repeats_heads: bool
    """Whether masked attention gets one key head per query head, as on a CUDA device."""
    frozen: Collection[str] = ()

    @property
    def size(self) -> int:
        """Bytes of a value in the precision of the products."""
        return HALF if self.is_half else FLOAT

    @property
    def trains_language(self) -> bool:
        """Whether the decoder is trained. The inputs of frozen weights are not saved."""
        return "language" not in self.frozen

    @property
    def trains_tower(self) -> bool:
        """Whether the vision tower is trained."""
        return not {"vision", "tower"} & set(self.frozen)

    @property
    def trains_projector(self) -> bool:
        """Whether the projector is trained."""
        return "vision" not in self.frozen

    @cached_property
    def attention_input(self) -> int:
        """Per token and layer: from the residual stream to queries, keys and values."""
        s, trained = self.shape, self.trains_language
        width = (s.heads + s.kv_heads) * s.head_dim
        # under autocast each of the three products casts its input
        inputs = s.hidden * (3 * HALF if self.is_half else FLOAT) * trained
        norms = FLOAT * width + FLOAT * (s.heads + s.kv_heads) + self.size * width * trained
        return self.norm + inputs + norms

    @property
    def norm(self) -> int:
        """Per token: a norm of the residual stream, which is in float32."""
        return self.shape.hidden * FLOAT * (1 + self.trains_language) + FLOAT

    @property
    def output_input(self) -> int:
        """Per token and layer: the input of the output projection."""
        return self.size * self.shape.heads * self.shape.head_dim * self.trains_language

    @cached_property
    def feed_forward(self) -> int:
        """Per token and layer: the second norm and the gated feed-forward layer."""
        s, trained = self.shape, self.trains_language
        inputs = s.hidden * (2 * HALF if self.is_half else FLOAT) * trained
        return self.norm + inputs + self.size * s.feed_forward * (3 + trained)

    def attention(self, key_heads: int) -> int:
        """Per token and layer: queries, output, normaliser, and keys and values of the token."""
        s = self.shape
        queries = 2 * self.size * s.heads * s.head_dim + FLOAT * s.heads
        return queries + self.keys(key_heads)

    def keys(self, key_heads: int) -> int:
        """Per key and layer: keys and values as attention gets them."""
        return 2 * self.size * key_heads * self.shape.head_dim

    @property
    def masked_key_heads(self) -> int:
        """Heads of keys in attention with a mask."""
        return self.shape.heads if self.repeats_heads else self.shape.kv_heads

    def layer(self, key_heads: int) -> int:
        """Per token: one decoder layer."""
        return (
            self.attention_input + self.attention(key_heads) + self.output_input + self.feed_forward
        )

    @property
    def per_token(self) -> int:
        """Per token, whatever the layers: ids, indices and rotary positions."""
        return 4 * 8 + 2 * FLOAT * self.shape.head_dim

    def response_token(self) -> int:
        """Bytes per token of a response, without its mask."""
        s = self.shape
        # embedded by frozen weights, a token has no gradient before it attends to its prompt
        first = 0 if self.trains_language else self.attention_input
        return s.layers * self.layer(self.masked_key_heads) - first + self.norm + self.per_token

    def response(self) -> int:
        """Bytes per response and token of its prompt: copies of the prompt's keys and values."""
        return self.shape.layers * self.keys(self.masked_key_heads) + 8

    def mask(self, prompt_tokens: int, response_tokens: int) -> int:
        """Bytes of the mask of a part whose responses share a prompt."""
        return self.size * response_tokens * (prompt_tokens + response_tokens)

    def prompt_token(self) -> int:
        """Bytes per token of a prompt. Its last layer computes keys and values only."""
        s = self.shape
        last = self.attention_input + self.output_input
        return (s.layers - 1) * self.layer(s.kv_heads) + last + self.per_token

    def patch(self) -> int:
        """Bytes per image patch."""
        vision = self.shape.vision
        if vision is None or not self.trains_projector:
            return 0
        merged = self.size * vision.width * (3 * (vision.levels + 1) + 1)
        if not self.trains_tower:
            return merged + self.size * vision.width * vision.levels
        width = 11 * self.size * vision.width
        block = width + 2 * self.size * vision.feed_forward + 4 * FLOAT + FLOAT * vision.heads
        once = self.size * vision.patch_values + 48 + 2 * FLOAT * (vision.width // vision.heads)
        return vision.depth * block + once + merged

    def weight_copies(self) -> int:
        """Bytes of the bf16 copies of weights that all readings of a backward pass share.

        Autocast keeps copies of trained weights only, so prompts and responses have copies of
        frozen ones each.
        """
        if not self.is_half:
            return 0
        s, vision = self.shape, self.shape.vision
        text = s.linear_weights
        if not self.trains_language:
            text = 2 * s.linear_weights - (layer_weights(s) - self.last_layer_of_prompt)
        projector = vision.merger_weights if vision and self.trains_projector else 0
        tower = vision.tower_weights if vision and self.trains_tower else 0
        return HALF * (text + projector + tower)

    @property
    def last_layer_of_prompt(self) -> int:
        """Weights of the last layer that a prompt uses: its attention."""
        s = self.shape
        return s.hidden * 2 * (s.heads + s.kv_heads) * s.head_dim

    def held(self, prompt_tokens: int, patches: int, passes: int = 1) -> HeldBytes:
        """What the measurement of a run finds for prompts of this length and these images.

        Args:
            prompt_tokens: tokens of a prompt, those of its images included.
            patches: patches of its images.
            passes: passes with gradient.
        """
        prompt = prompt_tokens * self.prompt_token() + patches * self.patch()
        return HeldBytes(
            prompt_token=passes * prompt / max(1, prompt_tokens),
            response=float(passes * self.response()),
            response_token=float(passes * self.response_token()),
            weights=float(self.weight_copies()),
        )
