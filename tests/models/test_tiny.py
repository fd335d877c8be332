"""Tiny models: tokenizer, configuration, folders, and inputs equal to the real processor's."""

import json

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from vistill.data.diagrams import diagram_prompts
from vistill.errors import DataError, ModelError
from vistill.models.chat import chat_messages, load_images
from vistill.models.families.qwen3_vl import check_config
from vistill.models.loading import load_vlm
from vistill.models.pairs import check_pair, vocabulary_hash
from vistill.models.tiny import TinySize, build_tiny, tiny_config, train_tokenizer
from vistill.types import LoadedImage, Prompt


def test_the_tokenizer_encodes_and_decodes_every_real_question(shared_data, tokenizer):
    unknown, files = tokenizer.unk_token_id, sorted(shared_data.glob("*/data.jsonl"))
    assert len(files) >= 10
    for path in files:
        for line in path.read_text().splitlines()[:150]:
            text = str(json.loads(line)["question"])
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert unknown is None or unknown not in ids
            assert tokenizer.decode(ids) == text


def test_every_digit_is_one_token(tokenizer):
    assert all(len(tokenizer(str(d))["input_ids"]) == 1 for d in range(10))
    assert len(tokenizer("1234")["input_ids"]) == 4


def test_a_saved_folder_loads_by_transformers_with_the_same_weights(tiny_folder, student):
    loaded = load_vlm(tiny_folder)
    assert isinstance(loaded.model, Qwen3VLForConditionalGeneration)
    for name, value in student.model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[name]), name
    reference = Qwen3VLForConditionalGeneration.from_pretrained(tiny_folder)
    assert reference.config.model_type == "qwen3_vl"


def test_the_same_seed_builds_the_same_weights(tokenizer):
    a, b, c = (build_tiny(TinySize(layers=1), tokenizer, s).model.state_dict() for s in (3, 3, 4))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def config_with(tokenizer, **changes):
    config = tiny_config(TinySize(), tokenizer)
    for path, value in changes.items():
        part, name = path.split("__")
        target = getattr(config, part)
        if name == "mrope_section":
            target.rope_parameters["mrope_section"] = value
        else:
            setattr(target, name, value)
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config__mrope_section": [24, 20, 20]},
        {"text_config__mrope_section": [16, 0, 0]},
        {"text_config__mrope_section": [8, 8]},
        {"vision_config__deepstack_visual_indexes": [8, 16, 24]},
        {"vision_config__deepstack_visual_indexes": [1, 1]},
        {"vision_config__out_hidden_size": 32},
        {"vision_config__num_position_embeddings": 63},
        {"vision_config__num_heads": 32},
    ],
)
def test_values_that_transformers_would_ignore_are_an_error(tokenizer, changes):
    with pytest.raises(ModelError) as caught:
        check_config(config_with(tokenizer, **changes))
    assert caught.value.code == "M104"


@pytest.mark.parametrize(
    ("hidden", "layers", "heads", "vision_hidden", "depth", "levels"),
    [(2048, 28, 16, 1024, 24, [5, 11, 17]), (4096, 36, 32, 1152, 27, [8, 16, 24])],
    ids=["2B", "8B"],
)
def test_the_published_configurations_pass(hidden, layers, heads, vision_hidden, depth, levels):
    from transformers import Qwen3VLConfig

    rope = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_scaling": rope,
        "rope_theta": 5_000_000,
    }
    vision = {
        "hidden_size": vision_hidden,
        "depth": depth,
        "num_heads": 16,
        "patch_size": 16,
        "out_hidden_size": hidden,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": levels,
    }
    check_config(Qwen3VLConfig(text_config=text, vision_config=vision))


def test_the_tiny_configuration_passes(tokenizer):
    check_config(tiny_config(TinySize(), tokenizer))


class ProcessorWithoutVideo(Qwen3VLProcessor):
    """The real processor without its video part, which needs torchvision."""

    def __init__(self, image_processor, tokenizer, **kwargs):
        from transformers.processing_utils import ProcessorMixin

        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        self.vision_start_token, self.vision_end_token = "<|vision_start|>", "<|vision_end|>"
        self.vision_start_token_id = tokenizer.convert_tokens_to_ids(self.vision_start_token)
        self.vision_end_token_id = tokenizer.convert_tokens_to_ids(self.vision_end_token)
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.chat_template = tokenizer.chat_template
        self.video_processor = None
        assert issubclass(type(self), ProcessorMixin)

    def check_argument_for_proper_class(self, *args):
        return None


