"""`micro_batch: auto`: measure once the memory of a prompt and a response, and store the split.

The measured memory is what autograd saves for the backward pass.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vistill.errors import ConfigError
from vistill.models.families.base import EncodedPrompt
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, open_reading
from vistill.runs.folder import RunFolder
from vistill.runs.storage import read_json, to_json
from vistill.training.micro_batches import AUTO_TOKENS, PART_TOKENS, BatchSplit
from vistill.training.precision import autocast, training_dtype
from vistill.types import Writer

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup

FILE = "memory.json"
#: Prompts among which the longest one is searched.
PROMPTS_TO_SEARCH = 64
#: Lengths of the two responses that are measured.
SHORT, LONG = 16, 48
#: Share of the free memory for saved tensors; the rest is for the loss, temporaries and other
#: processes.
SHARE = {"cuda": 0.8, "cpu": 0.5}
#: Factor on the measured bytes, for temporary tensors.
MARGIN = 1.2
GIB = 2**30


@dataclass(frozen=True)
class HeldBytes:
    """Bytes that all passes with gradient together hold for the backward pass."""

    prompt_token: float
    """Per token of a prompt, its share of the image included."""
    response: float
    """Per response and token of its prompt, in addition to the tokens of the response."""
    response_token: float
    """Per token of a response."""

    def prompt(self, tokens: int) -> float:
        """Bytes of a prompt."""
        return MARGIN * tokens * self.prompt_token

    def one_response(self, prompt_tokens: int, tokens: int) -> float:
        """Bytes of a response."""
        return MARGIN * (prompt_tokens * self.response + tokens * self.response_token)

    def least(self, prompt_tokens: int, tokens: int) -> float:
        """Bytes of the smallest part: one prompt and one of its responses."""
        return self.prompt(prompt_tokens) + self.one_response(prompt_tokens, tokens)


def choose_split(setup: "RunSetup", folder: RunFolder) -> BatchSplit:
    """The split of a run: from the recipe, from the run folder, or from a measurement.

    Raises:
        ConfigError: C104, one prompt with one response needs more than the budget.
    """
    if setup.train.micro_batch != "auto":
        return BatchSplit(setup.train.micro_batch)
    student = setup.models.student
    question = {
        "student": student.source,
        "device": str(student.device),
        "precision": str(training_dtype(setup.train, student.device)),
        "memory": setup.train.memory,
        "response_tokens": longest_response(setup),
        "method": type(setup.objective).__name__,
    }
    file = folder.path / FILE
    known = (
        read_json(file, question=dict, split={field.name for field in fields(BatchSplit)})
        if file.exists()
        else {}
    )
    if known.get("question") == question:
        return BatchSplit(**known["split"])
    measured, budget = measure_memory(setup), memory_budget(setup)
    split = measured.choose_split(budget, question["response_tokens"], folder.path)
    held = {**asdict(measured.held), "longest_prompt": measured.longest}
    folder.write(
        FILE,
        to_json({"question": question, "split": asdict(split), "held": held}, indent=2, exact=True),
    )
    folder.event(
        f"micro-batches of up to {split.tokens:,} tokens, backward passes of up to "
        f"{split.part_tokens:,} response tokens, within {budget / GIB:.3g} GiB"
    )
    return split


@dataclass(frozen=True)
class MemoryMeasurement:
    """What the longest prompt holds, and how long it is."""

    held: HeldBytes
    longest: int
    """Tokens of the longest prompt."""
    can_limit_images: bool = True
    """Whether the family can shrink images to a limit of tokens."""

    def choose_split(self, budget: float, response_tokens: int, where: Path) -> BatchSplit:
        """The largest split within limits and budget; half of the budget is for prompts."""
        held, longest = self.held, self.longest
        if held.least(longest, response_tokens) > budget:
            raise self.too_small_error(budget, response_tokens, where)
        # a prompt that needs more than half is alone in its micro-batch; prompts may need less than
        # half
        for_prompts = max(min(budget / 2, held.prompt(AUTO_TOKENS)), held.prompt(longest))
        tokens = min(AUTO_TOKENS, int(for_prompts / max(1.0, held.prompt(1))))
        part = int((budget - for_prompts) / (MARGIN * held.response_token))
        if part >= 2 * PART_TOKENS:
            return BatchSplit(tokens=tokens, part_tokens=PART_TOKENS)
        overhead = math.ceil(longest * held.response / held.response_token)
        return BatchSplit(tokens=tokens, part_tokens=part, overhead=overhead)

    def too_small_error(self, budget: float, response_tokens: int, where: Path) -> ConfigError:
        """C104 with settings that fit."""
        held, longest = self.held, self.longest
        least = held.least(longest, response_tokens)
        fits = int(
            (budget / MARGIN - longest * (held.prompt_token + held.response)) / held.response_token
        )
        for_prompt = budget / MARGIN - response_tokens * held.response_token
        shorter = int(for_prompt / (held.prompt_token + held.response))
        image = (
            f"   or data.max_image_tokens={shorter // 2}"
            if shorter >= 16 and self.can_limit_images
            else ""
        )
        smaller = f"   or rollout.max_new_tokens={fits}" if fits >= 1 else image
        return ConfigError(
            "C104",
            f"one prompt with one response needs {least / GIB:.3g} GiB, "
            f"the budget is {budget / GIB:.3g} GiB",
            where=str(where),
            why=f"the longest prompt has {longest:,} tokens, a response up to {response_tokens:,};"
            "\nmeasured for the backward pass: "
            f"{held.prompt_token / 1024:,.0f} KiB per prompt token, "
            f"{held.response_token / 1024:,.0f} KiB per response token",
            fix=f"train.memory={1.05 * least / GIB:.3g}{smaller}",
            note=f"with this prompt, responses of up to {fits:,} tokens fit"
            if fits >= 1
            else f"with such a response, prompts of up to {max(0, shorter):,} tokens fit",
        )


def longest_response(setup: "RunSetup") -> int:
    """Tokens of the longest possible response: the sampling limit, or the longest in the data."""
    if setup.objective.requirements.writer is not Writer.DATA:
        return setup.rollout.max_new_tokens
    return max(
        len(setup.models.student.response_ids(p.response or "")) for p in setup.train_prompts
    )


def measure_memory(setup: "RunSetup") -> MemoryMeasurement:
    """Measure the longest of the first prompts under the view of every pass with gradient."""
    models = setup.models
    views = [p.view for p in setup.objective.passes() if p.gradient]
    held = {"prompt": 0.0, "short": 0.0, "long": 0.0}
    longest = 1
    for view in views:
        encoded = max(
            (models.encode(p, view) for p in setup.train_prompts[:PROMPTS_TO_SEARCH]),
            key=lambda e: (len(e.ids), e.num_image_tokens),
        )
        longest = max(longest, len(encoded.ids))
        for name, amount in measure_prompt(models.student, encoded, setup).items():
            held[name] += amount
    token = max(1.0, (held["long"] - held["short"]) / (LONG - SHORT))
    fixed = max(0.0, held["short"] - SHORT * token)
    return MemoryMeasurement(
        HeldBytes(held["prompt"] / longest, fixed / longest, token),
        longest,
        models.student.family.can_limit_image_tokens,
    )


def measure_prompt(vlm: VLM, prompt: EncodedPrompt, setup: "RunSetup") -> dict[str, float]:
    """Bytes that a prompt, a short response and a longer one hold."""
    token = vlm.stop_ids[0]
    group = EncodedGroup(prompt, ((token,) * SHORT, (token,) * LONG))
    was_training = vlm.model.training
    vlm.model.train()
    model = vlm.model
    with autocast(setup.train, vlm.device):
        of_prompt, reading = held_bytes(model, lambda: open_reading(vlm, [group], cut=True))
        of_short, _ = held_bytes(model, lambda: reading.read([(0, 0)]))
        of_long, _ = held_bytes(model, lambda: reading.read([(0, 1)]))
    model.train(was_training)
    return {"prompt": of_prompt, "short": of_short, "long": of_long}


def held_bytes(model: torch.nn.Module, work: Callable[[], Any]) -> tuple[float, Any]:
    """Bytes that autograd saves during some work, and its result: each storage once, no weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = work()
    return float(sum(saved.values())), result


def memory_budget(setup: "RunSetup") -> float:
    """Bytes for saved tensors: from the recipe, or a share of the memory that will be free."""
    if setup.train.memory is not None:
        return setup.train.memory * GIB
    device = setup.models.student.device
    trainable = sum(
        p.numel() * p.element_size()
        for p in setup.models.student.model.parameters()
        if p.requires_grad
    )
    free = max(0.0, free_bytes(device) - 3.0 * trainable)  # a gradient and AdamW's two moments
    return SHARE.get(device.type, 0.5) * free


def free_bytes(device: torch.device) -> float:
    """Free bytes of a CUDA device, else of the system; infinite where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024.0 * int(
            next(line for line in lines if line.startswith("MemAvailable")).split()[1]
        )
    except (OSError, StopIteration, ValueError):
        return float("inf")
