"""Out of memory: halve the size of a phase and run it again. The update stays the same."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from vistill.errors import RolloutError

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
                raise out_of_memory_error(phase, times, reason)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.halvings[phase] = smaller
            self.report(
                f"out of memory while {PHASES[phase]}: trying again with {2**-smaller:g} of the "
                "first size"
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error comes from the allocator of the GPU, of Python, or of torch on the CPU."""
    return isinstance(
        error, (torch.OutOfMemoryError, MemoryError)
    ) or "can't allocate memory" in str(error)


def out_of_memory_error(phase: str, times: int, reason: str) -> RolloutError:
    """R501."""
    smallest = "" if phase == "update" else ", even with one prompt at a time"
    return RolloutError(
        "R501",
        f"out of memory while {PHASES[phase]}{smallest}",
        why=(f"halved {times} times; " if times else "") + reason[:200],
        fix="train.offload_teacher=true   or in a new run: rollout.max_new_tokens=SMALLER run=NEW",
        note="nothing is lost: the same command continues from the newest checkpoint, "
        "on a larger device too",
    )
