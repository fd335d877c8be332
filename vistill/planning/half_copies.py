"""Bytes of copies in bf16: of the student for writing, and of its head for the loss."""

from vistill.planning.activations import FLOAT, HALF
from vistill.planning.lora import BITS, adapted_parts
from vistill.planning.shapes import ModelShape
from vistill.planning.workload import Workload


def writes_in_half(work: Workload, is_half: bool) -> bool:
    """Whether the student writes with a copy in bf16 (`rollout.weights`)."""
    setting = work.recipe.rollout.weights
    wanted = setting == "bf16" or (setting == "auto" and is_half)
    return wanted and work.recipe.student.precision not in BITS


def writing_copy(work: Workload, student: ModelShape, is_half: bool, size: int) -> float:
    """The copy of the student while it writes.

    Frozen weights that are bf16 already are shared; adapters are merged into weights of their own.

    Args:
        work: of the run.
        student: shape.
        is_half: whether a step runs in bf16.
        size: bytes of a value of the student.
    """
    if not writes_in_half(work, is_half):
        return 0.0
    if work.lora is None or size == FLOAT:
        return float(HALF * student.parameters.total)
    parts = adapted_parts(work.lora)
    vision = sum(getattr(student.parameters, part) for part in parts - {"language"})
    return float(HALF * (vision + student.linear_weights * ("language" in parts)))


def rounded_head(work: Workload, student: ModelShape, is_half: bool, size: int) -> float:
    """The student's head in bf16, with which the loss multiplies (`train.head_precision`)."""
    setting = work.recipe.train.head_precision
    is_rounded = setting == "bf16" or (setting == "auto" and is_half)
    return float(HALF * student.head_weights if is_rounded and size == FLOAT else 0)
