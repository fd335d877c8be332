"""Tiny models of the real architecture: Qwen3-VL classes with small sizes.

Their byte-level tokenizer is trained in the same process.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vistill.models.families.qwen3_vl import Qwen3VLFamily
from vistill.models.loading import VLM

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
#: The format of Qwen: role headers, images in place between vision tokens.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: A word includes a leading space or mark. Every digit is a token (as in Qwen's tokenizer).
SPLIT_PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class TinySize:
    """The sizes of a tiny model."""

    hidden: int = 64
    layers: int = 3
    heads: int = 2
    feed_forward: int = 192
    vision_hidden: int = 64
    vision_depth: int = 2
    vision_heads: int = 4
    vision_feed_forward: int = 128
    patch: int = 8
    merge: int = 2
    side: int = 64
    """Side of the square grid of learned vision positions, in pixels."""
    min_pixels: int = 64 * 64
    max_pixels: int = 64 * 64
    init: float = 0.05
    """Standard deviation of the initial weights. With 0.02 this size learns much more slowly."""


def train_tokenizer(texts: Iterable[str], vocabulary: int = 640) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer. It can encode every string, so it needs no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=32768,
    )
    fast_tokenizer.chat_template = CHAT_TEMPLATE
    return fast_tokenizer


def tiny_config(size: TinySize, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """A `Qwen3VLConfig` without values that transformers would silently ignore or clamp.

    These are head_dim, mrope_section, DeepStack levels below the depth, and the special ids.
    """
    head_dim = 32
    third = head_dim // 2 // 3
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL_TOKENS}  # pyright: ignore[reportArgumentType]
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.hidden,
            "intermediate_size": size.feed_forward,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads,
            "head_dim": head_dim,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [head_dim // 2 - 2 * third, third, third],
                "mrope_interleaved": True,
            },
            "initializer_range": size.init,
            "tie_word_embeddings": True,
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "bos_token_id": None,
        },
        vision_config={
            "depth": size.vision_depth,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_feed_forward,
            "num_heads": size.vision_heads,
            "patch_size": size.patch,
            "spatial_merge_size": size.merge,
            "temporal_patch_size": 2,
            "out_hidden_size": size.hidden,
            "num_position_embeddings": (size.side // size.patch) ** 2,
            "deepstack_visual_indexes": [size.vision_depth - 1],
            "initializer_range": size.init,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def tiny_processor(size: TinySize) -> Qwen2VLImageProcessorPil:
    """The PIL image processor, with the patch size and the size limits of the tiny model."""
    return Qwen2VLImageProcessorPil(
        patch_size=size.patch,
        temporal_patch_size=2,
        merge_size=size.merge,
        size={"shortest_edge": size.min_pixels, "longest_edge": size.max_pixels},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def build_tiny(size: TinySize, tokenizer: PreTrainedTokenizerFast, seed: int) -> VLM:
    """A tiny untrained model. The same seed gives the same weights."""
    config = tiny_config(size, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return VLM(model, tokenizer, Qwen3VLFamily(config, tokenizer, tiny_processor(size)), "tiny")
