"""Bytes of a run in host memory. Needs no torch."""

from vistill.planning.activations import FLOAT
from vistill.planning.memory import Memory

#: Bytes of page-locked memory over those of its tensors: torch rounds each one up to a power of two
#: (1.3 for the weights of the 2B).
LOCKED_FACTOR = 1.3


def host_bytes(memory: Memory) -> dict[str, float]:
    """Host memory: an offloaded teacher, the images of steps under every view, a snapshot.

    With threads that encode ahead (`train.workers`) two steps are there, in page-locked memory.
    """
    work, student, patches = memory.work, memory.student, 0
    for view in {str(p.view) for p in work.passes}:
        patches += work.prompts * work.patches(student, view)
    values = student.vision.patch_values if student.vision else 0
    steps = 1.0 if work.recipe.train.workers == 0 else 2 * LOCKED_FACTOR
    offloaded = 0.0
    if memory.teacher is not None and memory.is_offloaded:
        offloaded = sum(memory.all_weights())
    snapshot = LOCKED_FACTOR * memory.checkpoint_bytes() * work.recipe.save.background
    return {
        "teacher": offloaded,
        "views": float(FLOAT * patches * values) * steps,
        "snapshot": snapshot,
    }
