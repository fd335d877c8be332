"""`micro_batch: auto` measures once what a prompt and a response hold for their backward pass, and remembers it."""

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
from vistill.training.precision import autocast, precision_of
from vistill.types import Writer

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup

FILE = "memory.json"
#: Prompts that are looked at for the longest one.
LOOKED_AT = 64
#: Lengths of the two responses that are measured.
SHORT, LONG = 16, 48
#: Share of the free memory that may be held, by device; the rest is for the loss, for temporaries, for others.
SHARE = {"cuda": 0.8, "cpu": 0.5}
#: What is held is measured; what comes and goes beside it is allowed for.
MARGIN = 1.2
GIB = 2**30


@dataclass(frozen=True)
class HeldBytes:
    """Bytes held for the backward pass, per pass with gradient times their number."""

    prompt_token: float
    """A token of a prompt, its share of the picture included."""
    response: float
    """A response beside its tokens, for each token of its prompt."""
    response_token: float
    """A token of a response."""

    def prompt(self, tokens: int) -> float:
        """Bytes of a prompt."""
        return MARGIN * tokens * self.prompt_token

    def one_response(self, prompt_tokens: int, tokens: int) -> float:
        """Bytes of a response."""
        return MARGIN * (prompt_tokens * self.response + tokens * self.response_token)

    def of(self, prompt_tokens: int, tokens: int) -> float:
        """Bytes of the least that can be learnt from: one prompt and one of its responses."""
        return self.prompt(prompt_tokens) + self.one_response(prompt_tokens, tokens)


