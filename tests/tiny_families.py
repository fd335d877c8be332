"""Tiny models of the real transformers classes, each with its own processor, on one tokenizer.

The tokenizers of all families have the same vocabulary: the words of the project's tiny tokenizer
and the special tokens of every family. So any of them can teach any other.
"""

import functools
import importlib
import importlib.util

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from vistill.models.families.deviations import family_type_of
from vistill.models.loading import VLM

PATCH, SIDE = 8, 32
#: Special tokens of the families, in the vocabulary of all of them.
TOKENS = (
    "<image>", "<video>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<img>", "</img>", "<IMG_CONTEXT>",
    "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<start_of_image>",
    "<end_of_image>", "<image_soft_token>", "<|image|>", "<|video|>", "<|begin_of_image|>",
    "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<bos>",
    *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)),
)  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def vocabulary(name="plain"):
    """The tokenizer of all families, as JSON."""
    from vistill.studies.make_tiny_models import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(TOKENS)})
    if name == "paligemma":
        from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS

        tokenizer.add_tokens(EXTRA_TOKENS)
    return tokenizer.backend_tokenizer.to_str()


def make_tokenizer(vocabulary_name="plain", **tokens):
    """A tokenizer of one family. `tokens` are the named tokens that its processor asks for."""
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(vocabulary(vocabulary_name)),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<bos>",
        model_max_length=32768,
        extra_special_tokens=tokens,
    )


def template(image):
    return TEMPLATE.replace("IMAGE", image)


TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "max_position_embeddings": 8192,
    "initializer_range": 0.1,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "initializer_range": 0.1,
}
SQUARE = {"height": SIDE, "width": SIDE}


def make_config(name, tokenizer, text, vision, image, **options):
    """The configuration of a family with the ids of this tokenizer."""
    ids = tokenizer.convert_tokens_to_ids
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "pad_token_id": ids("<|endoftext|>"),
        "eos_token_id": ids("<|im_end|>"),
        "bos_token_id": ids("<bos>"),
        **text,
    }
    return AutoConfig.for_model(
        name, text_config=text, vision_config=vision, **{image[0]: ids(image[1])}, **options
    )


def pil(name, **options):
    """An image processor that needs no torchvision."""
    module, kind = name.split(":")
    path = f"transformers.models.{module}.image_processing_pil_{module}"
    return getattr(importlib.import_module(path), kind)(**options)


def video(name, **options):
    module, kind = name.split(":")
    path = f"transformers.models.{module}.video_processing_{module}"
    return getattr(importlib.import_module(path), kind)(**options)


def processor_class(module, kind):
    return getattr(
        importlib.import_module(f"transformers.models.{module}.processing_{module}"), kind
    )


def llava():
    tokenizer = make_tokenizer(image_token="<image>")
    images = pil("clip:CLIPImageProcessorPil", size=SQUARE, crop_size=SQUARE)
    processor = processor_class("llava", "LlavaProcessor")(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template("<image>\n"),
    )  # fmt: skip
    config = make_config(
        "llava", tokenizer, {"model_type": "llama"}, {"model_type": "clip_vision_model", **TOWER},
        ("image_token_id", "<image>"), image_seq_length=16, vision_feature_layer=-1,
    )  # fmt: skip
    return config, processor


def pixtral_processor(tokenizer, merge=1):
    images = pil(
        "pixtral:PixtralImageProcessorPil",
        size={"longest_edge": SIDE},
        patch_size={"height": PATCH * merge, "width": PATCH * merge},
    )
    return processor_class("pixtral", "PixtralProcessor")(
        images, tokenizer, patch_size=PATCH, spatial_merge_size=merge,
        chat_template=template("[IMG]"),
    )  # fmt: skip


PIXTRAL_TOWER = {"model_type": "pixtral", **TOWER, "head_dim": 16}


