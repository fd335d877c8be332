"""Out of memory: halve the size of a phase and run it again. The update stays the same."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from vistill.errors import RolloutError
from vistill.models.checkpointing import can_checkpoint, is_checkpointing
from vistill.training.models_of_run import Models

Result = TypeVar("Result")

#: More halvings than any batch has rows.
MOST_HALVINGS = 40
#: What each phase is called in messages.
PHASES = {
    "rollout": "writing responses",
    "score": "scoring responses",
    "learn": "computing the gradient",
    "evaluate": "evaluating",
    "update": "measuring or updating",
}


@dataclass
class MemoryRetry:
    """How often each phase was halved; a checkpoint carries it for the resumed run."""

    halvings: dict[str, int] = field(default_factory=dict)
    report: Callable[[str], None] = lambda text: None
    savings: Callable[[str], Sequence[str]] = lambda phase: ()
    """Settings that save memory in a phase and change no number; those that are on are not."""

    def run_halving(
        self, phase: str, sizes: Callable[[int], object], attempt: Callable[[int], Result]
    ) -> Result:
        """Run a phase; each time memory runs out, halve its size and run it again.

        Args:
            phase: a key of `PHASES`.
            sizes: the sizes after a number of halvings; equal sizes mean that nothing is left to
                halve.
            attempt: runs the phase from its beginning with a number of halvings.

        Raises:
            RolloutError: R501, one prompt at a time does not fit either.
        """
        while True:
            times = self.halvings.get(phase, 0)
            try:
                return attempt(times)
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            # outside the handler: its traceback would keep the tensors of the attempt alive
            smaller = next(
                (t for t in range(times + 1, MOST_HALVINGS) if sizes(t) != sizes(times)), None
            )
            if smaller is None:
                raise out_of_memory_error(phase, times, reason, self.savings(phase))
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.halvings[phase] = smaller
            self.report(
                f"out of memory while {PHASES[phase]}: trying again with {2**-smaller:g} of the "
                "first size"
            )


def memory_savings(models: Models, phase: str) -> list[str]:
    """Settings that are off, save memory in a phase, and change no number."""
    student = models.student
    teachers = [vlm for _, one in models.by_teacher() if (vlm := one.teacher) is not None]
    on_device = [vlm for vlm in teachers if vlm.device.type != "cpu" and vlm.offload is None]
    savings = []
    if on_device and (phase != "score" or len(teachers) > 1):  # one teacher must be there to read
        savings.append("train.offload_teacher=true")
    if phase == "learn" and not is_checkpointing(student.model) and can_checkpoint(student):
        savings.append("train.gradient_checkpointing=true")
    return savings


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error comes from the allocator of the GPU, of Python, or of torch on the CPU."""
    return isinstance(
        error, (torch.OutOfMemoryError, MemoryError)
    ) or "can't allocate memory" in str(error)


def out_of_memory_error(
    phase: str, times: int, reason: str, savings: Sequence[str] = ()
) -> RolloutError:
    """R501. Settings that change no number come first in its fix."""
    first = "   or ".join(savings)
    shorter = "in a new run: rollout.max_new_tokens=SMALLER run=NEW"
    smallest = "" if phase == "update" else ", even with one prompt at a time"
    return RolloutError(
        "R501",
        f"out of memory while {PHASES[phase]}{smallest}",
        why=(f"halved {times} times; " if times else "") + reason[:200],
        fix=f"{first}   or {shorter}" if first else shorter,
        note="nothing is lost: the same command continues from the newest checkpoint, "
        "on a larger device too",
    )
