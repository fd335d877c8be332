"""Bytes that autograd saves for the backward pass, counted from the shape of a model.

The counts follow `SharedReading` (`models/scoring.py`) and the layers of transformers' Qwen3-VL, in
float32 or under bf16 autocast. Decoders of other families with gated feed-forward layers save
nearly the same. Needs no torch; `tests/planning` compares with the tensors that autograd saves.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from vistill.lora_settings import LoraSettings
from vistill.planning.lora import adapted_parts, adapter_parameters
from vistill.planning.shapes import ModelShape, VisionShape, layer_weights
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
    lora: LoraSettings | None = None
    """Adapters on frozen weights. In bf16 all frozen weights are bf16."""
    recomputes: bool = False
    """Gradient checkpointing: of a layer only its input is held."""
    half_weights: bool = False
    """bf16 weights that are trained."""

    @property
    def size(self) -> int:
        """Bytes of a value in the precision of the products."""
        return HALF if self.is_half else FLOAT

    @property
    def trains_language(self) -> bool:
        """Whether the decoder is trained. The inputs of frozen weights are not saved."""
        return "language" in self.trained_parts

    @property
    def trains_norms(self) -> bool:
        """Whether the norms of the decoder are trained. They get no adapters."""
        return self.trains_language and self.lora is None

    @cached_property
    def trained_parts(self) -> Collection[str]:
        """Parts of the model with trained weights."""
        lora = self.lora or LoraSettings(targets=("language", "vision"))
        return adapted_parts(lora, self.frozen)

    @property
    def rank(self) -> int:
        """Rank of the adapters; 0 without."""
        return 0 if self.lora is None else self.lora.rank

    @property
    def trains_tower(self) -> bool:
        """Whether the vision tower is trained."""
        return "vision" in self.trained_parts

    @property
    def trains_projector(self) -> bool:
        """Whether the projector is trained."""
        return "projector" in self.trained_parts

    @property
    def reaches_projector(self) -> bool:
        """Whether a gradient goes through the projector."""
        return self.trains_projector or self.trains_tower

    @cached_property
    def attention_input(self) -> int:
        """Per token and layer: from the residual stream to queries, keys and values."""
        s, trained = self.shape, self.trains_language
        width = (s.heads + s.kv_heads) * s.head_dim
        inputs = s.hidden * self.size * self.casts(3) * trained
        norms = FLOAT * width + FLOAT * (s.heads + s.kv_heads)
        norms += self.size * width * self.trains_norms
        return self.norm + inputs + norms + 3 * self.rank * self.size * trained

    def casts(self, products: int) -> int:
        """Copies of the input of some products: under autocast each casts its own."""
        return products if self.is_half and not self.half_weights else 1

    @property
    def norm(self) -> int:
        """Per token: a norm of the residual stream, which is in float32."""
        return self.shape.hidden * (FLOAT + self.stream_size * self.trains_norms) + FLOAT

    @property
    def output_input(self) -> int:
        """Per token and layer: the input of the output projection."""
        width = self.shape.heads * self.shape.head_dim + self.rank
        return self.size * width * self.trains_language

    @cached_property
    def feed_forward(self) -> int:
        """Per token and layer: the second norm and the gated feed-forward layer."""
        s, trained = self.shape, self.trains_language
        inputs = s.hidden * self.size * self.casts(2) * trained
        adapters = 3 * self.rank * self.size * trained
        return self.norm + inputs + self.size * s.feed_forward * (3 + trained) + adapters

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
    def rotary_and_ids(self) -> int:
        """Per token: what the layers that are computed again share, and the embedding keeps."""
        ids = 8 * (self.trains_language and self.lora is None)
        return ids + 2 * self.stream_size * self.shape.head_dim

    @property
    def layer_input(self) -> int:
        """Per token: the input of a layer, the residual stream."""
        return self.stream_size * self.shape.hidden

    @property
    def cached_keys(self) -> int:
        """Per token and layer: keys and values of a prompt, which its responses read."""
        width = self.shape.kv_heads * self.shape.head_dim
        return (self.stream_size + self.size) * width

    @property
    def per_token(self) -> int:
        """Per token, whatever the layers: ids, indices and rotary positions."""
        return 4 * 8 + 2 * self.stream_size * self.shape.head_dim

    @property
    def stream_size(self) -> int:
        """Bytes of a value of the residual stream: of half-precision weights it is in bf16."""
        return FLOAT if self.lora is None and not self.half_weights else self.size

    def response_token(self) -> int:
        """Bytes per token of a response, without its mask."""
        s = self.shape
        if self.recomputes:
            return s.layers * self.layer_input + self.norm + self.rotary_and_ids
        # embedded by frozen weights, a token has no gradient before it attends to its prompt, or
        # before the first adapter
        first = 0 if self.trains_language else self.attention_input
        first = self.norm if self.trains_language and self.lora is not None else first
        return s.layers * self.layer(self.masked_key_heads) - first + self.norm + self.per_token

    def response(self) -> int:
        """Bytes per response and token of its prompt: copies of the prompt's keys and values."""
        if self.recomputes:
            return 0
        return self.shape.layers * self.keys(self.masked_key_heads) + 8

    def mask(self, prompt_tokens: int, response_tokens: int) -> int:
        """Bytes of the mask of a part whose responses share a prompt."""
        return self.size * response_tokens * (prompt_tokens + response_tokens)

    def prompt_token(self) -> int:
        """Bytes per token of a prompt. Its last layer computes keys and values only."""
        s = self.shape
        if self.recomputes:
            per_layer = self.layer_input + self.cached_keys
            return s.layers * per_layer + self.rotary_and_ids + 1  # a byte says what is an image
        last = self.attention_input + self.output_input
        first = self.norm if self.lora is not None and not self.reaches_projector else 0
        return (s.layers - 1) * self.layer(s.kv_heads) + last - first + self.per_token

    def patch(self) -> int:
        """Bytes per image patch."""
        vision = self.shape.vision
        if vision is None or not self.reaches_projector:
            return 0
        merged = self.size * vision.width * (3 * (vision.levels + 1) + 1)
        if self.lora is not None:  # the inputs of frozen layers and norms are not saved
            per_level = 3 if self.trains_projector else 1
            merged = (
                self.size * vision.width * (per_level * (vision.levels + 1) + self.trains_tower)
            )
            if not self.trains_tower:
                return merged
        if not self.trains_tower:
            return merged + self.size * vision.width * vision.levels
        if self.recomputes:
            inputs = vision.depth * self.size * vision.width
            return inputs + self.once_per_patch(vision) + merged
        once = self.once_per_patch(vision)
        if self.lora is not None:  # the first adapter gets an input without gradient
            once -= self.size * vision.width + 2 * FLOAT
        return vision.depth * self.block(vision) + once + merged

    def block(self, vision: VisionShape) -> int:
        """Bytes per patch: one block of the vision tower."""
        width = 11 * self.size * vision.width
        block = width + 2 * self.size * vision.feed_forward + 4 * FLOAT + FLOAT * vision.heads
        return block + 4 * self.rank * self.size

    def once_per_patch(self, vision: VisionShape) -> int:
        """Bytes per patch, whatever the blocks: indices, rotary positions, and the pixels."""
        pixels = self.size * vision.patch_values if self.lora is None else 0
        return 48 + 2 * FLOAT * (vision.width // vision.heads) + pixels

    def weight_copies(self) -> int:
        """Bytes of the bf16 copies of weights that all readings of a backward pass share.

        Autocast keeps copies of trained weights only, so prompts and responses have copies of
        frozen ones each.
        """
        if not self.is_half or self.half_weights:
            return 0
        s, vision = self.shape, self.shape.vision
        if self.lora is not None:  # other weights are bf16 already
            return HALF * adapter_parameters(s, self.lora, self.frozen)
        text = s.linear_weights
        if not self.trains_language and self.recomputes:
            text = 0
        elif not self.trains_language:
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
        layer = self.layer_again() if self.recomputes else (0, 0)
        again = self.prompt_again(prompt_tokens, patches) if self.recomputes else 0
        return HeldBytes(
            prompt_token=passes * prompt / max(1, prompt_tokens),
            response=float(passes * self.response() + layer[0]),
            response_token=float(passes * self.response_token() + layer[1]),
            weights=float(self.weight_copies()),
            recomputed=again / max(1, prompt_tokens),
        )

    def layer_again(self) -> tuple[int, int]:
        """Bytes of a layer that is computed again: per token of its prompt, and of the response.

        Its input is held already; the indices of attention are added.
        """
        heads = self.masked_key_heads
        return self.keys(heads) + 8, self.layer_besides_input(heads)

    def layer_besides_input(self, key_heads: int) -> int:
        """Per token: a layer without its input, which is held, and the indices of attention.

        Norms keep their input in float32, so an input in bf16 is not in the count of a layer.
        """
        counted = self.layer_input if self.stream_size == FLOAT else 0
        return self.layer(key_heads) - counted + 3 * 8

    def prompt_again(self, tokens: int, patches: int) -> int:
        """Bytes of a prompt while its largest layer is computed again."""
        vision = self.shape.vision
        block = 0
        if vision is not None and self.trains_tower:
            block = self.block(vision) - self.size * vision.width
        return max(tokens * self.layer_besides_input(self.shape.kv_heads), patches * block)
