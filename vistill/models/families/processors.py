"""Load the processor of a model, and count image tokens without processing every image."""

import copy
import importlib.util
import json
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor
from transformers.image_utils import make_flat_list_of_images

from vistill.errors import MissingExtraError, ModelError
from vistill.models.processor_files import IMAGE, OLD_TEMPLATE, PROCESSOR, find_model_file
from vistill.types import PilImage

#: Packages of the extra `families`, which processors of transformers import.
PACKAGES = ("torchvision", "num2words")
#: Lists of image sizes whose processing is kept.
KEPT_SIZES = 512
#: A colour that no usual normalisation turns into 0: some models drop an image that is all 0.
COLOUR = (90, 140, 200)
#: Any of these files is a tokenizer.
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*")
NO_TEMPLATE = "it has no chat template, so no prompt can be written"


def load_processor(name: str, revision: str | None) -> Any:
    """The processor of a folder or hub id, with its PIL image processor where it has one.

    The PIL backend gives the same pixels with and without torchvision.

    Raises:
        MissingExtraError: E302, the processor needs torchvision or num2words.
        ModelError: M108, the processor's files are missing or cannot be used.
    """
    commit = revision or "main"
    with naming_processor(name):
        processor = AutoProcessor.from_pretrained(name, revision=commit, trust_remote_code=False)
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise processor_error(name, f"AutoProcessor finds no {part.replace('_', ' ')} in it")
    if not (processor.chat_template or getattr(processor.tokenizer, "chat_template", None)):
        raise processor_error(name, NO_TEMPLATE)
    images = AutoImageProcessor.from_pretrained(
        name, backend="pil", revision=commit, trust_remote_code=False
    )
    if type(images).__name__.endswith("Pil"):
        processor.image_processor = images
    return processor


def find_chat_template(name: str, tokenizer: Any, revision: str | None) -> Any:
    """The chat template of a tokenizer; without one, that of the older file of a processor.

    Raises:
        ModelError: M108, the model has no chat template.
    """
    template = tokenizer.chat_template
    file = None if template else find_model_file(name, OLD_TEMPLATE, revision)
    if file is not None:
        with naming_processor(name):
            template = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
    if not template:
        raise processor_error(name, NO_TEMPLATE)
    return template


@contextmanager
def naming_processor(name: str) -> Iterator[None]:
    """E302 or M108 for what transformers raises where files or packages of a processor lack."""
    try:
        yield
    except (ImportError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        package = missing_package(str(error))
        if package is not None:
            raise missing_package_error(name, package) from error
        message = next(iter(str(error).splitlines()), "")
        why = missing_files(name) or f"{type(error).__name__}: {message}"[:300]
        raise processor_error(name, why) from error


def missing_files(name: str) -> str:
    """Which files of a processor a folder lacks, in words; empty for a hub id or if none."""
    folder = Path(name)
    if not folder.is_dir():
        return ""
    lacking = []
    if not (folder / IMAGE).is_file() and b"image_processor" not in read_bytes(folder / PROCESSOR):
        lacking.append(f"no {IMAGE}, and no image processor in {PROCESSOR}")
    if not any(file for pattern in TOKENIZERS for file in folder.glob(pattern)):
        lacking.append("no tokenizer.json")
    return f"the folder has {'; '.join(lacking)}" if lacking else ""


def read_bytes(file: Path) -> bytes:
    """The bytes of a file; none if there is no file."""
    return file.read_bytes() if file.is_file() else b""


def missing_package(message: str) -> str | None:
    """The package of the extra whose absence an error is about, or None."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    text = message.lower()
    if "torchvision" in missing and "video_processor" in text:
        return "torchvision"
    return next((name for name in missing if name in text), None)


def missing_package_error(name: str, package: str) -> MissingExtraError:
    """E302."""
    return MissingExtraError(
        "E302",
        f"the processor of this model needs the package {package}",
        where=name,
        why="transformers makes its tokens and image tensors with it",
        fix="pip install 'vistill[families]'",
    )


def processor_error(name: str, why: str) -> ModelError:
    """M108."""
    return ModelError(
        "M108",
        "the model's processor cannot be used",
        where=name,
        why=why,
        fix="copy all files of the model into the folder: processor_config.json or"
        " preprocessor_config.json, chat_template.jinja, tokenizer.json, tokenizer_config.json",
    )


def plain_image(size: tuple[int, int]) -> PilImage:
    """An image of one colour."""
    return Image.new("RGB", size, COLOUR)


class PlainImages:
    """A copy of a processor that replaces every image by a plain one of the same size.

    Each list of sizes is processed once. So a prompt gets its exact tokens at the cost of its text,
    and tensors of the right shapes.
    """

    def __init__(self, processor: Any) -> None:
        self.images = processor.image_processor
        self.outputs: OrderedDict[Any, Any] = OrderedDict()
        self.processor = copy.copy(processor)
        self.processor.image_processor = self

    def __call__(self, images: Any, **options: Any) -> Any:
        """The output of the image processor for plain images of these sizes."""
        flat: Any = make_flat_list_of_images(images)
        key = (tuple(image.size for image in flat), repr(sorted(options.items(), key=str)))
        if key not in self.outputs:
            plain = [[plain_image(image.size) for image in flat]]
            self.outputs[key] = without_values(self.images(plain, **options))
            if len(self.outputs) > KEPT_SIZES:
                self.outputs.popitem(last=False)
        return copy.copy(self.outputs[key])

    def __getattr__(self, name: str) -> Any:
        """Any other attribute of the image processor."""
        return getattr(self.__dict__["images"], name)


def without_values(output: Any) -> Any:
    """An image processor's output whose image tensors take no memory. Sizes keep their values."""
    for name, x in list(output.items()):
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            output[name] = x.new_zeros(()).expand(x.shape)
    return output
