"""Encode the prompts of a step before it needs them: in threads, while the step before it runs.

Which prompts a step takes and what their views show follow from its number, so the encodings are
those that the step itself would make, and so is the update. A prompt whose encoding failed is
encoded again by its step, which raises the error in its own place.

Threads suffice: decoding, resizing and tokenising release the interpreter's lock. They share
tokenizers, pictures and plug-ins with the run, so nothing is copied between processes.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch

from vistill.batch import Objective
from vistill.data.images import FileImage
from vistill.data.known_pictures import file_state
from vistill.models.families.base import EncodedPrompt
from vistill.training.models_of_run import EncodingKey, Models, Prepared
from vistill.types import Prompt, Reader, View, Writer

#: Most threads that `auto` takes next to a CUDA device. More would wait for each other.
MOST_WORKERS = 8


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt that a thread has encoded, and the files of its pictures as they were before."""

    encoded: EncodedPrompt
    files: Mapping[Path, str]

    def is_current(self) -> bool:
        """Whether no file has changed since."""
        return all(state_now(path) == state for path, state in self.files.items())


def num_workers(setting: int | Literal["auto"], device: torch.device) -> int:
    """The threads of a setting. `auto` leaves a core to the run; on a CPU one thread is enough."""
    if setting != "auto":
        return setting
    spare = usable_cores() - 1
    return min(spare, 1 if device.type == "cpu" else MOST_WORKERS)


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class EncodingsAhead:
    """The encodings of this step and of the next one.

    Args:
        objective: says who reads a prompt under which view.
        workers: number of threads; 0 leaves all encoding to the steps.
        pin: keep image tensors in page-locked memory, from which a CUDA device copies while it
            computes.
    """

    def __init__(self, objective: Objective, workers: int, pin: bool = False) -> None:
        self.uses = uses_of(objective)
        self.pin = pin
        self.steps: dict[int, dict[EncodingKey, Future[PreparedPrompt]]] = {}
        self.pool = ThreadPoolExecutor(workers, "encode") if workers else None

    def start(self, models: Models, step: int, prompts: Sequence[Prompt]) -> None:
        """Begin to encode the prompts of a step, unless it was begun.

        Args:
            models: as the step sees them (`Models.at_step`).
            step: from 0.
            prompts: of the step.
        """
        if self.pool is None or step in self.steps:
            return
        self.steps[step] = prepared = {}
        if any(not vlm.family.encodes_in_threads for vlm in models.encoders()):
            return
        for view, reader in self.uses:
            for prompt in prompts:
                key = models.key_of(prompt, view, reader)
                if key not in prepared:
                    job = self.pool.submit(self.encode, models, prompt, view, reader)
                    prepared[key] = job

    def encode(
        self, models: Models, prompt: Prompt, view: View | str, reader: Reader
    ) -> PreparedPrompt:
        """Encode one prompt, in a thread."""
        files = {path: state_now(path) for path in files_of(prompt, models.partners)}
        encoded = models.encode_now(prompt, view, reader)
        if self.pin:
            pixels = {name: x.pin_memory() for name, x in encoded.pixels.items()}
            encoded = replace(encoded, pixels=pixels)
        return PreparedPrompt(encoded, files)

    def take(self, step: int) -> Prepared:
        """What finds the encodings of a step. Those of earlier steps are dropped."""
        for earlier in [number for number in self.steps if number < step]:
            del self.steps[earlier]
        jobs = self.steps.get(step, {})

        def find(key: EncodingKey) -> EncodedPrompt | None:
            job = jobs.get(key)
            if job is None or job.exception() is not None:  # waits until it is done
                return None
            prepared = job.result()
            return prepared.encoded if prepared.is_current() else None

        return find

    def forget(self) -> None:
        """Drop everything: the rows of the next steps, or what their views show, have changed."""
        for prepared in self.steps.values():
            for job in prepared.values():
                job.cancel()
        self.steps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


def files_of(prompt: Prompt, partners: Mapping[str, Prompt]) -> set[Path]:
    """The files of all pictures that a view of a prompt may show."""
    partner = partners.get(prompt.id)
    shown = [prompt] if partner is None else [prompt, partner]
    images = [image for one in shown for image in (*one.images, *one.thoughts)]
    return {image.path for image in images if isinstance(image, FileImage)}


def state_now(path: Path) -> str:
    """The state of a file, which another content changes."""
    return file_state(path, settled_ns=0) or "missing"


def uses_of(objective: Objective) -> list[tuple[View | str, Reader]]:
    """Who reads each prompt under which view in a step; the writer comes first."""
    wanted = objective.requirements
    uses = [(p.view, p.reader) for p in objective.passes()]
    if wanted.writer is Writer.STUDENT and wanted.teacher_share == 0:
        uses.insert(0, (wanted.writer_view, Reader.STUDENT))
    return uses