def pixtral():
    tokenizer = make_tokenizer()
    config = make_config(
        "llava", tokenizer, {"model_type": "mistral", "sliding_window": None}, PIXTRAL_TOWER,
        ("image_token_id", "[IMG]"), vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    return config, pixtral_processor(tokenizer)


def mistral3():
    tokenizer = make_tokenizer()
    config = make_config(
        "mistral3", tokenizer, {"model_type": "mistral", "sliding_window": None}, PIXTRAL_TOWER,
        ("image_token_index", "[IMG]"), spatial_merge_size=2, tie_word_embeddings=False,
    )  # fmt: skip
    return config, pixtral_processor(tokenizer, merge=2)


def llava_onevision():
    tokenizer = make_tokenizer(image_token="<image>", video_token="<video>")
    pinpoints = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    images = pil(
        "llava_onevision:LlavaOnevisionImageProcessorPil", size=SQUARE,
        image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    processor = processor_class("llava_onevision", "LlavaOnevisionProcessor")(
        images, tokenizer, video("llava_onevision:LlavaOnevisionVideoProcessor", size=SQUARE),
        num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=template("<image>\n"),
    )  # fmt: skip
    config = make_config(
        "llava_onevision", tokenizer, {"model_type": "qwen2"},
        {"model_type": "siglip_vision_model", **TOWER, "vision_use_head": False},
        ("image_token_index", "<image>"), image_grid_pinpoints=pinpoints,
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )  # fmt: skip
    return config, processor


def internvl():
    tokenizer = make_tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )  # fmt: skip
    images = pil(
        "got_ocr2:GotOcr2ImageProcessorPil", size=SQUARE, crop_to_patches=True, min_patches=1,
        max_patches=4,
    )  # fmt: skip
    processor = processor_class("internvl", "InternVLProcessor")(
        images, tokenizer, video("internvl:InternVLVideoProcessor", size=SQUARE),
        image_seq_length=4, chat_template=template("<IMG_CONTEXT>\n"),
    )  # fmt: skip
    tower = {**TOWER, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
    config = make_config(
        "internvl", tokenizer, {"model_type": "qwen2"}, {"model_type": "internvl_vision", **tower},
        ("image_token_id", "<IMG_CONTEXT>"), image_seq_length=4, tie_word_embeddings=False,
    )  # fmt: skip
    return config, processor


def smolvlm():
    tokenizer = make_tokenizer(image_token="<image>", video_token="<video>")
    images = pil(
        "smolvlm:SmolVLMImageProcessorPil", size={"longest_edge": 2 * SIDE},
        max_image_size={"longest_edge": SIDE},
    )  # fmt: skip
    videos = video(
        "smolvlm:SmolVLMVideoProcessor", size={"longest_edge": SIDE},
        max_image_size={"longest_edge": SIDE},
    )  # fmt: skip
    processor = processor_class("smolvlm", "SmolVLMProcessor")(
        images, tokenizer, videos, image_seq_len=4, chat_template=template("<image>")
    )
    config = make_config(
        "smolvlm", tokenizer, {"model_type": "llama"}, {"model_type": "smolvlm_vision", **TOWER},
        ("image_token_id", "<image>"), scale_factor=2,
    )  # fmt: skip
    return config, processor


def idefics3():
    tokenizer = make_tokenizer()
    images = pil(
        "idefics3:Idefics3ImageProcessorPil", size={"longest_edge": 2 * SIDE},
        max_image_size={"longest_edge": SIDE},
    )  # fmt: skip
    processor = processor_class("idefics3", "Idefics3Processor")(
        images, tokenizer, image_seq_len=4, chat_template=template("<image>")
    )
    config = make_config(
        "idefics3", tokenizer, {"model_type": "llama"}, {"model_type": "idefics3_vision", **TOWER},
        ("image_token_id", "<image>"), scale_factor=2,
    )  # fmt: skip
    return config, processor


def gemma3():
    tokenizer = make_tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    images = pil("gemma3:Gemma3ImageProcessorPil", size=SQUARE)
    processor = processor_class("gemma3", "Gemma3Processor")(
        images, tokenizer, image_seq_length=4, chat_template=template("<start_of_image>")
    )
    ids = tokenizer.convert_tokens_to_ids
    config = make_config(
        "gemma3", tokenizer,
        {"model_type": "gemma3_text", "sliding_window": 16, "query_pre_attn_scalar": 24,
         "layer_types": ["sliding_attention", "full_attention"]},
        {"model_type": "siglip_vision_model", **TOWER, "vision_use_head": False},
        ("image_token_index", "<image_soft_token>"), mm_tokens_per_image=4,
        boi_token_index=ids("<start_of_image>"), eoi_token_index=ids("<end_of_image>"),
    )  # fmt: skip
    return config, processor


def paligemma(text=None, name="paligemma"):
    tokenizer = make_tokenizer("paligemma", image_token="<image>")
    images = pil("siglip:SiglipImageProcessorPil", size=SQUARE)
    images.image_seq_length = 16
    processor = processor_class("paligemma", "PaliGemmaProcessor")(
        images, tokenizer, chat_template="{% for message in messages %}{% for part in "
        "message['content'] %}{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}"
        "{% endfor %}{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}",
    )  # fmt: skip
    config = make_config(
        "paligemma", tokenizer, text or {"model_type": "gemma"},
        {"model_type": "siglip_vision_model", **TOWER, "vision_use_head": False,
         "projection_dim": 48}, ("image_token_index", "<image>"), projection_dim=48,
        hidden_size=48,
    )  # fmt: skip
    return config, processor


def paligemma2():
    return paligemma(
        {
            "model_type": "gemma2",
            "sliding_window": 16,
            "query_pre_attn_scalar": 24,
            "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 5.0,
        }
    )


def qwen_images(kind="qwen2_vl:Qwen2VLImageProcessorPil"):
    return pil(
        kind, patch_size=PATCH, merge_size=2, temporal_patch_size=2,
        size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64},
    )  # fmt: skip


QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def qwen_family(name, text, vision, kind):
    tokenizer = make_tokenizer()
    processor = processor_class(*kind)(
        qwen_images(), tokenizer, video("qwen2_vl:Qwen2VLVideoProcessor"),
        chat_template=template(QWEN_IMAGE),
    )  # fmt: skip
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in QWEN_IDS.items()}
    tower = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
        "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "out_hidden_size": 48, "initializer_range": 0.1, **vision,
    }  # fmt: skip
    image_id = ids.pop("image_token_id")
    config = make_config(name, tokenizer, text, tower, ("image_token_id", "<|image_pad|>"), **ids)
    assert config.image_token_id == image_id
    return config, processor