def test_inputs_equal_those_of_the_real_processor(tiny_folder, shared_data):
    from vistill.data.loading import load_rows
    from vistill.data.settings import Columns, DataSettings

    vlm = load_vlm(tiny_folder, max_image_tokens=64)
    processor = ProcessorWithoutVideo(vlm.family.processor, vlm.tokenizer)
    real = load_rows(
        str(shared_data / "geometry_mathv" / "data.jsonl"),
        DataSettings(columns=Columns(id="id")),
        6,
    ).prompts
    jigsaw = load_rows(
        str(shared_data / "blink_jigsaw" / "data.jsonl"), DataSettings(columns=Columns(id="id")), 2
    ).prompts
    for prompt in [*diagram_prompts("train", 3, 0), *real, *jigsaw]:
        ours = vlm.encode(prompt)
        text = vlm.tokenizer.apply_chat_template(
            chat_messages(prompt), tokenize=False, add_generation_prompt=True
        )
        images = [i.convert("RGB") for i in load_images(prompt)]
        theirs = processor(text=[text], images=images, return_tensors="pt")
        assert list(ours.ids) == theirs["input_ids"][0].tolist()
        assert torch.equal(ours.pixels["pixel_values"], theirs["pixel_values"])
        assert torch.equal(ours.pixels["image_grid_thw"], theirs["image_grid_thw"])


@pytest.mark.more
def test_images_of_every_size_stay_within_the_token_limit(tiny_folder):
    from PIL import Image

    vlm = load_vlm(tiny_folder, max_image_tokens=64)
    for size in ((4248, 300), (30, 30), (500, 3), (640, 480)):
        try:
            encoded = vlm.encode(Prompt("x", (LoadedImage(Image.new("RGB", size)), "?")))
        except ValueError as error:
            assert "aspect ratio" in str(error)
            continue
        assert 0 < encoded.num_image_tokens <= 64


def test_a_placeholder_in_the_text_is_an_error(teacher):
    for text in ("look at <image1>", "<|image_pad|> here", "<img_2> there"):
        with pytest.raises(DataError) as caught:
            teacher.encode(Prompt("p", (text,)))
        assert caught.value.code == "D103"


def test_a_system_message_and_a_text_only_prompt(teacher):
    encoded = teacher.encode(Prompt("p", ("What is 1+1?",), system="Be brief."))
    text = teacher.tokenizer.decode(list(encoded.ids))
    assert text.startswith("<|im_start|>system\nBe brief.")
    assert not encoded.has_image
    assert encoded.next_position == len(encoded.ids)


def test_vocabularies_are_compared_by_content_not_by_size(student, tiny_folder):
    other = load_vlm(tiny_folder)
    assert check_pair(student, other) == len(student.tokenizer)
    other_tokenizer = train_tokenizer(["completely different words here"] * 50, 491)
    assert vocabulary_hash(other_tokenizer) != vocabulary_hash(student.tokenizer)
    with pytest.raises(ModelError) as caught:
        check_pair(student, build_tiny(TinySize(layers=1), other_tokenizer, 0))
    assert caught.value.code == "M101"
    # the student is what is trained, so another teacher comes first
    assert caught.value.fix.startswith("teacher.model=FOLDER_OR_HUB_ID   of a model with the")


def test_different_image_grids_are_an_error(student, tokenizer):
    other = build_tiny(TinySize(layers=1, patch=16, side=128), tokenizer, 0)
    with pytest.raises(ModelError) as caught:
        check_pair(student, other)
    assert caught.value.code == "M102"


def test_the_error_for_a_missing_model_names_the_closest_one(tiny_folder):
    with pytest.raises(ModelError) as caught:
        load_vlm(str(tiny_folder) + "y")
    assert caught.value.code == "M103"
    assert "tiny" in caught.value.fix
