"""Qwen3-VL as published, without its weights: the real vocabulary, and the four layouts.

The ranks of the vocabulary are a file of the package `dashscope` (Apache-2.0). Its merges follow
from the ranks. Widths are a sixteenth of the published ones, decoders have four layers; everything
else is as published: 151,936 head rows for 151,669 tokens, head dimensions, sections of the rotary
positions, DeepStack levels, tied and untied heads.
"""

import base64
import functools
import itertools
from dataclasses import dataclass

import torch
from real_packages import package_folder
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vistill.models.families.qwen3_vl import Qwen3VLFamily
from vistill.models.loading import VLM
from vistill.models.tiny import CHAT_TEMPLATE

NUM_RANKS, NUM_TOKENS, HEAD_ROWS = 151_643, 151_669, 151_936
#: Added tokens in the order of their ids, from 151,643. Those of the second list are not special.
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
NOT_SPECIAL = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
)  # fmt: skip
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.cache
def read_ranks():
    """The rank of every word, as bytes. A word's rank is its id."""
    path = package_folder("dashscope") / "resources" / "qwen.tiktoken"
    pairs = (line.split() for line in path.read_bytes().splitlines())
    return {base64.b64decode(word): int(rank) for word, rank in pairs}


def split_word(word, ranks):
    """The parts of a word by merges of lower rank than its own: two, or one for a single byte."""
    limit, parts = ranks.get(word, len(ranks)), [bytes([byte]) for byte in word]
    while len(parts) > 1:
        ranked = (ranks.get(a + b, limit) for a, b in itertools.pairwise(parts))
        rank, i = min((rank, i) for i, rank in enumerate(ranked))
        if rank >= limit:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


@functools.cache
def tokenizer_json():
    """The tokenizer, as JSON: byte-level BPE on words split by Qwen's pattern."""
    ranks = read_ranks()
    letters = byte_letters()

    def spell(word):
        return "".join(letters[byte] for byte in word)

    vocabulary = {spell(word): rank for word, rank in ranks.items()}
    by_rank = sorted((word for word in ranks if len(word) > 1), key=ranks.get)
    merges = [tuple(map(spell, split_word(word, ranks))) for word in by_rank]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokens = [(token, True) for token in SPECIAL] + [(token, False) for token in NOT_SPECIAL]
    added = [AddedToken(t, special=special, normalized=False) for t, special in tokens]
    tokenizer.add_tokens(added)
    return tokenizer.to_str()


def byte_letters():
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + n) for n, byte in enumerate(others)}


def published_tokenizer():
    """The tokenizer of Qwen3-VL."""
    tokenizer = Qwen2Tokenizer(
        tokenizer_object=Tokenizer.from_str(tokenizer_json()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        bos_token=None,
        model_max_length=262_144,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@dataclass(frozen=True)
class Layout:
    """Published sizes of one model."""

    hidden: int
    heads: int
    feed_forward: int
    tied: bool
    vision_hidden: int
    vision_depth: int
    vision_feed_forward: int
    deepstack: tuple[int, ...]


LAYOUTS = {
    "2B": Layout(2048, 16, 6144, True, 1024, 24, 4096, (5, 11, 17)),
    "4B": Layout(2560, 32, 9728, True, 1024, 24, 4096, (5, 11, 17)),
    "8B": Layout(4096, 32, 12288, False, 1152, 27, 4304, (8, 16, 24)),
    "32B": Layout(5120, 64, 25600, False, 1152, 27, 4304, (8, 16, 24)),
}
REDUCED, LAYERS = 16, 4


def layout_config(size):
    """The published configuration at a sixteenth of its widths, with four decoder layers."""
    layout = LAYOUTS[size]
    hidden = layout.hidden // REDUCED
    return Qwen3VLConfig(
        text_config={
            "vocab_size": HEAD_ROWS,
            "hidden_size": hidden,
            "intermediate_size": layout.feed_forward // REDUCED,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": layout.heads // 8,
            "num_key_value_heads": 1,
            "head_dim": 128,
            "max_position_embeddings": 262_144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
            "initializer_range": 0.1,
            "tie_word_embeddings": layout.tied,
            "bos_token_id": 151_643,
            "eos_token_id": 151_645,
            "pad_token_id": None,
        },
        vision_config={
            "depth": layout.vision_depth,
            "hidden_size": layout.vision_hidden // REDUCED,
            "intermediate_size": layout.vision_feed_forward // REDUCED,
            "num_heads": 1,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": list(layout.deepstack),
            "initializer_range": 0.1,
        },
        image_token_id=151_655,
        video_token_id=151_656,
        vision_start_token_id=151_652,
        vision_end_token_id=151_653,
        tie_word_embeddings=layout.tied,
    )


def published_image_processor():
    """The image processor with the published settings."""
    return Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 65_536, "longest_edge": 16_777_216},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def build_layout(size, tokenizer, seed=0):
    """An untrained model of a published layout. The same seed gives the same weights."""
    config = layout_config(size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = [151_645, 151_643]
    model.generation_config.pad_token_id = 151_643
    family = Qwen3VLFamily(config, tokenizer, published_image_processor())
    return VLM(model.eval(), tokenizer, family, f"layout-{size}")
