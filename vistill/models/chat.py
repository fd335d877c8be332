"""From prompts to chat messages. The model's chat template turns them into text."""

from typing import Any

from PIL import Image

from vistill.data.images import BytesImage, FileImage
from vistill.data.placeholders import PLACEHOLDER
from vistill.data.rows import SPECIAL_TOKEN
from vistill.errors import DataError
from vistill.types import PilImage, Prompt


def chat_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The system message, if any, and the user message with its images in place."""
    content: list[dict[str, str]] = []
    for part in prompt.parts:
        if not isinstance(part, str):
            content.append({"type": "image"})
            continue
        placeholder = PLACEHOLDER.search(part) or SPECIAL_TOKEN.search(part)
        if placeholder:
            raise DataError(
                "D103",
                f"the placeholder {placeholder.group(0)!r} would reach the tokenizer as text",
                where=f"prompt {prompt.id}",
                why="a placeholder without an image makes the model read the word, not an image",
                fix="give the row as many images as placeholders, or remove it from the question",
            )
        content.append({"type": "text", "text": part})
    system = (
        [{"role": "system", "content": [{"type": "text", "text": prompt.system}]}]
        if prompt.system
        else []
    )
    return [*system, {"role": "user", "content": content}]


def load_images(prompt: Prompt) -> list[PilImage]:
    """The decoded images in order."""
    return [ref.load() for ref in prompt.images]


def plain_images(prompt: Prompt) -> list[PilImage]:
    """Images of the same sizes in order. A picture whose size is known is not decoded."""
    return [
        Image.new("RGB", ref.size)
        if isinstance(ref, FileImage | BytesImage) and ref.size is not None
        else ref.load()
        for ref in prompt.images
    ]
