"""The lengths of prompts in tokens, which follow from their texts and the sizes of their images.

A length is kept for the next start under everything that decides it: texts and sizes of the
prompt, and the tokenizer, chat template and processor of the model. Errors are never kept.
"""

import json
from typing import Any

import tokenizers
import transformers

from vistill.data.images import BytesImage, FileImage
from vistill.models.loading import VLM, PromptEncoder
from vistill.runs.start_cache import StartCache, hash_text, source_hash
from vistill.types import Prompt

#: Modules whose source decides how long a prompt is.
RULE = ("models/known_lengths.py", "models/loading.py", "models/chat.py", "models/families")


class KnownLengths:
    """Lengths of prompts as one model encodes them."""

    def __init__(self, encoder: PromptEncoder | VLM) -> None:
        self.encoder = encoder
        self.cache = StartCache("lengths", rule_of(encoder))

    def of(self, prompt: Prompt) -> tuple[int, int]:
        """Tokens of a prompt, and of its images."""
        key = key_of(prompt)
        kept = None if key is None else self.cache.get(key, int, int)
        if kept is not None:
            return kept[0], kept[1]
        lengths = self.encoder.lengths(prompt)
        if key is not None:
            self.cache.put(key, *lengths)
        return lengths


def key_of(prompt: Prompt) -> str | None:
    """A hash of texts and sizes; None if an image must be decoded to know its size."""
    parts: list[object] = ["" if prompt.system is None else f"system {prompt.system}"]
    for part in prompt.parts:
        if isinstance(part, str):
            parts.append(f"text {part}")
        elif isinstance(part, FileImage | BytesImage) and part.size is not None:
            parts.append(part.size)
        else:
            return None
    return hash_text(*parts)


def rule_of(encoder: PromptEncoder | VLM) -> list[object] | None:
    """What decides the lengths besides the prompt; None if it cannot be written down.

    The code of a plug-in's family may depend on anything, and a tokenizer in Python has no one
    text that says all of it.
    """
    family, backend = encoder.family, getattr(encoder.tokenizer, "backend_tokenizer", None)
    if not type(family).__module__.startswith("vistill.models.families.") or backend is None:
        return None
    processor: Any = family.processor
    parts = [processor, getattr(processor, "image_processor", processor)]
    return [
        type(family).__qualname__,
        family.config.to_json_string(use_diff=False),
        *(json.dumps(part.to_dict(), sort_keys=True, default=repr) for part in parts),
        *(getattr(one, "chat_template", None) for one in (encoder.tokenizer, processor)),
        sorted(map(repr, encoder.tokenizer.init_kwargs.items())),
        backend.to_str(),
        source_hash(*RULE),
        transformers.__version__,
        tokenizers.__version__,
    ]
