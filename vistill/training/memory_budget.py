"""`micro_batch: auto`: measure once the memory of a prompt and a response, and store the split.

The measured memory is what autograd saves for the backward pass.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from vistill.functional.row_chunks import CHUNK_BYTES
from vistill.models.checkpointing import (
    can_checkpoint,
    is_checkpointing,
    observing_layers,
    set_checkpointing,
)
from vistill.models.families.base import EncodedPrompt
from vistill.models.flops import LINEAR as CAST_LAYERS
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, GroupReading, cached_tensors, open_reading
from vistill.runs.folder import RunFolder
from vistill.runs.storage import read_json, to_json
from vistill.training.held_bytes import GIB, SHARE, HeldBytes, MemoryMeasurement
from vistill.training.host_memory import free_host_bytes
from vistill.training.micro_batches import BatchSplit
from vistill.training.optimizer_bytes import state_bytes
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
        "frozen": list(setup.train.freeze),
        "recomputes": is_checkpointing(student.model),
    }
    file = folder.path / FILE
    known = (
        read_json(file, question=dict, split={field.name for field in fields(BatchSplit)})
        if file.exists()
        else {}
    )
    earlier = {"frozen": question["frozen"], "recomputes": False}  # versions without these facts
    if known and {**earlier, **known["question"]} == question:
        return BatchSplit(**known["split"])
    measured, budget = measure_memory(setup), memory_budget(setup)
    limit = None if setup.train.memory is not None else memory_limit(setup)
    tokens = question["response_tokens"]

    def fits_recomputed() -> bool:
        again = measure_with_checkpointing(setup)
        return again is not None and again.holds_one(budget, tokens, limit)

    split = measured.choose_split(budget, tokens, folder.path, limit, fits_recomputed)
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


def measure_with_checkpointing(setup: "RunSetup") -> MemoryMeasurement | None:
    """What `train.gradient_checkpointing` would hold; None if it is on, or the student cannot."""
    student = setup.models.student
    if is_checkpointing(student.model) or not can_checkpoint(student):
        return None
    set_checkpointing(student, True)
    try:
        return measure_memory(setup)
    finally:
        set_checkpointing(student, False)


def longest_response(setup: "RunSetup") -> int:
    """Tokens of the longest possible response: the sampling limit, or the longest in the data."""
    if setup.objective.requirements.writer is not Writer.DATA:
        return setup.rollout.max_new_tokens
    return max(
        len(setup.models.student.response_ids(p.response or "")) for p in setup.train_prompts
    )


def measure_memory(setup: "RunSetup") -> MemoryMeasurement:
    """Measure the longest of the first prompts under the view of every pass with gradient.

    Every pass is held until the backward pass, which computes one layer again at a time.
    """
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
    layer = ReadBytes.largest([r.layer for r in readings])
    return MemoryMeasurement(
        HeldBytes(
            sum(r.held.prompt for r in readings) / longest,
            (sum(r.held.response for r in readings) + layer.response) / longest,
            max(1.0, sum(r.held.token for r in readings) + layer.token),
            max(r.copies for r in readings),  # views share them; one without an image has fewer
            layer.prompt / longest,
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
class ReadBytes:
    """Bytes for one prompt and its responses under one view."""

    prompt: float = 0.0
    response: float = 0.0
    """Per response, in addition to its tokens."""
    token: float = 0.0
    """Per token of a response."""

    @classmethod
    def largest(cls, several: "Sequence[ReadBytes]") -> "ReadBytes":
        """The largest of each."""
        return cls(*(max(getattr(x, field.name) for x in several) for field in fields(cls)))


@dataclass(frozen=True)
class ReadingBytes:
    """Bytes that a reading needs for the backward pass."""

    held: ReadBytes
    """What autograd saves."""
    layer: ReadBytes
    """What the largest layer saves while it is computed again (`train.gradient_checkpointing`)."""
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

    def open_prompts(*prompts: EncodedPrompt) -> tuple[SavedBytes, Any]:
        groups = [EncodedGroup(p, responses) for p in prompts]
        saved, reading = saved_bytes(model, lambda: open_reading(vlm, groups, cut=True))
        return saved.with_cache(reading) if is_checkpointing(model) else saved, reading

    model.train()
    with autocast(setup.train, vlm.device):
        several = [open_prompts(*[shortest] * n)[0] for n in (1, 2)] if has_copies else []
        saved, reading = open_prompts(prompt)
        read = [
            saved_bytes(model, lambda indices=indices: reading.read(indices))[0]
            for indices in ([(0, 0)], [(0, 1)], [(0, 1), (0, 2)])
        ]
    model.train(was_training)
    prompts = [x.held for x in (saved, *several)]
    held, of_prompts, of_responses = without_copies(prompts, [x.held for x in read])
    layer, _, _ = without_copies([x.layer for x in (saved, *several)], [x.layer for x in read])
    if is_checkpointing(model):  # the copies are in the cache of autocast, not in the graph
        return ReadingBytes(held, layer, float(bytes_of_copies(model)) * has_copies)
    shared = {key: x for key, x in saved.storages.items() if key in read[0].storages}
    copies = of_prompts + max(0.0, of_responses - total_bytes(shared)) * has_copies
    return ReadingBytes(held, layer, copies)


def without_copies(
    prompts: Sequence[float], responses: Sequence[float]
) -> tuple[ReadBytes, float, float]:
    """Bytes of a prompt and of its responses, and of the copies of weights in each.

    Args:
        prompts: bytes of the longest prompt; with copies also of one and of two short ones.
        responses: bytes of a short response, of a long one, and of two long ones.
    """
    short, long, both = responses
    token = (long - short) / (LONG - SHORT)
    fixed = max(0.0, short - SHORT * token)
    if len(prompts) == 1:
        return ReadBytes(max(0.0, prompts[0]), fixed, token), 0.0, 0.0
    of_prompts = max(0.0, 2.0 * prompts[1] - prompts[2])
    response = max(0.0, both - long - LONG * token)
    bytes_read = ReadBytes(max(0.0, prompts[0] - of_prompts), min(fixed, response), token)
    return bytes_read, of_prompts, max(0.0, fixed - response)


def bytes_of_copies(model: torch.nn.Module) -> int:
    """Bytes of the bf16 copies of trained float32 weights that autocast keeps, without the head."""
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    layers = [m for m in model.modules() if isinstance(m, CAST_LAYERS) and m is not head]
    weights = {id(p): p for m in layers for p in m.parameters(recurse=False) if p.requires_grad}
    return sum(2 * p.numel() for p in weights.values() if p.dtype == torch.float32)


@dataclass(frozen=True)
class SavedBytes:
    """What some work saves for the backward pass."""

    storages: "SavedStorages"
    layer: float = 0.0
    """Bytes that the largest layer saves while it is computed again."""

    @property
    def held(self) -> float:
        """Bytes of all storages."""
        return total_bytes(self.storages)

    def with_cache(self, reading: GroupReading) -> "SavedBytes":
        """With the keys and values of the prompts, which the layers of responses read."""
        caches = [x.untyped_storage() for x in cached_tensors(reading)]
        return SavedBytes({**self.storages, **{x._cdata: x for x in caches}}, self.layer)


def saved_bytes(model: torch.nn.Module, work: Callable[[], Any]) -> tuple[SavedBytes, Any]:
    """What autograd saves during some work, and its result.

    With gradient checkpointing also what layers get, and what the largest one saves besides when it
    is computed again.
    """
    layers: list[float] = [0.0]
    kept: SavedStorages = {}

    def observe(again: Callable[[], Any], others: list[torch.Tensor]) -> None:
        known = {x.untyped_storage()._cdata: x.untyped_storage() for x in others}
        kept.update(known)
        again_saved = saved_storages(model, again)[0]
        layers.append(total_bytes({k: x for k, x in again_saved.items() if k not in known}))

    with observing_layers(observe):
        saved, result = saved_storages(model, work)
    return SavedBytes({**saved, **kept}, max(layers)), result


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
        return x.detach()  # a saved output that refers to its own node would never be freed

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
    if models.student.head(models.vocabulary).rounds_operands:
        head *= 1.5  # its copy in bf16
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
    weights = setup.models.student.model.parameters()
    trained = sum(p.nbytes for p in weights if p.requires_grad)
    readers = {p.reader for p in setup.objective.passes()}
    copies = len(readers & {Reader.EMA, Reader.REFERENCE} - setup.models.copies.keys())
    numbers = sum(p.numel() for p in setup.models.student.model.parameters() if p.requires_grad)
    state = state_bytes(numbers, setup.train.optimizer, setup.precision)
    later = (1.0 + copies) * trained + state  # a gradient each; copies share what is frozen
    return max(0.0, free_bytes(setup.models.student.device) - later)


def free_bytes(device: torch.device, of_host: Callable[[], float] = free_host_bytes) -> float:
    """Free bytes of a CUDA device, else of the host; infinite where the system does not tell."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else of_host()
