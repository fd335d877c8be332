"""Out of memory: halve what a phase takes at a time, remember it, try again. The update stays the same."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from vistill.errors import RolloutError

Made = TypeVar("Made")

#: More halvings than anything has rows.
MOST_HALVINGS = 40
#: What each phase is called in messages.
PHASES = {
    "rollout": "writing responses",
    "score": "scoring responses",
    "learn": "learning from responses",
    "evaluate": "evaluating",
    "update": "measuring or updating",
}


@dataclass
class MemoryRetry:
    """How often each phase was halved; a checkpoint carries it, so that a resumed run starts where this one got to."""

    halvings: dict[str, int] = field(default_factory=dict)
    say: Callable[[str], None] = lambda text: None

    def run_halving(
        self, phase: str, sizes: Callable[[int], object], attempt: Callable[[int], Made]
    ) -> Made:
        """Try a phase with what it takes at a time halved so many times, once more each time memory runs out.

        Args:
            phase: a key of `PHASES`.
            sizes: what would be taken at a time after so many halvings; equal sizes mean that nothing is left to halve.
            attempt: does the phase from its beginning.

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
            following = next(
                (t for t in range(times + 1, MOST_HALVINGS) if sizes(t) != sizes(times)), None
            )
            if following is None:
                raise out_of_memory_error(phase, times, reason)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.halvings[phase] = following
            self.say(
                f"out of memory while {PHASES[phase]}: halved to {2**-following:g} of what it took at a time"
            )


def is_out_of_memory(error: BaseException) -> bool:
    """A GPU's error, Python's, or the words of the CPU allocator."""
    return isinstance(
        error, (torch.OutOfMemoryError, MemoryError)
    ) or "can't allocate memory" in str(error)


def out_of_memory_error(phase: str, times: int, reason: str) -> RolloutError:
    """R501."""
    return RolloutError(
        "R501",
        f"out of memory while {PHASES[phase]}"
        + ("" if phase == "update" else ", one prompt at a time too"),
        why=(f"halved {times} times; " if times else "") + reason[:200],
        fix="train.offload_teacher=true   or in a new run: rollout.max_new_tokens=512 run=NEW",
        note="nothing is lost: the same command goes on from the newest checkpoint, on a larger device too",
    )


def halve_micro_batches(micro_batches: Sequence[list[int]], times: int) -> list[list[int]]:
    """Every micro-batch cut into halves so many times; one prompt stays one prompt."""
    parts = [list(part) for part in micro_batches]
    for _ in range(times):
        middles = [(len(part) + 1) // 2 for part in parts]
        halves = [
            half for part, m in zip(parts, middles, strict=True) for half in (part[:m], part[m:])
        ]
        parts = [half for half in halves if half]
    return parts
