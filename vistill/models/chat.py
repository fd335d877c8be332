"""Prompts to chat messages, in one place; the model's own template does the rest."""

from typing import Any

from vistill.data.rows import PLACEHOLDER, SPECIAL_TOKEN
from vistill.errors import DataError
from vistill.types import PilImage, Prompt


def messages_of(prompt: Prompt) -> list[dict[str, Any]]:
    """System and user message, pictures in place."""
    content: list[dict[str, str]] = []
    for part in prompt.parts:
        if not isinstance(part, str):
            content.append({"type": "image"})
            continue
        found = PLACEHOLDER.search(part) or SPECIAL_TOKEN.search(part)
        if found:
            raise DataError(
                "D103",
                f"the placeholder {found.group(0)!r} would reach the tokenizer as text",
                where=f"prompt {prompt.id}",
                why="a placeholder without a picture makes the model read the word, not the image",
                fix="give the row as many images as placeholders, or remove it from the question",
            )
        content.append({"type": "text", "text": part})
    head = (
        [{"role": "system", "content": [{"type": "text", "text": prompt.system}]}]
        if prompt.system
        else []
    )
    return [*head, {"role": "user", "content": content}]


def pictures_of(prompt: Prompt) -> list[PilImage]:
    """The decoded pictures in order."""
    return [ref.load() for ref in prompt.images]
