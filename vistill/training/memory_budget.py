"""`micro_batch: auto`: measure once the memory of a prompt and a response, and store the split.

The measured memory is what autograd saves for the backward pass.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from vistill.functional.row_chunks import CHUNK_BYTES
from vistill.models.adapters import own_parameters
from vistill.models.families.base import EncodedPrompt
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, open_reading
from vistill.runs.folder import RunFolder
from vistill.runs.storage import read_json, to_json
from vistill.training.held_bytes import GIB, SHARE, HeldBytes, MemoryMeasurement
from vistill.training.host_memory import free_host_bytes
from vistill.training.micro_batches import BatchSplit
from vistill.training.precision import autocast, training_dtype
from vistill.types import Reader, Writer

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup

FILE = "memory.json"
#: Prompts among which the longest one is searched.
PROMPTS_TO_SEARCH = 64
#: Bytes of a device that stay unused, for gaps between blocks of the allocator and one layer's
#: temporary tensors.
FOR_ALLOCATOR = 1 << 30
#: Lengths of the two responses that are measured.
SHORT, LONG = 16, 48


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
    limit = None if setup.train.memory is not None else memory_limit(setup)
    split = measured.choose_split(budget, question["response_tokens"], folder.path, limit)
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
    readings = []
    longest = 1
    for view in views:
        of_view = longest_and_shortest(
            models.encode(p, view) for p in setup.train_prompts[:PROMPTS_TO_SEARCH]
        )
        longest = max(longest, len(of_view[0].ids))
        readings.append(measure_prompt(models.student, *of_view, setup))
    return MemoryMeasurement(
        HeldBytes(
            sum(r.prompt for r in readings) / longest,
            sum(r.response for r in readings) / longest,
            max(1.0, sum(r.token for r in readings)),
            max(r.copies for r in readings),  # views share them; one without an image has fewer
        ),
        longest,
        models.student.family.can_limit_image_tokens,
    )


def longest_and_shortest(prompts: Iterable[EncodedPrompt]) -> tuple[EncodedPrompt, EncodedPrompt]:
    """The longest prompt, and the shortest one of its kind: with an image, or without."""
    longest: EncodedPrompt | None = None
    shortest: dict[bool, EncodedPrompt] = {}
    for prompt in prompts:
        size = len(prompt.ids), prompt.num_image_tokens
        if longest is None or size > (len(longest.ids), longest.num_image_tokens):
            longest = prompt
        other = shortest.setdefault(prompt.has_image, prompt)
        if len(prompt.ids) < len(other.ids):
            shortest[prompt.has_image] = prompt
    assert longest is not None, "a run has prompts"
    return longest, shortest[longest.has_image]


@dataclass(frozen=True)
class ReadingBytes:
    """Bytes that autograd saves for one prompt and its responses under one view."""

    prompt: float
    response: float
    """Per response, in addition to its tokens."""
    token: float
    """Per token of a response."""
    copies: float
    """Copies of weights in the precision of the step; the prompt and all responses share them."""


def measure_prompt(
    vlm: VLM, prompt: EncodedPrompt, shortest: EncodedPrompt, setup: "RunSetup"
) -> ReadingBytes:
    """Measure readings of a prompt and of responses in one autocast context, as a step has them.

    The difference between one and two prompts, or responses, is what one of them holds. What is
    left are the copies of weights that autocast makes, once for all readings.

    Args:
        vlm: the student.
        prompt: the longest prompt.
        shortest: a short one with an image if the longest has one. Two of it are read at once.
        setup: of the run.
    """
    token = vlm.stop_ids[0]
    responses = ((token,) * SHORT, (token,) * LONG, (token,) * LONG)
    model, was_training = vlm.model, vlm.model.training
    has_copies = training_dtype(setup.train, vlm.device) is not torch.float32
    of_prompts = 0.0

    def open_prompts(*prompts: EncodedPrompt) -> tuple[SavedStorages, Any]:
        groups = [EncodedGroup(p, responses) for p in prompts]
        return saved_storages(model, lambda: open_reading(vlm, groups, cut=True))

    model.train()
    with autocast(setup.train, vlm.device):
        if has_copies:
            one, two = (total_bytes(open_prompts(*[shortest] * n)[0]) for n in (1, 2))
            of_prompts = max(0.0, 2.0 * one - two)
        saved, reading = open_prompts(prompt)
        short, long, both = (
            saved_storages(model, lambda indices=indices: reading.read(indices))[0]
            for indices in ([(0, 0)], [(0, 1)], [(0, 1), (0, 2)])
        )
    model.train(was_training)
    short_bytes, long_bytes = total_bytes(short), total_bytes(long)
    per_token = (long_bytes - short_bytes) / (LONG - SHORT)
    fixed = max(0.0, short_bytes - SHORT * per_token)
    of_responses = 0.0
    if has_copies:
        per_response = max(0.0, total_bytes(both) - long_bytes - LONG * per_token)
        of_responses, fixed = max(0.0, fixed - per_response), min(fixed, per_response)
    in_both = total_bytes({key: storage for key, storage in saved.items() if key in short})
    return ReadingBytes(
        prompt=max(0.0, total_bytes(saved) - of_prompts),
        response=fixed,
        token=per_token,
        copies=of_prompts + max(0.0, of_responses - in_both),
    )


SavedStorages = dict[int, torch.UntypedStorage]
"""Each storage that autograd saved, by its address in the process."""


def total_bytes(saved: SavedStorages) -> float:
    """Bytes of all storages."""
    return float(sum(storage.nbytes() for storage in saved.values()))


def held_bytes(model: torch.nn.Module, work: Callable[[], Any]) -> tuple[float, Any]:
    """Bytes that autograd saves during some work, and its result: each storage once, no weights."""
    saved, result = saved_storages(model, work)
    return total_bytes(saved), result


def saved_storages(model: torch.nn.Module, work: Callable[[], Any]) -> tuple[SavedStorages, Any]:
    """Each storage that autograd saves during some work, without weights, and its result.

    Storages are named by their address in the process, not by that of their data, so that a model
    without data can be measured. They are kept: a part of the graph that the result does not need
    is freed at once, and the next storage can have the same address.
    """
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: SavedStorages = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = work()
    return saved, result


def memory_budget(setup: "RunSetup") -> float:
    """Bytes for saved tensors: from the recipe, or a share of the memory that will be free."""
    if setup.train.memory is not None:
        return setup.train.memory * GIB
    device = setup.models.student.device
    return SHARE.get(device.type, 0.5) * free_for_step(setup)


def memory_limit(setup: "RunSetup") -> float:
    """Bytes that saved tensors can have at all: the free memory without what the loss needs.

    The loss needs a chunk of logits for each pass, the gradient of the head, and the states of the
    passes without gradient. On a CPU other processes need memory too, so the budget is the limit.
    """
    device = setup.models.student.device
    if device.type == "cpu":
        return 0.0
    models, passes = setup.models, setup.objective.passes()
    scored = [p for p in passes if not p.gradient]
    student: Any = models.student.model.get_output_embeddings()
    head = float(student.weight.numel() * student.weight.element_size())
    rows = setup.train.prompts_per_step * setup.rollout.per_prompt * longest_response(setup)
    states = 0.0
    for p in scored:
        if p.keep != "log_prob":
            teachers = [vlm for _, one in models.by_teacher() if (vlm := one.teacher) is not None]
            readers = teachers if p.reader is Reader.TEACHER else [models.student]
            layers: list[Any] = [vlm.model.get_output_embeddings() for vlm in readers] or [student]
            widths = [one.weight.shape[1] * one.weight.element_size() for one in layers]
            states += rows * max(widths)
    chunks = float(CHUNK_BYTES.get(device.type, 0) * (1 + len(scored)))
    return max(0.0, free_for_step(setup) - head - chunks - states - FOR_ALLOCATOR)


def free_for_step(setup: "RunSetup") -> float:
    """Free bytes after the first step: gradient, moments and copies of the student will exist."""
    weights = own_parameters(setup.models.student.model)  # of a copy too
    trained = sum(p.numel() * p.element_size() for p in weights if p.requires_grad)
    readers = {p.reader for p in setup.objective.passes()}
    copies = len(readers & {Reader.EMA, Reader.REFERENCE} - setup.models.copies.keys())
    later = 3.0 * trained + copies * sum(p.numel() * p.element_size() for p in weights)
    return max(0.0, free_bytes(setup.models.student.device) - later)


def free_bytes(device: torch.device, of_host: Callable[[], float] = free_host_bytes) -> float:
    """Free bytes of a CUDA device, else of the host; infinite where the system does not tell."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else of_host()
