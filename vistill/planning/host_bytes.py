"""Bytes of a run in host memory. Needs no torch."""

from vistill.planning.activations import FLOAT
from vistill.planning.memory import Memory

#: Bytes of a checkpoint's copy in host memory over those of the checkpoint: torch rounds each
#: tensor of page-locked memory up to a power of two (1.3 for the 2B).
SNAPSHOT_FACTOR = 1.3


def host_bytes(memory: Memory) -> dict[str, float]:
    """Host memory: an offloaded teacher, the images of a step under every view, a snapshot."""
    work, student, patches = memory.work, memory.student, 0
    for view in {str(p.view) for p in work.passes}:
        patches += work.prompts * work.patches(student, view)
    values = student.vision.patch_values if student.vision else 0
    offloaded = 0.0
    if memory.teacher is not None and memory.is_offloaded:
        offloaded = sum(memory.all_weights())
    snapshot = SNAPSHOT_FACTOR * memory.checkpoint_bytes() * work.recipe.save.background
    return {
        "teacher": offloaded,
        "views": float(FLOAT * patches * values),
        "snapshot": snapshot,
    }
