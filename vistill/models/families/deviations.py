"""Model types with one rule that `GenericFamily` does not have."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vistill.models.families.generic import GenericFamily
from vistill.types import PilImage


class Gemma3Family(GenericFamily):
    """Gemma 3: its image model applies no softcap to the logits, whatever the configuration."""

    name = "gemma3"

    def softcap(self, model: Any) -> float | None:
        """None."""
        return None


class PaliGemmaFamily(GenericFamily):
    """PaliGemma 1 and 2: response tokens have a type, and the processor refuses text alone."""

    name = "paligemma"
    response_type = 1

    def call_processor(self, processor: Any, text: str, images: Sequence[PilImage]) -> Any:
        """The processor's output. Text alone gets what the processor writes around a text."""
        if images:
            return super().call_processor(processor, text, images)
        return self.tokenizer(
            [f"{self.tokenizer.bos_token}{text}\n"],
            add_special_tokens=False,
            return_tensors="pt",
            return_token_type_ids=True,
        )

    def reference_inputs(
        self, messages: list[dict[str, Any]], images: Sequence[PilImage], response: Sequence[int]
    ) -> dict[str, Tensor]:
        """What the processor makes of a prompt with images, and the tokenizer of a text alone."""
        if images:
            return super().reference_inputs(messages, images, response)
        alone = self.call_processor(self.processor, self.render(messages), ())
        return self.with_response(alone, response)


#: Model types with a rule that `GenericFamily` does not have.
DEVIATIONS: dict[str, type[GenericFamily]] = {
    kind.name: kind for kind in (Gemma3Family, PaliGemmaFamily)
}


def family_type_of(config: Any) -> type[GenericFamily]:
    """The adapter of a model type without a file of its own."""
    return DEVIATIONS.get(config.model_type, GenericFamily)