def qwen2_5_vl():
    return qwen_family(
        "qwen2_5_vl",
        {"rope_parameters": {**ROPE, "mrope_section": [4, 4, 4]}},
        {"window_size": 32, "fullatt_block_indexes": [1]},
        ("qwen2_5_vl", "Qwen2_5_VLProcessor"),
    )


def qwen3_5():
    return qwen_family(
        "qwen3_5",
        {
            "rope_parameters": {
                **ROPE, "mrope_section": [4, 4, 4], "mrope_interleaved": True,
                "partial_rotary_factor": 1.0,
            },
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
        },
        {"num_position_embeddings": 64},
        ("qwen3_vl", "Qwen3VLProcessor"),
    )  # fmt: skip


QWEN3 = {
    "rope_parameters": {**ROPE, "mrope_section": [4, 4, 4], "mrope_interleaved": True},
    "num_hidden_layers": 3,
}
DEEPSTACK = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}


def qwen3_vl():
    return qwen_family("qwen3_vl", QWEN3, DEEPSTACK, ("qwen3_vl", "Qwen3VLProcessor"))


def qwen3_vl_moe():
    experts = {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "decoder_sparse_step": 1,
    }  # fmt: skip
    return qwen_family(
        "qwen3_vl_moe", {**QWEN3, **experts}, DEEPSTACK, ("qwen3_vl", "Qwen3VLProcessor")
    )


def glm4v():
    tokenizer = make_tokenizer(image_token="<|image|>", video_token="<|video|>")
    processor = processor_class("glm4v", "Glm4vProcessor")(
        pil(
            "glm4v:Glm4vImageProcessorPil", patch_size=PATCH, merge_size=2, temporal_patch_size=2,
            size={"shortest_edge": 32 * 32 * 2, "longest_edge": 64 * 64 * 2},
        ),
        tokenizer, video("glm4v:Glm4vVideoProcessor"),
        chat_template=template("<|begin_of_image|><|image|><|end_of_image|>"),
    )  # fmt: skip
    ids = tokenizer.convert_tokens_to_ids
    tower = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
        "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "out_hidden_size": 48, "initializer_range": 0.1, "image_size": 64,
    }  # fmt: skip
    config = make_config(
        "glm4v", tokenizer, {"rope_parameters": {**ROPE, "mrope_section": [4, 4, 4]}}, tower,
        ("image_token_id", "<|image|>"), video_token_id=ids("<|video|>"),
        image_start_token_id=ids("<|begin_of_image|>"), image_end_token_id=ids("<|end_of_image|>"),
        video_start_token_id=ids("<|begin_of_video|>"), video_end_token_id=ids("<|end_of_video|>"),
    )  # fmt: skip
    return config, processor


#: Families whose siblings share the reading of their prompt, and families with one row a rollout.
SHARING = (
    llava, pixtral, mistral3, llava_onevision, internvl, smolvlm, idefics3, qwen2_5_vl, glm4v,
    qwen3_vl_moe,
)  # fmt: skip
ROW_PER_ROLLOUT = (gemma3, paligemma, paligemma2, qwen3_5)
BUILDERS = {build.__name__: build for build in (*SHARING, *ROW_PER_ROLLOUT)}
#: Families whose processor can be made without torchvision.
PLAIN = ("llava", "idefics3", "gemma3", "paligemma", "paligemma2")


#: The newest transformers that ignores the softcap of PaliGemma 2. There M111 refuses the model.
WITHOUT_SOFTCAP = Version("5.19.99")


def require_extra(name):
    """Skip where a family needs a package that is not installed, or a newer transformers."""
    if name == "paligemma2" and Version(transformers.__version__) <= WITHOUT_SOFTCAP:
        pytest.skip(f"transformers {transformers.__version__} ignores its softcap: M111")
    packages = [] if name in PLAIN else ["torchvision"]
    packages += ["num2words"] if name == "smolvlm" else []
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the processor of {name} needs {package}: pip install 'vistill[families]'")


def build_family(name, seed=0):
    """A tiny untrained model. The same seed gives the same weights."""
    require_extra(name)
    config, processor = (qwen3_vl if name == "qwen3_vl" else BUILDERS[name])()
    tokenizer = processor.tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        for (
            parameter
        ) in model.parameters():  # some classes start at 0: no image would have an effect
            if parameter.ndim < 2 or not parameter.any():
                parameter.data.add_(0.05 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    family = family_type_of(config)(config, tokenizer, processor)
    return VLM(model.eval(), tokenizer, family, f"tiny-{name}")
