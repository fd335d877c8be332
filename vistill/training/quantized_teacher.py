"""Load the teacher in the precision of the recipe, and measure what quantising it changes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vistill.models.loading import VLM, PromptEncoder, load_weights, teacher_dtype
from vistill.models.quantization import quantize
from vistill.models.scoring import EncodedGroup, response_states
from vistill.training.memory_budget import free_bytes
from vistill.training.recipe import QUANTIZED
from vistill.types import Prompt, View
from vistill.views import apply_view

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup

#: Prompts that are read before and after, and the sentence that follows each.
SAMPLES, SENTENCE = 4, "The answer is 12."
#: A model is measured on its device if so many times its weights are free there, else on the host.
SPACE_FACTOR = 1.3


def load_teacher(
    setup: "RunSetup", encoder: PromptEncoder, precision: str, device: str
) -> tuple[VLM, str]:
    """A teacher, and what quantising it changes, in words; `vistill check` measures that.

    Args:
        setup: of the run.
        encoder: of the teacher.
        precision: as `teacher.precision`.
        device: of the teacher.

    Raises:
        MissingExtraError: E301, bitsandbytes is not installed.
    """
    options = loading_options(precision, device, setup.recipe.train.precision)
    if precision not in QUANTIZED or setup.purpose != "check" or not setup.train_prompts:
        return load_weights(encoder, device=device, **options), ""
    vlm = load_weights(encoder, dtype=options["dtype"])
    prompts = with_images_first(setup.train_prompts)[:SAMPLES]
    before = measure(setup, vlm, prompts, device)
    quantize(vlm, precision, device)
    after = measure(setup, vlm, prompts, device)
    return vlm, f"; teacher in {precision}: {describe_effect(before, after)}"


def loading_options(precision: str, device: str, train: str) -> dict[str, Any]:
    """What `load_weights` needs for a teacher: `dtype` and `quantization`.

    Args:
        precision: as `teacher.precision`.
        device: of the teacher.
        train: as `train.precision`.
    """
    named = {"fp32": torch.float32, "bf16": torch.bfloat16}
    quantization = precision if precision in QUANTIZED else ""
    dtype = named.get(precision) or teacher_dtype(device, train)
    return {"dtype": dtype, "quantization": quantization}


def with_images_first(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts with an image, else all."""
    return [p for p in prompts if p.images] or list(prompts)


@torch.no_grad()
def measure(
    setup: "RunSetup", vlm: VLM, prompts: Sequence[Prompt], device: str
) -> dict[str, Tensor]:
    """Log-probabilities of a sentence after each prompt, on the host.

    Returns:
        `full` [R, V] of all tokens with the image, and `advantage` [R]: the rectified visual
        advantage of the sentence's tokens in nats (VA-OPD Eq. 2).
    """
    bytes_needed = SPACE_FACTOR * sum(p.nbytes for p in vlm.model.parameters())
    place = torch.device(device)
    model: Any = vlm.model
    model.to(place if free_bytes(place) > bytes_needed else "cpu")
    model.eval()
    ids = vlm.tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]
    context = setup.recipe.view_context(vlm.family.patch_size)
    head, rows = vlm.head(vlm.vocabulary_size), {}
    for view in (View.FULL, View.PIXELATED):
        shown = [vlm.encode(apply_view(p, view, context)) for p in prompts]
        groups = [EncodedGroup(prompt, (tuple(ids),)) for prompt in shown]
        logits = head.logits(response_states(vlm, groups)).float()
        rows[view] = logits.log_softmax(-1).cpu()
    index = torch.tensor(list(ids) * len(prompts))[:, None]
    full, pixelated = (rows[view].gather(-1, index)[:, 0] for view in (View.FULL, View.PIXELATED))
    return {"full": rows[View.FULL], "advantage": (full - pixelated).clamp_min(0)}


def describe_effect(before: dict[str, Tensor], after: dict[str, Tensor]) -> str:
    """KL of the quantised model from the one before, and both visual advantages, in words."""
    exact, quantized = before["full"].double(), after["full"].double()
    kl = (exact.exp() * (exact - quantized)).sum(-1)
    change = (after["advantage"] - before["advantage"]).abs().mean()
    means = [float(x["advantage"].mean()) for x in (before, after)]
    return (
        f"KL(before || after) {float(kl.mean()):.2g} nats per token, at most {float(kl.max()):.2g};"
        f" visual advantage {means[0]:.3g} before and {means[1]:.3g} after,"
        f" changed by {float(change):.2g} per token"
    )
