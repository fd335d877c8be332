"""Which model types can be read, and what a model that cannot be read is told, before weights."""

import inspect
import json
import subprocess
import sys

import pytest
import transformers
from packaging.version import Version
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vistill.errors import MissingExtraError, ModelError
from vistill.models.families import processors
from vistill.models.families.processor_family import model_class_of
from vistill.models.loading import load_encoder
from vistill.runs.model_families import (
    NO_ENCODER_OUTPUTS,
    OTHER_LAYOUT,
    TWO_STACKS,
    UNSUPPORTED,
    describe_family,
)
from vistill.studies.check import model_metadata


def write_config(folder, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.more
def test_the_table_of_model_types_agrees_with_transformers():
    """Every class without `mm_encoder_outputs` is in the table, and no class with a usable one.

    In an older transformers more classes lack it. There the signature is checked at load.
    """
    if Version(transformers.__version__) < Version("5.23"):
        pytest.skip("the table is that of a newer transformers")
    without = set()
    for model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        model_class = model_class_of(CONFIG_MAPPING[model_type]())
        if "mm_encoder_outputs" not in inspect.signature(model_class.forward).parameters:
            without.add(model_type)
    reasons = {NO_ENCODER_OUTPUTS, TWO_STACKS, OTHER_LAYOUT}
    assert set(UNSUPPORTED.values()) == reasons
    assert set(UNSUPPORTED) <= set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    of_layout = {name for name, reason in UNSUPPORTED.items() if reason == OTHER_LAYOUT}
    assert without <= set(UNSUPPORTED)
    assert set(UNSUPPORTED) - without <= of_layout


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "florence2"}, "encoder with a decoder"),
        ({"model_type": "kosmos-2"}, "mm_encoder_outputs"),
        ({"model_type": "blip-2"}, "head on its hidden states"),
        ({"model_type": "llama"}, "it reads text only"),
        ({"model_type": "clip", "vision_config": {}}, "AutoModelForImageTextToText has no class"),
        ({"model_type": "of_tomorrow", "vision_config": {}}, "does not know it"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused_by_its_configuration(config, why, tmp_path):
    with pytest.raises(ModelError, match=why) as caught:
        load_encoder(write_config(tmp_path, **config), role="teacher")
    assert caught.value.code == "M105"
    assert caught.value.fix.startswith("teacher.model=")


def test_check_names_the_family_without_torch(tmp_path):
    folder = write_config(tmp_path / "a", model_type="llava", vision_config={})
    assert ", family generic (llava), 0.0 MB" in model_metadata(str(folder), "student")
    assert describe_family("qwen3_vl") == "qwen3_vl"
    with pytest.raises(ModelError) as caught:
        model_metadata(str(write_config(tmp_path / "b", model_type="mllama")), "student")
    assert caught.value.code == "M105"


@pytest.mark.parametrize(
    ("message", "package"),
    [
        ("LlavaOnevisionVideoProcessor requires the Torchvision library", "torchvision"),
        ("Received a NoneType for argument video_processor, but expected", "torchvision"),
        ("Package `num2words` is required to run SmolVLM processor", "num2words"),
    ],
)
def test_a_processor_without_its_package_is_a_code_of_its_own(
    message, package, tmp_path, monkeypatch
):
    def fail(*arguments, **options):
        raise ImportError(message)

    monkeypatch.setattr(processors.AutoProcessor, "from_pretrained", fail)
    monkeypatch.setattr(processors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        processors.load_processor(str(tmp_path), None)
    assert caught.value.code == "E302"
    assert package in caught.value.what
    assert caught.value.fix == "pip install 'vistill[families]'"


def test_another_failure_of_a_processor_is_not_taken_for_a_missing_package(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("can't load processor_config.json")

    monkeypatch.setattr(processors.AutoProcessor, "from_pretrained", fail)
    with pytest.raises(ModelError) as caught:
        processors.load_processor(str(tmp_path), None)
    assert caught.value.code == "M108"


FAKE = """
import torch
torch.library.register_fake
if not hasattr(torch.ops.torchvision, "nms"):
    raise RuntimeError("operator torchvision::nms does not exist")
"""


@pytest.mark.more
def test_torchvision_is_importable_next_to_a_torch_without_its_operators(tmp_path):
    """A package that fails as the real one does: its import asks for the operators."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(FAKE)
    code = (
        "import sys, importlib.machinery, torch\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from vistill.models.torchvision_operators import make_torchvision_importable as make\n"
        "assert make() and make()\n"
        "import torchvision\n"
        "print('ok', torchvision.__file__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith(f"ok {tmp_path}"), done.stderr
