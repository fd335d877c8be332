"""Every tested family is exported and read by plain transformers, as the printed commands do."""

import pytest
import torch
from PIL import Image
from tiny_families import BUILDERS, PLAIN, build_family
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from vistill.export import export_model
from vistill.models.save import save_vlm
from vistill.models.scoring import EncodedGroup, response_states
from vistill.types import LoadedImage, Prompt

QUESTION = "What is the value of x?"


def plain_inputs(processor, picture):
    """What the printed program gives to the model."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
        return_dict=True, return_tensors="pt",
    )  # fmt: skip


@pytest.mark.more
@pytest.mark.parametrize("name", [*BUILDERS, "qwen3_vl"])
def test_plain_transformers_gives_the_logits_of_training(name, tmp_path):
    vlm = build_family(name, 1).freeze()
    save_vlm(vlm, tmp_path / "student")
    result = export_model(tmp_path / "student", tmp_path / "out")
    assert "reads a prompt with a picture as training" in str(result)
    packages = ["torchvision"] if name not in PLAIN else []
    packages += ["num2words"] if name == "smolvlm" else []
    lines = str(result).splitlines()
    installs = [line.partition(": ")[2] for line in lines if ": pip install" in line]
    expected = [f"pip install {' '.join(packages)}"] if packages else []
    assert installs == expected
    has_note = "install the build of torchvision that belongs to it" in str(result)
    assert has_note == ("torchvision" in packages)

    picture = Image.linear_gradient("L").resize((100, 72)).convert("RGB")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    encoded = vlm.encode(Prompt("p", (LoadedImage(picture), QUESTION)))
    assert tuple(plain_inputs(processor, picture)["input_ids"][0].tolist()) == encoded.ids

    # the backend of training: torchvision rounds a resized pixel to a neighbouring grey level
    images = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    if type(images).__name__.endswith("Pil"):
        processor.image_processor = images
    inputs = plain_inputs(processor, picture)
    size = vlm.vocabulary_size
    with torch.no_grad():
        theirs = model(**inputs).logits[0, -1, :size].log_softmax(-1)
        states = response_states(vlm, [EncodedGroup(encoded, ((40,),))])
        ours = torch.log_softmax(vlm.head(size).logits(states), -1)[0]
    assert float((ours - theirs).abs().max()) < 2e-5
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] > len(encoded.ids)