def choose_split(setup: "RunSetup", folder: RunFolder) -> BatchSplit:
    """The split of a run: the recipe's own, the one this folder remembers, or one that is measured now.

    Raises:
        ConfigError: C104 where one prompt with one response is more than the memory that may be used.
    """
    if setup.train.micro_batch != "auto":
        return BatchSplit(setup.train.micro_batch)
    student = setup.models.student
    question = {
        "student": student.source,
        "device": str(student.device),
        "precision": str(precision_of(setup.train, student.device)),
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
    found, budget = measure(setup), budget_of(setup)
    split = found.split(budget, question["response_tokens"], folder.path)
    held = {**asdict(found.held), "longest_prompt": found.longest}
    folder.write(
        FILE,
        to_json({"question": question, "split": asdict(split), "held": held}, indent=2, exact=True),
    )
    folder.event(
        f"micro-batches of up to {split.tokens:,} tokens, learnt from in parts of up to {split.part_tokens:,}"
        f" response tokens, inside {budget / GIB:.3g} GiB"
    )
    return split


@dataclass(frozen=True)
class MemoryMeasurement:
    """What one prompt held, and how long the longest one is."""

    held: HeldBytes
    longest: int

    def split(self, budget: float, response_tokens: int, where: Path) -> BatchSplit:
        """The largest split within the limits that stays inside the budget, half of it for prompts."""
        held, longest = self.held, self.longest
        least = held.of(longest, response_tokens)
        if least > budget:
            raise self.impossible(budget, response_tokens, where)
        # a prompt that needs more than half stands alone; with memory to spare the prompts do not need theirs
        for_prompts = max(min(budget / 2, held.prompt(AUTO_TOKENS)), held.prompt(longest))
        tokens = min(AUTO_TOKENS, int(for_prompts / max(1.0, held.prompt(1))))
        part = int((budget - for_prompts) / (MARGIN * held.response_token))
        if part >= 2 * PART_TOKENS:
            return BatchSplit(tokens=tokens, part_tokens=PART_TOKENS)
        overhead = math.ceil(longest * held.response / held.response_token)
        return BatchSplit(tokens=tokens, part_tokens=part, overhead=overhead)

    def impossible(self, budget: float, response_tokens: int, where: Path) -> ConfigError:
        """C104 with what would fit."""
        held, longest = self.held, self.longest
        least = held.of(longest, response_tokens)
        fits = int(
            (budget / MARGIN - longest * (held.prompt_token + held.response)) / held.response_token
        )
        left = (
            budget / MARGIN - response_tokens * held.response_token
        )  # for a shorter prompt with such a response
        shorter = int(left / (held.prompt_token + held.response))
        image = f"     or data.max_image_tokens={shorter // 2}" if shorter >= 16 else ""
        smaller = f"     or rollout.max_new_tokens={fits}" if fits >= 1 else image
        return ConfigError(
            "C104",
            f"{budget / GIB:.3g} GiB do not hold one prompt with one response: {least / GIB:.3g} GiB",
            where=str(where),
            why=f"the longest prompt has {longest:,} tokens, a response up to {response_tokens:,};"
            f"\nmeasured: {held.prompt_token / 1024:,.0f} KiB a prompt token, {held.response_token / 1024:,.0f} KiB"
            " a response token are held for the backward pass",
            fix=f"train.memory={1.05 * least / GIB:.3g}{smaller}",
            note=f"with this prompt responses of {fits:,} tokens would fit"
            if fits >= 1
            else f"such a response would fit beside a prompt of {max(0, shorter):,} tokens",
        )


def longest_response(setup: "RunSetup") -> int:
    """Tokens of the longest response there can be: written ones are looked at, sampled ones are limited."""
    if setup.objective.writer is not Writer.DATA:
        return setup.rollout.max_new_tokens
    return max(
        len(setup.models.student.response_ids(p.response or "")) for p in setup.train_prompts
    )


def measure(setup: "RunSetup") -> MemoryMeasurement:
    """Read the longest of the first prompts with two short responses, one by one, under every view that learns."""
    models = setup.models
    views = [p.view for p in setup.objective.passes() if p.gradient]
    held = {"prompt": 0.0, "short": 0.0, "long": 0.0}
    longest = 1
    for view in views:
        encoded = max(
            (models.encode(p, view) for p in setup.train_prompts[:LOOKED_AT]),
            key=lambda e: (len(e.ids), e.num_image_tokens),
        )
        longest = max(longest, len(encoded.ids))
        for name, amount in measure_one(models.student, encoded, setup).items():
            held[name] += amount
    token = max(1.0, (held["long"] - held["short"]) / (LONG - SHORT))
    fixed = max(0.0, held["short"] - SHORT * token)
    return MemoryMeasurement(HeldBytes(held["prompt"] / longest, fixed / longest, token), longest)


def measure_one(vlm: VLM, prompt: EncodedPrompt, setup: "RunSetup") -> dict[str, float]:
    """Bytes that the prompt, a short response and a longer one hold."""
    word = vlm.stop_ids[0]
    group = EncodedGroup(prompt, ((word,) * SHORT, (word,) * LONG))
    was_training = vlm.model.training
    vlm.model.train()
    found: dict[str, float] = {}
    with autocast(setup.train, vlm.device):
        holding = lambda work: held_bytes(vlm.model, work)
        found["prompt"], reading = holding(lambda: open_reading(vlm, [group], cut=True))
        found["short"], _ = holding(lambda: reading.read([(0, 0)]))
        found["long"], _ = holding(lambda: reading.read([(0, 1)]))
    vlm.model.train(was_training)
    return found


def held_bytes(model: torch.nn.Module, work: Callable[[], Any]) -> tuple[float, Any]:
    """Bytes of everything that is saved for the backward pass of some work, each storage once, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        made = work()
    return float(sum(saved.values())), made


def budget_of(setup: "RunSetup") -> float:
    """Bytes that may be held: the recipe's, or a share of what is free once the optimizer has its own."""
    if setup.train.memory is not None:
        return setup.train.memory * GIB
    device = setup.models.student.device
    learnt = sum(
        p.numel() * p.element_size()
        for p in setup.models.student.model.parameters()
        if p.requires_grad
    )
    free = max(0.0, free_bytes(device) - 3.0 * learnt)  # a gradient and AdamW's two moments
    return SHARE.get(device.type, 0.5) * free


def free_bytes(device: torch.device) -> float:
    """Free memory of a CUDA device, else what the system says is available; unlimited where it does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024.0 * int(
            next(line for line in lines if line.startswith("MemAvailable")).split()[1]
        )
    except (OSError, StopIteration, ValueError):
        return float("inf")
