"""A second family that defines only what every family must: LLaVA, CLIP tower and Llama decoder.

It has other classes and module names, one position axis, a fixed number of tokens per image and no
DeepStack.
"""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vistill.models.families.base import Family
from vistill.models.loading import VLM

PATCH, SIDE = 8, 32


class LlavaFamily(Family):
    """Adapter for `LlavaForConditionalGeneration`."""

    name = "llava"
    processor_type = CLIPImageProcessorPil

    def image_tokens(self, image):
        return (self.config.vision_config.image_size // self.config.vision_config.patch_size) ** 2

    def image_grid(self):
        vision = self.config.vision_config
        return {"patch": vision.patch_size, "image_size": vision.image_size}


def build_llava(tokenizer, seed, tied=False, hidden=32):
    """A tiny untrained model. The same seed gives the same weights."""
    ids = {
        token: tokenizer.convert_tokens_to_ids(token)
        for token in ("<|image_pad|>", "<|endoftext|>", "<|im_end|>")
    }
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        pad_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        bos_token_id=None,
        initializer_range=0.1,
        tie_word_embeddings=tied,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        initializer_range=0.1,
    )
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    processor = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return VLM(model, tokenizer, LlavaFamily(config, tokenizer, processor), "tiny-llava")
