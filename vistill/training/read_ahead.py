"""The teacher reads finished groups while others are still written (`train.overlap`).

It reads the micro-batches that the scoring phase would read, with the same tokens in the same
order, so every number has the same bits. A micro-batch is known once its groups and the next one
are finished. What was not read early, or in other parts, is read by the scoring phase.

On a CUDA device a thread reads on a stream of its own; elsewhere reading and writing alternate.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from vistill.batch import ScoredPass
from vistill.errors import DataError
from vistill.models.scoring import EncodedGroup, score
from vistill.training.micro_batches import BatchSplit, halve_micro_batches
from vistill.training.models_of_run import Models
from vistill.training.oom import is_out_of_memory
from vistill.types import Pass, Prompt, Reader, RolloutGroup

Ids = tuple[tuple[int, ...], ...]
Known = Callable[[Pass, Sequence[int]], ScoredPass | None]


@dataclass(frozen=True)
class StepToRead:
    """The prompts of a step as its passes see them, and how the scoring phase cuts them."""

    models: Models
    passes: Sequence[Pass]
    """Of the teacher, without gradient."""
    encoded: dict[str, list[EncodedGroup]]
    """By `Models.encoding_key`, without responses."""
    order: dict[str, int]
    """The place of each prompt, by id."""
    split: BatchSplit
    halvings: int
    ids: dict[int, Ids] = field(default_factory=dict)
    """The responses of finished groups, by place."""

    def micro_batches(self) -> list[list[int]]:
        """The micro-batches that no other group can change any more."""
        count = next(i for i in range(len(self.order) + 1) if i not in self.ids)
        longest = max(self.encoded.values(), key=lambda gs: sum(len(g.prompt.ids) for g in gs))
        sizes = [EncodedGroup(longest[g].prompt, self.ids[g]).num_tokens for g in range(count)]
        return halve_micro_batches(self.split.micro_batches(sizes)[:-1], self.halvings)

    def groups(self, p: Pass, part: Sequence[int]) -> list[EncodedGroup]:
        """Some finished groups as a pass sees them."""
        encoded = self.encoded[self.models.encoding_key(p.view, p.reader)]
        return [EncodedGroup(encoded[g].prompt, self.ids[g]) for g in part]


class ReadAhead:
    """Reads groups of the current step early.

    Args:
        device: of the models.
        precision: the context in which the passes read.
        enabled: whether anything is read early.
    """

    def __init__(
        self,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[object]],
        enabled: bool,
    ) -> None:
        self.device, self.precision, self.enabled = device, precision, enabled
        self.step: StepToRead | None = None
        self.read: dict[tuple[str, tuple[int, ...]], tuple[Ids, Future[ScoredPass]]] = {}
        self.stream: Any = None
        self.pool: ThreadPoolExecutor | None = None
        if enabled and device.type == "cuda":
            self.stream, self.pool = torch.cuda.Stream(device), ThreadPoolExecutor(1, "read")

    def begin(
        self,
        models: Models,
        prompts: Sequence[Prompt],
        passes: Sequence[Pass],
        split: BatchSplit,
        halvings: int,
    ) -> None:
        """Begin a step. Several teachers, and one in host memory, read after the rollouts."""
        self.forget()
        own = [p for p in passes if not p.gradient and p.reader is Reader.TEACHER]
        teacher = models.teacher
        if not self.enabled or not own or teacher is None or teacher.offload is not None:
            return
        try:
            encoded = {
                models.encoding_key(p.view, p.reader): [
                    EncodedGroup(models.encode(prompt, p.view, p.reader), ()) for prompt in prompts
                ]
                for p in passes
            }
        except DataError:  # the step encodes the row again and raises the error in its place
            return
        order = {prompt.id: place for place, prompt in enumerate(prompts)}
        self.step = StepToRead(models, own, encoded, order, split, halvings)

    def forget(self) -> None:
        """Drop the step and what was read: it is scored, or another one begins."""
        self.restart()
        self.step = None

    def restart(self) -> None:
        """Drop what was read, and what is not read yet: the responses are written again."""
        for _, job in self.read.values():
            job.cancel()
        self.read.clear()
        if self.step is not None:
            self.step.ids.clear()

    def receive(self, group: RolloutGroup) -> None:
        """Take a finished group, and read the micro-batches that it completes."""
        step = self.step
        if step is None:
            return
        step.ids[step.order[group.prompt.id]] = tuple(r.ids for r in group.rollouts)
        if len(step.ids) == len(step.order):
            return  # nothing is written any more
        for part in step.micro_batches():
            for p in step.passes:
                key = (p.name, tuple(part))
                if key not in self.read:
                    ids = tuple(response for g in part for response in step.ids[g])
                    self.read[key] = ids, self.submit(p, step.groups(p, part), step.models)

    def submit(self, p: Pass, groups: list[EncodedGroup], models: Models) -> "Future[ScoredPass]":
        """Read some groups, here or in the thread."""
        if self.pool is not None:
            return self.pool.submit(self.score, p, groups, models)
        done: Future[ScoredPass] = Future()
        try:
            done.set_result(self.score(p, groups, models))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            done.set_exception(error)
        return done

    @torch.no_grad()
    def score(self, p: Pass, groups: list[EncodedGroup], models: Models) -> ScoredPass:
        """One pass over some groups, as `score_without_gradient` reads them."""
        on_stream = nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
        with on_stream, self.precision():
            flat = [i for group in groups for response in group.responses for i in response]
            ids = torch.tensor(flat).to(self.device)
            return score(models.reader(p.reader), groups, ids, models.vocabulary, p.keep)

    def known(self, groups: Sequence[RolloutGroup]) -> Known:
        """What finds the early readings of these groups."""

        def find(p: Pass, part: Sequence[int]) -> ScoredPass | None:
            ids, job = self.read.get((p.name, tuple(part)), ((), None))
            current = tuple(r.ids for g in part for r in groups[g].rollouts)
            if job is None or ids != current or is_failed(job):
                return None
            return self.on_current_stream(job.result())

        return find

    def on_current_stream(self, scored: ScoredPass) -> ScoredPass:
        """A reading, ready for the stream that uses it."""
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for tensor in (scored.log_prob, scored.hidden):
                if tensor is not None:
                    tensor.record_stream(current)
        return scored

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


def is_failed(job: "Future[ScoredPass]") -> bool:
    """Whether memory ran out: the scoring phase reads again, in smaller parts if it must."""
    error = job.exception()
    if error is not None and not is_out_of_memory(error):
        raise error
    return error is not None
